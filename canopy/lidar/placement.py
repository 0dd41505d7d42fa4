"""Where clouds lie: the CRS of the canopy height model, and returns moved into it in metres."""

from collections.abc import Callable, Sequence

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.geom import BoundingBox, box
from pyproj.exceptions import CRSError

from canopy.errors import LidarError
from tiles.aoi import utm_crs
from tiles.ground import unit_m

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""
Axis = NDArray[np.float64]
Mover = Callable[[Axis, Axis], tuple[Axis, Axis]]

_AREA_OF_USE_MARGIN_DEG = 5.0
_SAME_M = 1e-3


def parse_crs(name: str, option: str = "--crs") -> pyproj.CRS:
    """Parse a CRS that the user names.

    Raises:
        LidarError: There is no such CRS.
    """
    try:
        return pyproj.CRS.from_user_input(name)
    except CRSError as error:
        raise LidarError(f"{option} {name[:60]!r} is not a CRS: EPSG:n expected") from error


def horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """Return the horizontal part of a CRS."""
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    return crs.to_2d() if len(crs.axis_info) == 3 else crs


def same_crs(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    """Return whether two CRSs are the same but for the order of their axes."""
    if one.equals(other, ignore_axis_order=True):
        return True
    codes = one.to_epsg(), other.to_epsg()
    return codes[0] is not None and codes[0] == codes[1]


def output_crs(crs: pyproj.CRS, bounds: Bounds, name: str | None) -> pyproj.CRS:
    """Return the CRS of the canopy height model: projected, in metres.

    It is the one that the user names if it is in metres; else the clouds' own, or its twin in metres if EPSG lists one,
    or the UTM zone.

    Args:
        crs: CRS of the clouds.
        bounds: Bounds of a cloud in it.
        name: CRS that the user names, if any.

    Raises:
        LidarError: `name` is not projected.
    """
    target = crs if name is None else horizontal(parse_crs(name))
    if not target.is_projected:
        raise LidarError(f"--crs {str(name)[:60]} is not projected: a CRS in metres expected")
    if unit_m(target) == 1:
        return target
    return _metre_twin(target) or pyproj.CRS.from_user_input(utm_crs(box(*bounds, crs.to_wkt())).to_wkt())


def placed_bounds(bounds: Bounds, source: pyproj.CRS, target: pyproj.CRS) -> Bounds:
    """Return bounds in metres of the output CRS that contain all returns within the bounds of a cloud."""
    factor = _scale(source, target)
    if factor is not None:
        west, south, east, north = (value * factor for value in bounds)
        return west, south, east, north
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    west, south, east, north = transformer.transform_bounds(*bounds, densify_pts=51)
    return west - 1, south - 1, east + 1, north + 1


def union(bounds: Sequence[Bounds], crs: pyproj.CRS) -> BoundingBox:
    """Return the box around boxes."""
    table = np.array(bounds)
    west, south = table[:, :2].min(axis=0)
    east, north = table[:, 2:].max(axis=0)
    return BoundingBox(west, south, east, north, crs=crs.to_wkt())


def mover(source: pyproj.CRS, target: pyproj.CRS) -> Mover:
    """Return a function that moves coordinates to metres of the output CRS, rounded to a tenth of a millimetre.

    Rounded, because offsets that differ between files leave different last bits.
    """
    factor = _scale(source, target)
    if factor is not None:
        return lambda x, y: (np.round(x * factor, 4), np.round(y * factor, 4))
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)

    def move(x: Axis, y: Axis) -> tuple[Axis, Axis]:
        east_m, north_m = transformer.transform(x, y)
        return np.round(east_m, 4), np.round(north_m, 4)

    return move


def is_plausible(bounds: Sequence[float], crs: pyproj.CRS) -> bool:
    """Return whether bounds lie where a CRS is used: else they are damaged, or the CRS is another one."""
    to_lonlat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(np.array(bounds)[[0, 2]], np.array(bounds)[[1, 3]])
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return False
    area, margin = crs.area_of_use, _AREA_OF_USE_MARGIN_DEG
    if area is None:
        return True
    inside = bool(((lat > area.south - margin) & (lat < area.north + margin)).all())
    if area.west < area.east:
        inside &= bool(((lon > area.west - margin) & (lon < area.east + margin)).all())
    return inside


def _metre_twin(crs: pyproj.CRS) -> pyproj.CRS | None:
    """Return the CRS of the same datum and projection in metres, if EPSG lists it."""
    # The name or the code would identify the CRS that it is derived from.
    description = crs.to_json_dict() | {"name": "unnamed"}
    description.pop("id", None)
    for axis in description["coordinate_system"]["axis"]:
        axis["unit"] = "metre"
    code = pyproj.CRS.from_json_dict(description).to_epsg(min_confidence=60)
    twin = None if code is None else pyproj.CRS.from_epsg(code)
    return twin if twin is not None and _scale(crs, twin) is not None else None


def _scale(source: pyproj.CRS, target: pyproj.CRS) -> float | None:
    """Return the factor between coordinates of two CRSs that differ at most in their unit; else None."""
    if same_crs(source, target):
        return 1.0
    factor = unit_m(source) / unit_m(target)
    area = source.area_of_use
    if source.geodetic_crs != target.geodetic_crs or area is None:
        return None
    lon, lat = [area.west, area.east, area.east], [area.south, area.south, area.north]
    to_source = pyproj.Transformer.from_crs(source.geodetic_crs, source, always_xy=True)
    to_target = pyproj.Transformer.from_crs(source.geodetic_crs, target, always_xy=True)
    difference_m = np.abs(np.array(to_source.transform(lon, lat)) * factor - to_target.transform(lon, lat))
    return factor if difference_m.max() < _SAME_M else None
