"""What the report draws, gathered while windows pass: counts by height and small maps, of bounded size."""

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.metrics import HEIGHT_CLASSES_M, Floats, Heights
from canopy.evaluation.truth_grid import TruthGrid

MAP_PX = 700
HEIGHT_STEP_M, HEIGHTS = 0.5, 160
ERROR_STEP_M, ERRORS = 0.1, 1600


class Pictures:
    """Accumulators behind the figures of one prediction."""

    cells_per_px: int
    """Cells of the truth along a pixel of the maps."""
    px_m: float
    """Width of a pixel of the maps, metres."""
    joint: NDArray[np.int64]
    """(160, 160) cells by truth (rows) and prediction, steps of 0.5 m."""
    errors: NDArray[np.int64]
    """(classes, 1600) cells by height class and error, steps of 0.1 m around 0."""

    def __init__(self, grid: TruthGrid) -> None:
        self.cells_per_px = max(1, -(-max(grid.shape) // MAP_PX))
        self.px_m = grid.cell_m[1] * self.cells_per_px
        self.joint = np.zeros((HEIGHTS, HEIGHTS), np.int64)
        self.errors = np.zeros((len(HEIGHT_CLASSES_M) - 1, ERRORS), np.int64)
        shape = tuple(-(-side // self.cells_per_px) for side in grid.shape)
        self._maps = np.zeros((3, *shape))

    def add(self, pred: Heights, truth: Heights, row0: int, col0: int) -> None:
        """Add a window (h, w) whose first cell is (row0, col0); NaN where not scored."""
        valid = ~(np.isnan(pred) | np.isnan(truth))
        p, t = pred[valid].astype(np.float64), truth[valid].astype(np.float64)
        t_step, p_step = (np.clip(heights / HEIGHT_STEP_M, 0, HEIGHTS - 1).astype(np.int64) for heights in (t, p))
        self.joint += _count(t_step, p_step, self.joint.shape)
        # What exceeds the ends of a histogram is counted in its last bin.
        rank = np.searchsorted(HEIGHT_CLASSES_M, t, side="right") - 1
        error = np.clip((p - t) / ERROR_STEP_M + ERRORS / 2, 0, ERRORS - 1).astype(np.int64)
        self.errors += _count(rank, error, self.errors.shape)
        rows, cols = (
            np.arange(start, start + size) // self.cells_per_px
            for start, size in zip((row0, col0), truth.shape, strict=True)
        )
        for layer, values in enumerate((valid, np.where(valid, truth, 0), np.where(valid, pred, 0))):
            self._maps[layer, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += _pixel_sums(values, rows, cols)

    def maps(self) -> tuple[Floats, Floats]:
        """Return (truth_m, pred_m), means over the pixels of the maps, NaN where nothing was scored."""
        count, truth, pred = self._maps
        with np.errstate(invalid="ignore", divide="ignore"):
            return truth / count, pred / count

    def error_quantiles(self, shares: tuple[float, ...]) -> Floats:
        """Return (classes, shares) error in metres below which a share of the cells lies; NaN without cells."""
        quantiles_m = np.full((len(self.errors), len(shares)), np.nan)
        for rank, counts in enumerate(self.errors):
            quantiles_m[rank] = _quantiles(counts, shares, ERROR_STEP_M, -ERRORS / 2 * ERROR_STEP_M)
        return quantiles_m

    def median_prediction(self, fewest: int = 30) -> tuple[Floats, Floats]:
        """Return (truth_m, median of the predictions_m) for the steps of truth with enough cells."""
        steps = np.flatnonzero(self.joint.sum(axis=1) >= fewest)
        medians = [_quantiles(self.joint[step], (0.5,), HEIGHT_STEP_M, 0.0)[0] for step in steps]
        return np.asarray((steps + 0.5) * HEIGHT_STEP_M, np.float64), np.array(medians, np.float64)


def _count(row: NDArray[np.int64], col: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return how often each pair of row and column occurs."""
    return np.bincount(row * shape[1] + col, minlength=shape[0] * shape[1]).reshape(shape)


def _pixel_sums(values: NDArray[np.generic], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Floats:
    """Return the sums of cells over the pixels of the maps; `rows` and `cols` are the pixels of the cells."""
    starts = [np.flatnonzero(np.diff(axis, prepend=axis[0] - 1)) for axis in (rows, cols)]
    wide = values.astype(np.float64)
    return np.asarray(np.add.reduceat(np.add.reduceat(wide, starts[0], axis=0), starts[1], axis=1))


def _quantiles(counts: NDArray[np.int64], shares: tuple[float, ...], step: float, first: float) -> Floats:
    """Return the quantiles of a histogram whose bins are `step` wide and begin at `first`."""
    if not counts.sum():
        return np.full(len(shares), np.nan)
    # Linear within a bin, as if its cells were spread evenly.
    cumulative = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    edges = first + np.arange(len(counts) + 1) * step
    return np.asarray(np.interp(shares, cumulative, edges), np.float64)
