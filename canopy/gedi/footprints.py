"""What a map shows in each footprint: windows of any raster, in true metres on the ground."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from canopy.errors import RasterError
from canopy.progress import Progress, Report, ignore
from tiles.heights import HeightRaster, open_heights
from tiles.windows import PixelWindow

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Floats = NDArray[np.float64]
Weighting = Literal["disc", "gaussian"]

FOOTPRINT_RADIUS_M = 12.5
FOOTPRINT_SIGMA_M = 6.25
"""GEDI's beam falls to 1/e^2 at 12.5 m (Dubayah et al. 2020), four standard deviations across."""
COVER_HEIGHT_M = 2.0
"""Height from which a cell counts as canopy cover."""
EDGE_COVERS = (0.1, 0.9)
"""A footprint whose cover lies between these has a tree edge in it."""
SIDE_PX = 2048
CHUNK_CELLS = 1_000_000
THREADS = 2
CACHE_BYTES = 128 * 2**20
"""GDAL's own default is a share of the machine's memory."""
COLUMNS = ("mean", "p95", "p98", "cover", "unknown_share")
_GEOD = Geod(ellps="WGS84")
_STEP_M = 10.0


@dataclass(frozen=True)
class _PixelPositions:
    """Shots on the raster."""

    row: Floats
    """(n,) row of each shot, fractions counted."""
    col: Floats
    """(n,) column of each shot."""
    step_m: Floats
    """(n, 2, 2) metres (east, north) for one pixel along (row, column)."""


def footprint_statistics(
    path: Path,
    shots: "GeoDataFrame",
    *,
    radius_m: float = FOOTPRINT_RADIUS_M,
    weighting: Weighting = "disc",
    band: str | None = None,
    offset_m: tuple[float, float] | Floats = (0.0, 0.0),
    report: Report = ignore,
) -> pd.DataFrame:
    """Return statistics of a height map in the footprint of each shot.

    Args:
        path: Raster of heights, of any unit, size, CRS and orientation.
        shots: Points, in any CRS.
        radius_m: Radius of the footprint, metres on the ground.
        weighting: A disc in which all cells count the same, or GEDI's Gaussian cut off at twice `radius_m`.
        band: Name of a band other than that of the heights, such as `canopy_height_p95`.
        offset_m: Metres east and north by which shots are moved; one pair for all, or (n, 2).
        report: Called after each block of the raster.

    Returns:
        One row a shot, in their order and with their index: `mean`, `p95`, `p98` in metres, `cover` (share of known
        cells of 2 m and more), `unknown_share`, `edge`, `on_map`. Off the map and where nothing is known, NaN.

    Raises:
        RasterError: The file cannot be read, or is no raster of heights with such a band.
    """
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        heights = files.enter_context(open_heights(path))
        raster = heights if band is None else heights.named(band)
        if raster is None:
            raise RasterError(f"{path} has no band {band}: {', '.join(map(str, heights.dataset.descriptions))}")
        crs = CRS.from_wkt(raster.dataset.crs.to_wkt())
        positions = _pixel_positions(shots, raster.dataset.transform, crs, np.asarray(offset_m))
        height, width = raster.dataset.shape
        statistics = np.full((len(shots), len(COLUMNS)), np.nan)
        inside = (positions.row >= 0) & (positions.row < height) & (positions.col >= 0) & (positions.col < width)
        statistics[~inside, -1] = 1.0
        reach_m = radius_m if weighting == "disc" else 2 * radius_m
        groups = list(_groups(positions, inside))
        source = _Source(raster, files)
        # The pool ends before the files of its threads are closed.
        with ThreadPoolExecutor(THREADS) as pool:
            work = pool.map(lambda members: _group_statistics(source, positions, members, reach_m, weighting), groups)
            for number, (members, rows) in enumerate(zip(groups, work, strict=True), 1):
                statistics[members] = rows
                report(Progress(number, len(groups), "blocks", f"block {number}/{len(groups)}"))
    table = pd.DataFrame(statistics, columns=list(COLUMNS), index=shots.index)
    table["edge"] = (table["cover"] > EDGE_COVERS[0]) & (table["cover"] < EDGE_COVERS[1])
    table["on_map"] = inside
    return table


def _pixel_positions(shots: "GeoDataFrame", transform: Affine, crs: CRS, offset_m: Floats) -> _PixelPositions:
    """Return the pixels of the shots, and what a pixel measures there, from geodesic steps of ten metres."""
    lonlat = shots.to_crs(4326).geometry
    lon, lat = lonlat.x.to_numpy(), lonlat.y.to_numpy()
    east_m, north_m = np.broadcast_to(offset_m, (len(lon), 2)).T
    if np.any(offset_m):
        lon, lat, _ = _GEOD.fwd(lon, lat, np.degrees(np.arctan2(east_m, north_m)), np.hypot(east_m, north_m))
    to_map = Transformer.from_crs(4326, crs, always_xy=True)
    to_pixel = ~transform

    def pixel(longitude: Floats, latitude: Floats) -> Floats:
        """Return (n, 2) rows and columns of (n,) degrees."""
        x, y = (np.asarray(axis, np.float64) for axis in to_map.transform(longitude, latitude))
        rows = to_pixel.d * x + to_pixel.e * y + to_pixel.f
        return np.stack([rows, to_pixel.a * x + to_pixel.b * y + to_pixel.c], axis=-1)

    centre = pixel(lon, lat)
    per_metre = []
    for azimuth in (90.0, 0.0):
        moved = _GEOD.fwd(lon, lat, np.full_like(lon, azimuth), np.full_like(lon, _STEP_M))
        per_metre.append((pixel(np.asarray(moved[0]), np.asarray(moved[1])) - centre) / _STEP_M)
    # Columns: pixels for a metre east and for a metre north. Its inverse is metres for a pixel.
    jacobian = np.stack(per_metre, axis=-1)
    finite = np.isfinite(jacobian).all(axis=(1, 2)) & np.isfinite(centre).all(axis=1)
    step_m = np.full_like(jacobian, np.nan)
    step_m[finite] = np.linalg.inv(jacobian[finite])
    centre[~finite] = -1
    return _PixelPositions(centre[:, 0], centre[:, 1], step_m)


def _groups(positions: _PixelPositions, inside: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Yield the shots of one square of the raster at a time, rows of squares from the top."""
    members = np.flatnonzero(inside)
    # Shots of a square follow each other, so that its blocks of the file are read once.
    key = (positions.row[members] // SIDE_PX).astype(np.int64) * 1_000_000
    key += (positions.col[members] // SIDE_PX).astype(np.int64)
    order = np.argsort(key, kind="stable")
    cuts = np.flatnonzero(np.diff(key[order])) + 1
    yield from (members[part] for part in np.split(order, cuts) if len(part))


def _group_statistics(
    source: "_Source", positions: _PixelPositions, members: NDArray[np.intp], reach_m: float, weighting: Weighting
) -> Floats:
    """Return (n, columns) statistics of shots that lie close together; their ground is read once."""
    step_m = positions.step_m[members]
    # The farthest that any of the footprints reaches along rows and columns: one window serves them all.
    reach = np.abs(np.linalg.inv(step_m)).sum(axis=2).max(axis=0) * reach_m
    reach_row, reach_col = (math.ceil(length) + 1 for length in reach)
    row, col = np.floor(positions.row[members]).astype(int), np.floor(positions.col[members]).astype(int)
    top, left = int(row.min()) - reach_row, int(col.min()) - reach_col
    height, width = int(row.max()) + reach_row + 1 - top, int(col.max()) + reach_col + 1 - left
    ground_m = source.read(PixelWindow(top, left, height, width)).ravel()
    down, right = np.meshgrid(np.arange(-reach_row, reach_row + 1), np.arange(-reach_col, reach_col + 1), indexing="ij")
    # Corners of the window that no disc reaches are left out: a fifth of the cells.
    near = (down / (reach[0] + 1)) ** 2 + (right / (reach[1] + 1)) ** 2 <= 1.1
    down, right = down[near], right[near]
    steps = down * width + right
    # Squared metres of an offset: a quadratic form in rows and columns.
    form = np.einsum("nij,nik->njk", step_m, step_m).astype(np.float32)
    inside_row, inside_col = positions.row[members] - row - 0.5, positions.col[members] - col - 0.5
    statistics = np.empty((len(members), len(COLUMNS)))
    chunk = max(1, CHUNK_CELLS // len(steps))
    for first in range(0, len(members), chunk):
        part = slice(first, first + chunk)
        start = (row[part] - top) * width + col[part] - left
        values = np.take(ground_m, start[:, None] + steps)
        dr = (down - inside_row[part, None]).astype(np.float32)
        dc = (right - inside_col[part, None]).astype(np.float32)
        a, b, c = (form[part, k, m][:, None] for k, m in ((0, 0), (0, 1), (1, 1)))
        squared_m2 = (a * dr + 2 * b * dc) * dr + c * dc * dc
        statistics[part] = (_disc if weighting == "disc" else _gaussian)(values, squared_m2, reach_m)
    return statistics


class _Source:
    """Heights read by several threads, each through a file of its own, which all stay open until `files` closes."""

    def __init__(self, raster: HeightRaster, files: ExitStack) -> None:
        self._raster, self._files = raster, files
        self._lock = threading.Lock()
        self._own = threading.local()

    def read(self, window: PixelWindow) -> NDArray[np.float32]:
        """Return the heights of a window that may leave the raster, metres, NaN where unknown."""
        if not hasattr(self._own, "raster"):
            self._own.raster = self._raster.reopen()
            with self._lock:
                self._files.callback(self._own.raster.dataset.close)
        heights_m: NDArray[np.float32] = self._own.raster.read(window)
        return heights_m


def _disc(values: NDArray[np.float32], squared_m2: NDArray[np.float32], reach_m: float) -> Floats:
    """Return (n, columns) statistics of the cells within reach, all of the same weight; at least the nearest one.

    Args:
        values: (n, k) heights of the cells around each shot, NaN where unknown.
        squared_m2: (n, k) squared distance of each cell's centre from the shot.
        reach_m: Radius of the disc, metres.
    """
    within = squared_m2 <= reach_m**2
    # Cells may be larger than the disc: then the shot has the height of its own cell.
    within[np.arange(len(within)), squared_m2.argmin(axis=1)] = True
    values = np.where(within, values, np.float32(np.nan))
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.count_nonzero(~np.isnan(values), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=1, dtype=np.float64) / count
        cover = np.count_nonzero(values >= COVER_HEIGHT_M, axis=1) / count
        unknown = 1 - count / np.count_nonzero(within, axis=1)
    return np.stack([mean, _ranked(ordered, count, 0.95), _ranked(ordered, count, 0.98), cover, unknown], axis=1)


def _ranked(ordered: NDArray[np.float32], count: NDArray[np.int64], level: float) -> Floats:
    """Return the percentile of the first `count` of sorted values, linear between them, as numpy's."""
    rank = np.maximum(count - 1, 0) * level
    below = np.floor(rank).astype(int)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    lines = np.arange(len(ordered))
    low, high = ordered[lines, below].astype(np.float64), ordered[lines, above].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, low + (high - low) * (rank - below), np.nan)


def _gaussian(values: NDArray[np.float32], squared_m2: NDArray[np.float32], reach_m: float) -> Floats:
    """Return (n, columns) statistics of cells weighted by the beam; arguments as in `_disc`."""
    sigma_m = FOOTPRINT_SIGMA_M * reach_m / (2 * FOOTPRINT_RADIUS_M)
    weight = np.where(squared_m2 <= reach_m**2, np.exp(-squared_m2 / (2 * sigma_m**2)), 0.0)
    total = weight.sum(axis=1)
    known_weight = np.where(np.isnan(values), 0.0, weight)
    sums = known_weight.sum(axis=1)
    filled = np.nan_to_num(values, nan=0.0)
    # A weighted percentile: heights in order, and the weight that has accumulated up to each.
    order = np.argsort(filled, axis=1)
    ordered = np.take_along_axis(filled, order, axis=1)
    rising = np.cumsum(np.take_along_axis(known_weight, order, axis=1), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (known_weight * filled).sum(axis=1) / sums
        cover = (known_weight * (filled >= COVER_HEIGHT_M)).sum(axis=1) / sums
        columns: list[Any] = [mean, *(_weighted(ordered, rising, sums, level) for level in (0.95, 0.98)), cover]
        return np.stack([*columns, 1 - sums / total], axis=1)


def _weighted(ordered: NDArray[np.float32], rising: Floats, sums: Floats, level: float) -> Floats:
    """Return the value at which a share of the weight is reached."""
    rank = (rising < level * sums[:, None]).sum(axis=1).clip(max=ordered.shape[1] - 1)
    return np.where(sums > 0, ordered[np.arange(len(ordered)), rank].astype(np.float64), np.nan)
