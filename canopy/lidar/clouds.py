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
from pyproj.exceptions import CRSError

from canopy.errors import LidarError, one_line
from canopy.lidar.placement import Bounds, horizontal, is_plausible, mover, parse_crs, same_crs
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
_GPS_EPOCH, _GPS_WEEK_S, _GPS_ADJUSTMENT_S, _LEAP_S = dt.datetime(1980, 1, 6), 604_800, 1e9, 18
_LIDAR_BEGAN_S = 4.5e8  # 1994
_READ_ERRORS = (OSError, ValueError, laspy.LaspyException, lazrs.LazrsError)


@dataclass(frozen=True)
class Cloud:
    """A LAS, LAZ or COPC file as its header describes it."""

    path: Path
    """File."""
    point_count: int
    """Number of returns."""
    bounds: Bounds
    """West, south, east, north in units of `crs`."""
    crs: pyproj.CRS
    """Horizontal CRS, projected."""
    z_unit_m: float
    """Metres in a unit of z."""
    file_year: int | None
    """Year of the file, which is not the year of the flight."""


@dataclass(frozen=True)
class Returns:
    """Some returns of a cloud, noise left out."""

    x: NDArray[np.float64]
    """(n,) first coordinate, metres of the output CRS."""
    y: NDArray[np.float64]
    """(n,) second coordinate, metres of the output CRS."""
    z_mm: NDArray[np.float64]
    """(n,) elevation, whole millimetres: sums of them do not depend on their order."""
    code: NDArray[np.uint8]
    """(n,) ASPRS class."""
    read_count: int
    """Number of returns that were read, noise included."""
    flown: tuple[dt.date, dt.date] | None
    """First and last day of the flights; None where GPS times are no dates."""


def open_cloud(path: Path, crs: str | None) -> Cloud:
    """Read a header.

    Args:
        path: LAS, LAZ or COPC file.
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
        raise LidarError(f"{path} has no points: leave it out")
    whole = recorded or (None if crs is None else parse_crs(crs))
    if whole is None:
        raise LidarError(f"{path} carries no CRS: name it with --crs EPSG:n")
    flat = horizontal(whole)
    if not flat.is_projected:
        raise LidarError(f"{path} is in {flat.name}, which is not projected: reproject it or correct --crs")
    bounds = (*header.mins[:2], *header.maxs[:2])
    _require_plausible(path, bounds, flat)
    created = header.creation_date
    return Cloud(path, header.point_count, bounds, flat, _z_unit_m(whole, header), created.year if created else None)


def require_one_crs(clouds: Sequence[Cloud]) -> pyproj.CRS:
    """Return the CRS of the clouds.

    Raises:
        LidarError: The clouds are in different CRSs.
    """
    first = clouds[0]
    for cloud in clouds[1:]:
        if not same_crs(cloud.crs, first.crs):
            raise LidarError(
                f"{first.path.name} is in {first.crs.name} and {cloud.path.name} in {cloud.crs.name}: "
                "one CRS expected; reproject one of them"
            )
    return first.crs


def read_returns(cloud: Cloud, target: pyproj.CRS) -> Iterator[Returns]:
    """Yield the returns of a cloud in chunks, the next one being decoded while this one is used.

    Raises:
        LidarError: The file is damaged, or has returns outside the bounds of its header.
    """
    move = mover(cloud.crs, target)
    with _reported(cloud.path), laspy.open(cloud.path) as reader, ThreadPoolExecutor(1) as pool:
        chunks = reader.chunk_iterator(_CHUNK_POINTS)
        # The decoder runs outside Python's lock: one chunk is decoded while the consumer works on the one before.
        ahead = pool.submit(next, chunks, None)
        read_count = 0
        while (chunk := ahead.result()) is not None:
            ahead = pool.submit(next, chunks, None)
            read_count += len(chunk)
            x, y = np.asarray(chunk.x), np.asarray(chunk.y)
            _require_inside(cloud, reader.header, x, y)
            usable = ~np.isin(chunk.classification, DROPPED_CODES)
            if "withheld" in chunk.point_format.dimension_names:
                usable &= np.asarray(chunk.withheld) == 0
            z_mm = np.rint(np.asarray(chunk.z) * (cloud.z_unit_m * 1000))
            code = np.asarray(chunk.classification).astype(np.uint8)
            x, y = move(x[usable], y[usable])
            yield Returns(x, y, z_mm[usable], code[usable], len(chunk), _flown(chunk))
    if read_count != cloud.point_count:
        raise LidarError(
            f"{cloud.path} ends after {read_count} of {cloud.point_count} points: the file is truncated; copy it again"
        )


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn a failed read into one line."""
    try:
        yield
    except LidarError:
        raise
    except _READ_ERRORS as error:
        raise LidarError(
            f"{path}: damaged or not a point cloud ({one_line(error)}), expected LAS, LAZ or COPC"
        ) from error


def _recorded_crs(path: Path, header: Any) -> pyproj.CRS | None:
    """Return the CRS that a header records, if any."""
    try:
        return header.parse_crs()  # type: ignore[no-any-return]
    except CRSError as error:
        raise LidarError(f"{path}: its CRS record is not a CRS ({one_line(error)}): correct the file") from error


def _z_unit_m(whole: pyproj.CRS, header: Any) -> float:
    """Return the metres in a unit of z: of the vertical CRS, of the GeoTIFF keys, or else of the horizontal CRS."""
    vertical = [axis for axis in whole.axis_info if axis.direction in ("up", "down")]
    if vertical:
        return float(vertical[0].unit_conversion_factor)
    for record in header.vlrs.get("GeoKeyDirectoryVlr"):
        keys = {key.id: key.value_offset for key in record.geo_keys}
        if keys.get(_VERTICAL_UNIT_KEY) in _UNITS_M:
            return _UNITS_M[keys[_VERTICAL_UNIT_KEY]]
        with contextlib.suppress(CRSError, KeyError):
            return float(pyproj.CRS.from_epsg(keys[_VERTICAL_CRS_KEY]).axis_info[0].unit_conversion_factor)
    return unit_m(horizontal(whole))


def _require_plausible(path: Path, bounds: Sequence[float], crs: pyproj.CRS) -> None:
    """Refuse bounds that are damaged, or far from where their CRS is used."""
    if not np.isfinite(bounds).all() or bounds[0] > bounds[2] or bounds[1] > bounds[3]:
        raise LidarError(f"{path}: its bounds are {_spelled(bounds)}, expected finite ones; the header is damaged")
    if not is_plausible(bounds, crs):
        raise LidarError(
            f"{path}: its bounds are {_spelled(bounds)}, far outside the area of {crs.name}; "
            "correct --crs or the coordinates"
        )


def _spelled(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in bounds)


def _require_inside(cloud: Cloud, header: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Refuse returns outside the bounds of the header."""
    west, south, east, north = cloud.bounds
    slack = 2 * float(max(header.scales[:2]))
    if x.min() < west - slack or x.max() > east + slack or y.min() < south - slack or y.max() > north + slack:
        raise LidarError(
            f"{cloud.path}: found returns at {x.min():.7g} to {x.max():.7g}, {y.min():.7g} to {y.max():.7g}, expected "
            f"them within its header's {_spelled(cloud.bounds)}; the file is damaged"
        )


def _flown(chunk: Any) -> tuple[dt.date, dt.date] | None:
    """Return the first and last day of the returns' GPS times, if those are dates."""
    if "gps_time" not in chunk.point_format.dimension_names:
        return None
    times = np.asarray(chunk.gps_time)
    first, last = _day(float(times.min())), _day(float(times.max()))
    return (first, last) if first and last else None


def _day(gps_s: float) -> dt.date | None:
    """Return the day of a GPS time, if it is one: the header's flag is often wrong, the magnitude is not."""
    for seconds in (gps_s + _GPS_ADJUSTMENT_S, gps_s):
        if _LIDAR_BEGAN_S < seconds < (dt.datetime.now() - _GPS_EPOCH).total_seconds() and gps_s > _GPS_WEEK_S:
            return (_GPS_EPOCH + dt.timedelta(seconds=seconds - _LEAP_S)).date()
    return None
