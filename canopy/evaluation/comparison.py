"""Predictions against one truth, window by window, on the cells known in all of them."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import DatasetReader

from canopy.errors import EvaluationError
from canopy.evaluation.intervals import ScoreIntervals, confidence_intervals
from canopy.evaluation.metrics import Heights, HeightSums, Scores, Totals
from canopy.evaluation.pictures import Pictures
from canopy.evaluation.prediction_intervals import (
    HIGH_BAND,
    LOW_BAND,
    IntervalResult,
    IntervalSums,
    IntervalTotals,
)
from canopy.evaluation.rasters import (
    RegriddedHeights,
    cells_outside,
    mask_on,
    overlap,
    require_mask,
    require_north_up,
    truth_grid,
)
from canopy.evaluation.sites import Site, read_sites
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
class Sums:
    """What was added up of one prediction, over all of the truth or over one site."""

    heights: Totals
    """Sums of heights."""
    interval: IntervalTotals | None
    """Sums of the interval; None where the prediction has none."""
    cluster_m: float
    """Side of a cluster, metres."""

    def __add__(self, other: "Sums") -> "Sums":
        both = self.interval is not None and other.interval is not None
        interval = self.interval + other.interval if both else None  # type: ignore[operator]
        return Sums(self.heights + other.heights, interval, max(self.cluster_m, other.cluster_m))

    def result(self, sites: "dict[str, Result] | None" = None) -> "Result":
        """Return the scores of the sums, with those of sites."""
        intervals = confidence_intervals(self.heights) if len(self.heights.clusters) else None
        interval = self.interval.result() if self.interval is not None else None
        return Result(
            self.heights.scores(), intervals, len(self.heights.clusters), self.cluster_m, interval, sites or {}
        )


@dataclass(frozen=True)
class Result:
    """Scores of one prediction, with their intervals."""

    scores: Scores
    """Metrics and errors by height class."""
    intervals: ScoreIntervals | None
    """95 % intervals of the metrics; None without cells."""
    clusters: int
    """Number of clusters that the intervals are drawn from."""
    cluster_m: float
    """Side of a cluster, metres."""
    interval: IntervalResult | None = None
    """Scores of the prediction's own interval; None where it has none."""
    sites: "dict[str, Result]" = field(default_factory=dict)
    """Result of each site, by its name; empty unless asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        document = self.scores.to_json()
        if self.intervals is not None:
            document |= {
                "ci": asdict(self.intervals),
                "ci_clusters": self.clusters,
                "ci_cluster_m": self.cluster_m,
            }
        if self.interval is not None and self.interval.scores.n_px:
            document["interval"] = self.interval.to_json()
        if self.sites:
            document["sites"] = {name: site.to_json() for name, site in self.sites.items()}
        return document


@dataclass(frozen=True)
class Comparison:
    """Predictions scored against one truth."""

    results: dict[str, Result]
    """Result of each prediction, by its path."""
    sums: tuple[Sums, ...]
    """What was added up of each prediction, in their order."""
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


@dataclass(frozen=True)
class TruthOptions:
    """How a truth is read and split."""

    unit: str | None = None
    """Unit (m, cm or ft), in place of what the file says."""
    nodata: float | None = None
    """Value that means unknown, in place of what the file says."""
    sites: Path | None = None
    """Polygons of sites, any CRS."""
    by: str | None = None
    """Field that names the site of a polygon."""

    def __post_init__(self) -> None:
        """Refuse a unit that is none, and sites without a field or a field without sites."""
        if self.unit is not None and self.unit not in UNITS_M:
            raise EvaluationError(f"--truth-unit {self.unit!r}: m, cm or ft expected")
        if (self.sites is None) != (self.by is None):
            raise EvaluationError(
                "--sites and --by belong together: the file of polygons, and the field that names them"
            )


def evaluate(
    predictions: Sequence[Path],
    truth: Path,
    *,
    mask: Path | None = None,
    options: TruthOptions | None = None,
    window_px: int = WINDOW_PX,
    draw: bool = False,
    report: Report = ignore,
) -> Comparison:
    """Score height maps against a canopy height model.

    Predictions are brought to the truth's grid. A cell counts where the truth and all predictions are known and the
    mask is zero. Memory follows `window_px`, not the rasters.

    Args:
        predictions: Rasters of heights, any grid; those with an interval have it scored too.
        truth: Raster of heights, north-up.
        mask: Raster that excludes cells where it is neither 0 nor nodata; any grid.
        options: How the truth is read and split; as its file says if None.
        window_px: Side of a window, cells of the truth; changes no result.
        draw: Whether to gather what the report's figures need.
        report: Called after each window.

    Raises:
        EvaluationError: No common ground, nothing known, or rasters that cannot be scored together.
        RasterError: A file is damaged or no raster of heights.
    """
    options = options or TruthOptions()
    if len(set(predictions)) < len(predictions):
        raise EvaluationError("a prediction is named twice: each once expected")
    # Order matters: all files are opened, and all arguments judged, before the first window is read; windows consist of
    # whole blocks, so that a block is complete when it is added; sums become scores once, at the end.
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_MB))
        rasters = _Rasters.open(files, predictions, truth, mask, options)
        parts = [_Parts(rasters, prediction) for prediction in rasters.predictions]
        pictures = [Pictures(rasters.grid) for _ in predictions] if draw else []
        windows = list(_windows(rasters.grid, window_px))
        scored_px = 0
        for number, window in enumerate(windows, 1):
            _add_window(rasters, window, parts, pictures)
            scored_px += window.height * window.width
            all_px = int(np.prod(rasters.grid.shape))
            report(Progress(scored_px / 1e6, all_px / 1e6, "Mpx", f"window {number}/{len(windows)}"))
        crs = rasters.truth.dataset.crs.to_string()
    sums = tuple(part.sums() for part in parts)
    _check(sums[0].heights, truth)
    names = [str(path) for path in predictions]
    results = {name: part.result() for name, part in zip(names, parts, strict=True)}
    by_path = dict(zip(names, pictures, strict=True)) if draw else {}
    return Comparison(results, sums, rasters.grid, rasters.window, crs, by_path)


@dataclass(frozen=True)
class _Prediction:
    """A prediction on the truth's grid, with the ends of its interval if it has one."""

    heights: RegriddedHeights
    ends: tuple[RegriddedHeights, RegriddedHeights] | None

    @classmethod
    def of(cls, raster: HeightRaster, target: DatasetReader) -> "_Prediction":
        """Return a raster of heights on the grid of another."""
        low, high = raster.named(LOW_BAND), raster.named(HIGH_BAND)
        heights = RegriddedHeights(raster, target)
        if low is None or high is None:
            return cls(heights, None)
        return cls(heights, (RegriddedHeights(low, target), RegriddedHeights(high, target)))


@dataclass(frozen=True)
class _Rasters:
    """The open files, on the common part of the truth's grid."""

    truth: HeightRaster
    predictions: tuple[_Prediction, ...]
    mask: tuple[Path, DatasetReader] | None
    sites: tuple[Site, ...]
    window: PixelWindow
    grid: TruthGrid

    @classmethod
    def open(
        cls, files: ExitStack, predictions: Sequence[Path], truth: Path, mask: Path | None, options: TruthOptions
    ) -> "_Rasters":
        reference = files.enter_context(
            open_heights(truth, unit=options.unit, nodata=options.nodata, remedy="--truth-unit")
        )
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
        sites: tuple[Site, ...] = ()
        if options.sites is not None and options.by is not None:
            sites = read_sites(options.sites, options.by, reference.dataset.crs.to_wkt())
        regridded = tuple(_Prediction.of(raster, reference.dataset) for raster in maps)
        return cls(reference, regridded, excluded, sites, window, truth_grid(reference.dataset, window))

    def on_truth(self, window: PixelWindow) -> PixelWindow:
        """Return a window of the scored part in the truth's own cells."""
        return PixelWindow(self.window.row0 + window.row0, self.window.col0 + window.col0, *window.shape)

    def read(self, window: PixelWindow) -> tuple[Heights, list[Heights]]:
        """Return truth and predictions over a window of the scored part; the truth is unknown where one of them is."""
        on_truth = self.on_truth(window)
        truth = self.truth.read(on_truth)
        predictions = [prediction.heights.read(on_truth) for prediction in self.predictions]
        # One set of cells for all predictions: a map is not better for leaving out what is difficult.
        unknown = np.isnan(truth) | np.logical_or.reduce([np.isnan(heights) for heights in predictions])
        unknown |= cells_outside(window, self.grid.shape)
        if self.mask is not None:
            unknown |= mask_on(*self.mask, self.truth.dataset, on_truth)
        truth[unknown] = np.nan
        return truth, predictions


class _Parts:
    """Sums of one prediction over all of the truth, and over each site."""

    def __init__(self, rasters: _Rasters, prediction: _Prediction) -> None:
        self._rasters, self._prediction = rasters, prediction
        self._heights = [HeightSums(rasters.grid) for _ in range(1 + len(rasters.sites))]
        self._intervals = [IntervalSums(rasters.grid) for _ in self._heights] if prediction.ends else []

    def add(self, heights: Heights, truth: Heights, window: PixelWindow) -> None:
        """Add a window; heights and truth have one cell more on each side."""
        row0, col0 = window.row0, window.col0
        ends = [end.read(self._rasters.on_truth(window)) for end in self._prediction.ends or ()]
        transform = self._rasters.truth.dataset.transform
        padded = self._rasters.on_truth(window.pad(1))
        for number, site in enumerate((None, *self._rasters.sites)):
            part = truth
            if site is not None:
                on_site = site.on(transform * transform.translation(padded.col0, padded.row0), padded.shape)
                if not on_site.any():
                    continue
                # Cells of other sites are unknown here, so that edges are not measured across the border.
                part = np.where(on_site, truth, np.float32(np.nan))
            self._heights[number].add(heights, part, row0, col0)
            if ends:
                self._intervals[number].add(ends[0], ends[1], part[1:-1, 1:-1], row0, col0)

    def sums(self, number: int = 0) -> Sums:
        """Return the sums over all of the truth, or over a site by its number from 1."""
        interval = self._intervals[number].totals() if self._intervals else None
        return Sums(self._heights[number].totals(), interval, self._rasters.grid.cluster_m)

    def result(self) -> Result:
        """Return the scores over all of the truth, with those of sites."""
        sites = {site.name: self.sums(number).result() for number, site in enumerate(self._rasters.sites, 1)}
        return self.sums().result(sites)


def _add_window(rasters: _Rasters, window: PixelWindow, parts: Sequence[_Parts], pictures: Sequence[Pictures]) -> None:
    truth, predictions = rasters.read(window.pad(1))
    for part, heights in zip(parts, predictions, strict=True):
        part.add(heights, truth, window)
    inside = truth[1:-1, 1:-1]
    for picture, heights in zip(pictures, predictions, strict=bool(pictures)):
        picture.add(heights[1:-1, 1:-1], np.maximum(inside, 0), window.row0, window.col0)


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


def _check(totals: Totals, truth: Path) -> None:
    """Refuse a comparison without a cell, and warn of heights that look like feet."""
    if not len(totals.clusters):
        raise EvaluationError(
            f"nothing to score: no cell of {truth} is known in truth and all predictions and left by the mask"
        )
    # The median of trees alone: bare ground is 0 in any unit.
    tall = totals.histogram[int(_TALL_M * 100) :, 0]
    below = np.cumsum(tall)
    median_m = _TALL_M + np.searchsorted(below, below[-1] / 2) / 100 if below[-1] else 0.0
    if median_m > _FEET_MEDIAN_M:
        _LOG.warning("%s: half of the trees exceed %.0f m; are these feet? (--truth-unit ft)", truth, median_m)
