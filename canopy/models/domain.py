"""Whether imagery looks like a model's training images, so that clouds are not mapped without a warning.

A chip is described by its colours, contrast and sharpness, and compared by its Mahalanobis distance from the chips of
the training. That notices clouds, snow, swapped bands, infrared in place of red, and woods of unfamiliar colours; it
does not notice other trees under the same colours, nor blur, nor mild haze.
"""

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from canopy.models.bundle import Domain

Image = NDArray[np.float32]
Floats = NDArray[np.float64]
LEAST_VALID_SHARE = 0.5
"""Least share of a chip's pixels that must be valid for the chip to be judged."""
ROW_STEP = 4
"""Every fourth row is judged: all of them would take a tenth of a map's time and give the same statistics."""
INSIDE_SHARE = 0.995
"""Share of the training chips within the limit."""
SLACK = 1.5
"""Factor on the distance of these chips: training chips are few, and another season is no other domain."""
OUTSIDE_SHARE = 0.05
"""More of the imagery outside the model's domain is worth a warning."""

_LOG = logging.getLogger(__name__)


def chip_statistics(image: Image) -> Floats | None:
    """Return colours, contrast and sharpness of a chip.

    Args:
        image: (3, H, W) in [0, 1], NaN where unknown.

    Returns:
        (8,): mean and logarithm of the deviation of each channel, mean saturation, logarithm of the mean step between
        neighbouring pixels; None where fewer pixels are valid than `LEAST_VALID_SHARE`.
    """
    image = image[:, ::ROW_STEP]
    valid = ~np.isnan(image[0])
    if valid.mean() < LEAST_VALID_SHARE:
        return None
    pixels = image if valid.all() else image[:, valid]
    pixels = pixels.reshape(3, -1)
    steps = np.abs(np.diff(image, axis=2))
    step = float(np.nanmean(steps)) if np.isfinite(steps).any() else 0.0
    saturation = (pixels.max(axis=0) - pixels.min(axis=0)).mean()
    deviation = pixels.std(axis=1, dtype=np.float64)
    mean = pixels.mean(axis=1, dtype=np.float64)
    # About a grey level of 8 bits, and a quarter of one, keep the logarithms finite for an image of one colour.
    return np.array([*mean, *np.log(deviation + 0.005), saturation, np.log(step + 0.001)])


def fit_domain(chips: Iterable[Image]) -> Domain:
    """Return the domain of training chips (3, H, W) in [0, 1]."""
    rows = np.stack([row for chip in chips if (row := chip_statistics(chip)) is not None])
    mean = rows.mean(axis=0)
    # The ridge keeps the inverse finite where a statistic does not vary: its deviation counts as .01 at least.
    covariance = np.cov(rows.T) + 1e-4 * np.eye(rows.shape[1])
    precision = np.linalg.inv(covariance).astype(np.float64)
    limit = SLACK * float(np.quantile(_distances(rows, mean, precision), INSIDE_SHARE))
    return Domain(mean=tuple(mean), precision=tuple(tuple(row) for row in precision), limit=limit)


def _distances(rows: Floats, mean: Floats, precision: Floats) -> Floats:
    """Return the Mahalanobis distance of each row: sqrt((x - mean)' precision (x - mean))."""
    offset = rows - mean
    return np.asarray(np.sqrt(np.einsum("ni,ij,nj->n", offset, precision, offset)))


def is_outside(domain: Domain, statistics: Floats) -> bool:
    """Return whether a chip with these statistics (8,) lies outside a domain."""
    distances = _distances(statistics[None], np.array(domain.mean), np.array(domain.precision))
    return bool(distances[0] > domain.limit)


class DomainCheck:
    """Counts chips of a map's imagery inside and outside a model's domain.

    Args:
        domain: Domain of the model.
        chip_px: Side of the chips that are judged, pixels.

    Attributes:
        judged: Number of chips judged.
        outside: Number of judged chips that lie outside the domain.
    """

    def __init__(self, domain: Domain, chip_px: int) -> None:
        self._mean, self._precision = np.array(domain.mean), np.array(domain.precision)
        self._limit, self._chip_px = domain.limit, chip_px
        self.judged = self.outside = 0

    def look(self, image: Image) -> None:
        """Judge an image (3, H, W) in [0, 1], NaN where unknown, chip by chip."""
        side = self._chip_px
        # A remainder of half a chip and less is not judged alone.
        rows, cols = (range(0, max(1, length - side // 2), side) for length in image.shape[1:])
        chips = (image[:, row : row + side, col : col + side] for row in rows for col in cols)
        statistics = [values for chip in chips if (values := chip_statistics(chip)) is not None]
        if statistics:
            self.judged += len(statistics)
            self.outside += int((_distances(np.stack(statistics), self._mean, self._precision) > self._limit).sum())

    @property
    def share(self) -> float:
        """Share of the judged chips that lie outside."""
        return self.outside / self.judged if self.judged else 0.0


def warn_outside(check: DomainCheck, model: str) -> bool:
    """Log a warning where much of a map's imagery lies outside a model's domain, and return whether it does.

    Args:
        check: Chips that were judged.
        model: Name of the model.
    """
    if check.share <= OUTSIDE_SHARE:
        return False
    _LOG.warning(
        "%.0f %% of the imagery looks unlike what %s was trained on (clouds, snow, another season or sensor?): "
        "do not trust heights there unchecked",
        100 * check.share,
        model,
    )
    return True
