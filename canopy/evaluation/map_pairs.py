"""Two height maps compared as they are: their dates, how they agree by height, and how their intervals overlap.

Neither is the truth. The second gives the grid and the height classes; differences are the first less the second.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import DatasetReader

from canopy.errors import EvaluationError
from canopy.evaluation.comparison import WINDOW_PX, Comparison, evaluate
from canopy.evaluation.metrics import HEIGHT_CLASSES_M, Heights, class_bounds, class_name
from canopy.evaluation.prediction_intervals import HIGH_BAND, LOW_BAND
from canopy.evaluation.rasters import RegriddedHeights, mask_on, overlap
from canopy.progress import Progress, Report, ignore
from tiles.heights import open_heights, open_raster
from tiles.windows import PixelWindow, window_starts

_EPOCH = date(1970, 1, 1)
_FAR_YEARS = 2.0
"""Years between two maps after which growth and felling are part of the difference."""


@dataclass(frozen=True)
class MapDates:
    """Acquisition of the imagery of a map, as its tags or its dates say."""

    first: date | None
    """First day; None where unknown."""
    last: date | None
    """Last day; None where unknown."""
    source: str
    """Where the days come from: dates, tags or none."""

    def __str__(self) -> str:
        if self.first is None or self.last is None:
            return "unknown"
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class OverlapScores:
    """How two intervals of a cell lie to each other; None without cells."""

    n_px: int
    """Number of cells with both intervals."""
    share: float | None
    """Share of cells whose intervals have a height in common."""
    jaccard: float | None
    """Mean share of the heights of either interval that lie in both."""


@dataclass(frozen=True)
class OverlapResult:
    """Overlap of the maps' 90 % intervals."""

    scores: OverlapScores
    """Over all cells."""
    by_height: dict[str, OverlapScores]
    """By class of height in the second map."""


@dataclass(frozen=True)
class MapComparison:
    """Result of a comparison of two maps."""

    maps: tuple[Path, Path]
    """First and second map."""
    comparison: Comparison
    """Differences, on the second map's grid."""
    dates: tuple[MapDates, MapDates]
    """Dates of both."""
    overlap: OverlapResult | None
    """Overlap of the intervals; None where one map has none."""

    @property
    def gap_years(self) -> float | None:
        """Time from the middle of the second map's dates to that of the first's; None where one is unknown."""
        middles = []
        for dates in self.dates:
            if dates.first is None or dates.last is None:
                return None
            middles.append((dates.first.toordinal() + dates.last.toordinal()) / 2)
        return (middles[0] - middles[1]) / 365.25

    def remarks(self) -> list[str]:
        """Return what a reader must know, a line each."""
        lines = [f"{name}: {path}, imagery of {dates}" for name, path, dates in zip("AB", *self._named, strict=True)]
        gap = self.gap_years
        if gap is None:
            lines.append("a date is unknown: growth and felling may be part of the difference")
        elif abs(gap) >= _FAR_YEARS:
            order = "after" if gap > 0 else "before"
            lines.append(f"A is {abs(gap):.1f} years {order} B: growth and felling are part of the difference")
        return lines

    @property
    def _named(self) -> tuple[tuple[Path, Path], tuple[MapDates, MapDates]]:
        return self.maps, self.dates

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        dates = {
            name: {"first": _iso(one.first), "last": _iso(one.last), "source": one.source}
            for name, one in zip(("a", "b"), self.dates, strict=True)
        }
        document = {
            "a": str(self.maps[0]), "b": str(self.maps[1]), "dates": dates, "gap_years": self.gap_years,
            "difference": self.comparison.to_json(),
        }  # fmt: skip
        if self.overlap is not None:
            by_height = {name: asdict(row) for name, row in self.overlap.by_height.items()}
            document["interval_overlap"] = {**asdict(self.overlap.scores), "by_height": by_height}
        return document


def compare_maps(
    first: Path, second: Path, *, mask: Path | None = None, draw: bool = False, report: Report = ignore
) -> MapComparison:
    """Compare two height maps.

    Args:
        first: Map of heights, any grid.
        second: Map of heights, north-up; its grid and its height classes are used, so name the coarser map.
        mask: Raster that excludes cells where it is neither 0 nor nodata.
        draw: Whether to gather what the page's figures need.
        report: Called after each window.

    Raises:
        EvaluationError: The maps have no ground in common, or are one.
        RasterError: A file is damaged or no raster of heights.
    """
    if first.resolve() == second.resolve():
        raise EvaluationError(f"{first} is named twice: two maps expected")
    comparison = evaluate([first], second, mask=mask, draw=draw, report=report)
    overlapping = _overlap(first, second, mask, report)
    return MapComparison((first, second), comparison, (read_dates(first), read_dates(second)), overlapping)


def read_dates(path: Path) -> MapDates:
    """Return the dates of a map: of the raster of days next to it, else of its tags.

    Raises:
        RasterError: A file is damaged.
    """
    days_path = path.with_name(f"{path.stem}_dates.tif")
    if days_path.is_file():
        with open_raster(days_path) as raster:
            days = [block for block in _days(raster) if block is not None]
        if days:
            return MapDates(_day(min(low for low, _ in days)), _day(max(high for _, high in days)), "dates")
    with open_raster(path) as raster:
        return parse_dates(str(raster.tags().get("CANOPY_ACQUISITION_DATETIME", "")), "tags")


def parse_dates(text: str, source: str) -> MapDates:
    """Return the dates that a text names: a day, a month or a year, or two of these with a slash between them.

    Args:
        text: Dates, ISO 8601.
        source: Where the text stands; "none" replaces it where the text is no date.
    """
    first, _, last = text.partition("/")
    ends = _parse(first, False), _parse(last or first, True)
    return MapDates(*ends, source) if None not in ends else MapDates(None, None, "none")


def _days(raster: DatasetReader) -> list[tuple[int, int] | None]:
    """Return the first and last day of each block of a raster of days; None where none is known."""
    ends: list[tuple[int, int] | None] = []
    for _, window in raster.block_windows(1):
        days = raster.read(1, window=window)
        valid = days[days > 0]
        ends.append((int(valid.min()), int(valid.max())) if valid.size else None)
    return ends


def _day(days: int) -> date:
    return _EPOCH + timedelta(days=days)


def _parse(text: str, last: bool) -> date | None:
    """Return the first or last day of an ISO date, month or year."""
    parts = text.strip().partition("T")[0].split("-")
    try:
        if len(parts) == 1:
            return date(int(parts[0]), 12, 31) if last else date(int(parts[0]), 1, 1)
        if len(parts) == 2:
            month = date(int(parts[0]), int(parts[1]), 1)
            return (month + timedelta(days=31)).replace(day=1) - timedelta(days=1) if last else month
        return date(*(int(part) for part in parts[:3]))
    except (ValueError, TypeError):
        return None


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _overlap(first: Path, second: Path, mask: Path | None, report: Report) -> OverlapResult | None:
    """Compare the intervals of two maps window by window; None where one map has none."""
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=256))
        one, other = (files.enter_context(open_heights(path)) for path in (first, second))
        ends = [raster.named(band) for raster in (one, other) for band in (LOW_BAND, HIGH_BAND)]
        window = overlap(other.dataset, [one.dataset])
        if None in ends or window is None:
            return None
        excluded = files.enter_context(open_raster(mask)) if mask is not None else None
        readers = [RegriddedHeights(end, other.dataset) for end in ends if end is not None]
        sums = np.zeros((len(HEIGHT_CLASSES_M) - 1, 3))
        rows, cols = (window_starts(length, min(length, WINDOW_PX)) for length in window.shape)
        done = _Progress(report, len(rows) * len(cols))
        for row, col in ((row, col) for row in rows for col in cols):
            part = _part(window, row, col)
            values = [reader.read(part) for reader in readers]
            heights = other.read(part)
            if mask is not None and excluded is not None:
                heights[mask_on(mask, excluded, other.dataset, part)] = np.nan
            # The last window of an axis reaches back over the one before it: those cells were counted.
            heights[: _counted(rows, row), :] = np.nan
            heights[:, : _counted(cols, col)] = np.nan
            sums += _sums(heights, values)
            done.step()
    names = [class_name(*bounds) for bounds in class_bounds()]
    by_height = {name: _scores(row) for name, row in zip(names, sums, strict=True)}
    return OverlapResult(_scores(sums.sum(axis=0)), by_height)


@dataclass
class _Progress:
    """Windows of the second pass."""

    report: Report
    total: int
    done: int = 0

    def step(self) -> None:
        self.done += 1
        self.report(Progress(self.done, self.total, "windows", f"intervals, window {self.done}/{self.total}"))


def _part(window: PixelWindow, row: int, col: int) -> PixelWindow:
    height, width = min(WINDOW_PX, window.height), min(WINDOW_PX, window.width)
    return PixelWindow(window.row0 + row, window.col0 + col, height, width)


def _counted(starts: list[int], start: int) -> int:
    """Return how many cells of a window were part of the window before it."""
    number = starts.index(start)
    return max(0, starts[number - 1] + WINDOW_PX - start) if number else 0


def _sums(heights: Heights, ends: list[Heights]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return number of cells, of those that overlap, and the sum of shared parts, by height class."""
    low_a, high_a, low_b, high_b = ends
    valid = ~np.isnan(heights) & ~np.isnan(np.stack(ends)).any(axis=0)
    common = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    either = np.maximum(high_a, high_b) - np.minimum(low_a, low_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Two intervals of no width at one height are the same height.
        shared = np.where(either > 0, np.maximum(common, 0) / either, 1.0)
    rank = np.searchsorted(HEIGHT_CLASSES_M, np.maximum(heights[valid], 0), side="right") - 1
    columns = (np.ones(rank.size), (common[valid] >= 0).astype(float), shared[valid])
    return np.column_stack([np.bincount(rank, column, len(HEIGHT_CLASSES_M) - 1) for column in columns])


def _scores(sums: np.ndarray[Any, np.dtype[np.float64]]) -> OverlapScores:
    count = int(sums[0])
    return (
        OverlapScores(count, float(sums[1] / count), float(sums[2] / count)) if count else OverlapScores(0, None, None)
    )
