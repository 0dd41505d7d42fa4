"""Tile matrices: which ground the tile in a column and row of one zoom shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pyproj
from rasterio import Affine

from canopy.imagery.longitudes import turn
from canopy.imagery.placement import Placement, transformer
from canopy.imagery.source import GSD_TOLERANCE
from tiles.ground import longer_side_m

_WHOLE = 1e-6
"""Share of a turn by which a matrix that spans the world may miss it."""


@dataclass(frozen=True)
class TileKey:
    """One tile: column and row in the matrix of one zoom."""

    zoom: int
    """Index of the matrix among those of the source, the coarsest first; of XYZ tiles the zoom."""
    col: int
    row: int


@dataclass(frozen=True)
class TileMatrix:
    """The tiles of one zoom."""

    identifier: str
    """Name in requests."""
    zoom: int
    """Index among the matrices of the source."""
    crs: str
    """WKT."""
    left: float
    top: float
    """North-west corner, in x, y order whatever the CRS's axes."""
    pixel: float
    """Side of a pixel in CRS units."""
    tile_px: tuple[int, int]
    """Width and height of a tile."""
    columns: int
    rows: int
    limits: tuple[int, int, int, int] | None = None
    """First column, first row, last column, last row that have tiles; None where all may."""

    @property
    def placement(self) -> Placement:
        """Place of all of the matrix's pixels."""
        transform = Affine(self.pixel, 0, self.left, 0, -self.pixel, self.top)
        width, height = self.tile_px
        return Placement(self.crs, (self.rows * height, self.columns * width), transform)

    @property
    def spans_world(self) -> bool:
        """Whether the first column lies east of the last."""
        measured = turn(self.crs)
        width = self.columns * self.tile_px[0] * self.pixel
        return measured is not None and abs(width - measured[0]) <= _WHOLE * measured[0]

    def may_have(self, key: TileKey) -> bool:
        """Return whether the service says that it has a tile."""
        first_col, first_row, last_col, last_row = self.limits or (0, 0, self.columns - 1, self.rows - 1)
        return first_col <= key.col <= last_col and first_row <= key.row <= last_row

    def gsd_m(self, lon: float, lat: float) -> float:
        """Measure a pixel's longer side at a place, in true ground metres; infinite outside the CRS."""
        return self.pixel * _longest_unit_m(self.crs, lon, lat)


@lru_cache(maxsize=4096)
def _longest_unit_m(crs: str, lon: float, lat: float) -> float:
    """Measure the true metres in a unit of a CRS at a place, along its longer axis."""
    step = 1e-5 if pyproj.CRS.from_wkt(crs).is_geographic else 1.0
    x, y = transformer("OGC:CRS84", crs).transform(lon, lat)
    lons, lats = transformer(crs, "OGC:CRS84").transform(np.array([x, x + step, x]), np.array([y, y, y + step]))
    length_m = longer_side_m(np.asarray(lons), np.asarray(lats)) / step if np.isfinite([x, y]).all() else math.inf
    return length_m if math.isfinite(length_m) else math.inf


def choose_matrix(matrices: Sequence[TileMatrix], gsd_m: float, lon: float, lat: float) -> TileMatrix:
    """Return the coarsest matrix whose pixels at a place are no longer than the wanted ones; the finest where none is.

    Args:
        matrices: Matrices, the coarsest first.
        gsd_m: Wanted pixel size, true ground metres.
        lon: Longitude of the place.
        lat: Latitude of the place.
    """
    fine = (one for one in matrices if one.gsd_m(lon, lat) <= gsd_m * (1 + GSD_TOLERANCE))
    return next(fine, matrices[-1])


@cache
def mercator_crs() -> str:
    """Return the WKT of web mercator."""
    return str(pyproj.CRS.from_epsg(3857).to_wkt())


def mercator_matrix(zoom: int, tile_px: int = 256) -> TileMatrix:
    """Return the matrix of a zoom of XYZ tiles; larger tiles show the same ground with more pixels."""
    import morecantile

    matrix = morecantile.tms.get("WebMercatorQuad").matrix(zoom)
    left, top = matrix.pointOfOrigin
    pixel = matrix.cellSize * matrix.tileWidth / tile_px
    side = (tile_px, tile_px)
    return TileMatrix(str(zoom), zoom, mercator_crs(), left, top, pixel, side, matrix.matrixWidth, matrix.matrixHeight)


def quadkey(key: TileKey) -> str:
    """Return the quadkey of an XYZ tile: a digit a zoom, of the bits of row and column."""
    return "".join(str((key.col >> bit & 1) | (key.row >> bit & 1) << 1) for bit in range(key.zoom - 1, -1, -1))


def of_quadkey(name: str) -> TileKey:
    """Return the XYZ tile of a quadkey."""
    col = int("".join(str(int(digit) & 1) for digit in name), 2)
    row = int("".join(str(int(digit) >> 1) for digit in name), 2)
    return TileKey(len(name), col, row)
