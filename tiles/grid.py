"""Areas, lattices and tiles: decides which pixels are computed, and by which tile.

Windows are integers on a lattice anchored to the CRS origin: a pixel keeps its indices whatever the AOI.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry
from pyproj.exceptions import CRSError, ProjError
from shapely import affinity
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from tiles.errors import AOIError

_EDGE_PX = 1e-6  # an AOI that reaches less than this into a pixel only touches it
_MACRO_TILES = 16  # width of a macro-column; bounds the chips that a row-by-row walk keeps for the next row
_SEGMENT_M, _SEGMENT_DEG = 1000.0, 0.01  # longest edge that is projected; its chord is off by centimetres
_TEAR_M = 1e6  # a projected edge longer than this ran across a cut in the projection
_CUT_DEG = 1e-9  # distance kept from a projection's cut, 0.1 mm
_LIMIT_DEG, _LIMIT_M = (360.0, 90.0), (1e8, 1e8)
_UTM_REACH_DEG, _UTM_NORTH_DEG, _UTM_SOUTH_DEG = 9.0, 84.0, -80.0

Polygons = NDArray[np.object_]


@dataclass(frozen=True)
class PixelWindow:
    """A rectangle of at least one lattice pixel; rows grow southward, and indices may be negative."""

    row0: int
    col0: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"window is {self.height} x {self.width} px; expected at least 1 x 1")

    @property
    def row1(self) -> int:
        """Last row, exclusive."""
        return self.row0 + self.height

    @property
    def col1(self) -> int:
        """Last column, exclusive."""
        return self.col0 + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.height, self.width

    def intersect(self, other: "PixelWindow") -> "PixelWindow | None":
        """Give the common pixels, or None where there are none."""
        row0, col0 = max(self.row0, other.row0), max(self.col0, other.col0)
        height, width = min(self.row1, other.row1) - row0, min(self.col1, other.col1) - col0
        return PixelWindow(row0, col0, height, width) if height > 0 and width > 0 else None

    def pad(self, px: int) -> "PixelWindow":
        """Grow by `px` pixels on each side (shrink where negative)."""
        return PixelWindow(self.row0 - px, self.col0 - px, self.height + 2 * px, self.width + 2 * px)

    def slices_in(self, other: "PixelWindow") -> tuple[slice, slice]:
        """Give the (rows, columns) slices of this window in an array that holds `other`.

        Raises:
            ValueError: this window is not inside `other`.
        """
        if self.intersect(other) != self:
            raise ValueError(f"{self} is not inside {other}")
        row, col = self.row0 - other.row0, self.col0 - other.col0
        return slice(row, row + self.height), slice(col, col + self.width)


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

    def tiles(self, aoi: Geometry) -> tuple[Tile, ...]:
        """Give the cells that meet the AOI (any CRS), each clipped to the AOI's bounding window.

        Order: by macro-column of 16 tiles, in it by row from the north, in that from west to east; bounds
        a cache of what neighbouring tiles share.
        """
        area = to_crs(aoi, self.lattice.crs)
        window = self.lattice.window(area)
        cells = sorted(self._cells(area.geom, window), key=lambda cell: (cell[1] // _MACRO_TILES, *cell))
        side = self.tile_px
        return tuple(
            Tile(row, col, part, self.lattice.geobox(part))
            for row, col in cells
            if (part := PixelWindow(row * side, col * side, side, side).intersect(window)) is not None
        )

    def _cells(self, area: BaseGeometry, window: PixelWindow) -> Iterator[tuple[int, int]]:
        """Yield (row, col) of the cells whose inside meets the area, a row of boxes at a time."""
        shapely.prepare(area)
        side, edge = self.tile_px * self.lattice.resolution, _EDGE_PX * self.lattice.resolution
        cols = np.arange(window.col0 // self.tile_px, (window.col1 - 1) // self.tile_px + 1)
        west, east = cols * side + edge, (cols + 1) * side - edge
        for row in range(window.row0 // self.tile_px, (window.row1 - 1) // self.tile_px + 1):
            south, north = edge - (row + 1) * side, -row * side - edge
            boxes = shapely.box(west, np.full_like(west, south), east, np.full_like(west, north))
            yield from ((row, int(col)) for col in cols[shapely.intersects(area, boxes)])


def read_aoi(path: str | Path, layer: str | None = None) -> Geometry:
    """Read the polygons of a vector file as one valid area.

    Z is dropped, rings are repaired, features are united, and points and lines beside polygons are left out.
    In a geographic CRS longitudes become continuous and may pass 180: an edge longer than 180 and shorter
    than 360 degrees is taken to cross the antimeridian.

    Args:
        path: any vector file GDAL reads: GeoJSON, GeoPackage, shapefile, KML, KMZ.
        layer: name of the layer; may be left out where the file has one.

    Raises:
        AOIError: the file cannot be read, or holds no usable area.
    """
    geometries, crs = _read_vector(path := Path(path), layer)
    parts = _parts(geometries)
    polygons = _polygons(parts)
    if polygons.size == 0:
        raise AOIError(f"{path}: {_absence(parts)}")
    _check_coordinates(polygons, crs, path)
    area = _assemble(polygons, crs)
    if area.area == 0:
        raise AOIError(f"{path}: polygons have no area; expected an area, draw three corners or more")
    return Geometry(area, crs)


def utm_crs(aoi: Geometry) -> CRS:
    """Choose the UTM zone of the AOI's centroid; UPS beyond 84 degrees north and 80 south.

    Raises:
        AOIError: the AOI reaches too far from the zone's central meridian.
    """
    lonlat = to_crs(aoi, CRS("EPSG:4326"))
    lon, lat = lonlat.centroid.coords[0]
    if not _UTM_SOUTH_DEG <= lat <= _UTM_NORTH_DEG:
        return CRS("EPSG:32661" if lat > 0 else "EPSG:32761")
    strip = math.floor((lon + 180.0) / 6.0)
    zone, meridian = strip % 60 + 1, strip * 6.0 - 177.0
    west, _, east, _ = lonlat.boundingbox
    reach = max(meridian - west, east - meridian)
    if reach > _UTM_REACH_DEG:
        raise AOIError(
            f"AOI reaches {reach:.1f} degrees from the central meridian of UTM zone {zone}; expected at most"
            f" {_UTM_REACH_DEG:g}, name a projection for an area this wide with --crs"
        )
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + zone}")


def to_crs(aoi: Geometry, crs: CRS) -> Geometry:
    """Reproject an area with its edges densified to about a kilometre; the result is valid.

    In a geographic target the area's longitudes are continuous; in a projected one the area is split where
    the projection is cut, such as web mercator at the antimeridian.

    Raises:
        AOIError: the AOI has no area, or does not fit into the target.
    """
    if aoi.crs is None:
        raise AOIError("AOI has no CRS; expected one, give the AOI with its CRS")
    area = _assemble(_polygons(_parts(aoi.geom)), aoi.crs)
    if area.is_empty:
        raise AOIError("AOI has no area; expected polygons, buffer points and lines first")
    if aoi.crs != crs:
        moved = _project(area, aoi.crs, crs)
        if not crs.geographic and _is_torn(moved, crs):
            moved = _project_split(Geometry(area, aoi.crs), crs)
        area = _assemble(_polygons(_parts(moved)), crs)
    return Geometry(area, crs)


def rasterize(aoi: Geometry, geobox: GeoBox) -> NDArray[np.bool_]:
    """Mark the pixels whose centre is inside an area.

    A centre on a western or northern edge is inside, on an eastern or southern one outside: areas that share
    an edge share no pixel. Centres come from lattice indices: a pixel has one answer through every window.

    Args:
        aoi: area in the GeoBox's CRS.
        geobox: north-up grid.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the CRS differ, or the GeoBox is not north-up.
    """
    _check_crs(aoi.crs, geobox.crs)
    eastings, southings = _centres(geobox)
    x0, s0, x1, s1 = _edges(_polygons(_parts(aoi.geom)))
    first = np.searchsorted(southings, s0)
    count = np.searchsorted(southings, s1) - first  # rows with s0 <= centre < s1
    edge = np.repeat(np.arange(count.size), count)
    row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count - first, count)
    slope = (x1[edge] - x0[edge]) / (s1[edge] - s0[edge])
    crossing = x0[edge] + (southings[row] - s0[edge]) * slope
    toggles = np.zeros((southings.size, eastings.size + 1), np.uint8)
    np.add.at(toggles, (row, np.searchsorted(eastings, crossing)), 1)
    return np.logical_xor.accumulate(toggles & 1 == 1, axis=1)[:, :-1]


def _check_crs(found: CRS | None, expected: CRS | None) -> None:
    """Refuse another CRS; no CRS is taken on trust."""
    if found is not None and found != expected:
        raise ValueError(f"geometry is in {found}; expected {expected}, reproject it with to_crs")


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


def _rings(polygons: Polygons) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give all rings' vertices (N, 2) and, (N - 1,), which neighbours share a ring."""
    vertices, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    return vertices, np.diff(ring) == 0


def _edges(polygons: Polygons) -> NDArray[np.float64]:
    """Give the rings' edges as (4, N) x0, s0, x1, s1 with the southing s = -y growing along each."""
    vertices, joined = _rings(polygons)
    points = vertices * (1.0, -1.0)
    edges = np.hstack([points[:-1], points[1:]])[joined]
    return np.where(edges[:, 1:2] > edges[:, 3:4], edges[:, [2, 3, 0, 1]], edges).T


def _parts(geometries: Any) -> Polygons:
    """Take (nested) collections apart; empty and missing geometries vanish."""
    parts = shapely.get_parts(geometries)
    while np.any(shapely.get_type_id(parts) > 3):
        parts = shapely.get_parts(parts)
    return np.asarray(parts[~shapely.is_empty(parts)])


def _polygons(parts: Polygons) -> Polygons:
    """Keep the polygons."""
    return np.asarray(parts[shapely.get_type_id(parts) == 3])


def _assemble(polygons: Polygons, crs: CRS) -> BaseGeometry:
    """Unite polygons into one valid area, with continuous longitudes in a geographic CRS."""
    if crs.geographic and polygons.size:
        polygons = _continuous(polygons)
    repaired = shapely.make_valid(polygons, method="structure", keep_collapsed=False)
    parts = _polygons(_parts(repaired))
    return parts[0] if parts.size == 1 else shapely.union_all(parts)


def _continuous(polygons: Polygons) -> Polygons:
    """Shift polygons by whole turns until the area runs over one continuous range of longitudes."""
    west, _, east, _ = shapely.bounds(polygons).T
    wide = east - west > 180.0
    if wide.any():
        polygons = polygons.copy()
        polygons[wide] = [_unwrap(polygon) for polygon in polygons[wide]]
        west, _, east, _ = shapely.bounds(polygons).T
    turns = _turns(west, east)
    shift = np.repeat(turns * 360.0, shapely.get_num_coordinates(polygons))
    return shapely.transform(polygons, lambda lonlat: lonlat + np.column_stack([shift, np.zeros_like(shift)]))


def _turns(west: NDArray[np.float64], east: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose each polygon's whole turns: split across the widest gap if at most 180 degrees remain."""
    turns = -np.ceil(((west + east) / 2.0 - 180.0) / 360.0)
    west, east = west + 360.0 * turns, east + 360.0 * turns
    order = np.argsort(west)
    gaps = west[order][1:] - np.maximum.accumulate(east[order])[:-1]
    if gaps.size and gaps.max() >= 180.0:
        left = order[: gaps.argmax() + 1]
        turns[left] += 1.0
        west[left] += 360.0
        east[left] += 360.0
    middle = (west.min() + east.max()) / 2.0
    return np.asarray(turns - np.ceil((middle - 180.0) / 360.0))


def _unwrap(polygon: shapely.Polygon) -> shapely.Polygon:
    """Make each ring's longitudes continuous, and its holes lie on the same turn as its shell."""
    shell = _unwrap_ring(shapely.get_coordinates(polygon.exterior))
    middle = (shell[:, 0].min() + shell[:, 0].max()) / 2.0
    holes = [_unwrap_ring(shapely.get_coordinates(ring)) for ring in polygon.interiors]
    for hole in holes:
        hole[:, 0] += 360.0 * np.round((middle - (hole[:, 0].min() + hole[:, 0].max()) / 2.0) / 360.0)
    return shapely.Polygon(shell, holes)


def _unwrap_ring(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undo jumps across the antimeridian in (N, 2) degrees; close a ring around a pole through the pole."""
    step = np.diff(lonlat[:, 0])
    jumps = np.where(np.abs(step) < 360.0, np.round(step / 360.0), 0.0)
    ring = lonlat.copy()
    ring[1:, 0] -= 360.0 * np.cumsum(jumps)
    first, last = ring[0, 0], ring[-1, 0]
    if abs(last - first) < 180.0:
        return ring
    pole = math.copysign(90.0, ring[:, 1].mean())
    return np.vstack([ring, [[last, pole], [first, pole]], ring[:1]])


def _unit(crs: CRS) -> float:
    """Give the metres in one unit of a projected CRS."""
    return float(crs.proj.axis_info[0].unit_conversion_factor)


def _project(area: BaseGeometry, source: CRS, target: CRS) -> BaseGeometry:
    """Project a densified area as it is; refuse vertices that the target cannot hold."""
    move = source.transformer_to_crs(target)

    def move_checked(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = np.column_stack(move(*vertices.T))
        if not np.isfinite(moved).all():
            raise AOIError(f"AOI is beyond {target.proj.name}; expected a CRS of its region, name one")
        return moved

    segment = _SEGMENT_DEG if source.geographic else _SEGMENT_M / _unit(source)
    return shapely.transform(shapely.segmentize(area, segment), move_checked)


def _is_torn(area: BaseGeometry, crs: CRS) -> bool:
    """Tell whether an edge of a projected, densified area runs across the projection's cut."""
    vertices, joined = _rings(_polygons(_parts(area)))
    length = np.hypot(*np.diff(vertices, axis=0).T)[joined]
    return bool(length.max(initial=0.0) > _TEAR_M / _unit(crs))


def _project_split(aoi: Geometry, crs: CRS) -> BaseGeometry:
    """Project an area in pieces that end at the projection's cut, opposite its central meridian."""
    geodetic = CRS(crs.proj.geodetic_crs)
    lonlat = to_crs(aoi, geodetic).geom
    parameters = getattr(crs.proj.coordinate_operation, "params", [])
    centre = next((float(p.value) for p in parameters if p.name.startswith("Longitude")), 0.0)
    inside = shapely.box(centre - 180.0 + _CUT_DEG, -90.0, centre + 180.0 - _CUT_DEG, 90.0)
    pieces = [affinity.translate(lonlat, 360.0 * turn).intersection(inside) for turn in (-1, 0, 1)]
    return _project(shapely.MultiPolygon(list(_polygons(_parts(pieces)))), geodetic, crs)


def _read_vector(path: Path, layer: str | None) -> tuple[Polygons, CRS]:
    """Read one layer's geometries in 2D, and their CRS."""
    if not path.exists():
        raise AOIError(f"{path}: no such file; expected a vector file, check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise AOIError(f"{path}: file is empty (0 bytes); expected a vector file, write it again")
    try:
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore")  # GDAL's remarks on rings that are repaired here
            name = _choose_layer(path, pyogrio.list_layers(path), layer)
            meta, _, wkb, _ = pyogrio.raw.read(path, layer=name, columns=[], force_2d=True)
            geometries = shapely.from_wkb(wkb, on_invalid="fix")
    except (RuntimeError, ValueError, OSError, ShapelyError) as error:
        reason = " ".join(str(error).split(";")[0].split())
        raise AOIError(f"{path}: cannot be read ({reason}); expected vectors, such as GeoJSON") from error
    return geometries, _parse_crs(meta["crs"], path)


def _choose_layer(path: Path, layers: NDArray[np.object_], wanted: str | None) -> str:
    """Choose the layer to read from (N, 2) names and geometry types (None without geometry)."""
    names = [str(name) for name, kind in layers if kind is not None]
    if not names:
        raise AOIError(f"{path}: holds no geometry; expected polygons, give a vector file")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        found = "several layers" if wanted is None else f"no layer {wanted!r}"
        raise AOIError(f"{path}: holds {found}; expected one of {', '.join(names)}, name it")
    return wanted


def _parse_crs(text: str | None, path: Path) -> CRS:
    """Parse a layer's CRS, less its vertical part."""
    if not text:
        raise AOIError(f"{path}: has no CRS; expected one, assign it: ogr2ogr -a_srs EPSG:<code> NEW OLD")
    try:
        flat = pyproj.CRS(text).to_2d()
        code = flat.to_epsg(min_confidence=100)
        crs = CRS(f"EPSG:{code}" if code else flat)
    except (CRSError, ProjError) as error:
        raise AOIError(f"{path}: has an unknown CRS; expected an EPSG code, assign one") from error
    if not (crs.geographic or crs.projected):
        raise AOIError(f"{path}: has the CRS {flat.name!r}; expected a place on earth, reproject it")
    return crs


def _absence(parts: Polygons) -> str:
    """Say why there are no polygons."""
    if parts.size == 0:
        return "holds no geometry; expected polygons, draw the area first"
    kinds = ", ".join(sorted({part.geom_type for part in parts}))
    return f"holds only {kinds}; expected polygons, buffer points and lines by the distance to map"


def _check_coordinates(polygons: Polygons, crs: CRS, path: Path) -> None:
    """Refuse coordinates that are no place on earth."""
    vertices = shapely.get_coordinates(polygons)
    limit = np.array(_LIMIT_DEG if crs.geographic else _LIMIT_M) / (1.0 if crs.geographic else _unit(crs))
    wrong = ~(np.abs(vertices) <= limit).all(axis=1)
    if not wrong.any() and crs.projected:
        place = crs.transformer_to_crs(CRS("EPSG:4326"))
        wrong = ~np.isfinite(np.column_stack(place(*vertices.T))).all(axis=1)
    if wrong.any():
        x, y = vertices[wrong][0]
        raise AOIError(f"{path}: has a vertex ({x:g}, {y:g}), no place in {crs.proj.name}; check its CRS")
