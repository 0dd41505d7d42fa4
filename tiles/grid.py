"""Lattices and tiles: decides which pixels are computed, and by which tile.

Windows are integers on a lattice anchored to the CRS origin: a pixel keeps its indices whatever the AOI.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry
from shapely.geometry.base import BaseGeometry

from tiles.aoi import flatten, keep_polygons, ring_vertices, to_crs
from tiles.vectors import Polygons
from tiles.windows import PixelWindow

_EDGE_PX = 1e-6  # an AOI that reaches less than this into a pixel only touches it
_MACRO_TILES = 16  # width of a macro-column; bounds the chips that a row-by-row walk keeps for the next row


@dataclass(frozen=True)
class Lattice:
    """Square pixels of one CRS; the upper-left corner of pixel (0, 0) is the CRS origin."""

    crs: CRS
    """Coordinate reference system."""
    resolution: float
    """Pixel side in CRS units."""

    def __post_init__(self) -> None:
        """Refuse a resolution that is not a length."""
        if not (math.isfinite(self.resolution) and self.resolution > 0):
            raise ValueError(f"resolution is {self.resolution}; expected a positive number of CRS units")

    def geobox(self, window: PixelWindow) -> GeoBox:
        """Give the GeoBox of a window; its affine depends on the window's indices alone."""
        res = self.resolution
        affine = Affine(res, 0.0, window.col0 * res, 0.0, -res, -window.row0 * res)
        return GeoBox(window.shape, affine, self.crs)

    def window(self, geometry: Geometry | BoundingBox) -> PixelWindow:
        """Give the smallest window that covers a geometry in the lattice's CRS.

        Raises:
            ValueError: the geometry is in another CRS, or empty.
        """
        _check_crs(geometry.crs, self.crs)
        bounds = geometry if isinstance(geometry, BoundingBox) else geometry.boundingbox
        if not all(map(math.isfinite, bounds)):
            raise ValueError("geometry is empty or not finite; expected an area")
        col0, row0 = (math.floor(v / self.resolution + _EDGE_PX) for v in (bounds.left, -bounds.top))
        col1, row1 = (math.ceil(v / self.resolution - _EDGE_PX) for v in (bounds.right, -bounds.bottom))
        return PixelWindow(row0, col0, max(row1 - row0, 1), max(col1 - col0, 1))


@dataclass(frozen=True)
class Tile:
    """One unit of output and of work: a cell of the tile lattice, clipped to the AOI's window."""

    row: int
    """Row of the cell in the tile lattice, as `col` is its column."""
    col: int
    window: PixelWindow
    """Core pixels on the pixel lattice; `geobox` is the same as shape, affine and CRS."""
    geobox: GeoBox

    @property
    def name(self) -> str:
        """Unique, file-name safe label, such as r-0123_c0045."""
        row, col = (f"{'-' * (index < 0)}{abs(index):04d}" for index in (self.row, self.col))
        return f"r{row}_c{col}"


@dataclass(frozen=True)
class TileGrid:
    """Square cells of lattice pixels, anchored like the pixels to the CRS origin."""

    lattice: Lattice
    """The pixel lattice."""
    tile_px: int
    """Cell side in pixels."""

    def __post_init__(self) -> None:
        """Refuse cells without pixels."""
        if self.tile_px < 1:
            raise ValueError(f"tile_px is {self.tile_px}; expected at least 1")

    def window(self, aoi: Geometry) -> PixelWindow:
        """Give the AOI's bounding window; the AOI may be in any CRS."""
        return self.lattice.window(to_crs(aoi, self.lattice.crs))

    def tiles(self, aoi: Geometry, within: PixelWindow | None = None) -> tuple[Tile, ...]:
        """Give the cells that meet the AOI (any CRS), each clipped to the AOI's bounding window.

        Args:
            aoi: Area of interest.
            within: Pixels to which the tiles are clipped as well.

        Returns:
            Tiles in the order of `cells`.
        """
        area = to_crs(aoi, self.lattice.crs)
        window = self.lattice.window(area)
        if within is not None:
            common = window.intersect(within)
            if common is None:
                return ()
            window = common
        side = self.tile_px
        return tuple(
            Tile(row, col, part, self.lattice.geobox(part))
            for row, col in self.cells(area, window).tolist()
            if (part := PixelWindow(row * side, col * side, side, side).intersect(window)) is not None
        )

    def cells(self, area: Geometry, window: PixelWindow) -> NDArray[np.int64]:
        """List the cells of a window whose inside meets an area.

        Args:
            area: Area in the CRS of the lattice.
            window: Pixels in which cells are looked for.

        Returns:
            (N, 2) row and column: by macro-column of 16 tiles, in it by row from the north, in that from west to
            east, which bounds a cache of what neighbouring tiles share.
        """
        cells = np.concatenate([np.empty((0, 2), np.int64), *self._rows(area.geom, window)])
        return cells[np.lexsort((cells[:, 1], cells[:, 0], cells[:, 1] // _MACRO_TILES))]

    def _rows(self, area: BaseGeometry, window: PixelWindow) -> Iterator[NDArray[np.int64]]:
        """Yield (n, 2) row and column of the cells whose inside meets the area, a row of boxes at a time."""
        shapely.prepare(area)
        side, edge = self.tile_px * self.lattice.resolution, _EDGE_PX * self.lattice.resolution
        cols = np.arange(window.col0 // self.tile_px, (window.col1 - 1) // self.tile_px + 1)
        west, east = cols * side + edge, (cols + 1) * side - edge
        for row in range(window.row0 // self.tile_px, (window.row1 - 1) // self.tile_px + 1):
            south, north = edge - (row + 1) * side, -row * side - edge
            boxes = shapely.box(west, np.full_like(west, south), east, np.full_like(west, north))
            meeting = cols[shapely.intersects(area, boxes)]
            yield np.column_stack([np.full_like(meeting, row), meeting])


def rasterize(aoi: Geometry, geobox: GeoBox) -> NDArray[np.bool_]:
    """Mark the pixels whose centre is inside an area.

    A centre on a western or northern edge is inside, on an eastern or southern one outside: areas that share
    an edge share no pixel. Centres come from lattice indices: a pixel has one answer through every window.

    Args:
        aoi: Area in the GeoBox's CRS.
        geobox: North-up grid.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the CRS differ, or the GeoBox is not north-up.
    """
    _check_crs(aoi.crs, geobox.crs)
    eastings, southings = _centres(geobox)
    x0, s0, x1, s1 = _edges(keep_polygons(flatten(aoi.geom)))
    first = np.searchsorted(southings, s0)
    count = np.searchsorted(southings, s1) - first  # rows with s0 <= centre < s1
    edge = np.repeat(np.arange(count.size), count)
    row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count - first, count)
    slope = (x1[edge] - x0[edge]) / (s1[edge] - s0[edge])
    crossing = x0[edge] + (southings[row] - s0[edge]) * slope
    toggles = np.zeros((southings.size, eastings.size + 1), np.uint8)
    np.add.at(toggles, (row, np.searchsorted(eastings, crossing)), 1)
    return np.logical_xor.accumulate(toggles & 1 == 1, axis=1)[:, :-1]


def _check_crs(actual: CRS | None, expected: CRS | None) -> None:
    """Refuse another CRS; no CRS is taken on trust."""
    if actual is not None and actual != expected:
        raise ValueError(f"geometry is in {actual}; expected {expected}, reproject it with to_crs")


def _centres(geobox: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the pixel centres: (W,) eastings and (H,) southings (-y), both ascending, CRS units."""
    affine = geobox.affine
    if affine.b != 0 or affine.d != 0 or affine.a <= 0 or affine.e >= 0:
        raise ValueError(f"geobox has the affine {tuple(affine)[:6]}; expected north-up pixels")
    rows, cols = (np.arange(size, dtype=np.float64) for size in geobox.shape)
    col0, row0 = _snap(affine.c / affine.a), _snap(affine.f / affine.e)
    return (col0 + cols + 0.5) * affine.a, (row0 + rows + 0.5) * -affine.e


def _snap(index: float) -> float:
    """Round an index that is a whole number but for float noise."""
    return float(round(index)) if abs(index - round(index)) < _EDGE_PX else index


def _edges(polygons: Polygons) -> NDArray[np.float64]:
    """Give the rings' edges as (4, N) x0, s0, x1, s1 with the southing s = -y growing along each."""
    vertices, joined = ring_vertices(polygons)
    points = vertices * (1.0, -1.0)
    edges = np.hstack([points[:-1], points[1:]])[joined]
    return np.where(edges[:, 1:2] > edges[:, 3:4], edges[:, [2, 3, 0, 1]], edges).T
