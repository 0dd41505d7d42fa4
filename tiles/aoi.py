"""Areas of interest: read from any vector file, made valid, and placed in any CRS."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from tiles.errors import AOIError
from tiles.ground import unit_m
from tiles.vectors import Polygons, parse_crs, read_geojson, read_vector

_SEGMENT_M, _SEGMENT_DEG = 1000.0, 0.01  # longest edge that is projected; its chord is off by centimetres
_MAX_SEGMENTS = 10_000_000
_TEAR_M = 1e6  # a projected edge longer than this ran across a cut in the projection
_CUT_DEG = 1e-9  # distance kept from a projection's cut, 0.1 mm
_LIMIT_DEG, _LIMIT_M = (360.0, 90.0), (1e8, 1e8)
_UTM_REACH_DEG, _UTM_NORTH_DEG, _UTM_SOUTH_DEG = 9.0, 84.0, -80.0
_BOUNDS = re.compile(r"\s*,\s*".join([r"\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*"] * 4))


def read_aoi(aoi: Any, layer: str | None = None, crs: Any = None) -> Geometry:
    """Read the polygons of a vector file, of bounds, or of an object of another library as one valid area.

    Z is dropped, rings are repaired, features are united, and points and lines next to polygons are left out.
    In a geographic CRS longitudes become continuous and may pass 180: an edge longer than 180 and shorter
    than 360 degrees is taken to cross the antimeridian.

    Args:
        aoi: Vector file that GDAL reads (GeoJSON, GeoPackage, shapefile, KML, KMZ), GeoParquet, a folder or zip
            archive with one; ``west,south,east,north`` in degrees, as text or as four numbers; a GeoDataFrame or
            GeoSeries; a shapely geometry with `crs`; a GeoJSON document.
        layer: Name of the layer of a file; may be left out where one layer has areas.
        crs: CRS of a shapely geometry, or of a GeoDataFrame without one.

    Raises:
        AOIError: The area cannot be read, or has no area.
    """
    if isinstance(aoi, Geometry):
        return aoi
    geometries, area_crs, origin = _open(aoi, layer, crs)
    parts = flatten(geometries)
    polygons = keep_polygons(parts)
    if polygons.size == 0:
        raise AOIError(f"{origin}: {_absence(parts)}")
    _check_coordinates(polygons, area_crs, origin)
    area = _assemble(polygons, area_crs)
    if area.area == 0:
        raise AOIError(f"{origin}: polygons have no area; expected an area, draw three corners or more")
    return Geometry(area, area_crs)


def aoi_stem(aoi: Any) -> str:
    """Return the name of an area for the outputs that are named after it: the stem of its file."""
    is_file = isinstance(aoi, str | Path) and _parse_bounds(aoi) is None
    return Path(aoi).stem if is_file else "aoi"


def _open(aoi: Any, layer: str | None, crs: Any) -> tuple[Any, CRS, str]:
    """Return the geometries of an area, their CRS, and what messages call it."""
    bounds = _parse_bounds(aoi)
    if bounds is not None:
        return _box(bounds), CRS("EPSG:4326"), f"bounds {','.join(f'{value:g}' for value in bounds)}"
    if isinstance(aoi, str | Path):
        return *read_vector(Path(aoi), layer), str(aoi)
    if isinstance(aoi, BaseGeometry):
        if crs is None:
            raise AOIError(f"{aoi.geom_type} without a CRS; expected one, pass it with the geometry (aoi_crs=)")
        return shapely.force_2d(aoi), parse_crs(_crs_text(crs), "area"), "area"
    if hasattr(aoi, "geometry") and hasattr(aoi, "crs"):  # geopandas, which the tiler does not import
        text = _crs_text(aoi.crs if aoi.crs is not None else crs)
        return shapely.force_2d(np.asarray(aoi.geometry)), parse_crs(text, "area"), "area"
    if isinstance(document := getattr(aoi, "__geo_interface__", aoi), Mapping):
        return *read_geojson(document), "GeoJSON"
    raise AOIError(
        f"area of type {type(aoi).__name__}; expected a vector file, bounds, a GeoDataFrame, a geometry or GeoJSON"
    )


def _crs_text(crs: Any) -> str | None:
    """Return a CRS of any library as text."""
    if crs is None or isinstance(crs, str):
        return crs
    return f"EPSG:{crs}" if isinstance(crs, int) else str(crs.to_wkt())


def _parse_bounds(aoi: Any) -> tuple[float, ...] | None:
    """Parse ``west,south,east,north``; None where the area is given in another way."""
    if isinstance(aoi, str) and (match := _BOUNDS.fullmatch(aoi)):
        return tuple(float(text) for text in match.groups())
    if isinstance(aoi, tuple | list) and len(aoi) == 4 and all(isinstance(value, int | float) for value in aoi):
        return tuple(float(value) for value in aoi)
    return None


def _box(bounds: tuple[float, ...]) -> Polygons:
    """Return the box of bounds in degrees; where west is greater than east it crosses the antimeridian."""
    west, south, east, north = bounds
    if not (-90.0 <= south < north <= 90.0 and west != east and abs(east - west) <= 360):
        raise AOIError(
            f"bounds {west:g},{south:g},{east:g},{north:g}; expected degrees, in the order west,south,east,north"
        )
    return np.array([shapely.box(west, south, east + 360 * (east < west), north)])


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
    area = _assemble(keep_polygons(flatten(aoi.geom)), aoi.crs)
    if area.is_empty:
        raise AOIError("AOI has no area; expected polygons, buffer points and lines first")
    if aoi.crs != crs:
        moved = _project(area, aoi.crs, crs)
        if not crs.geographic and _is_torn(moved, crs):
            moved = _project_split(Geometry(area, aoi.crs), crs)
        area = _assemble(keep_polygons(flatten(moved)), crs)
    return Geometry(area, crs)


def ring_vertices(polygons: Polygons) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give all rings' vertices (N, 2) and, (N - 1,), which neighbours share a ring."""
    vertices, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    return vertices, np.diff(ring) == 0


def flatten(geometries: Any) -> Polygons:
    """Take (nested) collections apart; empty and missing geometries vanish."""
    parts = shapely.get_parts(geometries)
    while np.any(shapely.get_type_id(parts) > 3):
        parts = shapely.get_parts(parts)
    return np.asarray(parts[~shapely.is_empty(parts)])


def keep_polygons(parts: Polygons) -> Polygons:
    """Keep the polygons."""
    return np.asarray(parts[shapely.get_type_id(parts) == 3])


def _assemble(polygons: Polygons, crs: CRS) -> BaseGeometry:
    """Unite polygons into one valid area, with continuous longitudes in a geographic CRS."""
    if crs.geographic and polygons.size:
        polygons = _continuous(polygons)
    repaired = shapely.make_valid(polygons, method="structure", keep_collapsed=False)
    parts = keep_polygons(flatten(repaired))
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


def _project(area: BaseGeometry, source: CRS, target: CRS) -> BaseGeometry:
    """Project a densified area as it is; refuse vertices that the target cannot hold."""
    move = source.transformer_to_crs(target)

    def move_checked(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = np.column_stack(move(*vertices.T))
        if not np.isfinite(moved).all():
            raise AOIError(f"AOI is beyond {target.proj.name}; expected a CRS of its region, name one")
        return moved

    segment = _SEGMENT_DEG if source.geographic else _SEGMENT_M / unit_m(source.proj)
    if (count := area.length / segment) > _MAX_SEGMENTS:
        raise AOIError(
            f"AOI has an outline of {count:,.0f} km or more; expected at most {_MAX_SEGMENTS:,}, simplify it"
        )
    return shapely.transform(shapely.segmentize(area, segment), move_checked)


def _is_torn(area: BaseGeometry, crs: CRS) -> bool:
    """Return whether an edge of a projected, densified area runs across the projection's cut."""
    vertices, joined = ring_vertices(keep_polygons(flatten(area)))
    length = np.hypot(*np.diff(vertices, axis=0).T)[joined]
    return bool(length.max(initial=0.0) > _TEAR_M / unit_m(crs.proj))


def _project_split(aoi: Geometry, crs: CRS) -> BaseGeometry:
    """Project an area in pieces that end at the projection's cut, opposite its central meridian."""
    geodetic = CRS(crs.proj.geodetic_crs)
    lonlat = to_crs(aoi, geodetic).geom
    parameters = getattr(crs.proj.coordinate_operation, "params", [])
    centre = next((float(p.value) for p in parameters if p.name.startswith("Longitude")), 0.0)
    inside = shapely.box(centre - 180.0 + _CUT_DEG, -90.0, centre + 180.0 - _CUT_DEG, 90.0)
    pieces = [affinity.translate(lonlat, 360.0 * turn).intersection(inside) for turn in (-1, 0, 1)]
    return _project(shapely.MultiPolygon(list(keep_polygons(flatten(pieces)))), geodetic, crs)


def _absence(parts: Polygons) -> str:
    """Say why there are no polygons."""
    if parts.size == 0:
        return "has no geometry; expected polygons, draw the area first"
    kinds = ", ".join(sorted({part.geom_type for part in parts}))
    return f"has only {kinds}; expected polygons, buffer points and lines by the distance to map"


def _check_coordinates(polygons: Polygons, crs: CRS, origin: str) -> None:
    """Refuse coordinates that lie nowhere on earth."""
    vertices = shapely.get_coordinates(polygons)
    limit = np.array(_LIMIT_DEG if crs.geographic else _LIMIT_M) / (1.0 if crs.geographic else unit_m(crs.proj))
    wrong = ~(np.abs(vertices) <= limit).all(axis=1)
    if not wrong.any() and crs.projected:
        to_degrees = crs.transformer_to_crs(CRS("EPSG:4326"))
        wrong = ~np.isfinite(np.column_stack(to_degrees(*vertices.T))).all(axis=1)
    if wrong.any():
        x, y = vertices[wrong][0]
        raise AOIError(f"{origin}: has a vertex ({x:g}, {y:g}), nowhere in {crs.proj.name}; check its CRS")
