"""Terrain: which of the lowest returns are ground, and what lies between them."""

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

_OUTLIER_BLOCK_M = 10.0
_OUTLIER_M = 4.0
_SWEEPS = 12


def find_ground(lowest_m: Cells, cell_m: float) -> Mask:
    """Cells whose lowest return is ground: the Simple Morphological Filter.

    Openings with ever larger windows; what stands out of one by more than the terrain may climb within the window
    is an object. Ground is what lies within a threshold of the surface through the rest (Pingel et al. 2013).

    Args:
        lowest_m: (H, W) elevation of the lowest return in each cell, metres, NaN without one.
        cell_m: Cell size.

    Returns:
        (H, W), False where there is no return.
    """
    lowest_m = np.where(low_outliers(lowest_m, cell_m), np.nan, lowest_m)
    surface = fill_gaps(lowest_m)
    objects = np.isnan(lowest_m)
    for radius in range(1, round(WINDOW_M / cell_m) + 1):
        opened = _opened(surface, radius)
        objects |= surface - opened > SLOPE * radius * cell_m
        surface = opened
    if objects.all():
        return ~objects
    terrain = fill_gaps(np.where(objects, np.nan, lowest_m))
    steepness = np.hypot(*np.gradient(terrain, cell_m))
    near = np.abs(lowest_m - terrain) <= THRESHOLD_M + SLOPE_SCALING * steepness
    return np.asarray(near & ~np.isnan(lowest_m))


def low_outliers(lowest_m: Cells, cell_m: float) -> Mask:
    """Lone cells far below the ground around them, as multiple reflections leave.

    Ground seen through a gap in the canopy is a lone low cell too, so the comparison is with the lowest returns of
    the blocks around, most of which reached the ground as well and few of which hold noise.
    """
    size = max(1, round(_OUTLIER_BLOCK_M / cell_m))
    usual = ndimage.median_filter(_block_minimum(lowest_m, size), size=5, mode="mirror")
    floor = np.repeat(np.repeat(usual - _OUTLIER_M, size, axis=0), size, axis=1)
    floor = floor[: lowest_m.shape[0], : lowest_m.shape[1]]
    deep = lowest_m < floor
    company = ndimage.uniform_filter(deep.astype(np.float64), size=5, mode="constant") * 25
    return np.asarray(deep & (company < 3.5))


def fill_gaps(values: Cells) -> Cells:
    """Fill NaN with a membrane through the known cells: a harmonic surface, coarse to fine.

    Args:
        values: (H, W) with at least one known cell.
    """
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    if max(values.shape) <= 2:
        return np.where(unknown, np.nanmean(values), values)
    coarse = fill_gaps(_halved(values))
    filled = np.where(unknown, _doubled(coarse, values.shape), values)
    rows, cols = np.nonzero(unknown)
    north, south, across = _neighbours(rows, values.shape[0])
    west, east, along = _neighbours(cols, values.shape[1])
    for _ in range(_SWEEPS):
        vertical, horizontal = filled[north, cols] + filled[south, cols], filled[rows, west] + filled[rows, east]
        filled[rows, cols] = (across * vertical + along * horizontal) / (2 * (across + along))
    return filled


def _neighbours(at: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Cells]:
    """Neighbours of cells along an axis, and the pair's weight: almost none at the border, where one is missing.

    So a slope goes on to the border instead of levelling out there.
    """
    inner = (at > 0) & (at < count - 1)
    return np.maximum(at - 1, 0), np.minimum(at + 1, count - 1), np.where(inner, 1.0, 1e-6)


def distance_to(known: Mask, cell_m: float) -> Cells:
    """Metres from each cell to the nearest known one; infinite where none is known."""
    if not known.any():
        return np.full(known.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~known) * cell_m)


def _opened(surface: Cells, radius: int) -> Cells:
    """Opening with a square of `radius` cells to each side."""
    size = 2 * radius + 1
    low = ndimage.minimum_filter(surface, size=size, mode="nearest")
    return np.asarray(ndimage.maximum_filter(low, size=size, mode="nearest"))


def _block_minimum(values: Cells, size: int) -> Cells:
    height, width = (-(-side // size) * size for side in values.shape)
    wide = np.full((height, width), np.inf)
    wide[: values.shape[0], : values.shape[1]] = np.where(np.isnan(values), np.inf, values)
    low = wide.reshape(height // size, size, width // size, size).min(axis=(1, 3))
    return fill_gaps(np.where(np.isinf(low), np.nan, low))


def _halved(values: Cells) -> Cells:
    """Means of the known cells in blocks of 2 x 2."""
    height, width = (side + side % 2 for side in values.shape)
    wide = np.full((height, width), np.nan)
    wide[: values.shape[0], : values.shape[1]] = values
    blocks = wide.reshape(height // 2, 2, width // 2, 2)
    known = ~np.isnan(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0).sum(axis=(1, 3))
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _doubled(coarse: Cells, shape: tuple[int, ...]) -> Cells:
    """Bilinear interpolation to twice the resolution."""
    rows, cols = ((np.arange(side) + 0.5) / 2 - 0.5 for side in shape)
    lower, upper = _between(rows, coarse.shape[0]), _between(cols, coarse.shape[1])
    across = coarse[lower[0]] * (1 - lower[2])[:, None] + coarse[lower[1]] * lower[2][:, None]
    return np.asarray(across[:, upper[0]] * (1 - upper[2]) + across[:, upper[1]] * upper[2])


def _between(at: Cells, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Cells]:
    first = np.clip(np.floor(at).astype(np.int64), 0, max(count - 2, 0))
    return first, np.minimum(first + 1, count - 1), at - first
