"""Statistics of polygons on a height map, every cell weighted by the share of it that lies inside the polygon.

Shares are exact, polygons are brought to the map's CRS before, and a polygon is read in strips, so that
memory does not grow with it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from tiles.aoi import to_crs
from tiles.cog import RASTER_ERRORS, UNCERTAINTY_BANDS
from tiles.errors import AOIError, RasterError, one_line
from tiles.ground import TRUE_SCALE, metres_per_unit, scale_error, unit_m
from tiles.heights import HeightRaster
from tiles.shares import cell_shares
from tiles.windows import PixelWindow

TOP_CELL_M = 10.0
"""Side of the squares whose highest cells make the top height, metres."""
COVER_ABOVE_M = 2.0
INTERVAL_LEVEL = 0.9
"""Share of true heights that the interval of a map is meant to cover."""
DEFAULT_EDGES_M = tuple(float(edge) for edge in range(0, 41, 2))
_STRIP_CELLS = 2**20
_BIN_M = 1 / 128
_BINS = 200 * 128
"""Quantiles are read from bins of the step to which heights are rounded, up to 200 m: exact for our own maps."""
_HALF = 0.5


@dataclass(frozen=True)
class Interval:
    """Means of a polygon's lower and upper bounds of height: the interval of a typical cell, not that of the mean."""

    low_m: float
    """Mean of the lower bounds."""
    high_m: float
    """Mean of the upper bounds."""

    @property
    def width_m(self) -> float:
        """Mean width."""
        return self.high_m - self.low_m


@dataclass(frozen=True)
class ZoneStatistics:
    """Heights of one polygon; None where no cell of it is known."""

    area_m2: float
    """Area of the polygon on the ellipsoid, square metres."""
    meets_map: bool
    """Whether the polygon and the map have ground in common."""
    known_share: float
    """Share of that area with a height, 0 to 1."""
    mean_m: float | None
    """Mean height, cells weighted by their share inside."""
    p95_m: float | None
    """Lowest height that at least 95 % of the known area does not exceed, to 1/128 m."""
    max_m: float | None
    """Height of the highest cell of which at least half lies inside."""
    h100_m: float | None
    """Top height: mean over squares of 10 m of the highest cell; squares of which at least half is inside and known."""
    cover: float | None
    """Share of the known area that is higher than the threshold."""
    interval: Interval | None
    """Interval, where the map has its bands and a cell of them is known."""
    edges_m: tuple[float, ...]
    """Edges of the histogram's bins; the first and the last bin take what lies beyond."""
    histogram_m2: tuple[float, ...]
    """Area of each bin, square metres."""


@dataclass(frozen=True)
class ZoneGrid:
    """Grid of a map, and the lattice of its top heights."""

    transform: Affine
    """Pixel to CRS coordinates, north up."""
    shape: tuple[int, int]
    """Rows and columns."""
    crs: CRS
    """CRS."""
    square: tuple[float, float] | None
    """Sides of a square of the top height in units of the CRS; None where cells are larger than that."""

    @classmethod
    def of(cls, transform: Affine, shape: tuple[int, int], crs: CRS) -> "ZoneGrid":
        """Return the grid of a map that is north up."""
        return cls(transform, shape, crs, _square(crs.proj, transform, shape))

    @property
    def cell_area(self) -> float:
        """Area of a cell in units of the CRS."""
        return float(self.transform.a * -self.transform.e)

    def window(self, area: BaseGeometry) -> Window | None:
        """Return the window of cells that an area touches; None where it lies outside."""
        left, bottom, right, top = area.bounds
        inverse = ~self.transform
        (col0, row0), (col1, row1) = inverse @ (left, top), inverse @ (right, bottom)
        rows = max(0, math.floor(row0)), min(self.shape[0], math.ceil(row1))
        cols = max(0, math.floor(col0)), min(self.shape[1], math.ceil(col1))
        if rows[0] >= rows[1] or cols[0] >= cols[1]:
            return None
        return Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])

    def bounds(self, window: Window) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top of a window."""
        left, top = self.transform @ (window.col_off, window.row_off)
        right, bottom = self.transform @ (window.col_off + window.width, window.row_off + window.height)
        return left, bottom, right, top


def zone_statistics(
    path: Path | str,
    zones: Sequence[Geometry],
    *,
    band: int | str = 1,
    threshold_m: float = COVER_ABOVE_M,
    edges_m: Sequence[float] = DEFAULT_EDGES_M,
    max_cells: float = math.inf,
) -> tuple[ZoneStatistics, ...]:
    """Compute the statistics of polygons on a height map.

    Cells of a map count the same, so a map in degrees should not span a polygon of many degrees of latitude.

    Args:
        path: Height map, north up.
        zones: Polygons, each with its CRS.
        band: Number of the band, from 1, or its description.
        threshold_m: Height above which a cell counts as cover, metres.
        edges_m: Increasing edges of the histogram's bins, metres.
        max_cells: Most cells that the polygons together may span, counted by their bounds.

    Returns:
        Statistics in the order of the polygons; one outside the map has a known share of 0.

    Raises:
        RasterError: The map cannot be read, has no such band or no known unit, or is not north up.
        AOIError: A polygon has no area, does not fit the map's CRS, or the polygons span too many cells.
    """
    edges = _checked_edges(edges_m)
    try:
        with rasterio.open(path) as src:
            grid = _grid(src, path)
            bands = _band_numbers(src, band, path)
            areas = [to_crs(zone, grid.crs).geom for zone in zones]
            _require_few_cells([grid.window(area) for area in areas], max_cells)
            rasters = [HeightRaster.of_band(Path(path), src, number) for number in bands]
            sums = [ZoneSums(threshold_m, edges, grid) for _ in zones]
            for area, each in zip(areas, sums, strict=True):
                _add_cells(each, rasters, area)
    except RASTER_ERRORS as error:
        raise RasterError(f"{path}: cannot be read ({one_line(error)}), expected a height map") from error
    return tuple(
        each.finish(zone_area_m2(zone), area.area / grid.cell_area)
        for each, zone, area in zip(sums, zones, areas, strict=True)
    )


def coverage(area: BaseGeometry, bounds: tuple[float, float, float, float], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the share of each cell of a grid that lies inside an area.

    Args:
        area: Polygons in the CRS of the grid.
        bounds: Left, bottom, right and top of the grid.
        shape: Rows and columns.

    Returns:
        (H, W) float64, 0 to 1.
    """
    if shapely.contains_properly(area, shapely.box(*bounds)):
        return np.ones(shape)
    return cell_shares(area, bounds, shape)


def _checked_edges(edges_m: Sequence[float]) -> NDArray[np.float64]:
    edges = np.asarray(edges_m, dtype=np.float64)
    if edges.size < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise RasterError(f"edges of the histogram are {tuple(edges_m)[:5]}, expected at least 2 in increasing order")
    return edges


def _grid(src: Any, path: Path | str) -> ZoneGrid:
    transform = src.transform
    if src.crs is None:
        raise RasterError(f"{path}: has no CRS, expected a height map with one")
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise RasterError(f"{path}: transform is {tuple(transform)[:6]}, expected north up; warp the map first")
    crs = CRS(src.crs.to_wkt())
    return ZoneGrid.of(transform, src.shape, crs)


def _square(crs: pyproj.CRS, transform: Affine, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Return the sides of a square of the top height, which lies on multiples of them from the CRS's origin."""
    x, y = transform @ (shape[1] / 2, shape[0] / 2)
    # Where the CRS keeps distances the lattice is that of the CRS's own metres, the same for every map in it.
    if scale_error(crs, x, y) <= TRUE_SCALE:
        sides = (TOP_CELL_M / unit_m(crs),) * 2
    else:
        x_m, y_m = metres_per_unit(crs, x, y)
        sides = TOP_CELL_M / x_m, TOP_CELL_M / y_m
    too_coarse = transform.a > sides[0] * (1 + TRUE_SCALE) or -transform.e > sides[1] * (1 + TRUE_SCALE)
    return None if too_coarse else sides


def _band_numbers(src: Any, band: int | str, path: Path | str) -> tuple[int, ...]:
    """Return the number of the band, followed by those of the interval's bounds where the map has them."""
    names = list(src.descriptions)
    if isinstance(band, str):
        if band not in names:
            raise RasterError(f"{path}: has no band {band!r}, expected one of {', '.join(map(str, names))}")
        band = names.index(band) + 1
    if not 1 <= band <= src.count:
        raise RasterError(f"{path}: has no band {band}, expected 1 to {src.count}")
    bounds = UNCERTAINTY_BANDS[1:]
    return (band, *(names.index(name) + 1 for name in bounds)) if set(bounds) <= set(names) else (band,)


def _require_few_cells(windows: Sequence[Window | None], max_cells: float) -> None:
    cells = sum(window.width * window.height for window in windows if window is not None)
    if cells > max_cells:
        raise AOIError(
            f"the polygons span {cells:,} cells, expected at most {max_cells:,.0f}; divide them, or use a coarser map"
        )


def _add_cells(sums: "ZoneSums", rasters: Sequence[HeightRaster], area: BaseGeometry) -> None:
    """Add the cells of a polygon, strip by strip."""
    window = sums.grid.window(area)
    if window is None:
        return
    shapely.prepare(area)
    for strip in zone_strips(window):
        shares = coverage(area, sums.grid.bounds(strip), (strip.height, strip.width))
        if shares.any():
            sums.meets_map = True
            part = PixelWindow(strip.row_off, strip.col_off, strip.height, strip.width)
            sums.add(strip, np.stack([raster.read(part) for raster in rasters]).astype(np.float64), shares)


def zone_strips(window: Window) -> Iterator[Window]:
    """Cut a window into strips of whole rows that fit into memory, from north to south."""
    rows = max(1, _STRIP_CELLS // window.width)
    for row in range(0, window.height, rows):
        yield Window(window.col_off, window.row_off + row, window.width, min(rows, window.height - row))


def zone_area_m2(zone: Geometry) -> float:
    """Measure a polygon on the ellipsoid."""
    lonlat = to_crs(zone, CRS("EPSG:4326")).geom
    return abs(float(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(_wound(lonlat))[0]))


def _wound(area: BaseGeometry) -> BaseGeometry:
    """Turn shells counterclockwise and holes clockwise, so that holes are subtracted."""
    return shapely.MultiPolygon([shapely.geometry.polygon.orient(part) for part in shapely.get_parts(area)])


@dataclass
class ZoneSums:
    """Running sums over the strips of one polygon, from north to south."""

    threshold_m: float
    """Height above which a cell counts as cover, metres."""
    edges_m: NDArray[np.float64]
    """Edges of the histogram's bins, metres."""
    grid: ZoneGrid
    """Grid of the map."""
    meets_map: bool = False
    """Whether a cell of the map lies inside."""
    cells: float = 0.0
    """Known cells, each counted by its share inside."""
    total_m: float = 0.0
    """Sum of heights by share."""
    covered: float = 0.0
    """Known cells above the threshold, by share."""
    highest_m: float = -math.inf
    """Highest cell."""
    bounds_cells: float = 0.0
    """Cells with an interval, by share."""
    bounds_m: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    """Sums of the lower and the upper bounds by share."""
    bins: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Cells in fine bins of height, from the lowest one that has any, for the quantile."""
    first_bin: int = 0
    """Number of the first of those bins."""
    histogram: NDArray[np.float64] = field(init=False)
    """Cells in the bins of the histogram."""
    top_sum_m: float = 0.0
    """Sum of the highest cells of the squares that count."""
    top_count: int = 0
    """Squares that count."""
    open_row: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None
    """Row of squares that the next strip may go on filling: its number, known cells and highest cell of each."""

    def __post_init__(self) -> None:
        self.histogram = np.zeros(self.edges_m.size - 1)

    def add(self, window: Window, values: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
        """Add a strip of (K, H, W) values with the (H, W) share of each cell that lies inside."""
        heights_m = values[0]
        valid = np.isfinite(heights_m) & (shares > 0)
        if len(values) == 3:
            has_bounds = valid & np.isfinite(values[1:]).all(axis=0)
            self.bounds_cells += float(shares[has_bounds].sum())
            self.bounds_m += (values[1:, has_bounds] * shares[has_bounds]).sum(axis=1)
        heights, weights = heights_m[valid], shares[valid]
        self.cells += float(weights.sum())
        self.total_m += float((heights * weights).sum())
        self.covered += float(weights[heights > self.threshold_m].sum())
        numbers = np.clip(np.ceil(heights / _BIN_M), 0, _BINS).astype(np.int64)
        self._count(numbers, weights)
        # The first and the last bin take what lies beyond.
        ranks = np.clip(np.searchsorted(self.edges_m, heights, side="right") - 1, 0, self.histogram.size - 1)
        self.histogram += np.bincount(ranks, weights, minlength=self.histogram.size)
        # A cell that lies mostly outside the polygon would lend it a neighbour's tree.
        self.highest_m = max(self.highest_m, float(heights[weights >= _HALF].max(initial=-math.inf)))
        if self.grid.square:
            self._add_squares(window, heights_m, np.where(valid, shares, 0.0))

    def finish(self, area_m2: float, area_cells: float) -> ZoneStatistics:
        """Return the statistics of a polygon.

        Args:
            area_m2: Area of the polygon, square metres.
            area_cells: The same area in cells of the map.
        """
        self._close_row()
        scale_m2 = area_m2 / area_cells if area_cells else 0.0
        is_known = self.cells > 0
        return ZoneStatistics(
            area_m2=area_m2,
            meets_map=self.meets_map,
            known_share=min(1.0, self.cells / area_cells) if area_cells else 0.0,
            mean_m=self.total_m / self.cells if is_known else None,
            p95_m=self._quantile(0.95) if is_known else None,
            max_m=self.highest_m if math.isfinite(self.highest_m) else None,
            h100_m=self.top_sum_m / self.top_count if self.top_count else None,
            cover=min(1.0, self.covered / self.cells) if is_known else None,
            interval=Interval(*(self.bounds_m / self.bounds_cells).tolist()) if self.bounds_cells else None,
            edges_m=tuple(self.edges_m.tolist()),
            histogram_m2=tuple((self.histogram * scale_m2).tolist()),
        )

    def share_above(self, height_m: float) -> float | None:
        """Return the share of the known area that is higher; exact for multiples of 1/128 m."""
        bins_below = int(np.floor(height_m / _BIN_M)) + 1 - self.first_bin
        # Sums of the same shares in another order may differ in their last bit.
        return min(1.0, float(self.bins[max(0, bins_below) :].sum() / self.cells)) if self.cells else None

    def _count(self, numbers: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Count cells in the fine bins, of which a strip needs few."""
        if not numbers.size:
            return
        first, last = int(numbers.min()), int(numbers.max())
        if self.bins.size:
            first, last = min(first, self.first_bin), max(last, self.first_bin + self.bins.size - 1)
        counts = np.bincount(numbers - first, weights, minlength=last - first + 1).astype(np.float64)
        before = self.first_bin - first if self.bins.size else 0
        counts[before : before + self.bins.size] += self.bins
        self.bins, self.first_bin = counts, first

    def _quantile(self, share: float) -> float:
        reached = np.cumsum(self.bins)
        # Shares are sums of rounded numbers: a share that falls short by rounding alone counts as reached.
        rank = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
        return (self.first_bin + rank) * _BIN_M

    def _add_squares(self, window: Window, heights_m: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Add a strip to the squares of the top height; a cell belongs to the square of its centre."""
        assert self.grid.square
        transform, (side_x, side_y) = self.grid.transform, self.grid.square
        x = transform.c + transform.a * (window.col_off + np.arange(window.width) + 0.5)
        y = transform.f + transform.e * (window.row_off + np.arange(window.height) + 0.5)
        # Squares count southward, so that strips and squares run the same way.
        cols, rows = np.floor(x / side_x).astype(np.int64), -np.floor(y / side_y).astype(np.int64)
        counted = np.where(weights >= _HALF, heights_m, -np.inf)
        col_starts, row_starts = _run_starts(cols), _run_starts(rows)
        inside = np.add.reduceat(np.add.reduceat(weights, row_starts, axis=0), col_starts, axis=1)
        highest = np.maximum.reduceat(np.maximum.reduceat(counted, row_starts, axis=0), col_starts, axis=1)
        for number, start in enumerate(row_starts):
            row, cells, tops = int(rows[start]), inside[number], highest[number]
            if self.open_row is not None and self.open_row[0] == row:
                cells, tops = cells + self.open_row[1], np.maximum(tops, self.open_row[2])
            else:
                self._close_row()
            self.open_row = (row, cells, tops)

    def _close_row(self) -> None:
        """Count the squares of a row that no further strip reaches."""
        if self.open_row is None:
            return
        assert self.grid.square
        _, known_cells, highest = self.open_row
        needed = _HALF * self.grid.square[0] * self.grid.square[1] / self.grid.cell_area
        counted = (known_cells >= needed * (1 - 1e-9)) & np.isfinite(highest)
        self.top_sum_m += float(highest[counted].sum())
        self.top_count += int(counted.sum())
        self.open_row = None


def _run_starts(numbers: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where each run of one number begins."""
    return np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
