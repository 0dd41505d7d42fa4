"""The metrics of canopy height, as sums over ground. One definition each; nothing else in Canopy scores heights.

Everything is kept per cluster of ground (sums) and per centimetre of truth (a histogram), so that rasters are scored
window by window, results merge, and clusters can be drawn again for confidence intervals.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Heights = NDArray[np.float32]
Floats = NDArray[np.float64]

HEIGHT_CLASSES_M = (0.0, 1.0, 5.0, 10.0, 15.0, 20.0, 30.0, np.inf)
BLOCK_M = 30.0
CLUSTER_M = 120.0
MAX_CLUSTERS = 8192

# Columns of the sums of a cluster: over cells, then over blocks.
_N, _PRED, _TRUTH, _ABS, _SQUARE, _TRUTH2, _EDGE, _EDGES, _BLOCKS, _BLOCK_T, _BLOCK_T2, _BLOCK_SQ = range(12)
_COLUMNS = 12
_CM = 65536  # bins of the histogram of truth: whole centimetres
_LADDER_M = np.concatenate([np.arange(0, 1, 0.1), np.arange(1, 10, 0.5), np.arange(10, 40), np.arange(40, 100, 5.0)])
_STEP_OF_CM = np.searchsorted(_LADDER_M, (np.arange(_CM) + 0.5) / 100, side="right") - 1
_FLAT = 1e-12  # a spread below this share of the squares is rounding


@dataclass(frozen=True)
class Ground:
    """Where the cells of an array lie: metres along its CRS from the CRS origin, y growing southward."""

    shape: tuple[int, int]
    cell_m: tuple[float, float]
    """Height and width of a cell, metres."""
    corner_m: tuple[float, float] = (0.0, 0.0)
    """y and x of the upper-left corner, metres. An array without a place begins at the origin."""

    def blocks(self, axis: int, start: int, stop: int) -> NDArray[np.int64]:
        """Block number of the rows (axis 0) or columns (axis 1) `start` to `stop`, by their centres."""
        centres_m = self.corner_m[axis] + (np.arange(start, stop) + 0.5) * self.cell_m[axis]
        return np.asarray(np.floor(centres_m / BLOCK_M), np.int64)

    @property
    def cluster_blocks(self) -> int:
        """Blocks along a cluster's side: 120 m, doubled until the clusters are few enough to be kept."""
        side = round(CLUSTER_M / BLOCK_M)
        while math.prod(len(self._clusters(axis, side)) for axis in (0, 1)) > MAX_CLUSTERS:
            side *= 2
        return side

    def clusters(self, axis: int) -> range:
        """Cluster numbers that rows (axis 0) or columns (axis 1) touch."""
        return self._clusters(axis, self.cluster_blocks)

    def _clusters(self, axis: int, side: int) -> range:
        first = int(self.blocks(axis, 0, 1)[0])
        last = int(self.blocks(axis, self.shape[axis] - 1, self.shape[axis])[0])
        return range(first // side, last // side + 1)


@dataclass(frozen=True)
class Totals:
    """What is known of a prediction against truth; adds up over rasters.

    Attributes:
        clusters: (C, 12) sums over the cells and blocks of each cluster that holds any.
        ladder: (C, L, 2) number and sum of truth in steps of height, each cluster.
        histogram: (65536, 4) number, sum of truth, of error and of absolute error, by centimetre of truth.
    """

    clusters: Floats
    ladder: Floats
    histogram: Floats

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            np.concatenate([self.clusters, other.clusters]),
            np.concatenate([self.ladder, other.ladder]),
            self.histogram + other.histogram,
        )

    def metrics(self) -> dict[str, Any]:
        """mae_m, rmse_m, bias_m, r2, block_r2, edge_error, skill, n_px, by_height; n_px alone if nothing is known."""
        sums = self.clusters.sum(axis=0)
        if not sums[_N]:
            return {"n_px": 0}
        made = scores(sums, self.constant_error())
        return {
            **{name: float(value) if np.isfinite(value) else None for name, value in made.items()},
            "n_px": int(sums[_N]),
            "by_height": _by_height(self.histogram),
        }

    def constant_error(self) -> np.float64:
        """Least sum of absolute errors of a constant, among whole centimetres."""
        steps = np.arange(_CM) / 100
        return np.float64(_deviations(self.histogram[:, 0], self.histogram[:, 1], steps).min())

    def cluster_deviations(self) -> Floats:
        """(C, L) sum of the absolute errors of each constant of the ladder, each cluster."""
        return _deviations(self.ladder[..., 0], self.ladder[..., 1], _LADDER_M)


class HeightSums:
    """Adds up windows of one raster."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._side = ground.cluster_blocks
        self._rows, self._cols = ground.clusters(0), ground.clusters(1)
        count = len(self._rows) * len(self._cols)
        self._clusters = np.zeros((count, _COLUMNS))
        self._ladder = np.zeros((count * len(_LADDER_M), 2))
        self._histogram = np.zeros((_CM, 4))

    def add(self, pred: Heights, truth: Heights, row0: int, col0: int) -> None:
        """Add a window of whole blocks.

        Args:
            pred: (h + 2, w + 2) metres, NaN where unknown: the window and one cell around it (NaN off the raster).
            truth: Likewise.
            row0: Row of the window's first cell in the raster.
            col0: Its column.
        """
        p, t = _known(pred, truth)
        edge, edges = _edges(p, t)
        p, t = p[1:-1, 1:-1], t[1:-1, 1:-1]
        rows = self._ground.blocks(0, row0, row0 + p.shape[0])
        cols = self._ground.blocks(1, col0, col0 + p.shape[1])
        known = ~np.isnan(p)
        self._add_blocks([known, p, t, np.abs(p - t), (p - t) ** 2, t * t, edge, edges], rows, cols)
        here = self._cluster_numbers(rows, cols)
        self._add_histograms(p[known], t[known], here[known])

    def totals(self) -> Totals:
        """What was added so far."""
        held = self._clusters[:, _N] > 0
        ladder = self._ladder.reshape(len(held), -1, 2)
        return Totals(self._clusters[held], ladder[held], self._histogram.copy())

    def _add_blocks(self, cells: Sequence[NDArray[Any]], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> None:
        row_starts, col_starts = (np.flatnonzero(np.diff(axis, prepend=axis[0] - 1)) for axis in (rows, cols))
        sums = np.stack([_reduce(values, row_starts, col_starts) for values in cells], axis=-1)
        full = sums[..., _N] * math.prod(self._ground.cell_m) > BLOCK_M**2 / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            p, t = (np.where(full, sums[..., column] / sums[..., _N], 0) for column in (_PRED, _TRUTH))
        whole = np.concatenate([sums, np.stack([full, t, t * t, (p - t) ** 2], axis=-1)], axis=-1)
        where = self._cluster_numbers(rows[row_starts], cols[col_starts])
        np.add.at(self._clusters, where.ravel(), whole.reshape(-1, _COLUMNS))

    def _add_histograms(self, pred: Floats, truth: Floats, cluster: NDArray[np.int64]) -> None:
        cm = np.minimum(truth * 100, _CM - 1).astype(np.int64)
        error = pred - truth
        for column, weights in enumerate((None, truth, error, np.abs(error))):
            self._histogram[:, column] += np.bincount(cm, weights, _CM)
        step = cluster * len(_LADDER_M) + _STEP_OF_CM[cm]
        for column, weights in enumerate((None, truth)):
            self._ladder[:, column] += np.bincount(step, weights, len(self._ladder))

    def _cluster_numbers(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
        row, col = rows // self._side - self._rows.start, cols // self._side - self._cols.start
        return row[:, None] * len(self._cols) + col


def height_metrics(pairs: Sequence[tuple[Heights, Heights]], resolution_m: float) -> dict[str, Any]:
    """Score predictions against truth, pooled over rasters.

    Truth below 0 counts as 0; cells unknown (NaN) in either are left out. Definitions: bias = mean(pred - truth);
    block-R2 is the R2 of means over 30 m blocks covered more than half; edge error = sum|S(p) - S(t)| /
    (sum S(p) + sum S(t)) with S the Sobel magnitude, where all neighbours are known; skill = 1 - MAE / MAE of the
    best constant (the median, to a centimetre). Blocks begin at the arrays' corner.

    Args:
        pairs: (pred_m, truth_m) of equal shape (H, W), metres, NaN where unknown.
        resolution_m: Cell size, metres.

    Returns:
        mae_m, rmse_m, bias_m, r2, block_r2, edge_error, skill, n_px, by_height.
    """
    totals = [array_totals(pred, truth, resolution_m) for pred, truth in pairs if pred.size]
    return reduce(Totals.__add__, totals).metrics() if totals else {"n_px": 0}


def array_totals(pred: Heights, truth: Heights, resolution_m: float) -> Totals:
    """Sums of one pair of arrays without a place; arguments as of `height_metrics`."""
    if pred.shape != truth.shape:
        raise ValueError(f"prediction {pred.shape} and truth {truth.shape} differ in shape")
    sums = HeightSums(Ground((pred.shape[0], pred.shape[1]), (resolution_m, resolution_m)))
    wide_pred, wide_truth = (np.pad(heights, 1, constant_values=np.nan) for heights in (pred, truth))
    sums.add(wide_pred, wide_truth, 0, 0)
    return sums.totals()


def scores(sums: Floats, constant_error: Floats | np.float64) -> dict[str, Floats]:
    """Metrics from sums of cells and blocks; NaN where undefined.

    Args:
        sums: (..., 12) sums, as the columns of `Totals.clusters`.
        constant_error: (...) least sum of absolute errors of a constant.
    """
    n, pred, truth, absolute, square, truth2, edge, edges, blocks, block_t, block_t2, block_sq = np.moveaxis(
        sums, -1, 0
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = _r2(square, n, truth, truth2)
        return {
            "mae_m": absolute / n,
            "rmse_m": np.sqrt(square / n),
            "bias_m": (pred - truth) / n,
            "r2": r2,
            "block_r2": _r2(block_sq, blocks, block_t, block_t2),
            "edge_error": edge / edges,
            "skill": np.where(np.isnan(r2), np.nan, 1 - absolute / constant_error),
        }


def class_name(low_m: float, high_m: float) -> str:
    """Name of a height class: 1-5, 30+."""
    return f"{low_m:g}-{high_m:g}" if np.isfinite(high_m) else f"{low_m:g}+"


def _known(pred: Heights, truth: Heights) -> tuple[Floats, Floats]:
    p, t = pred.astype(np.float64), np.maximum(truth.astype(np.float64), 0)
    unknown = np.isnan(p) | np.isnan(t)
    p[unknown] = t[unknown] = np.nan
    return p, t


def _edges(pred: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """|S(p) - S(t)| and S(p) + S(t) of the cells within the halo, S the Sobel magnitude; NaN by an unknown cell."""
    p, t = _sobel(pred), _sobel(truth)
    # The kernel's middle has no weight, but an unknown cell has no edge.
    p[np.isnan(pred[1:-1, 1:-1])] = np.nan
    return np.abs(p - t), p + t


def _sobel(heights: Floats) -> Floats:
    down = heights[2:] - heights[:-2]
    right = heights[:, 2:] - heights[:, :-2]
    return np.hypot(
        down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:],
        right[:-2] + 2 * right[1:-1] + right[2:],
    )


def _reduce(values: NDArray[Any], row_starts: NDArray[np.int64], col_starts: NDArray[np.int64]) -> Floats:
    """Sums over blocks of rows and columns that begin at the given indices; NaN counts nothing."""
    known = values.astype(np.float64) if values.dtype == bool else np.nan_to_num(values, nan=0.0)
    return np.asarray(np.add.reduceat(np.add.reduceat(known, row_starts, axis=0), col_starts, axis=1))


def _r2(square: Floats, n: Floats, truth: Floats, truth2: Floats) -> Floats:
    spread = truth2 - truth**2 / n
    return np.asarray(np.where((n > 1) & (spread > _FLAT * truth2), 1 - square / spread, np.nan))


def _deviations(counts: Floats, sums: Floats, lower: Floats) -> Floats:
    """Sum of |value - m| for every lower edge m of the bins, exact: (..., bins)."""
    below_n, below = np.cumsum(counts, axis=-1) - counts, np.cumsum(sums, axis=-1) - sums
    n, total = counts.sum(axis=-1, keepdims=True), sums.sum(axis=-1, keepdims=True)
    return np.asarray(total - 2 * below + lower * (2 * below_n - n))


def _by_height(histogram: Floats) -> dict[str, dict[str, float | int | None]]:
    table: dict[str, dict[str, float | int | None]] = {}
    for low, high in itertools.pairwise(HEIGHT_CLASSES_M):
        n, _, error, absolute = histogram[int(low * 100) : int(min(high * 100, _CM))].sum(axis=0)
        table[class_name(low, high)] = {
            "n_px": int(n),
            "mae_m": float(absolute / n) if n else None,
            "bias_m": float(error / n) if n else None,
        }
    return table
