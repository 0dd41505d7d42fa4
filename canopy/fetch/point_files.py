"""Points of any source as parts of one LAZ file: LAS 1.4, format 6, in one CRS, cut to an area."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import pyproj
from numpy.typing import NDArray

from canopy.errors import LidarError, SourceError, one_line
from canopy.fetch.options import Box

_FORMAT, _VERSION = 6, "1.4"
_MOVED_SCALE = 0.001
_CHUNK = 1_000_000
_FLAGS = {"synthetic": 1, "key_point": 2, "withheld": 4, "overlap": 8}
"""Bits of LAS 1.4 that older formats carry in a dimension of their own, `ClassFlags`."""
_COPIED = (
    "intensity", "return_number", "number_of_returns", "scan_direction_flag", "edge_of_flight_line", "user_data",
    "point_source_id", "gps_time",
)  # fmt: skip
_LAS_ERRORS = (laspy.errors.LaspyException, ValueError, OSError, RuntimeError, KeyError, TypeError)

Mover = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Frame:
    """CRS and storage of the points of one output."""

    crs: pyproj.CRS
    """CRS of the output, its vertical part included where it is known."""
    scales: tuple[float, float, float]
    """Units of the stored whole numbers."""
    offsets: tuple[float, float, float]
    """Coordinates of the stored zero."""
    move: Mover | None = None
    """Moves coordinates of the source into the CRS; None where it is the source's own."""

    @classmethod
    def moved(cls, source: pyproj.CRS, target: pyproj.CRS, bounds: Box) -> "Frame":
        """Return the frame of points that are moved into another CRS; elevations stay.

        Args:
            source: Horizontal CRS of the source.
            target: CRS of the output.
            bounds: Area in the source's CRS.
        """
        horizontal = target.sub_crs_list[0] if target.is_compound else target
        transformer = pyproj.Transformer.from_crs(source, horizontal, always_xy=True)
        x, y = transformer.transform(bounds[0], bounds[1])
        return cls(target, (_MOVED_SCALE,) * 3, (float(np.floor(x)), float(np.floor(y)), 0.0), transformer.transform)

    def header(self) -> laspy.LasHeader:
        """Return an empty header."""
        header = laspy.LasHeader(point_format=_FORMAT, version=_VERSION)
        header.scales, header.offsets = np.array(self.scales), np.array(self.offsets)
        header.add_crs(self.crs)
        return header


def cut_points(points: Any, inside: Box, frame: Frame) -> laspy.LasData | None:
    """Return the points within a box, in the frame; None where there are none.

    Args:
        points: Points of laspy, of any format.
        inside: Box in the source's CRS: west and south are inside, east and north are not.
        frame: Frame of the output.
    """
    x, y = np.asarray(points.x), np.asarray(points.y)
    valid = (x >= inside[0]) & (x < inside[2]) & (y >= inside[1]) & (y < inside[3])
    if not valid.any():
        return None
    names = set(points.point_format.dimension_names)
    x, y = x[valid], y[valid]
    if frame.move is not None:
        x, y = frame.move(x, y)
    cut = laspy.LasData(frame.header())
    cut.x, cut.y, cut.z = x, y, np.asarray(points.z)[valid]
    for name in (name for name in _COPIED if name in names):
        cut[name] = np.asarray(points[name])[valid]
    cut.classification = np.asarray(points.classification)[valid]
    flags = np.asarray(points["ClassFlags"])[valid].astype(int) if "ClassFlags" in names else None
    for name, bit in _FLAGS.items():
        # Either place may have the flag, whichever the project's software wrote.
        own = np.asarray(points[name])[valid] > 0 if name in names else np.zeros(len(cut), bool)
        cut[name] = own | (flags & bit > 0) if flags is not None else own
    return cut


def read_points(path: Path, expected: int, name: str) -> laspy.LasData:
    """Read a LAZ file whose number of points is stated.

    Raises:
        SourceError: The file is damaged, or has another number of points.
    """
    try:
        points = laspy.read(path)
    except _LAS_ERRORS as error:
        raise SourceError(f"{name}: damaged: {one_line(error, 150)}; run again") from error
    if len(points) != expected:
        raise SourceError(f"{name}: {len(points)} points, {expected} expected; run again")
    return points


def write_points(points: laspy.LasData, path: Path) -> None:
    """Write points as LAZ, whatever the name's suffix."""
    with path.open("wb") as file:
        points.write(file, do_compress=True)


def merge(parts: Sequence[Path], path: Path, frame: Frame) -> int:
    """Write the points of all parts into one LAZ, and return their number. Memory does not grow with them.

    Raises:
        LidarError: A part is damaged.
    """
    count = 0
    with path.open("wb") as file, laspy.open(file, "w", header=frame.header(), do_compress=True, closefd=False) as out:
        for part in parts:
            try:
                with laspy.open(part) as reader:
                    for points in reader.chunk_iterator(_CHUNK):
                        out.write_points(points)
                        count += len(points)
            except _LAS_ERRORS as error:
                raise LidarError(f"{part}: damaged: {one_line(error, 150)}; remove it and run again") from error
    return count


def vertical_unit_m(crs: pyproj.CRS) -> float | None:
    """Return metres in a unit of elevation; None where the CRS has no vertical part."""
    parts = crs.sub_crs_list if crs.is_compound else [crs]
    for part in parts:
        for axis in part.axis_info:
            if axis.direction.lower() == "up":
                return float(axis.unit_conversion_factor)
    return None
