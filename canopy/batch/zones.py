"""Zones: how an area larger than one projection is divided, and which cells of which lattice are its tiles."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from pyproj import Transformer

from canopy.errors import AOIError
from canopy.prediction.grids import check_grid_options, working_lattice
from tiles.aoi import flatten, keep_polygons, to_crs
from tiles.grid import Lattice, TileGrid
from tiles.ground import unit_m
from tiles.windows import PixelWindow

BLOCK_PX = 64
"""Cells of the overview layers are squares of this many pixels, so that none belongs to two tiles."""
QUADKEY_PX = (256, 16_384)
"""Fewest and most pixels along the side of a quadkey's tile."""
_WORLD_M = 2 * math.pi * 6_378_137.0
"""Side of the web mercator square."""
_LONLAT = CRS("EPSG:4326")
_NORTH_DEG, _SOUTH_DEG = 84.0, -80.0
"""Latitudes between which UTM is defined; UPS lies beyond."""
Windows = NDArray[np.int64]
"""(N, 4) first row, first column, height and width of windows."""


@dataclass(frozen=True)
class Zone:
    """A part of an area that is mapped on one lattice, with the model on one working lattice."""

    name: str
    """EPSG code of the working lattice, else of the output; unique in a plan."""
    lattice: Lattice
    """Lattice of the output."""
    work: Lattice
    """Lattice on which the model runs."""
    area: Geometry
    """Area to map, in the CRS of the output."""


@dataclass(frozen=True)
class ZoneTiles:
    """Tiles of a zone, as arrays: a continent has a million."""

    zone: Zone
    names: list[str]
    """Name of each tile, unique in a plan."""
    cells: NDArray[np.int64]
    """(N, 2) row and column in the tile grid."""
    windows: Windows
    """(N, 4) pixels of each tile."""
    footprints: NDArray[Any]
    """(N,) polygons in longitude and latitude."""
    shares: NDArray[np.float64]
    """(N,) share of each tile inside the area."""


def divide(area: Geometry, grid: str, resolution: float | None, gsd_m: float) -> list[Zone]:
    """Divide an area into zones.

    Args:
        area: Area of interest, in any CRS.
        grid: ``utm`` for the area's UTM zones, ``EPSG:n`` for one CRS, ``quadkey:Z`` for web mercator's tiles.
        resolution: Cell size in units of the output's CRS; the model's GSD if None. Quadkeys choose their own.
        gsd_m: GSD of the model, metres.

    Raises:
        AOIError: There is no such grid.
    """
    if grid == "utm":
        return [_zone(name, part, crs, resolution, gsd_m) for name, crs, part in _utm_parts(area)]
    if match := re.fullmatch(r"quadkey:(\d{1,2})", grid):
        if resolution is not None:
            raise AOIError(f"--resolution {resolution:g}: quadkeys have their own pixels, leave it out")
        return _mercator_zones(area, int(match[1]), gsd_m)
    if not re.fullmatch(r"[A-Za-z]+:\w+", grid):
        raise AOIError(f"--grid {grid!r}: utm, EPSG:n or quadkey:Z expected")
    check_grid_options(grid, resolution)
    return [_zone(grid.replace(":", "-").lower(), area, CRS(grid), resolution, gsd_m)]


def quadkey_px(zoom: int, gsd_m: float, latitude_deg: float) -> int:
    """Return the side of a quadkey's tile: the power of two whose pixels are no coarser than the model's.

    Raises:
        AOIError: Tiles of this zoom are too large or too small to be files.
    """
    side_m = _WORLD_M / 2**zoom * math.cos(math.radians(latitude_deg))
    tile_px = 1 << max(0, math.ceil(math.log2(side_m / gsd_m) - 1e-9))
    low, high = QUADKEY_PX
    if not low <= tile_px <= high:
        shift = math.ceil(math.log2(tile_px / high)) if tile_px > high else math.floor(math.log2(tile_px / low))
        raise AOIError(
            f"quadkey:{zoom} has tiles of {tile_px:,} px at {gsd_m:g} m; expected {low} to {high:,}, "
            f"use quadkey:{zoom + shift}"
        )
    return tile_px


def tiles_of(zone: Zone, tile_px: int, zoom: int | None = None) -> ZoneTiles:
    """List the tiles of a zone.

    Args:
        zone: Zone.
        tile_px: Side of a tile.
        zoom: Zoom of the quadkeys, None for another grid.
    """
    grid = TileGrid(zone.lattice, tile_px)
    whole = zone.lattice.window(zone.area)
    cells = grid.cells(zone.area, whole)
    windows = _clipped(cells, tile_px, whole)
    if zoom is not None:
        # A quadkey is computed on the UTM zone of its centre, whichever zone of the plan its sides reach.
        inside = _strip_of(zone.lattice, cells, tile_px) == zone.name
        cells, windows = cells[inside], windows[inside]
        half = 2 ** (zoom - 1) if zoom else 0
        names = [quadkey(col + half, row + half, zoom) for row, col in cells.tolist()]
    else:
        names = [f"{zone.name}_{_signed('r', row)}{_signed('_c', col)}" for row, col in cells.tolist()]
    return ZoneTiles(zone, names, cells, windows, footprints(zone.lattice, windows), _shares(zone, windows))


def quadkey(col: int, row: int, zoom: int) -> str:
    """Return the quadkey of a web mercator tile, counted from the north-west corner of the world."""
    return "".join(str((col >> bit & 1) + 2 * (row >> bit & 1)) for bit in range(zoom - 1, -1, -1))


def footprints(lattice: Lattice, windows: Windows) -> NDArray[Any]:
    """Return (N,) polygons of windows in longitude and latitude, of eight points; longitudes of one are continuous."""
    left, bottom, right, top = _bounds(lattice, windows)
    middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
    x = np.stack([left, middle_x, right, right, right, middle_x, left, left, left], axis=1)
    y = np.stack([top, top, top, middle_y, bottom, bottom, bottom, middle_y, top], axis=1)
    to_lonlat = Transformer.from_crs(lattice.crs.to_wkt(), "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(x, y)
    lon = lon[:, :1] + (lon - lon[:, :1] + 180.0) % 360.0 - 180.0
    return np.asarray(shapely.polygons(np.stack([lon, lat], axis=2)))


def _zone(name: str, area: Geometry, crs: CRS, resolution: float | None, gsd_m: float) -> Zone:
    lattice = Lattice(crs, resolution or gsd_m / unit_m(crs.proj))
    projected = to_crs(area, crs)
    return Zone(name, lattice, working_lattice(projected, lattice, gsd_m), projected)


def _utm_parts(area: Geometry) -> list[tuple[str, CRS, Geometry]]:
    """Cut an area along the limits of UTM zones; an area inside one zone is not touched."""
    lonlat = to_crs(area, _LONLAT)
    west, south, east, north = lonlat.boundingbox
    frames: list[tuple[int, Any]] = []
    for epsg, frame in _frames(west, east):
        left, low, right, high = frame
        if left < east and right > west and low < north and high > south:
            frames.append((epsg, shapely.box(*frame)))
    if len(frames) == 1:
        epsg = frames[0][0]
        return [(str(epsg), CRS(f"EPSG:{epsg}"), area)]
    parts = []
    for epsg, outline in frames:
        polygons = keep_polygons(flatten(shapely.intersection(lonlat.geom, outline)))
        if polygons.size:
            joined = polygons[0] if polygons.size == 1 else shapely.union_all(polygons)
            parts.append((str(epsg), CRS(f"EPSG:{epsg}"), Geometry(joined, _LONLAT)))
    return parts


def _frames(west: float, east: float) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Yield the EPSG code and the limits of each zone between two longitudes, which may pass 180."""
    for strip in range(math.floor((west + 180) / 6), math.ceil((east + 180) / 6)):
        number, left = strip % 60 + 1, strip * 6.0 - 180.0
        yield 32600 + number, (left, 0.0, left + 6.0, _NORTH_DEG)
        yield 32700 + number, (left, _SOUTH_DEG, left + 6.0, 0.0)
    yield 32661, (west - 1, _NORTH_DEG, east + 1, 90.0)
    yield 32761, (west - 1, -90.0, east + 1, _SOUTH_DEG)


def _mercator_zones(area: Geometry, zoom: int, gsd_m: float) -> list[Zone]:
    """Return one zone for each UTM zone on which quadkeys are computed; their area is the whole."""
    mercator = CRS("EPSG:3857")
    lonlat = to_crs(area, _LONLAT)
    _, south, _, north = lonlat.boundingbox
    nearest = 0.0 if south < 0 < north else min(abs(south), abs(north))
    lattice = Lattice(mercator, _WORLD_M / 2**zoom / quadkey_px(zoom, gsd_m, nearest))
    projected = to_crs(area, mercator)
    # A tile's centre may lie just outside the area, in the next zone.
    reach = Geometry(lonlat.geom.buffer(360.0 / 2**zoom), _LONLAT)
    return [Zone(name, lattice, Lattice(crs, gsd_m), projected) for name, crs, _ in _utm_parts(reach)]


def _strip_of(lattice: Lattice, cells: NDArray[np.int64], tile_px: int) -> NDArray[np.str_]:
    """Return the EPSG code of the UTM zone in which each cell's centre lies."""
    side = tile_px * lattice.resolution
    to_lonlat = Transformer.from_crs(lattice.crs.to_wkt(), "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform((cells[:, 1] + 0.5) * side, -(cells[:, 0] + 0.5) * side)
    number = np.floor((np.asarray(lon) + 180) / 6).astype(int) % 60 + 1
    code = np.where(np.asarray(lat) >= 0, 32600, 32700) + number
    code = np.where(np.asarray(lat) >= _NORTH_DEG, 32661, np.where(np.asarray(lat) <= _SOUTH_DEG, 32761, code))
    return code.astype(str)


def _clipped(cells: NDArray[np.int64], tile_px: int, whole: PixelWindow) -> Windows:
    first = np.maximum(cells * tile_px, (whole.row0, whole.col0))
    last = np.minimum((cells + 1) * tile_px, (whole.row1, whole.col1))
    return np.hstack([first, last - first])


def _bounds(lattice: Lattice, windows: Windows) -> tuple[NDArray[np.float64], ...]:
    """Return left, bottom, right and top of windows, in units of the CRS."""
    row0, col0, height, width = windows.T
    res = lattice.resolution
    return col0 * res, -(row0 + height) * res, (col0 + width) * res, -row0 * res


def _shares(zone: Zone, windows: Windows) -> NDArray[np.float64]:
    """Return the share of each window inside the zone's area."""
    left, bottom, right, top = _bounds(zone.lattice, windows)
    boxes = shapely.box(left, bottom, right, top)
    area = zone.area.geom
    shapely.prepare(area)
    shares = np.ones(len(windows))
    cut = ~shapely.contains_properly(area, boxes)
    # Only tiles at the area's edge are cut: an intersection costs thousands of times a prepared test.
    shares[cut] = shapely.area(shapely.intersection(area, boxes[cut])) / shapely.area(boxes[cut])
    return shares


def _signed(prefix: str, index: int) -> str:
    return f"{prefix}{'-' * (index < 0)}{abs(index):04d}"
