"""What the page and its figures call the two sides: a prediction against the truth, or one map against another."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Texts of a page."""

    page: str
    """Name of the file."""
    title: str
    """Title and heading."""
    cells: str
    """Which cells count, after their number."""
    note: str
    """What the figures mean, after the note on their intervals."""
    classes: str
    """Title of the table by height."""
    intervals: str
    """Title of the table of intervals."""
    captions: Mapping[str, str]
    """Texts below the figures: maps, scatter, errors."""
    prediction: str
    """Name of the first side."""
    truth: str
    """Name of the second side."""
    axes: tuple[str, str]
    """Names of the heights of the second and of the first side."""

    @property
    def difference(self) -> str:
        """Name of the first side less the second."""
        return f"{self.prediction} − {self.truth}"


_INTERVALS = (
    "Below each figure, its 95 % interval from drawing the $clusters clusters of $cluster_m m, with replacement, 1,000 "
    "times; it covers the sampling of this ground, not other forests. Block R² compares means of 30 m blocks. "
)

EVALUATION = Wording(
    page="evaluation.html",
    title="Canopy height against lidar",
    cells="known in the truth and in every prediction",
    note=_INTERVALS + "Edge error is 0 for perfect crown outlines and 1 for none. Skill is the share of the error that "
    "the map removes from the best single height.",
    classes="Mean absolute error (bias), metres, by height of the truth",
    intervals="The map's own 90 % interval: coverage, width and interval score; coverage by height of the truth",
    captions={
        "maps": "Scored cells only, averaged over the map's pixels; blank where unknown or masked. "
        "Red is predicted too high, blue too low; errors beyond 15 m keep the end colours.",
        "scatter": "Each square counts cells, on a logarithmic ramp. Below the dashed line predictions are too low. "
        "A median that flattens shows where the map no longer separates tall trees.",
        "errors": "Median, quartiles, and whiskers at 5 and 95 % of the error; below, the share of scored cells.",
    },
    prediction="prediction",
    truth="truth",
    axes=("true height, m", "predicted height, m"),
)

COMPARISON = Wording(
    page="comparison.html",
    title="Two canopy height maps compared",
    cells="known in both maps",
    note=_INTERVALS + "Edge error is 0 where crown outlines agree. Skill is the share of the spread of B that A "
    "repeats. Neither map is the truth: agreement is no proof of accuracy.",
    classes="Mean absolute difference (A − B), metres, by height in B",
    intervals="A's 90 % interval: share of B's heights within it, width and interval score; share by height in B",
    captions={
        "maps": "Cells known in both maps, averaged over the picture's pixels. Red where A is higher, blue where B is; "
        "differences beyond 15 m keep the end colours.",
        "scatter": "Each square counts cells, on a logarithmic ramp. Below the dashed line A is lower than B.",
        "errors": "Median, quartiles, and whiskers at 5 and 95 % of the difference; below, the share of cells.",
    },
    prediction="A",
    truth="B",
    axes=("height in B, m", "height in A, m"),
)
