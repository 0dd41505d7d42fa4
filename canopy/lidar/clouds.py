"""Point clouds on disk: what their headers promise, and their returns in metres of one CRS, a chunk at a time.

Records of a CRS are often absent, broken or wrong. One that can be read, is projected, and whose area the coordinates
lie in, is believed; another is replaced by the CRS that the user names, and the log says so.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import laspy
import lazrs
import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError

from canopy.errors import LidarError, one_line
from canopy.lidar.classes import ROLES, Role
from canopy.lidar.flights import Days, days_between
from canopy.lidar.headers import check_header
from canopy.lidar.placement import Bounds, horizontal, is_plausible, mover, parse_crs, same_crs
from tiles.ground import unit_m

Z_UNITS_M = {"m": 1.0, "ft": 0.3048, "us-ft": 1200 / 3937}
"""Units of elevation that a user can name."""
HEADER_SLACK_M = 1.0
"""Returns so far outside the box of their header are believed; beyond, header or returns are damaged."""

_CHUNK_POINTS, _CHUNK_BYTES = 1_000_000, 128 * 2**20
_VERTICAL_UNIT_KEY, _VERTICAL_CRS_KEY = 4099, 4096
_UNITS_M = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}
_FIRST_LAYERED_FORMAT = 6
_NEEDED = (
    laspy.DecompressionSelection.XY_RETURNS_CHANNEL
    | laspy.DecompressionSelection.Z
    | laspy.DecompressionSelection.CLASSIFICATION
    | laspy.DecompressionSelection.FLAGS
)
"""Layers of a return that heights depend on."""
_READ_ERRORS = (
    ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError, laspy.LaspyException, lazrs.LazrsError,
)  # fmt: skip
"""Whatever laspy and lazrs raise on a damaged file."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cloud:
    """A LAS, LAZ or COPC file as its header describes it."""

    path: Path
    """File."""
    point_count: int
    """Number of returns."""
    bounds: Bounds
    """West, south, east, north in units of `crs`, as the header says."""
    crs: pyproj.CRS
    """Horizontal CRS, projected."""
    z_unit_m: float
    """Metres in a unit of z."""
    file_year: int | None
    """Year of the file, which is not the year of the flight."""
    layered: bool = False
    """Whether values of a return are compressed apart from each other, so that some can be left out."""


@dataclass(frozen=True)
class Returns:
    """Some returns of a cloud, those left out that count nowhere."""

    x: NDArray[np.float64]
    """(n,) first coordinate, metres of the output CRS."""
    y: NDArray[np.float64]
    """(n,) second coordinate, metres of the output CRS."""
    z_mm: NDArray[np.float64]
    """(n,) elevation, whole millimetres: sums of them do not depend on their order."""
    role: NDArray[np.uint8]
    """(n,) `Role` of each return."""
    read_count: int
    """Number of returns that were read, those left out included."""
    left_out: NDArray[np.int64]
    """(256,) number of returns of each class that are left out."""
    flown: Days | None
    """First and last day of the flights; None where GPS times are no dates, or were left out."""

    def taken(self, part: NDArray[np.int64] | slice) -> "Returns":
        """Return some of the returns; what is said of all of them stays."""
        return replace(self, x=self.x[part], y=self.y[part], z_mm=self.z_mm[part], role=self.role[part])


def open_cloud(path: Path, crs: str | None = None, cloud_crs: str | None = None, z_unit: str | None = None) -> Cloud:
    """Read a header.

    Args:
        path: LAS, LAZ or COPC file.
        crs: CRS of a cloud that records none, or none that can be right.
        cloud_crs: CRS of the cloud, whatever it records.
        z_unit: Unit of elevation, whatever the cloud records: one of `Z_UNITS_M`.

    Raises:
        LidarError: The file is missing, damaged, empty, or has no usable CRS.
    """
    if not path.is_file():
        raise LidarError(f"{path}: no such file, expected a LAS, LAZ or COPC point cloud")
    with _reported(path):
        check_header(path)
        with laspy.open(path) as reader:
            header = reader.header
    if not header.point_count:
        raise LidarError(f"{path} has no points: leave it out")
    west, south, east, north = map(float, (*header.mins[:2], *header.maxs[:2]))
    bounds = west, south, east, north
    if not np.isfinite(bounds).all() or bounds[0] > bounds[2] or bounds[1] > bounds[3]:
        raise LidarError(f"{path}: its bounds are {_spelled(bounds)}, expected finite ones; the header is damaged")
    whole = _cloud_crs(path, header, bounds, crs, cloud_crs)
    unit = Z_UNITS_M[z_unit] if z_unit else _z_unit_m(whole, header)
    layered = header.are_points_compressed and header.point_format.id >= _FIRST_LAYERED_FORMAT
    return Cloud(path, header.point_count, bounds, horizontal(whole), unit, _year(header), layered)


def _cloud_crs(path: Path, header: Any, bounds: Bounds, crs: str | None, cloud_crs: str | None) -> pyproj.CRS:
    """Return the CRS of a cloud: as the user says, as it records, or, where that cannot be right, as `crs` says.

    Raises:
        LidarError: None of them can be right.
    """
    if cloud_crs is not None:
        whole = parse_crs(cloud_crs, "--cloud-crs")
        if fault := _crs_fault(whole, bounds):
            raise LidarError(f"{path}: --cloud-crs {cloud_crs[:60]} {fault}: name the CRS of the cloud")
        return whole
    recorded, fault = _recorded_crs(header, bounds)
    if recorded is not None:
        return recorded
    if fault == _DEGREES:
        raise LidarError(f"{path} {fault}: reproject it into a CRS in metres or feet")
    if crs is None:
        raise LidarError(f"{path} {fault}: name its CRS with --crs EPSG:n")
    whole = parse_crs(crs)
    if own := _crs_fault(whole, bounds):
        raise LidarError(f"{path} {fault}, and --crs {crs[:60]} {own}: name the CRS of the cloud")
    if fault != _NO_CRS:
        _LOG.warning("%s %s: read in %s", path, fault, horizontal(whole).name)
    return whole


_NO_CRS, _DEGREES = "carries no CRS", "is in degrees, a CRS that is not projected"


def _recorded_crs(header: Any, bounds: Bounds) -> tuple[pyproj.CRS | None, str]:
    """Return the CRS that a header records, or None and what is wrong with it; the record itself is never quoted."""
    try:
        recorded = header.parse_crs()
    except (CRSError, ProjError, *_READ_ERRORS):
        return None, "has a CRS record that is no CRS"
    if recorded is None:
        return None, _NO_CRS
    if recorded.is_geographic and max(map(abs, bounds[::2])) <= 360 and max(map(abs, bounds[1::2])) <= 90:
        return None, _DEGREES
    if fault := _crs_fault(recorded, bounds):
        return None, f"records {_name(recorded)}, which {fault}"
    return recorded, ""


def _crs_fault(whole: pyproj.CRS, bounds: Bounds) -> str:
    """Return why a CRS cannot be that of coordinates; empty where it can."""
    try:
        flat = horizontal(whole)
        if not flat.is_projected:
            return "is not projected"
        if not is_plausible(bounds, flat):
            return f"is used far outside its bounds, {_spelled(bounds)}"
    except (CRSError, ProjError):
        return "cannot be used"
    return ""


def _name(crs: pyproj.CRS) -> str:
    """Return the name of a CRS; a damaged record may call itself anything."""
    return one_line(crs.name, 60) if crs.name else "a CRS"


def _year(header: Any) -> int | None:
    with contextlib.suppress(*_READ_ERRORS):
        created = header.creation_date
        return created.year if created else None
    return None


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
    with (
        _reported(cloud.path),
        laspy.open(cloud.path, decompression_selection=_NEEDED) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        record_bytes = reader.header.point_format.size
        chunks = reader.chunk_iterator(max(1, min(_CHUNK_POINTS, _CHUNK_BYTES // record_bytes)))
        # The decoder runs outside Python's lock: one chunk is decoded while the consumer works on the one before.
        ahead = pool.submit(next, chunks, None)
        read_count = 0
        while (chunk := ahead.result()) is not None:
            ahead = pool.submit(next, chunks, None)
            read_count += len(chunk)
            x, y = np.asarray(chunk.x), np.asarray(chunk.y)
            _require_inside(cloud, x, y)
            code = np.asarray(chunk.classification).astype(np.uint8)
            role = ROLES[code]
            counted = role != Role.LEFT_OUT
            left_out = np.bincount(code[~counted], minlength=len(ROLES))
            if "withheld" in chunk.point_format.dimension_names:
                counted &= np.asarray(chunk.withheld) == 0
            z_mm = np.rint(np.asarray(chunk.z) * (cloud.z_unit_m * 1000))
            x, y = move(x[counted], y[counted])
            flown = None if cloud.layered else _flown(chunk)
            yield Returns(x, y, z_mm[counted], role[counted], len(chunk), left_out, flown)
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
    except BaseException as error:
        # The decoder panics on damaged layers, which Python sees as an exception outside the tree of errors.
        if not isinstance(error, _READ_ERRORS) and type(error).__name__ != "PanicException":
            raise
        raise LidarError(
            f"{path}: damaged or not a point cloud ({one_line(error, 200)}), expected LAS, LAZ or COPC"
        ) from error


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


def _spelled(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in bounds)


def _require_inside(cloud: Cloud, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Refuse returns far outside the bounds of the header."""
    west, south, east, north = cloud.bounds
    slack = HEADER_SLACK_M / unit_m(cloud.crs)
    if x.min() < west - slack or x.max() > east + slack or y.min() < south - slack or y.max() > north + slack:
        raise LidarError(
            f"{cloud.path}: found returns at {x.min():.7g} to {x.max():.7g}, {y.min():.7g} to {y.max():.7g}, expected "
            f"them within its header's {_spelled(cloud.bounds)}; the file is damaged"
        )


def _flown(chunk: Any) -> Days | None:
    """Return the first and last day of the returns' GPS times, if those are dates."""
    if "gps_time" not in chunk.point_format.dimension_names:
        return None
    times = np.asarray(chunk.gps_time)
    return days_between(float(times.min()), float(times.max()))
