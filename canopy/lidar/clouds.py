"""Point clouds on disk: what their headers promise, and their returns in metres of one CRS, a chunk at a time."""

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laspy
import lazrs
import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.geom import BoundingBox, box
from pyproj.exceptions import CRSError

from canopy.errors import LidarError
from tiles.aoi import utm_crs
from tiles.ground import unit_m

GROUND_CODES = (2, 8, 9)
"""ASPRS: ground, model key-point, water: a water surface is what trees over it are measured from."""
BARE_CODES = (6, 9, 17)
"""Buildings, water, bridge decks: surfaces without canopy, height 0."""
DROPPED_CODES = (7, 13, 14, 15, 16, 18)
"""Noise, wires and pylons, high noise."""

_CHUNK_POINTS = 1_000_000
_VERTICAL_UNIT_KEY, _VERTICAL_CRS_KEY = 4099, 4096
_UNITS_M = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}
_AREA_OF_USE_MARGIN_DEG = 5.0
_GPS_EPOCH, _GPS_WEEK_S, _GPS_ADJUSTMENT_S, _LEAP_S = dt.datetime(1980, 1, 6), 604_800, 1e9, 18
_LIDAR_BEGAN_S = 4.5e8  # 1994
_READ_ERRORS = (OSError, ValueError, laspy.LaspyException, lazrs.LazrsError)


@dataclass(frozen=True)
class Cloud:
    """A LAS, LAZ or COPC file as its header describes it."""

    path: Path
    point_count: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in units of `crs`."""
    crs: pyproj.CRS
    """Horizontal CRS, projected."""
    z_unit_m: float
    """Metres in a unit of z."""
    file_year: int | None
    """When the file was made, which is not when the ground was flown."""


@dataclass(frozen=True)
class Returns:
    """Some returns of a cloud, noise left out."""

    x: NDArray[np.float64]
    """(n,) metres of the output CRS, as `y`."""
    y: NDArray[np.float64]
    z_mm: NDArray[np.float64]
    """(n,) elevation, whole millimetres: sums of them do not depend on their order."""
    code: NDArray[np.uint8]
    """(n,) ASPRS class."""
    read_count: int
    """How many were read, noise included."""
    flown: tuple[dt.date, dt.date] | None
    """First and last day, where GPS times tell."""


def open_cloud(path: Path, crs: str | None) -> Cloud:
    """Read a header.

    Args:
        path: LAS, LAZ or COPC.
        crs: CRS of a cloud that carries none.

    Raises:
        LidarError: The file is missing, damaged, empty, or has no usable CRS.
    """
    if not path.is_file():
        raise LidarError(f"{path}: no such file, expected a LAS, LAZ or COPC point cloud")
    with _reported(path), laspy.open(path) as reader:
        header = reader.header
        recorded = _recorded_crs(path, header)
    if not header.point_count:
        raise LidarError(f"{path} holds no points: leave it out")
    whole = recorded or (None if crs is None else parse_crs(crs))
    if whole is None:
        raise LidarError(f"{path} carries no CRS: say which one with --crs EPSG:n")
    horizontal = _horizontal(whole)
    if not horizontal.is_projected:
        raise LidarError(f"{path} is in {horizontal.name}, which is not projected: reproject it or correct --crs")
    bounds = (*header.mins[:2], *header.maxs[:2])
    _require_place(path, bounds, horizontal)
    created = header.creation_date
    return Cloud(
        path, header.point_count, bounds, horizontal, _z_unit_m(whole, header), created.year if created else None
    )


def parse_crs(name: str) -> pyproj.CRS:
    """Parse a CRS given by the user.

    Raises:
        LidarError: There is none of that name.
    """
    try:
        return pyproj.CRS.from_user_input(name)
    except CRSError as error:
        raise LidarError(f"--crs {name!r} is not a CRS: EPSG:n expected") from error


def output_crs(clouds: Sequence[Cloud], crs: str | None) -> pyproj.CRS:
    """CRS of the canopy height model: projected, in metres.

    The user's if it is; else the clouds' own, or its twin in metres if EPSG knows one, or the UTM zone.

    Raises:
        LidarError: The clouds are in different CRSs, or `crs` is not projected.
    """
    first = clouds[0]
    for cloud in clouds[1:]:
        if not _same_crs(cloud.crs, first.crs):
            raise LidarError(
                f"{first.path.name} is in {first.crs.name} and {cloud.path.name} in {cloud.crs.name}: "
                "one CRS expected; reproject one of them"
            )
    wanted = first.crs if crs is None else _horizontal(parse_crs(crs))
    if not wanted.is_projected:
        raise LidarError(f"--crs {crs} is not projected: a CRS in metres expected")
    if unit_m(wanted) == 1:
        return wanted
    return _metre_twin(wanted) or pyproj.CRS.from_user_input(utm_crs(box(*first.bounds, first.crs.to_wkt())).to_wkt())


def placed_bounds(cloud: Cloud, target: pyproj.CRS) -> tuple[float, float, float, float]:
    """Bounds that hold all returns of a cloud, in metres of the output CRS."""
    scale = _scale(cloud.crs, target)
    if scale is not None:
        west, south, east, north = (value * scale for value in cloud.bounds)
        return west, south, east, north
    transformer = pyproj.Transformer.from_crs(cloud.crs, target, always_xy=True)
    west, south, east, north = transformer.transform_bounds(*cloud.bounds, densify_pts=51)
    return west - 1, south - 1, east + 1, north + 1


def union(bounds: Sequence[tuple[float, float, float, float]], crs: pyproj.CRS) -> BoundingBox:
    """The box around boxes."""
    table = np.array(bounds)
    west, south = table[:, :2].min(axis=0)
    east, north = table[:, 2:].max(axis=0)
    return BoundingBox(west, south, east, north, crs=crs.to_wkt())


def read_returns(cloud: Cloud, target: pyproj.CRS) -> Iterator[Returns]:
    """Read a cloud in chunks, the next one being decoded while this one is used.

    Raises:
        LidarError: The file is damaged, or holds returns outside the bounds of its header.
    """
    place = _placer(cloud.crs, target)
    with _reported(cloud.path), laspy.open(cloud.path) as reader, ThreadPoolExecutor(1) as pool:
        chunks = reader.chunk_iterator(_CHUNK_POINTS)
        ahead = pool.submit(next, chunks, None)
        read_count = 0
        while (chunk := ahead.result()) is not None:
            ahead = pool.submit(next, chunks, None)
            read_count += len(chunk)
            x, y = np.asarray(chunk.x), np.asarray(chunk.y)
            _require_inside(cloud, reader.header, x, y)
            kept = ~np.isin(chunk.classification, DROPPED_CODES)
            if "withheld" in chunk.point_format.dimension_names:
                kept &= np.asarray(chunk.withheld) == 0
            z_mm = np.rint(np.asarray(chunk.z) * (cloud.z_unit_m * 1000))
            code = np.asarray(chunk.classification).astype(np.uint8)
            x, y = place(x[kept], y[kept])
            yield Returns(x, y, z_mm[kept], code[kept], len(chunk), _flown(chunk))
    if read_count != cloud.point_count:
        raise LidarError(
            f"{cloud.path} ends after {read_count} of {cloud.point_count} points: the file is truncated; copy it again"
        )


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except LidarError:
        raise
    except _READ_ERRORS as error:
        raise LidarError(f"{path}: damaged or not a point cloud ({error}), expected LAS, LAZ or COPC") from error


def _recorded_crs(path: Path, header: Any) -> pyproj.CRS | None:
    try:
        return header.parse_crs()  # type: ignore[no-any-return]
    except CRSError as error:
        raise LidarError(f"{path}: its CRS record is not a CRS ({error}): correct the file") from error


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    return crs.to_2d() if len(crs.axis_info) == 3 else crs


def _z_unit_m(whole: pyproj.CRS, header: Any) -> float:
    """Unit of z: of the vertical CRS, of the GeoTIFF keys, or else the horizontal one."""
    up = [axis for axis in whole.axis_info if axis.direction in ("up", "down")]
    if up:
        return float(up[0].unit_conversion_factor)
    for record in header.vlrs.get("GeoKeyDirectoryVlr"):
        keys = {key.id: key.value_offset for key in record.geo_keys}
        if keys.get(_VERTICAL_UNIT_KEY) in _UNITS_M:
            return _UNITS_M[keys[_VERTICAL_UNIT_KEY]]
        with contextlib.suppress(CRSError, KeyError):
            return float(pyproj.CRS.from_epsg(keys[_VERTICAL_CRS_KEY]).axis_info[0].unit_conversion_factor)
    return unit_m(_horizontal(whole))


def _same_crs(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    if one.equals(other, ignore_axis_order=True):
        return True
    codes = one.to_epsg(), other.to_epsg()
    return codes[0] is not None and codes[0] == codes[1]


def _metre_twin(crs: pyproj.CRS) -> pyproj.CRS | None:
    """The CRS of the same datum and projection in metres, if EPSG lists it."""
    # The name or the code would identify the CRS that it is derived from.
    description = crs.to_json_dict() | {"name": "unnamed"}
    description.pop("id", None)
    for axis in description["coordinate_system"]["axis"]:
        axis["unit"] = "metre"
    code = pyproj.CRS.from_json_dict(description).to_epsg(min_confidence=60)
    twin = None if code is None else pyproj.CRS.from_epsg(code)
    return twin if twin is not None and _scale(crs, twin) is not None else None


def _scale(source: pyproj.CRS, target: pyproj.CRS) -> float | None:
    """Factor between coordinates of two CRSs that differ in their unit at most; else None."""
    if _same_crs(source, target):
        return 1.0
    scale = unit_m(source) / unit_m(target)
    area = source.area_of_use
    if source.geodetic_crs != target.geodetic_crs or area is None:
        return None
    to_source = pyproj.Transformer.from_crs(source.geodetic_crs, source, always_xy=True)
    lon, lat = [area.west, area.east, area.east], [area.south, area.south, area.north]
    xy = np.array(to_source.transform(lon, lat))
    to_target = pyproj.Transformer.from_crs(source.geodetic_crs, target, always_xy=True)
    same = np.abs(xy * scale - to_target.transform(lon, lat)).max() < 1e-3
    return scale if same else None


def _placer(source: pyproj.CRS, target: pyproj.CRS) -> Any:
    scale = _scale(source, target)
    if scale is not None:
        # Rounded, because offsets that differ between files leave different last bits.
        return lambda x, y: (np.round(x * scale, 4), np.round(y * scale, 4))
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return lambda x, y: tuple(np.round(v, 4) for v in transformer.transform(x, y))


def _require_place(path: Path, bounds: Sequence[float], crs: pyproj.CRS) -> None:
    """Refuse coordinates far from where their CRS is used: they are damaged, or the CRS is another one."""
    area = crs.area_of_use
    if not np.isfinite(bounds).all() or bounds[0] > bounds[2] or bounds[1] > bounds[3]:
        raise LidarError(f"{path}: its bounds are {_spelled(bounds)}, expected finite ones; the header is damaged")
    to_lonlat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(np.array(bounds)[[0, 2]], np.array(bounds)[[1, 3]])
    inside = np.isfinite(lon).all() and np.isfinite(lat).all()
    if inside and area is not None:
        margin = _AREA_OF_USE_MARGIN_DEG
        inside = bool(((lat > area.south - margin) & (lat < area.north + margin)).all())
        if area.west < area.east:
            inside &= bool(((lon > area.west - margin) & (lon < area.east + margin)).all())
    if not inside:
        raise LidarError(
            f"{path}: its bounds are {_spelled(bounds)}, far outside the area of {crs.name}; "
            "correct --crs or the coordinates"
        )


def _spelled(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in bounds)


def _require_inside(cloud: Cloud, header: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    west, south, east, north = cloud.bounds
    slack = 2 * float(max(header.scales[:2]))
    if x.min() < west - slack or x.max() > east + slack or y.min() < south - slack or y.max() > north + slack:
        raise LidarError(
            f"{cloud.path}: found returns at {x.min():.7g} to {x.max():.7g}, {y.min():.7g} to {y.max():.7g}, expected "
            f"them within its header's {_spelled(cloud.bounds)}; the file is damaged"
        )


def _flown(chunk: Any) -> tuple[dt.date, dt.date] | None:
    if "gps_time" not in chunk.point_format.dimension_names:
        return None
    times = np.asarray(chunk.gps_time)
    first, last = _day(float(times.min())), _day(float(times.max()))
    return (first, last) if first and last else None


def _day(gps_s: float) -> dt.date | None:
    """Day of a GPS time, if it is one: the header's flag is often wrong, the magnitude is not."""
    for seconds in (gps_s + _GPS_ADJUSTMENT_S, gps_s):
        if _LIDAR_BEGAN_S < seconds < (dt.datetime.now() - _GPS_EPOCH).total_seconds() and gps_s > _GPS_WEEK_S:
            return (_GPS_EPOCH + dt.timedelta(seconds=seconds - _LEAP_S)).date()
    return None
