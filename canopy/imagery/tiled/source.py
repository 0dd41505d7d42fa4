"""Tiles as one image on any grid: the zoom that fits is chosen block by block, by place alone."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from rasterio import Affine

from canopy.imagery.calendar import Calendar, constant_days, day_of
from canopy.imagery.licences import Licence
from canopy.imagery.longitudes import recentred, turn
from canopy.imagery.placement import Placement, transformer
from canopy.imagery.resample import PixelGrid, Warper, locate, warp
from canopy.imagery.rescale import Rescale
from canopy.imagery.selection import Skipped
from canopy.imagery.source import labelled
from canopy.imagery.tiled.matrices import TileKey, TileMatrix, choose_matrix
from canopy.imagery.tiled.reader import TileReader
from tiles.ground import longer_side_m
from tiles.windows import PixelWindow

_BLOCK_PX = 256
"""Side of the blocks of a grid that are resampled at once, each from one zoom."""
_LONLAT = "OGC:CRS84"
Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


class TileWarper(Warper):
    """The tiles of one zoom on one block of a grid."""

    def __init__(self, shown: str, matrix: TileMatrix, grid: PixelGrid, block: PixelWindow) -> None:
        """Place a matrix for a block: where the block crosses the antimeridian, around it."""
        self.matrix, self.block = matrix, block
        super().__init__(shown, _placement(matrix, grid, block), grid)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Source columns and rows per pixel of the grid, at the block's centre: a matrix may span the world."""
        (x_step, y_step), (x_phase, y_phase) = self.grid.resolution, self.grid.phase
        x = (self.block.col0 + self.block.width / 2 + x_phase) * x_step
        y = (self.block.row0 + self.block.height / 2 + y_phase) * y_step
        cols, rows = self._to_source(x + np.array([0, x_step, 0]), y + np.array([0, 0, y_step]))
        if not (np.isfinite(cols).all() and np.isfinite(rows).all()):
            return 1.0, 1.0
        return float(np.hypot(*(cols[1:] - cols[0]))), float(np.hypot(*(rows[1:] - rows[0])))

    @cached_property
    def block_px(self) -> int:
        """Side of a block."""
        return _BLOCK_PX


def _placement(matrix: TileMatrix, grid: PixelGrid, block: PixelWindow) -> Placement:
    """Return the place of a matrix's pixels, twice around the world for a block that crosses its edge."""
    own = matrix.placement
    measured = turn(matrix.crs)
    if measured is None or not matrix.spans_world or own.transform is None:
        return own
    length = measured[0]
    transform = grid.transform(block.col0, block.row0)
    sides = np.linspace(0, block.width, 9)
    cols, rows = (axis.ravel() for axis in np.meshgrid(sides, sides))
    xs, _ = transformer(grid.crs, matrix.crs).transform(
        transform.a * cols + transform.c, transform.e * rows + transform.f
    )
    xs = xs[np.isfinite(xs)]
    if not xs.size or np.ptp(xs) <= length / 2:
        return own
    # Longitudes west of the block's own jump come after those east of it: the columns go on beyond the last.
    xs = np.where(xs < matrix.left + length / 2, xs + length, xs)
    wkt, shift = recentred(matrix.crs, float(xs.min()), float(xs.max()))
    height, width = own.shape
    return Placement(wkt, (height, 2 * width), Affine.translation(shift, 0) @ own.transform)


@dataclass(frozen=True)
class _Piece:
    """A block of the grid, and the tiles that decide it."""

    block: PixelWindow
    warper: TileWarper
    keys: tuple[TileKey, ...]


class TiledImagery:
    """Imagery of a tile service or of a folder of tiles; see `ImagerySource`."""

    def __init__(
        self,
        shown: str,
        reader: TileReader,
        matrices: Sequence[TileMatrix],
        rescale: Rescale,
        bounds: Bounds,
        datetime: str | None = None,
        licence: Licence | None = None,
        near: Bounds | None = None,
        calendar: Calendar | None = None,
    ) -> None:
        """Describe tiles; none is fetched yet.

        Args:
            shown: URI without anything secret.
            reader: Tiles.
            matrices: Matrices, the coarsest first.
            rescale: How values become reflectance.
            bounds: West, south, east, north of the tiles, degrees.
            datetime: Acquisition time or "start/end", if known.
            licence: What the provider permits, if on record.
            near: Box of the mapped area, where the GSD is measured; `bounds` if None.
            calendar: Footprints with dates, if the provider has any.
        """
        self.uris: tuple[str, ...] = (shown,)
        self.footprint: Geometry = box(*bounds, "EPSG:4326")
        west, south, east, north = near or bounds
        lon, lat = (west + east) / 2, (south + north) / 2
        self.gsd_m = matrices[-1].gsd_m(lon, lat)
        self.datetime = datetime
        self.rescale = rescale
        self.skipped: tuple[Skipped, ...] = ()
        self.licence = licence
        self.calendar = calendar
        self._shown, self._reader, self._matrices = shown, reader, tuple(matrices)

    def describe(self) -> str:
        """Describe the imagery in one line: address, zooms, GSD, CRS and rescale."""
        first, last = self._matrices[0], self._matrices[-1]
        zooms = str(first.zoom) if first is last else f"{first.zoom} to {last.zoom}"
        crs = pyproj.CRS.from_wkt(last.crs)
        code = ":".join(crs.to_authority() or ()) or crs.name
        tile = f"{last.tile_px[0]} px tiles"
        return f"{self._shown}, zoom {zooms}, {tile}, GSD from {self.gsd_m:.3g} m, {code}, values {self.rescale}"

    def fingerprint(self) -> str:
        """Return a sha256 over all that decides a pixel and can be known without reading tiles."""
        parts = (self._reader.store.identity(), self._matrices, self._reader.unknown, self.rescale)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox; see `ImagerySource.read`."""
        grid, region = locate(geobox)
        out = np.full((3, region.height, region.width), np.nan, np.float32)
        for piece in self._ahead(self._pieces(grid, region)):
            part = piece.block.intersect(region)
            warped = warp(partial(self._reader.read, piece.warper.matrix), piece.warper, piece.block)
            if part is None or warped is None:
                continue
            rows, cols = part.slices_in(region)
            block_rows, block_cols = part.slices_in(piece.block)
            out[:, rows, cols] = self.rescale.apply(warped[:, block_rows, block_cols])
        return labelled(out, geobox)

    def dates(self, geobox: GeoBox) -> NDArray[np.uint16]:
        """Return the day of acquisition of each pixel; see `ImagerySource.dates`."""
        if self.calendar is not None and self.calendar.days:
            return self.calendar.on(geobox)
        return constant_days(geobox, day_of(self.datetime))

    def _pieces(self, grid: PixelGrid, region: PixelWindow) -> Iterator[_Piece]:
        """Yield the blocks that cover a region and may have tiles, row by row."""
        for row in range(region.row0 // _BLOCK_PX, (region.row1 - 1) // _BLOCK_PX + 1):
            for col in range(region.col0 // _BLOCK_PX, (region.col1 - 1) // _BLOCK_PX + 1):
                block = PixelWindow(row * _BLOCK_PX, col * _BLOCK_PX, _BLOCK_PX, _BLOCK_PX)
                matrix = self._matrix(grid, block)
                warper = TileWarper(self._shown, matrix, grid, block)
                source = warper.source_region(block)
                inside = source and source.intersect(PixelWindow(0, 0, *warper.placement.shape))
                keys = tuple(self._reader.keys(matrix, inside)) if inside is not None else ()
                if keys:
                    yield _Piece(block, warper, keys)

    def _ahead(self, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
        """Yield pieces while the tiles of those that follow are fetched."""
        waiting: deque[_Piece] = deque()
        requested = 0
        for piece in pieces:
            self._reader.request(piece.keys)
            waiting.append(piece)
            requested += len(piece.keys)
            while requested > self._reader.ahead:
                requested -= len(waiting[0].keys)
                yield waiting.popleft()
        yield from waiting

    def _matrix(self, grid: PixelGrid, block: PixelWindow) -> TileMatrix:
        """Return the matrix for a block: by the true size of the grid's pixels at the block's centre."""
        transform = grid.transform(block.col0, block.row0)
        x = transform.c + transform.a * (block.width / 2 + np.array([0, 1, 0]))
        y = transform.f + transform.e * (block.height / 2 + np.array([0, 0, 1]))
        lon, lat = transformer(grid.crs, _LONLAT).transform(x, y)
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return self._matrices[-1]
        # Rounded, so that a place has one answer whatever its last digits.
        return choose_matrix(self._matrices, longer_side_m(lon, lat), round(float(lon[0]), 6), round(float(lat[0]), 6))


def clipped(bounds: Bounds, limit: Bounds) -> Bounds | None:
    """Return the common part of two boxes of degrees, None where they do not meet."""
    west, south = max(bounds[0], limit[0]), max(bounds[1], limit[1])
    east, north = min(bounds[2], limit[2]), min(bounds[3], limit[3])
    return (west, south, east, north) if west < east and south < north else None


def matrix_bounds(matrix: TileMatrix) -> Bounds:
    """Return the box of a matrix's tiles in degrees, of those within its limits."""
    first_col, first_row, last_col, last_row = matrix.limits or (0, 0, matrix.columns - 1, matrix.rows - 1)
    width, height = (side * matrix.pixel for side in matrix.tile_px)
    xs = matrix.left + width * np.linspace(first_col, last_col + 1, 9)
    ys = matrix.top - height * np.linspace(first_row, last_row + 1, 9)
    grid_x, grid_y = np.meshgrid(xs, ys)
    lon, lat = transformer(matrix.crs, _LONLAT).transform(grid_x.ravel(), grid_y.ravel())
    finite = np.isfinite(lon) & np.isfinite(lat)
    if not finite.any():
        return -180.0, -90.0, 180.0, 90.0
    # The world's own edges come back as 180 degrees on either side.
    if matrix.spans_world and last_col - first_col + 1 == matrix.columns:
        return -180.0, float(lat[finite].min()), 180.0, float(lat[finite].max())
    return float(lon[finite].min()), float(lat[finite].min()), float(lon[finite].max()), float(lat[finite].max())
