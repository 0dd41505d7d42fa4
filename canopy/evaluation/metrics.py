"""The metrics of canopy height, as sums over ground. One definition each; nothing else in Canopy scores heights.

Everything is kept per cluster of ground (sums) and per centimetre of truth (a histogram), so that rasters are scored
window by window, results merge, and clusters can be drawn again for confidence intervals.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.residuals import from_sums, r2_from_sums
from canopy.evaluation.truth_grid import BLOCK_M, ClusterNumbers, TruthGrid

Heights = NDArray[np.float32]
Floats = NDArray[np.float64]

HEIGHT_CLASSES_M = (0.0, 1.0, 5.0, 10.0, 15.0, 20.0, 30.0, np.inf)

# The histogram is by centimetre, so that the median (behind the skill) and the height classes are exact; a cluster
# keeps the coarser ladder, because each replicate of the bootstrap chooses its own constant.
_CM = 65536  # bins of the histogram of truth: whole centimetres
_LADDER_M = np.concatenate([np.arange(0, 1, 0.1), np.arange(1, 10, 0.5), np.arange(10, 40), np.arange(40, 100, 5.0)])
_STEP_OF_CM = np.searchsorted(_LADDER_M, (np.arange(_CM) + 0.5) / 100, side="right") - 1


class Column(IntEnum):
    """Columns of a cluster's sums: over its cells, then over its blocks."""

    N = 0
    PREDICTION = 1
    TRUTH = 2
    ABSOLUTE = 3
    SQUARE = 4
    TRUTH2 = 5
    EDGE_DIFFERENCE = 6
    EDGE_SUM = 7
    BLOCKS = 8
    BLOCK_TRUTH = 9
    BLOCK_TRUTH2 = 10
    BLOCK_SQUARE = 11


@dataclass(frozen=True)
class ClassScores:
    """Scores of the cells of one class of true height."""

    n_px: int
    """Number of cells."""
    mae_m: float | None
    """Mean absolute error, metres; None without cells."""
    bias_m: float | None
    """Mean of prediction less truth, metres; None without cells."""


@dataclass(frozen=True)
class ScoreArrays:
    """The seven metrics of many samples at once, arrays of one shape; NaN where undefined."""

    mae_m: Floats
    """Mean absolute errors, metres."""
    rmse_m: Floats
    """Root mean square errors, metres."""
    bias_m: Floats
    """Means of prediction less truth, metres."""
    r2: Floats
    """R² of cells."""
    block_r2: Floats
    """R² of the means of 30 m blocks that are known by more than half."""
    edge_error: Floats
    """Sum of |S(p) - S(t)| over the sum of S(p) + S(t), S the Sobel magnitude."""
    skill: Floats
    """1 - MAE / MAE of the best constant."""


METRICS = tuple(field.name for field in fields(ScoreArrays))


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction against truth; a metric is None where it is undefined."""

    mae_m: float | None = None
    """Mean absolute error, metres."""
    rmse_m: float | None = None
    """Root mean square error, metres."""
    bias_m: float | None = None
    """Mean of prediction less truth, metres."""
    r2: float | None = None
    """R² of cells."""
    block_r2: float | None = None
    """R² of the means of 30 m blocks that are known by more than half."""
    edge_error: float | None = None
    """Sum of |S(p) - S(t)| over the sum of S(p) + S(t), S the Sobel magnitude."""
    skill: float | None = None
    """1 - MAE / MAE of the best constant."""
    n_px: int = 0
    """Number of cells."""
    by_height: dict[str, ClassScores] | None = None
    """Scores by class of true height; None without cells."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON; the number of cells alone where there is none."""
        return asdict(self) if self.n_px else {"n_px": 0}


@dataclass(frozen=True)
class Totals:
    """Sums of a prediction against truth; they add up over rasters."""

    clusters: Floats
    """(C, 12) sums over the cells and blocks of each cluster with any, in the order of `Column`."""
    ladder: Floats
    """(C, L, 2) number and sum of truth in steps of height, each cluster."""
    histogram: Floats
    """(65536, 4) number, sum of truth, of error and of absolute error, by centimetre of truth."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            np.concatenate([self.clusters, other.clusters]),
            np.concatenate([self.ladder, other.ladder]),
            self.histogram + other.histogram,
        )

    def scores(self) -> Scores:
        """Return the scores of all ground together."""
        sums = self.clusters.sum(axis=0)
        if not sums[Column.N]:
            return Scores()
        # Squares are summed as they are, not around a mean: heights reach 100 m, and float64 has 15 digits.
        arrays = score_arrays(sums, self.constant_error())
        metrics = {name: float(value) for name in METRICS if np.isfinite(value := getattr(arrays, name))}
        return Scores(**metrics, n_px=int(sums[Column.N]), by_height=_by_height(self.histogram))

    def constant_error(self) -> np.float64:
        """Return the least sum of absolute errors of a constant, among whole centimetres."""
        steps = np.arange(_CM) / 100
        return np.float64(_deviations(self.histogram[:, 0], self.histogram[:, 1], steps).min())

    def cluster_deviations(self) -> Floats:
        """Return the sum of the absolute errors of each constant of the ladder in each cluster: (C, L)."""
        return _deviations(self.ladder[..., 0], self.ladder[..., 1], _LADDER_M)


class HeightSums:
    """Sums of one raster, to which windows are added."""

    def __init__(self, grid: TruthGrid) -> None:
        self._grid = grid
        self._numbers = ClusterNumbers.of(grid)
        self._clusters = np.zeros((self._numbers.count, len(Column)))
        self._ladder = np.zeros((self._numbers.count * len(_LADDER_M), 2))
        self._histogram = np.zeros((_CM, 4))

    def add(self, pred: Heights, truth: Heights, row0: int, col0: int) -> None:
        """Add a window of whole blocks.

        Args:
            pred: (h + 2, w + 2) metres, NaN where unknown: the window and one cell around it (NaN off the raster).
            truth: (h + 2, w + 2) metres, NaN where unknown, on the same cells.
            row0: Row of the window's first cell in the raster.
            col0: Column of the window's first cell in the raster.
        """
        # The halo serves the Sobel kernel alone; it is cut off before anything is counted.
        p, t = _valid_in_both(pred, truth)
        edge_difference, edge_sum = _edges(p, t)
        p, t = p[1:-1, 1:-1], t[1:-1, 1:-1]
        rows = self._grid.blocks(0, row0, row0 + p.shape[0])
        cols = self._grid.blocks(1, col0, col0 + p.shape[1])
        valid = ~np.isnan(p)
        # The order of `Column`.
        cells = [valid, p, t, np.abs(p - t), (p - t) ** 2, t * t, edge_difference, edge_sum]
        self._add_blocks(cells, rows, cols)
        clusters = self._numbers.at_blocks(rows, cols)
        self._add_histograms(p[valid], t[valid], clusters[valid])

    def totals(self) -> Totals:
        """Return the sums of the windows added so far."""
        # Clusters without a cell would be drawn too, and thin out each replicate.
        occupied = self._clusters[:, Column.N] > 0
        ladder = self._ladder.reshape(len(occupied), -1, 2)
        return Totals(self._clusters[occupied], ladder[occupied], self._histogram.copy())

    def _add_blocks(self, cells: Sequence[NDArray[Any]], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> None:
        """Add what cells sum up to, by cell and by the means of their blocks."""
        row_starts, col_starts = (np.flatnonzero(np.diff(axis, prepend=axis[0] - 1)) for axis in (rows, cols))
        sums = np.stack([_reduce(values, row_starts, col_starts) for values in cells], axis=-1)
        # A block counts where more than half of its 900 m2 is known.
        full = sums[..., Column.N] * math.prod(self._grid.cell_m) > BLOCK_M**2 / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            p, t = (
                np.where(full, sums[..., column] / sums[..., Column.N], 0)
                for column in (Column.PREDICTION, Column.TRUTH)
            )
        # After the sums over cells, in the order of `Column`: blocks, their truth, its square, their squared error.
        whole = np.concatenate([sums, np.stack([full, t, t * t, (p - t) ** 2], axis=-1)], axis=-1)
        clusters = self._numbers.at_blocks(rows[row_starts], cols[col_starts])
        # Several blocks share a cluster: add.at counts each, where += would keep the last.
        np.add.at(self._clusters, clusters.ravel(), whole.reshape(-1, len(Column)))

    def _add_histograms(self, pred: Floats, truth: Floats, cluster: NDArray[np.int64]) -> None:
        """Add cells to the histogram by centimetre and to the ladders of their clusters."""
        cm = np.minimum(truth * 100, _CM - 1).astype(np.int64)
        error = pred - truth
        for column, weights in enumerate((None, truth, error, np.abs(error))):
            self._histogram[:, column] += np.bincount(cm, weights, _CM)
        step = cluster * len(_LADDER_M) + _STEP_OF_CM[cm]
        for column, weights in enumerate((None, truth)):
            self._ladder[:, column] += np.bincount(step, weights, len(self._ladder))


def height_metrics(pairs: Sequence[tuple[Heights, Heights]], resolution_m: float) -> Scores:
    """Score predictions against truth, pooled over rasters.

    Truth below 0 counts as 0; cells unknown (NaN) in either are left out. Definitions: bias = mean(pred - truth);
    block-R2 is the R2 of means over 30 m blocks covered more than half; edge error = sum|S(p) - S(t)| /
    (sum S(p) + sum S(t)) with S the Sobel magnitude, where all neighbours are known; skill = 1 - MAE / MAE of the
    best constant (the median, to a centimetre). Blocks begin at the arrays' corner.

    Args:
        pairs: (pred_m, truth_m) of equal shape (H, W), metres, NaN where unknown.
        resolution_m: Cell size, metres.
    """
    totals = [array_totals(pred, truth, resolution_m) for pred, truth in pairs if pred.size]
    return reduce(Totals.__add__, totals).scores() if totals else Scores()


def array_totals(pred: Heights, truth: Heights, resolution_m: float) -> Totals:
    """Return the sums of one pair of arrays without a georeference.

    Args:
        pred: (H, W) metres, NaN where unknown.
        truth: (H, W) metres, NaN where unknown.
        resolution_m: Cell size, metres.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction {pred.shape} and truth {truth.shape} differ in shape")
    sums = HeightSums(TruthGrid((pred.shape[0], pred.shape[1]), (resolution_m, resolution_m)))
    wide_pred, wide_truth = (np.pad(heights, 1, constant_values=np.nan) for heights in (pred, truth))
    sums.add(wide_pred, wide_truth, 0, 0)
    return sums.totals()


def score_arrays(sums: Floats, constant_error: Floats | np.float64) -> ScoreArrays:
    """Return the metrics of samples of which only sums are kept; NaN where undefined.

    Args:
        sums: (..., 12) sums in the order of `Column`.
        constant_error: (...) least sum of absolute errors of a constant.
    """
    column = {name: sums[..., name] for name in Column}
    n, truth, truth2 = column[Column.N], column[Column.TRUTH], column[Column.TRUTH2]
    absolute = column[Column.ABSOLUTE]
    residuals = from_sums(n, absolute, column[Column.PREDICTION] - truth, column[Column.SQUARE], truth, truth2)
    block_r2 = r2_from_sums(
        column[Column.BLOCK_SQUARE], column[Column.BLOCKS], column[Column.BLOCK_TRUTH], column[Column.BLOCK_TRUTH2]
    )
    # Flat ground has neither edges nor spread: 0 / 0 is NaN, which becomes null.
    with np.errstate(invalid="ignore", divide="ignore"):
        edge_error = column[Column.EDGE_DIFFERENCE] / column[Column.EDGE_SUM]
        skill = np.where(np.isnan(residuals.r2), np.nan, 1 - absolute / constant_error)
    return ScoreArrays(residuals.mae_m, residuals.rmse_m, residuals.bias_m, residuals.r2, block_r2, edge_error, skill)


def class_bounds() -> list[tuple[float, float]]:
    """Return the least and the largest height of each class, metres."""
    return list(itertools.pairwise(HEIGHT_CLASSES_M))


def class_name(low_m: float, high_m: float) -> str:
    """Return the name of a height class: 1-5, 30+."""
    return f"{low_m:g}-{high_m:g}" if np.isfinite(high_m) else f"{low_m:g}+"


def _valid_in_both(pred: Heights, truth: Heights) -> tuple[Floats, Floats]:
    """Return both as float64, the truth at least 0, NaN where either is unknown."""
    # Lidar over bare ground scatters around 0: what lies below is noise of the ground, not a pit.
    p, t = pred.astype(np.float64), np.maximum(truth.astype(np.float64), 0)
    unknown = np.isnan(p) | np.isnan(t)
    p[unknown] = t[unknown] = np.nan
    return p, t


def _edges(pred: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """Return |S(p) - S(t)| and S(p) + S(t) of the cells within the halo; NaN by an unknown cell."""
    p, t = _sobel(pred), _sobel(truth)
    # The kernel's middle has no weight, but an unknown cell has no edge.
    p[np.isnan(pred[1:-1, 1:-1])] = np.nan
    return np.abs(p - t), p + t


def _sobel(heights: Floats) -> Floats:
    """Return the Sobel magnitude of the cells within the halo."""
    # Sobel's kernel: differences over two cells, weighted 1, 2, 1 across.
    down = heights[2:] - heights[:-2]
    right = heights[:, 2:] - heights[:, :-2]
    return np.hypot(
        down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:],
        right[:-2] + 2 * right[1:-1] + right[2:],
    )


def _reduce(values: NDArray[Any], row_starts: NDArray[np.int64], col_starts: NDArray[np.int64]) -> Floats:
    """Return sums over blocks of rows and columns that begin at the given indices; NaN counts nothing."""
    numbers = values.astype(np.float64) if values.dtype == bool else np.nan_to_num(values, nan=0.0)
    return np.asarray(np.add.reduceat(np.add.reduceat(numbers, row_starts, axis=0), col_starts, axis=1))


def _deviations(counts: Floats, sums: Floats, lower: Floats) -> Floats:
    """Return the sum of |value - m| for every lower edge m of the bins, exact: (..., bins)."""
    # Values below m add m - value, those above value - m; each bin's values are known by their number and sum.
    below_n, below = np.cumsum(counts, axis=-1) - counts, np.cumsum(sums, axis=-1) - sums
    n, total = counts.sum(axis=-1, keepdims=True), sums.sum(axis=-1, keepdims=True)
    return np.asarray(total - 2 * below + lower * (2 * below_n - n))


def _by_height(histogram: Floats) -> dict[str, ClassScores]:
    """Return the scores of each height class."""
    table = {}
    for low, high in class_bounds():
        n, _, error, absolute = histogram[int(low * 100) : int(min(high * 100, _CM))].sum(axis=0)
        means = (float(absolute / n), float(error / n)) if n else (None, None)
        table[class_name(low, high)] = ClassScores(int(n), *means)
    return table
