"""Predictions against one truth, window by window, on the cells known in all of them."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from canopy.errors import EvaluationError
from canopy.evaluation.intervals import confidence_intervals
from canopy.evaluation.metrics import BLOCK_M, Ground, Heights, HeightSums, Totals
from canopy.evaluation.pictures import Pictures
from canopy.evaluation.rasters import UNITS_M, Heightfile, Onto, ground, mask_on, opened, overlap, require_mask
from canopy.progress import Progress, Report, ignore
from tiles.windows import PixelWindow

WINDOW_PX = 1024
_CACHE_MB = 256
_FEET_MEDIAN_M = 45.0
_TALL_M = 2.0
_LOG = logging.getLogger("canopy.evaluation")


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found.

    Attributes:
        results: Prediction's path -> metrics and their intervals (`ci`, `ci_clusters`, `ci_cluster_m`).
        ground: The scored part of the truth's grid.
        window: The same in the truth's cells.
        crs: Name of the truth's CRS.
        pictures: Prediction's path -> what the report draws; empty unless asked for.
    """

    results: dict[str, dict[str, Any]]
    ground: Ground
    window: PixelWindow
    crs: str
    pictures: dict[str, Pictures]


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
        truth_unit: m, cm or ft, in place of what the truth's file says.
        window_px: Side of a window, cells of the truth; changes no result.
        draw: Keep what the report's figures need.
        report: Called after each window.

    Raises:
        EvaluationError: No common ground, nothing known, or a raster that cannot be scored.
        RasterError: A file is damaged.
    """
    if truth_unit is not None and truth_unit not in UNITS_M:
        raise EvaluationError(f"--truth-unit {truth_unit!r}: m, cm or ft expected")
    if len(set(predictions)) < len(predictions):
        raise EvaluationError("a prediction is named twice: each once expected")
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_MB))
        scene = _Scene.open(files, predictions, truth, mask, truth_unit)
        sums = [HeightSums(scene.ground) for _ in predictions]
        pictures = [Pictures(scene.ground) for _ in predictions] if draw else []
        windows = list(_windows(scene.ground, window_px))
        done = 0
        for number, window in enumerate(windows, 1):
            _add_window(scene, window, sums, pictures)
            done += window.height * window.width
            cells = int(np.prod(scene.ground.shape))
            report(Progress(done / 1e6, cells / 1e6, "Mpx", f"window {number}/{len(windows)}"))
        totals = [part.totals() for part in sums]
        crs = scene.truth.dataset.crs.to_string()
    _check(totals[0], truth)
    results = {str(path): _result(part, scene.ground) for path, part in zip(predictions, totals, strict=True)}
    drawn = dict(zip(results, pictures, strict=True)) if draw else {}
    return Comparison(results, scene.ground, scene.window, crs, drawn)


@dataclass(frozen=True)
class _Scene:
    """The open files, on the common part of the truth's grid."""

    truth: Heightfile
    predictions: tuple[Onto, ...]
    mask: tuple[Path, Any] | None
    window: PixelWindow
    ground: Ground

    @classmethod
    def open(
        cls, files: ExitStack, predictions: Sequence[Path], truth: Path, mask: Path | None, unit: str | None
    ) -> "_Scene":
        reference = Heightfile.of(truth, files.enter_context(opened(truth)), unit)
        maps = [Heightfile.of(path, files.enter_context(opened(path))) for path in predictions]
        excluded = (mask, files.enter_context(opened(mask))) if mask is not None else None
        if excluded is not None:
            require_mask(*excluded)
        window = overlap(reference.dataset, [made.dataset for made in maps])
        if window is None:
            names = ", ".join(str(path) for path in predictions)
            raise EvaluationError(f"no common ground: {names} and {truth} do not all overlap")
        placed = tuple(Onto(made, reference.dataset) for made in maps)
        return cls(reference, placed, excluded, window, ground(reference.dataset, window))

    def read(self, window: PixelWindow) -> tuple[Heights, list[Heights]]:
        """Truth and predictions over a window of the scored part; unknown in one is unknown in all."""
        here = PixelWindow(self.window.row0 + window.row0, self.window.col0 + window.col0, *window.shape)
        truth = self.truth.read(here)
        made = [prediction.read(here) for prediction in self.predictions]
        unknown = np.isnan(truth) | np.logical_or.reduce([np.isnan(heights) for heights in made])
        unknown |= _outside(window, self.ground.shape)
        if self.mask is not None:
            unknown |= mask_on(*self.mask, self.truth.dataset, here)
        truth[unknown] = np.nan
        return truth, made


def _add_window(scene: _Scene, window: PixelWindow, sums: Sequence[HeightSums], pictures: Sequence[Pictures]) -> None:
    truth, made = scene.read(window.pad(1))
    for part, heights in zip(sums, made, strict=True):
        part.add(heights, truth, window.row0, window.col0)
    inside = truth[1:-1, 1:-1]
    for picture, heights in zip(pictures, made, strict=bool(pictures)):
        picture.add(heights[1:-1, 1:-1], np.maximum(inside, 0), window.row0, window.col0)


def _outside(window: PixelWindow, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells of a window beyond the scored part."""
    rows, cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
    return np.asarray(((rows < 0) | (rows >= shape[0]))[:, None] | ((cols < 0) | (cols >= shape[1])))


def _windows(ground: Ground, window_px: int) -> Iterator[PixelWindow]:
    """Windows of whole blocks."""
    rows, cols = (_cuts(ground, axis, window_px) for axis in (0, 1))
    for row0, row1 in itertools.pairwise(rows):
        for col0, col1 in itertools.pairwise(cols):
            yield PixelWindow(row0, col0, row1 - row0, col1 - col0)


def _cuts(ground: Ground, axis: int, window_px: int) -> list[int]:
    blocks = ground.blocks(axis, 0, ground.shape[axis])
    step = max(1, int(window_px * ground.cell_m[axis] / BLOCK_M))
    # Groups of blocks may begin anywhere: a block is whole in one of them.
    return [0, *(np.flatnonzero(np.diff(blocks // step)) + 1).tolist(), len(blocks)]


def _result(totals: Totals, ground: Ground) -> dict[str, Any]:
    return {
        **totals.metrics(),
        "ci": confidence_intervals(totals),
        "ci_clusters": len(totals.clusters),
        "ci_cluster_m": ground.cluster_blocks * BLOCK_M,
    }


def _check(totals: Totals, truth: Path) -> None:
    if not len(totals.clusters):
        raise EvaluationError(
            f"nothing to score: no cell of {truth} is known in truth and all predictions and left by the mask"
        )
    tall = totals.histogram[int(_TALL_M * 100) :, 0]
    below = np.cumsum(tall)
    median_m = _TALL_M + np.searchsorted(below, below[-1] / 2) / 100 if below[-1] else 0.0
    if median_m > _FEET_MEDIAN_M:
        _LOG.warning("%s: half of the trees exceed %.0f m; are these feet? (--truth-unit ft)", truth, median_m)
