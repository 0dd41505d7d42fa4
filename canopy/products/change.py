"""`canopy change A B`: where canopy was lost, where it grew, where no change is detectable, and where nothing is known.

A cell changes where the 90 % intervals of its heights at the two dates are apart. Two more things must hold, for maps
are never exactly on top of each other and single cells err: a patch of such cells is kept where a quarter of its cells
are apart from all of the first map's intervals within the tolerance, and where the patch has the smallest area.

Two passes over tiles. The first codes each cell and labels patches; the second judges whole patches (`patches`), writes
the cells, and counts. Both go on where a run was killed.
"""

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from canopy.dataset.registration import SEARCH_M
from canopy.errors import ProductError
from canopy.evaluation.map_pairs import parse_dates
from canopy.products.alignment import Pair, align
from canopy.products.change_stands import draft_change_of_stands
from canopy.products.patches import PatchTable, judge_tile, label_tile
from canopy.products.reading import ProductMap, open_map, require_overlap
from canopy.products.work import Work, hold_work, part_name
from canopy.products.writing import (
    CSV,
    GEOPACKAGE,
    PARQUET,
    RASTER,
    RasterSpec,
    draft_raster,
    provenance,
    publish_drafts,
    require_suffix,
)
from canopy.products.zones import read_zones, require_ground
from canopy.progress import Progress, Report, ignore
from tiles.aoi import read_aoi, to_crs
from tiles.cog import CACHE_BYTES
from tiles.heights import Heights, open_raster
from tiles.style import change_qml
from tiles.windows import PixelWindow, cut_windows

TILE_PX = 1024
BANDS = ("change", "height_difference", "height_difference_p05", "height_difference_p95")
MAX_GROWTH_M = 3.0
"""Height that no forest gains in a year, metres; the fastest plantations come near it."""
DAYS_A_YEAR = 365.25
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class ChangeOptions:
    """Which differences are changes."""

    min_area_m2: float = 15.0
    """Smallest area of a patch, square metres."""
    tolerance_px: int = 1
    """Cells by which the maps may lie off each other."""
    search_m: float = SEARCH_M
    """Largest shift between the maps that is looked for, metres; 0 for none."""
    max_growth_m: float = MAX_GROWTH_M
    """Height that is not gained in a year, metres."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if not 0 <= self.min_area_m2 < math.inf:
            raise ProductError(f"smallest area of {self.min_area_m2:g} m2: 0 or more expected")
        if not 0 <= self.tolerance_px <= 10:
            raise ProductError(f"tolerance of {self.tolerance_px} cells: 0 to 10 expected")
        if not 0 <= self.search_m <= 50:
            raise ProductError(f"shift of {self.search_m:g} m: 0 to 50 m expected")
        if not 0 < self.max_growth_m < math.inf:
            raise ProductError(f"growth of {self.max_growth_m:g} m a year: more than 0 expected")


@dataclass(frozen=True)
class UnchangedGround:
    """False alarms on ground of which the user says that nothing changed there."""

    area_m2: float
    """Ground that is known in both maps, square metres."""
    loss_share: float | None
    """Share of it that is reported as loss; None without ground."""
    gain_share: float | None
    """Share of it that is reported as gain."""


@dataclass(frozen=True)
class ChangeSummary:
    """Result of `detect_change`."""

    path: Path
    """Raster of the change."""
    loss_m2: float
    """Area of loss, square metres."""
    gain_m2: float
    """Area of gain."""
    unchanged_m2: float
    """Area without detectable change."""
    unknown_m2: float
    """Area of which nothing can be said: unknown in a map, or without intervals."""
    years: float
    """Time between the maps, years."""
    offset: str
    """How the maps were laid on each other."""
    has_intervals: bool
    """Whether both maps have intervals; without, all is unknown."""
    impossible_share: float | None
    """Share of the known area that is reported as gained faster than any forest grows: errors, whatever happened there,
    so a lower bound of the false alarms. None where nothing is known."""
    false_alarms: UnchangedGround | None
    """False alarms on unchanged ground; None where none was named."""

    def remarks(self) -> list[str]:
        """Return what a reader must know, a line each."""
        hectares = [area / 1e4 for area in (self.loss_m2, self.gain_m2, self.unchanged_m2, self.unknown_m2)]
        lines = [
            f"{self.years:.1f} years; the finer map {self.offset}",
            "loss {:.2f} ha, gain {:.2f} ha, no detectable change {:.2f} ha, unknown {:.2f} ha".format(*hectares),
        ]
        if not self.has_intervals:
            lines.append("a map has no intervals, so no change can be judged: state its error with --error-m A B")
        if self.false_alarms is not None and self.false_alarms.loss_share is not None:
            ground, loss, gain = (
                self.false_alarms.area_m2 / 1e4, self.false_alarms.loss_share, self.false_alarms.gain_share or 0.0
            )  # fmt: skip
            lines.append(f"false alarms on {ground:.2f} ha of unchanged ground: {loss:.2%} loss, {gain:.2%} gain")
        elif self.false_alarms is not None:
            lines.append("false alarms: nothing of the unchanged ground is known in both maps")
        elif self.impossible_share is not None:
            lines.append(
                "false alarms: not measured (name unchanged ground with --unchanged); at least "
                f"{self.impossible_share:.2%} of the known area, gained faster than any forest grows"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {**asdict(self), "path": str(self.path)}


def detect_change(
    first: Path,
    second: Path,
    out: Path,
    options: ChangeOptions | None = None,
    *,
    dates: tuple[str | None, str | None] = (None, None),
    error_m: tuple[float | None, float | None] = (None, None),
    unchanged: Path | None = None,
    polygons: Path | None = None,
    stands: Path | None = None,
    field: str | None = None,
    tile_px: int = TILE_PX,
    overwrite: bool = False,
    report: Report = ignore,
) -> ChangeSummary:
    """Map the change between two height maps; the same call continues an interrupted one.

    Args:
        first: Earlier map.
        second: Later map.
        out: GeoTIFF to write.
        options: Which differences are changes.
        dates: Acquisition of each map in place of what its tags say, ISO 8601.
        error_m: Standard error of a cell of each map, metres, in place of its intervals.
        unchanged: Polygons of ground that did not change, on which false alarms are counted.
        polygons: Stands of which a table is written.
        stands: Name of that table.
        field: Field of the stands that names them; their numbers from 1 for None.
        tile_px: Side of a tile, cells; the change does not depend on it.
        overwrite: Whether an existing file is replaced.
        report: Called after each tile of either pass.

    Raises:
        ProductError: The maps have no date, no ground in common, or are of no use.
        RasterError: A map cannot be read.
        OutputError: The file exists or cannot be written.
    """
    options = options or ChangeOptions()
    require_suffix(out, RASTER)
    if stands is not None:
        require_suffix(stands, (*GEOPACKAGE, *PARQUET, *CSV))
    if (polygons is None) != (stands is None):
        raise ProductError("polygons of stands and the name of their table: both or none of the two expected")
    if first.resolve() == second.resolve():
        raise ProductError(f"{first} is named twice: two maps expected")
    settings = {**asdict(options), "dates": list(dates), "error_m": list(error_m)}
    inputs = [path for path in (first, second, unchanged, polygons) if path is not None]
    with ExitStack() as stack:
        # GDAL's own cache grows with the map.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        maps = [
            stack.enter_context(open_map(path, error_m=error))
            for path, error in zip((first, second), error_m, strict=True)
        ]
        years = _years(maps, dates)
        pair = align(*maps, search_m=options.search_m)
        ground = None if unchanged is None else _read_ground(unchanged, pair.target)
        zones = None if polygons is None else read_zones(polygons, pair.target, field=field)
        if polygons is not None and zones is not None:
            require_ground(zones, pair.target, polygons)
        plan = {"product": "change", **settings, "tile_px": tile_px, "offset": asdict(pair.offset), "field": field}
        more = () if stands is None else (stands,)
        with hold_work(out, plan, inputs=inputs, more=more, overwrite=overwrite) as work:
            run = _Run(work, pair, options, years, ground, tile_px, report)
            run.first_pass()
            run.second_pass()
            about = provenance(
                "change", {"first": maps[0], "second": maps[1]}, {**settings, "offset": asdict(pair.offset)}
            )
            members = [(work.raster(f"change_{part_name(window)}"), window.row0, window.col0) for window in run.windows]
            drafts = [draft_raster(work, SPEC, members, pair.target.geobox(pair.window), about, maps[1])]
            if zones is not None and stands is not None:
                crs = pair.target.crs
                table = draft_change_of_stands(work, drafts[0].path, zones, stands, crs=crs, about=about, report=report)
                drafts.insert(0, table)
            publish_drafts(work, drafts, maps[1])
    return run.summary(out)


SPEC = RasterSpec(
    "change", "Change of the canopy: -1 loss, 0 no detectable change, 1 gain", BANDS, ("", "m", "m", "m"), change_qml()
)
"""Loss is -1 and gain 1, so that the averages of overviews are the net change."""


def code_cells(first: tuple[Heights, Heights], second: tuple[Heights, Heights], tolerance_px: int) -> Codes:
    """Compare the intervals of cells.

    Args:
        first: Lower and upper ends at the first date, each (H, W) metres, NaN where unknown.
        second: The same at the second date.
        tolerance_px: Cells by which the maps may lie off each other.

    Returns:
        (H, W) -1 where the second interval lies below the first, 1 where it lies above; -2 and 2 where it does so for
        the first intervals of all cells within the tolerance; 0 elsewhere.
    """
    (low1, high1), (low2, high2) = first, second
    side = 2 * tolerance_px + 1
    with np.errstate(invalid="ignore"):
        code = (low2 > high1).astype(np.int8) - (high2 < low1)
        # Unknown neighbours say nothing against a change.
        lowest = ndimage.minimum_filter(np.where(np.isnan(low1), np.inf, low1), side, mode="nearest")
        highest = ndimage.maximum_filter(np.where(np.isnan(high1), -np.inf, high1), side, mode="nearest")
        code[(code == -1) & (high2 < lowest)] = -2
        code[(code == 1) & (low2 > highest)] = 2
    return code


@dataclass
class _Run:
    """The two passes over the tiles of a pair of maps."""

    work: Work
    pair: Pair
    options: ChangeOptions
    years: float
    ground: BaseGeometry | None
    tile_px: int
    report: Report

    def __post_init__(self) -> None:
        self.windows = cut_windows(self.pair.window.shape, self.tile_px)
        self.patches = PatchTable()
        self.sums = _Sums()
        east_m, north_m = self.pair.target.cell_m
        self.cell_m2 = east_m * north_m
        self.resumed = sum(
            self.work.has_raster(f"{prefix}_{part_name(window)}")
            for window in self.windows
            for prefix in ("code", "change")
        )
        self.done = 0

    def first_pass(self) -> None:
        """Code the cells of each tile, and join the patches that cross tiles."""
        for window in self.windows:
            name = f"code_{part_name(window)}"
            if not self.work.has_raster(name):
                self.work.save_raster(name, self._compare(window), self._geobox(window))
                self.done += 1
            patches = label_tile(_codes(self._load(name)[0]))
            self.patches.add(window.row0, window.col0, patches)
            self._step("compared")

    def second_pass(self) -> None:
        """Judge the patches, write the change of each tile, and count it."""
        totals = self.patches.totals()
        for window in self.windows:
            name = f"change_{part_name(window)}"
            values = self._load(f"code_{part_name(window)}")
            patches = label_tile(_codes(values[0]))
            nodes = self.patches.nodes(window.row0, window.col0, patches)
            change = judge_tile(patches, nodes, totals, self.options.min_area_m2 / self.cell_m2)
            values[0] = np.where(np.isnan(values[0]), np.nan, change)
            if not self.work.has_raster(name):
                self.work.save_raster(name, values, self._geobox(window))
                self.done += 1
            self._count(window, values)
            self._step("judged")

    def summary(self, out: Path) -> ChangeSummary:
        """Return the result."""
        sums, area = self.sums, self.cell_m2
        known_cells = sums.loss + sums.gain + sums.unchanged
        false_alarms = None
        if self.ground is not None:
            shares = [count / sums.ground if sums.ground else None for count in (sums.ground_loss, sums.ground_gain)]
            false_alarms = UnchangedGround(sums.ground * area, *shares)
        return ChangeSummary(
            out, sums.loss * area, sums.gain * area, sums.unchanged * area, sums.unknown * area, self.years,
            str(self.pair.offset), self.pair.has_intervals,
            sums.impossible / known_cells if known_cells else None, false_alarms,
        )  # fmt: skip

    def _compare(self, window: PixelWindow) -> NDArray[np.float32]:
        """Return code, difference and ends of its interval of a tile: (4, H, W), NaN where unknown."""
        cells = PixelWindow(
            window.row0 + self.pair.window.row0, window.col0 + self.pair.window.col0, window.height, window.width
        )
        outer = cells.pad(self.options.tolerance_px)
        inner = cells.slices_in(outer)
        heights = [placed.read(outer) for placed in (self.pair.first, self.pair.second)]
        ends = [placed.read_interval(outer) for placed in (self.pair.first, self.pair.second)]
        values = np.full((len(BANDS), *window.shape), np.nan, np.float32)
        values[1] = (heights[1] - heights[0])[inner]
        if ends[0] is not None and ends[1] is not None:
            valid = np.isfinite([*heights, *ends[0], *ends[1]]).all(axis=0)
            values[0] = np.where(valid, code_cells(ends[0], ends[1], self.options.tolerance_px), np.nan)[inner]
            values[2:] = np.stack(_difference_ends(heights, [ends[0], ends[1]]))[(slice(None), *inner)]
        return values

    def _count(self, window: PixelWindow, values: NDArray[np.float32]) -> None:
        change, sums = values[0], self.sums
        sums.loss += int((change == -1).sum())
        sums.gain += int((change == 1).sum())
        sums.unchanged += int((change == 0).sum())
        sums.unknown += int(np.isnan(change).sum())
        sums.impossible += int(((change == 1) & (values[2] > self.options.max_growth_m * self.years)).sum())
        if self.ground is not None:
            inside = _inside(self.ground, self._geobox(window)) & ~np.isnan(change)
            sums.ground += int(inside.sum())
            sums.ground_loss += int((inside & (change == -1)).sum())
            sums.ground_gain += int((inside & (change == 1)).sum())

    def _load(self, name: str) -> NDArray[np.float32]:
        with open_raster(self.work.raster(name)) as raster:
            return np.asarray(raster.read(), np.float32)

    def _geobox(self, window: PixelWindow) -> GeoBox:
        start = self.pair.window
        return self.pair.target.geobox(
            PixelWindow(start.row0 + window.row0, start.col0 + window.col0, window.height, window.width)
        )

    def _step(self, verb: str) -> None:
        total = 2 * len(self.windows)
        done = self.resumed + self.done
        self.report(Progress(done, total, "tiles", f"tile {done}/{total} {verb}", self.resumed))


@dataclass
class _Sums:
    """Cells, counted over tiles."""

    loss: int = 0
    gain: int = 0
    unchanged: int = 0
    unknown: int = 0
    impossible: int = 0
    ground: int = 0
    ground_loss: int = 0
    ground_gain: int = 0


def _read_ground(path: Path, target: ProductMap) -> BaseGeometry:
    ground = to_crs(read_aoi(path), target.crs)
    require_overlap(target, ground, path)
    return ground.geom


def _inside(ground: BaseGeometry, geobox: GeoBox) -> NDArray[np.bool_]:
    """Return which cells have their centre in an area, (H, W)."""
    area = shapely.clip_by_rect(ground, *geobox.boundingbox)
    if area.is_empty:
        return np.zeros(geobox.shape, bool)
    return np.asarray(geometry_mask([area], geobox.shape, geobox.affine, invert=True))


def _codes(values: NDArray[np.float32]) -> Codes:
    return np.nan_to_num(values, nan=0).astype(np.int8)


def _difference_ends(heights: list[Heights], ends: list[tuple[Heights, Heights]]) -> tuple[Heights, Heights]:
    """Return the ends of the interval of the second height less the first, as of independent errors."""
    (height1, height2), ((low1, high1), (low2, high2)) = heights, ends
    difference = height2 - height1
    below = np.hypot(np.maximum(height2 - low2, 0), np.maximum(high1 - height1, 0))
    above = np.hypot(np.maximum(high2 - height2, 0), np.maximum(height1 - low1, 0))
    return difference - below, difference + above


def _years(maps: list[ProductMap], dates: tuple[str | None, str | None]) -> float:
    """Return the time between the maps, years; refuse maps without date and maps in the wrong order."""
    middles = []
    for source, text in zip(maps, dates, strict=True):
        when = source.dates if text is None else parse_dates(text, "option")
        if when.first is None or when.last is None:
            if text is not None:
                raise ProductError(f"date {text!r} of {source.path}: a date such as 2020-07-01 or 2020 expected")
            raise ProductError(
                f"{source.path} has no acquisition date: one expected, for a change lies between two dates "
                "(--dates 2018-07-01 2023-07-01 states those of A and B)"
            )
        middles.append((when.first.toordinal() + when.last.toordinal()) / 2)
    years = (middles[1] - middles[0]) / DAYS_A_YEAR
    if years <= 0:
        raise ProductError(
            f"{maps[0].path} is not older than {maps[1].path}: the earlier map first expected, swap the two"
        )
    return years
