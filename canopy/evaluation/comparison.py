"""Predictions against one truth, window by window, on the cells known in all of them."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from canopy.errors import EvaluationError
from canopy.evaluation.intervals import ScoreIntervals, confidence_intervals
from canopy.evaluation.metrics import Heights, HeightSums, Scores, Totals
from canopy.evaluation.pictures import Pictures
from canopy.evaluation.rasters import RegriddedHeights, mask_on, overlap, require_mask, require_north_up, truth_grid
from canopy.evaluation.truth_grid import BLOCK_M, TruthGrid
from canopy.progress import Progress, Report, ignore
from tiles.heights import UNITS_M, HeightRaster, open_heights, open_raster
from tiles.windows import PixelWindow

WINDOW_PX = 1024
_CACHE_MB = 256
_FEET_MEDIAN_M = 45.0
_TALL_M = 2.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Scores of one prediction, with their intervals."""

    scores: Scores
    """Metrics and errors by height class."""
    intervals: ScoreIntervals
    """95 % intervals of the metrics."""
    clusters: int
    """Number of clusters that the intervals are drawn from."""
    cluster_m: float
    """Side of a cluster, metres."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            **self.scores.to_json(),
            "ci": asdict(self.intervals),
            "ci_clusters": self.clusters,
            "ci_cluster_m": self.cluster_m,
        }


@dataclass(frozen=True)
class Comparison:
    """Predictions scored against one truth."""

    results: dict[str, Result]
    """Result of each prediction, by its path."""
    grid: TruthGrid
    """Scored part of the truth's grid."""
    window: PixelWindow
    """Scored part, in the truth's cells."""
    crs: str
    """Name of the truth's CRS."""
    pictures: dict[str, Pictures]
    """What the report draws of each prediction, by its path; empty unless asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the result of the one prediction, or the results of each by its path, as JSON."""
        results = {path: result.to_json() for path, result in self.results.items()}
        return results if len(results) > 1 else next(iter(results.values()))


def evaluate(
    predictions: Sequence[Path],
    truth: Path,
    *,
    mask: Path | None = None,
    truth_unit: str | None = None,
    window_px: int = WINDOW_PX,
    draw: bool = False,
    report: Report = ignore,
) -> Comparison:
    """Score height maps against a canopy height model.

    Predictions are brought to the truth's grid. A cell counts where the truth and all predictions are known and the
    mask is zero. Memory follows `window_px`, not the rasters.

    Args:
        predictions: Rasters of heights, any grid.
        truth: Raster of heights, north-up.
        mask: Raster, nonzero where excluded; any grid.
        truth_unit: Unit of the truth (m, cm or ft), in place of what its file says.
        window_px: Side of a window, cells of the truth; changes no result.
        draw: Whether to gather what the report's figures need.
        report: Called after each window.

    Raises:
        EvaluationError: No common ground, nothing known, or rasters that cannot be scored together.
        RasterError: A file is damaged or no raster of heights.
    """
    if truth_unit is not None and truth_unit not in UNITS_M:
        raise EvaluationError(f"--truth-unit {truth_unit!r}: m, cm or ft expected")
    if len(set(predictions)) < len(predictions):
        raise EvaluationError("a prediction is named twice: each once expected")
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_MB))
        rasters = _Rasters.open(files, predictions, truth, mask, truth_unit)
        sums = [HeightSums(rasters.grid) for _ in predictions]
        pictures = [Pictures(rasters.grid) for _ in predictions] if draw else []
        windows = list(_windows(rasters.grid, window_px))
        scored_px = 0
        for number, window in enumerate(windows, 1):
            _add_window(rasters, window, sums, pictures)
            scored_px += window.height * window.width
            all_px = int(np.prod(rasters.grid.shape))
            report(Progress(scored_px / 1e6, all_px / 1e6, "Mpx", f"window {number}/{len(windows)}"))
        totals = [part.totals() for part in sums]
        crs = rasters.truth.dataset.crs.to_string()
    _check(totals[0], truth)
    results = {str(path): _result(part, rasters.grid) for path, part in zip(predictions, totals, strict=True)}
    by_path = dict(zip(results, pictures, strict=True)) if draw else {}
    return Comparison(results, rasters.grid, rasters.window, crs, by_path)


@dataclass(frozen=True)
class _Rasters:
    """The open files, on the common part of the truth's grid."""

    truth: HeightRaster
    predictions: tuple[RegriddedHeights, ...]
    mask: tuple[Path, DatasetReader] | None
    window: PixelWindow
    grid: TruthGrid

    @classmethod
    def open(
        cls, files: ExitStack, predictions: Sequence[Path], truth: Path, mask: Path | None, unit: str | None
    ) -> "_Rasters":
        reference = files.enter_context(open_heights(truth, unit=unit, remedy="--truth-unit"))
        maps = [files.enter_context(open_heights(path)) for path in predictions]
        for raster in (reference, *maps):
            require_north_up(raster.path, raster.dataset)
        excluded = (mask, files.enter_context(open_raster(mask))) if mask is not None else None
        if excluded is not None:
            require_mask(*excluded)
        window = overlap(reference.dataset, [raster.dataset for raster in maps])
        if window is None:
            names = ", ".join(str(path) for path in predictions)
            raise EvaluationError(f"no common ground: {names} and {truth} do not all overlap")
        regridded = tuple(RegriddedHeights(raster, reference.dataset) for raster in maps)
        return cls(reference, regridded, excluded, window, truth_grid(reference.dataset, window))

    def read(self, window: PixelWindow) -> tuple[Heights, list[Heights]]:
        """Return truth and predictions over a window of the scored part; the truth is unknown where one of them is."""
        on_truth = PixelWindow(self.window.row0 + window.row0, self.window.col0 + window.col0, *window.shape)
        truth = self.truth.read(on_truth)
        predictions = [prediction.read(on_truth) for prediction in self.predictions]
        unknown = np.isnan(truth) | np.logical_or.reduce([np.isnan(heights) for heights in predictions])
        unknown |= _outside(window, self.grid.shape)
        if self.mask is not None:
            unknown |= mask_on(*self.mask, self.truth.dataset, on_truth)
        truth[unknown] = np.nan
        return truth, predictions


def _add_window(
    rasters: _Rasters, window: PixelWindow, sums: Sequence[HeightSums], pictures: Sequence[Pictures]
) -> None:
    truth, predictions = rasters.read(window.pad(1))
    for part, heights in zip(sums, predictions, strict=True):
        part.add(heights, truth, window.row0, window.col0)
    inside = truth[1:-1, 1:-1]
    for picture, heights in zip(pictures, predictions, strict=bool(pictures)):
        picture.add(heights[1:-1, 1:-1], np.maximum(inside, 0), window.row0, window.col0)


def _outside(window: PixelWindow, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the cells of a window beyond the scored part."""
    rows, cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
    return np.asarray(((rows < 0) | (rows >= shape[0]))[:, None] | ((cols < 0) | (cols >= shape[1])))


def _windows(grid: TruthGrid, window_px: int) -> Iterator[PixelWindow]:
    """Yield windows of whole blocks."""
    rows, cols = (_cuts(grid, axis, window_px) for axis in (0, 1))
    for row0, row1 in itertools.pairwise(rows):
        for col0, col1 in itertools.pairwise(cols):
            yield PixelWindow(row0, col0, row1 - row0, col1 - col0)


def _cuts(grid: TruthGrid, axis: int, window_px: int) -> list[int]:
    """Return the rows (axis 0) or columns (axis 1) where windows begin, and the end."""
    blocks = grid.blocks(axis, 0, grid.shape[axis])
    step = max(1, int(window_px * grid.cell_m[axis] / BLOCK_M))
    # Groups of blocks may begin anywhere: a block is whole in one of them.
    return [0, *(np.flatnonzero(np.diff(blocks // step)) + 1).tolist(), len(blocks)]


def _result(totals: Totals, grid: TruthGrid) -> Result:
    return Result(totals.scores(), confidence_intervals(totals), len(totals.clusters), grid.cluster_m)


def _check(totals: Totals, truth: Path) -> None:
    """Refuse a comparison without a cell, and warn of heights that look like feet."""
    if not len(totals.clusters):
        raise EvaluationError(
            f"nothing to score: no cell of {truth} is known in truth and all predictions and left by the mask"
        )
    tall = totals.histogram[int(_TALL_M * 100) :, 0]
    below = np.cumsum(tall)
    median_m = _TALL_M + np.searchsorted(below, below[-1] / 2) / 100 if below[-1] else 0.0
    if median_m > _FEET_MEDIAN_M:
        _LOG.warning("%s: half of the trees exceed %.0f m; are these feet? (--truth-unit ft)", truth, median_m)
