"""Terrain: the ground among the lowest returns, and the surface between its cells."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Cells = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Pingel, Clarke and McBride 2013; the window must exceed half of the widest building.
SLOPE = 0.15
WINDOW_M = 25.0
THRESHOLD_M = 0.5
SLOPE_SCALING = 1.25

_PIT_M, _OUTLIER_M = 5.0, 4.0
_TREND_M = 10.0
_COMPANY_M, _COMPANY_SHARE = 40.0, 0.008  # ground seen through gaps is seen again and again, noise is not
_SWEEPS = 12


def find_ground(lowest_m: Cells, cell_m: float) -> Mask:
    """Return the cells whose lowest return is ground: the Simple Morphological Filter (Pingel et al. 2013).

    The surface is opened with ever larger windows; a cell that stands out of an opening by more than the terrain may
    climb within the window is an object. Ground lies within a threshold of the surface through the other cells.

    Args:
        lowest_m: (H, W) elevation of the lowest return in each cell, metres, NaN without one.
        cell_m: Cell size, metres.

    Returns:
        (H, W) bool, False where there is no return.
    """
    lowest_m = np.where(low_outliers(lowest_m, cell_m), np.nan, lowest_m)
    surface = fill_gaps(lowest_m)
    objects = np.isnan(lowest_m)
    # Each opening starts from the one before: what a small window removed, a larger one does not see again.
    for radius in range(1, round(WINDOW_M / cell_m) + 1):
        opened = _opened(surface, radius)
        objects |= surface - opened > SLOPE * radius * cell_m
        surface = opened
    if objects.all():
        return ~objects
    terrain = fill_gaps(np.where(objects, np.nan, lowest_m))
    steepness = np.hypot(*slopes(terrain, cell_m))
    near = np.abs(lowest_m - terrain) <= THRESHOLD_M + SLOPE_SCALING * steepness
    return np.asarray(near & ~np.isnan(lowest_m))


def slopes(elevation_m: Cells, cell_m: float) -> tuple[Cells, Cells]:
    """Return the slopes of (H, W) elevations southward and eastward, 1 for 45 degrees; 0 along a side of one cell."""
    southward, eastward = (
        np.gradient(elevation_m, cell_m, axis=axis) if elevation_m.shape[axis] > 1 else np.zeros_like(elevation_m)
        for axis in (0, 1)
    )
    return southward, eastward


def low_outliers(lowest_m: Cells, cell_m: float) -> Mask:
    """Return the lone cells far below their surroundings, as multiple reflections leave them.

    Pingel et al. (2013) drop cells that a closing lifts much. Ground seen through gaps in a dense canopy is lifted
    too, but it is seen again and again: a cell stays where 0.8 % of the cells within 40 m reach as low, the slope
    of the land taken away.

    Args:
        lowest_m: (H, W) elevation of the lowest return in each cell, metres, NaN without one.
        cell_m: Cell size, metres.
    """
    size = max(1, round(1 / cell_m))
    low = _block_minimum(lowest_m, size)
    lone = _lone_pits(low - _trend(low, cell_m * size), cell_m * size)
    floor = np.where(lone, low + _OUTLIER_M, -np.inf)
    return np.asarray(lowest_m <= _repeated(floor, size, lowest_m.shape))


def _trend(low: Cells, cell_m: float) -> Cells:
    """Return the slope of the land: in blocks of 10 m, planes fitted to the means of the blocks within 40 m.

    Canopy and ground count the same in it; what matters is that noise weighs little.
    """
    size, reach = max(1, round(_TREND_M / cell_m)), round(_COMPANY_M / _TREND_M)
    mean = _block_mean(low, size)
    weight, offsets = (~np.isnan(mean)).astype(np.float64), np.arange(-reach, reach + 1.0)

    def moment(values: Cells, row: int, col: int) -> Cells:
        """Return the sum of values times powers of their distance, over the blocks around each block."""
        down = ndimage.correlate1d(values, offsets**row, axis=0, mode="constant")
        return np.asarray(ndimage.correlate1d(down, offsets**col, axis=1, mode="constant"))

    powers = ((0, 0), (1, 0), (0, 1))
    normal = np.stack([np.stack([moment(weight, a + c, b + d) for c, d in powers], -1) for a, b in powers], -2)
    right = np.stack([moment(np.nan_to_num(mean), a, b) for a, b in powers], -1)
    # A plane through too few blocks is level.
    planes = np.linalg.solve(normal + np.diag([1e-9, 1e-6, 1e-6]), right[..., None])[..., 0]
    level, south, east = np.moveaxis(planes, -1, 0)
    rows, cols = (((np.arange(side) % size + 0.5) / size - 0.5) for side in low.shape)
    parts = (_repeated(part, size, low.shape) for part in (level, south, east))
    return np.asarray(next(parts) + next(parts) * rows[:, None] + next(parts) * cols)


def _lone_pits(low: Cells, cell_m: float) -> Mask:
    """Return the cells that a closing lifts much and that too few cells around reach as low as."""
    size = 2 * max(2, round(_PIT_M / cell_m / 2)) + 1
    high = ndimage.maximum_filter(np.where(np.isnan(low), -np.inf, low), size=size, mode="nearest")
    lifted = ndimage.minimum_filter(np.where(np.isinf(high), np.inf, high), size=size, mode="nearest")
    reach = round(_COMPANY_M / cell_m)
    pits = (lifted - low > _OUTLIER_M) & ~(low + _OUTLIER_M >= _company_floor(low, reach))
    for row, col in np.argwhere(pits):
        around = low[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1]
        as_low = np.count_nonzero(around <= low[row, col] + _OUTLIER_M)
        pits[row, col] = as_low < _COMPANY_SHARE * np.count_nonzero(~np.isnan(around))
    return np.asarray(pits)


def _company_floor(low: Cells, reach: int) -> Cells:
    """Return an elevation that enough blocks around reach, so that no cell need be counted; infinite elsewhere."""
    size = max(1, reach // 8)
    blocks = np.nan_to_num(_block_minimum(low, size), nan=np.inf)
    wide, enough = 2 * (reach // size - 1) + 1, math.ceil(_COMPANY_SHARE * (2 * reach + 1) ** 2)
    if enough > wide**2:
        return np.full(low.shape, np.inf)
    floor = ndimage.rank_filter(blocks, enough - 1, size=wide, mode="constant", cval=np.inf)
    return _repeated(floor, size, low.shape)


def fill_gaps(values: Cells) -> Cells:
    """Fill NaN with a membrane through the known cells: a harmonic surface, coarse to fine.

    Args:
        values: (H, W) values, at least one of them known.
    """
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    if max(values.shape) <= 2:
        return np.where(unknown, np.nanmean(values), values)
    coarse = fill_gaps(_block_mean(values, 2))
    filled = np.where(unknown, _doubled(coarse, values.shape), values)
    # Gauss-Seidel in place of a solver: the coarser level leaves only errors that a few sweeps smooth out.
    rows, cols = np.nonzero(unknown)
    north, south, across = _neighbours(rows, values.shape[0])
    west, east, along = _neighbours(cols, values.shape[1])
    for _ in range(_SWEEPS):
        vertical, horizontal = filled[north, cols] + filled[south, cols], filled[rows, west] + filled[rows, east]
        filled[rows, cols] = (across * vertical + along * horizontal) / (2 * (across + along))
    return filled


def _neighbours(index: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Cells]:
    """Return the neighbours of cells along an axis, and the pair's weight: almost none at the border.

    One neighbour is missing there; without a weight a slope goes on to the border instead of levelling out.
    """
    inner = (index > 0) & (index < count - 1)
    return np.maximum(index - 1, 0), np.minimum(index + 1, count - 1), np.where(inner, 1.0, 1e-6)


def distance_to(valid: Mask, cell_m: float) -> Cells:
    """Return the metres from each cell to the nearest known one; infinite where none is known."""
    if not valid.any():
        return np.full(valid.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~valid) * cell_m)


def _opened(surface: Cells, radius: int) -> Cells:
    """Return the opening with a square: it costs the same whatever its size, unlike a disk."""
    size = 2 * radius + 1
    low = ndimage.minimum_filter(surface, size=size, mode="nearest")
    return np.asarray(ndimage.maximum_filter(low, size=size, mode="nearest"))


def _block_minimum(values: Cells, size: int) -> Cells:
    """Return the lowest known value in blocks of `size` cells, NaN without one."""
    height, width = (-(-side // size) * size for side in values.shape)
    wide = np.full((height, width), np.inf)
    wide[: values.shape[0], : values.shape[1]] = np.where(np.isnan(values), np.inf, values)
    low = wide.reshape(height // size, size, width // size, size).min(axis=(1, 3))
    return np.where(np.isinf(low), np.nan, low)


def _repeated(blocks: Cells, size: int, shape: tuple[int, ...]) -> Cells:
    """Return the value of each cell's block."""
    return np.repeat(np.repeat(blocks, size, axis=0), size, axis=1)[: shape[0], : shape[1]]


def _block_mean(values: Cells, size: int) -> Cells:
    """Return the mean of the known values in blocks of `size` cells, NaN without one."""
    height, width = (-(-side // size) * size for side in values.shape)
    wide = np.full((height, width), np.nan)
    wide[: values.shape[0], : values.shape[1]] = values
    blocks = wide.reshape(height // size, size, width // size, size)
    valid = ~np.isnan(blocks)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, blocks, 0).sum(axis=(1, 3))
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _doubled(coarse: Cells, shape: tuple[int, ...]) -> Cells:
    """Return values of twice the resolution, interpolated bilinearly."""
    rows, cols = ((np.arange(side) + 0.5) / 2 - 0.5 for side in shape)
    lower, upper = _between(rows, coarse.shape[0]), _between(cols, coarse.shape[1])
    across = coarse[lower[0]] * (1 - lower[2])[:, None] + coarse[lower[1]] * lower[2][:, None]
    return np.asarray(across[:, upper[0]] * (1 - upper[2]) + across[:, upper[1]] * upper[2])


def _between(position: Cells, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Cells]:
    """Return the cells before and after positions on an axis, and the weight of the one after."""
    first = np.clip(np.floor(position).astype(np.int64), 0, max(count - 2, 0))
    return first, np.minimum(first + 1, count - 1), position - first
