"""How well a map's interval (its p05 and p95 bands) fits the truth: coverage, width and interval score.

The interval score (Gneiting and Raftery 2007, section 6.2) is the width, plus 2 / 0.1 metres for each metre by which
the truth lies outside: the smaller, the better, so that neither wide nor overconfident intervals win.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.bootstrap import draw_batches, percentile_interval
from canopy.evaluation.metrics import HEIGHT_CLASSES_M, Floats, Heights, class_bounds, class_name
from canopy.evaluation.residuals import Interval
from canopy.evaluation.truth_grid import ClusterNumbers, TruthGrid

LEVEL = 0.9
"""Share of the truth that the interval claims to contain."""
LOW_BAND, HIGH_BAND = "canopy_height_p05", "canopy_height_p95"


@dataclass(frozen=True)
class IntervalScores:
    """How well intervals fit the truth; None without cells."""

    n_px: int
    """Number of cells, or of shots."""
    coverage: float | None
    """Share of the truth within the interval."""
    width_m: float | None
    """Mean width, metres."""
    interval_score_m: float | None
    """Mean interval score, metres."""


@dataclass(frozen=True)
class IntervalConfidence:
    """95 % confidence intervals of the figures of `IntervalScores`; None where there are too few clusters."""

    coverage: Interval | None
    """Interval of the coverage."""
    width_m: Interval | None
    """Interval of the mean width, metres."""
    interval_score_m: Interval | None
    """Interval of the mean interval score, metres."""


@dataclass(frozen=True)
class IntervalResult:
    """Scores of a map's interval over all cells and by height of the truth."""

    scores: IntervalScores
    """Scores over all cells."""
    confidence: IntervalConfidence
    """Confidence intervals of the scores."""
    by_height: dict[str, IntervalScores]
    """Scores by class of true height."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "level": LEVEL,
            **asdict(self.scores),
            "by_height": {name: asdict(row) for name, row in self.by_height.items()},
            "ci": asdict(self.confidence),
        }


@dataclass(frozen=True)
class IntervalTotals:
    """Sums of an interval against truth; they add up over rasters."""

    clusters: Floats
    """(C, 4) sums over the cells of each cluster with any: number, number inside, width, interval score."""
    classes: Floats
    """(K, 4) the same sums by class of true height."""

    def __add__(self, other: "IntervalTotals") -> "IntervalTotals":
        return IntervalTotals(np.concatenate([self.clusters, other.clusters]), self.classes + other.classes)

    def result(self) -> IntervalResult:
        """Return the scores of all ground together, with their confidence."""
        count = len(self.clusters)
        draws = [draw @ self.clusters for draw in draw_batches(count)] if count else [np.empty((0, 4))]
        # Each figure is a mean: its sum over the number of cells that the replicate drew.
        replicates = np.concatenate(draws)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = replicates[:, 1:] / replicates[:, :1]
        names = [field.name for field in fields(IntervalConfidence)]
        confidence = {name: percentile_interval(means[:, k], count) if count else None for k, name in enumerate(names)}
        by_height = {
            class_name(*bounds): _scores(row) for bounds, row in zip(class_bounds(), self.classes, strict=True)
        }
        return IntervalResult(_scores(self.classes.sum(axis=0)), IntervalConfidence(**confidence), by_height)


class IntervalSums:
    """Sums of one raster's interval, to which windows are added."""

    def __init__(self, grid: TruthGrid) -> None:
        self._grid = grid
        self._numbers = ClusterNumbers.of(grid)
        self._clusters = np.zeros((self._numbers.count, 4))
        self._classes = np.zeros((len(HEIGHT_CLASSES_M) - 1, 4))

    def add(self, low: Heights, high: Heights, truth: Heights, row0: int, col0: int) -> None:
        """Add a window (h, w) whose first cell is (row0, col0); metres, NaN where not scored."""
        valid = ~(np.isnan(low) | np.isnan(high) | np.isnan(truth))
        rows = self._grid.blocks(0, row0, row0 + truth.shape[0])
        cols = self._grid.blocks(1, col0, col0 + truth.shape[1])
        columns = interval_columns(low[valid], high[valid], np.maximum(truth[valid], 0))
        cluster = self._numbers.at_blocks(rows, cols)[valid]
        rank = height_ranks(truth[valid])
        for k, column in enumerate(columns):
            self._clusters[:, k] += np.bincount(cluster, column, len(self._clusters))
            self._classes[:, k] += np.bincount(rank, column, len(self._classes))

    def totals(self) -> IntervalTotals:
        """Return the sums of the windows added so far."""
        return IntervalTotals(self._clusters[self._clusters[:, 0] > 0], self._classes.copy())


def interval_columns(low_m: Sequence[float] | NDArray[Any], high_m: NDArray[Any], truth_m: NDArray[Any]) -> Floats:
    """Return what scores of intervals add up, (4, n): 1, whether inside, width and interval score in metres."""
    low, high, truth = (np.asarray(values, np.float64) for values in (low_m, high_m, truth_m))
    # Gneiting and Raftery 2007, equation 43, with alpha = 1 - LEVEL.
    below, above = np.maximum(low - truth, 0), np.maximum(truth - high, 0)
    width = high - low
    score = width + 2 / (1 - LEVEL) * (below + above)
    return np.stack([np.ones_like(width), ((below == 0) & (above == 0)).astype(np.float64), width, score])


def score_intervals(low_m: NDArray[Any], high_m: NDArray[Any], truth_m: NDArray[Any]) -> IntervalScores:
    """Return the scores of intervals (n,) against a truth (n,), metres, finite."""
    return _scores(interval_columns(low_m, high_m, truth_m).sum(axis=1))


def height_ranks(truth_m: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of the height class of each height; heights below 0 count as 0."""
    return np.asarray(np.searchsorted(HEIGHT_CLASSES_M, np.maximum(truth_m, 0), side="right") - 1, np.int64)


def _scores(sums: Floats) -> IntervalScores:
    n = int(sums[0])
    if not n:
        return IntervalScores(0, None, None, None)
    coverage, width_m, score_m = (float(value) for value in sums[1:] / sums[0])
    return IntervalScores(n, coverage, width_m, score_m)
