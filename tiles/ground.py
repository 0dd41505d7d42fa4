"""Units of a CRS and true distances on the ground: one reader of both for every stage.

A CRS's own unit is no true metre: web mercator stretches the ground by a factor that grows with latitude, UTM by up to
.04 %. So whatever is fed to a model at a ground sampling distance is measured along the WGS84 ellipsoid.
"""

from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

METRES_PER_DEGREE = 111_319.49079327358
"""Length of a degree at the equator of WGS84, metres."""
TRUE_SCALE = 0.02
"""A CRS whose units are within this share of true metres keeps distances."""
_GEOD = Geod(ellps="WGS84")
_STEP_M = 100.0


def unit_m(crs: CRS) -> float:
    """Return the metres in a unit of a CRS's horizontal axes; for degrees, at the equator."""
    if crs.is_geographic:
        return METRES_PER_DEGREE
    return float(crs.axis_info[0].unit_conversion_factor)


def is_metric(crs: CRS) -> bool:
    """Return whether a CRS is projected with the metre as its unit; its scale may still vary with place."""
    return crs.is_projected and unit_m(crs) == 1.0


@lru_cache(maxsize=256)
def _to_lonlat(wkt: str) -> Transformer:
    return Transformer.from_crs(wkt, "OGC:CRS84", always_xy=True)


def metres_per_unit(crs: CRS, x: float, y: float) -> tuple[float, float]:
    """Measure the true metres in a unit of a CRS at a place, along its x and its y axis.

    Args:
        crs: The CRS.
        x: First coordinate of the place (east, or longitude).
        y: Second coordinate.

    Returns:
        Metres a unit along x and along y; not finite where the CRS has no such place.
    """
    step = _STEP_M / unit_m(crs)
    lons, lats = _to_lonlat(crs.to_wkt()).transform([x, x + step, x], [y, y, y + step])
    lengths_m = [float(_GEOD.inv(lons[0], lats[0], lons[i], lats[i])[2]) for i in (1, 2)]
    return lengths_m[0] / step, lengths_m[1] / step


def scale_error(crs: CRS, x: float, y: float) -> float:
    """Return the larger share by which a CRS's own units differ from true metres at a place."""
    return max(abs(length_m / unit_m(crs) - 1) for length_m in metres_per_unit(crs, x, y))


def true_gsd_m(transform: Affine, shape: tuple[int, int], crs: CRS) -> float:
    """Measure the longer side of a raster's centre pixel, in true ground metres.

    Args:
        transform: Pixel to CRS coordinates.
        shape: Rows and columns.
        crs: The CRS of `transform`.
    """
    return max(pixel_sides_m(transform, shape, crs))


def pixel_sides_m(transform: Affine, shape: tuple[int, int], crs: CRS) -> tuple[float, float]:
    """Measure the sides of a raster's centre pixel along its row and its column, in true ground metres.

    Args:
        transform: Pixel to CRS coordinates.
        shape: Rows and columns.
        crs: The CRS of `transform`.
    """
    row, col = shape[0] / 2, shape[1] / 2
    corners = [transform @ (col + right, row + down) for right, down in ((0, 0), (1, 0), (0, 1))]
    lon, lat = _to_lonlat(crs.to_wkt()).transform(*np.transpose(corners))
    return sides_m(np.asarray(lon), np.asarray(lat))


def longer_side_m(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> float:
    """Measure the longer side of a pixel, in true ground metres.

    Args:
        lon: (3,) longitude of a corner of the pixel and of the corners next to it.
        lat: (3,) their latitude.
    """
    return max(sides_m(lon, lat))


def sides_m(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[float, float]:
    """Measure both sides of a pixel from the corners that `longer_side_m` takes, in true ground metres."""
    _, _, lengths_m = _GEOD.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
    return float(lengths_m[0]), float(lengths_m[1])
