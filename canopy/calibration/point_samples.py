"""Values of a raster at points around shots: sampled square by square, so that memory follows the points alone."""

from collections.abc import Callable

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from tiles.windows import PixelWindow

Floats = NDArray[np.float64]
Read = Callable[[PixelWindow], NDArray[np.float32]]

SIDE_PX = 2048
_GEOD = Geod(ellps="WGS84")
_STEP_M = 10.0


def points_around(lon: Floats, lat: Floats, east_m: Floats, north_m: Floats) -> tuple[Floats, Floats]:
    """Return longitude and latitude (n, k) of points at k offsets from n points, metres on the ground."""
    shape = (len(lon), len(east_m))
    azimuth, distance_m = np.degrees(np.arctan2(east_m, north_m)), np.hypot(east_m, north_m)
    lons, lats, azimuths, distances_m = (
        np.ascontiguousarray(np.broadcast_to(part, shape), np.float64)
        for part in (lon[:, None], lat[:, None], azimuth, distance_m)
    )
    lons, lats, _ = _GEOD.fwd(lons, lats, azimuths, distances_m)
    return np.asarray(lons), np.asarray(lats)


def beam_offsets(count: int, sigma_m: float) -> tuple[Floats, Floats]:
    """Return metres east and north (count,) of points as dense as a Gaussian beam: a sunflower's spiral (Vogel 1979).

    Args:
        count: Number of points; each stands for the same share of the beam's energy.
        sigma_m: Standard deviation of the beam along an axis, metres.
    """
    number = np.arange(count)
    radius = sigma_m * np.sqrt(-2 * np.log1p(-(number + 0.5) / count))
    angle = number * np.pi * (3 - np.sqrt(5))
    return radius * np.sin(angle), radius * np.cos(angle)


def to_pixels(lon: Floats, lat: Floats, transform: Affine, crs: CRS) -> tuple[Floats, Floats]:
    """Return rows and columns of points on a raster, fractions counted; same shape, not finite where there are none."""
    x, y = (np.asarray(axis) for axis in Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat))
    inverse = ~transform
    return inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c


def pixels_around(
    lon: Floats, lat: Floats, east_m: Floats, north_m: Floats, transform: Affine, crs: CRS
) -> tuple[Floats, Floats]:
    """Return rows and columns (n, k) of points at k offsets from n points, metres on the ground.

    A metre east and a metre north are measured in pixels once a point, which is exact enough over tens of metres.
    """
    centre = np.stack(to_pixels(lon, lat, transform, crs))[:, :, None]
    axes = points_around(lon, lat, np.array([_STEP_M, 0.0]), np.array([0.0, _STEP_M]))
    per_metre = (np.stack(to_pixels(*axes, transform, crs)) - centre) / _STEP_M
    rows, cols = centre + per_metre[:, :, :1] * east_m + per_metre[:, :, 1:] * north_m
    return rows, cols


def sample_nearest(read: Read, rows: Floats, cols: Floats) -> Floats:
    """Return the values of the cells in which points lie.

    Args:
        read: Reader of a window that may leave the raster; NaN where unknown.
        rows: (n, k) rows of the points; the k points of a shot lie close together.
        cols: (n, k) columns of the points.

    Returns:
        (n, k) values, NaN where unknown.
    """

    def pick(values: NDArray[np.float32], row: Floats, col: Floats) -> Floats:
        return np.asarray(values[np.floor(row).astype(int), np.floor(col).astype(int)], np.float64)

    return _sample(read, rows, cols, pick)


def sample_bilinear(read: Read, rows: Floats, cols: Floats) -> Floats:
    """Return values between the centres of cells; arguments and result as in `sample_nearest`."""

    def mix(values: NDArray[np.float32], row: Floats, col: Floats) -> Floats:
        top, left = np.floor(row - 0.5).astype(int), np.floor(col - 0.5).astype(int)
        down, right = row - 0.5 - top, col - 0.5 - left
        above = values[top, left] * (1 - right) + values[top, left + 1] * right
        below = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
        return np.asarray(above * (1 - down) + below * down, np.float64)

    return _sample(read, rows, cols, mix)


def _sample(read: Read, rows: Floats, cols: Floats, pick: Callable[..., Floats]) -> Floats:
    """Read each square of the raster with points in it once, and pick the points' values from it."""
    values = np.full(rows.shape, np.nan)
    finite = np.isfinite(rows).all(axis=1) & np.isfinite(cols).all(axis=1)
    members = np.flatnonzero(finite)
    squares = np.stack([rows[members, 0] // SIDE_PX, cols[members, 0] // SIDE_PX], axis=1)
    # Shots of one square together: each square is read once, in the order of the raster.
    _, square = np.unique(squares, axis=0, return_inverse=True)
    order = np.argsort(square.reshape(-1), kind="stable")
    cuts = np.flatnonzero(np.diff(square.reshape(-1)[order])) + 1
    for group in np.split(members[order], cuts):
        if not len(group):
            continue
        row, col = rows[group], cols[group]
        # One cell more on each side, for what lies between centres.
        top, left = int(np.floor(row.min())) - 1, int(np.floor(col.min())) - 1
        height, width = int(np.floor(row.max())) + 3 - top, int(np.floor(col.max())) + 3 - left
        part = read(PixelWindow(top, left, height, width))
        values[group] = pick(part, row - top, col - left)
    return values
