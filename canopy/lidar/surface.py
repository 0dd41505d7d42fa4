"""Canopy surface: the highest return of each cell, without birds and wires, with pits and small gaps filled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Heights = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOWEST_M, HIGHEST_M = -2.0, 120.0
"""Returns beyond are outliers; the tallest tree known measures 116 m."""
CANOPY_M = 2.0
LAYERS_M = (CANOPY_M, *(float(m) for m in range(5, 120, 5)))
"""Levels of Khosravipour et al. (2014)."""

_LAYER_M = 2.0  # of the occupied layers, one bit each
_NONE_MM = np.iinfo(np.int32).min
_STRING_WIDTH_M, _STRING_LENGTH_M = 3.0, 10.0


@dataclass(frozen=True)
class Columns:
    """What pass over the returns leaves of them in each cell; grows in place."""

    top_mm: NDArray[np.int32]
    """(H * W,) height of the highest return."""
    low_top_mm: NDArray[np.int32]
    """(H * W,) height of the highest return below the canopy."""
    layers: NDArray[np.uint64]
    """(H * W,) bit n: some return lies n to n + 1 layers of 2 m above the ground; without bit 0."""

    @classmethod
    def empty(cls, cells: int) -> "Columns":
        """Columns without returns."""
        return cls(np.full(cells, _NONE_MM, np.int32), np.full(cells, _NONE_MM, np.int32), np.zeros(cells, np.uint64))

    def add(self, cell: NDArray[np.int64], height_mm: NDArray[np.int32]) -> None:
        """Add returns.

        Args:
            cell: (n,) index of each return's cell.
            height_mm: (n,) height above ground.
        """
        possible = (height_mm >= 1000 * LOWEST_M) & (height_mm <= 1000 * HIGHEST_M)
        cell, height_mm = cell[possible], height_mm[possible]
        np.maximum.at(self.top_mm, cell, height_mm)
        low = height_mm < 1000 * CANOPY_M
        np.maximum.at(self.low_top_mm, cell[low], height_mm[low])
        bit = np.uint64(1) << (height_mm[~low] // int(1000 * _LAYER_M)).astype(np.uint64)
        np.bitwise_or.at(self.layers, cell[~low], bit)


def canopy_surface(columns: Columns, shape: tuple[int, int], cell_m: float) -> Heights:
    """Canopy height: highest returns, cleaned and filled.

    Args:
        columns: Of all returns.
        shape: (H, W).
        cell_m: Cell size.

    Returns:
        (H, W) metres, NaN where unknown.
    """
    layers = columns.layers.reshape(shape)
    top, low = (_metres(mm).reshape(shape) for mm in (columns.top_mm, columns.low_top_mm))
    stray = lone_returns(layers, cell_m) | strings(layers, cell_m)
    # What lies below the stray return is known to 2 m only, unless it is the ground.
    below = layers & ~_highest_bit(layers)
    heights = np.where(stray, np.where(below == 0, low, np.nan), top)
    heights = fill_pits(fill_holes(heights))
    return np.maximum(heights, 0).astype(np.float32)


def lone_returns(layers: NDArray[np.uint64], cell_m: float) -> Mask:
    """Cells whose highest return has no other within about 2 m sideways and 4 m up or down: a bird, or noise."""
    highest = _highest_bit(layers)
    around = _around(layers, max(1, round(2 / cell_m)), itself=False) | (layers & ~highest)
    reach = around
    for shift in (np.uint64(1), np.uint64(2)):
        reach = reach | (around << shift) | (around >> shift)
    return np.asarray((highest != 0) & (highest & reach == 0))


def strings(layers: NDArray[np.uint64], cell_m: float) -> Mask:
    """Cells of wires: returns above 8 m with nothing between them and the ground, in strips narrow and long."""
    highest = _highest_bit(layers)
    # Bits of the layers from 2 m up to 4 m below the highest return.
    under = ((highest >> np.uint64(2)) - np.uint64(1)) & ~np.uint64(1)
    afloat = (highest >= np.uint64(1 << 4)) & (_around(layers, 1, itself=True) & under == 0)
    # The rim of a crown overhangs open ground too, but a broad canopy at least as high adjoins it.
    side = max(2, round(_STRING_WIDTH_M / cell_m))
    broad = ndimage.binary_opening(np.pad(layers >= np.uint64(1 << 3), side, mode="edge"), np.ones((side, side)))
    canopy = np.where(broad[side:-side, side:-side], highest, np.uint64(0))
    narrow = afloat & (highest > ndimage.maximum_filter(canopy, size=7, mode="nearest"))
    parts, _ = ndimage.label(ndimage.binary_dilation(narrow, np.ones((3, 3))), np.ones((3, 3)))
    spans = ndimage.find_objects(parts)
    long = [max(s.stop - s.start for s in span) * cell_m >= _STRING_LENGTH_M for span in spans]
    return np.asarray(narrow & np.array([False, *long])[parts])


def fill_holes(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give a cell without returns the mean of its neighbours where known cells enclose it on two lines at least.

    Twice, so that gaps two cells wide close; larger ones stay unknown.
    """
    for _ in range(2):
        one, other = _opposites(heights)
        middle = (one + other) / 2
        lines = (~np.isnan(middle)).sum(axis=0)
        mean = np.where(np.isnan(middle), 0, middle).sum(axis=0) / np.maximum(lines, 1)
        heights = np.where(np.isnan(heights) & (lines >= 2), mean, heights)
    return heights


def fill_pits(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raise cells where the beam fell through a crown.

    Khosravipour et al. (2014) take the highest of surfaces through the returns above 2, 5, 10, 15, ... m, made of
    triangles with short edges. On the raster: a cell below a level rises to the mean of its neighbours where at
    least three of the four lines through it have both neighbours above that level.
    """
    one, other = (np.nan_to_num(side, nan=-np.inf) for side in _opposites(heights))
    enclosing = np.sort(np.minimum(one, other), axis=0)[1]
    levels = np.array([-np.inf, *LAYERS_M])
    level = levels[np.searchsorted(levels, enclosing, side="right") - 1]
    above = np.minimum(one, other) >= level
    middle = np.where(above & np.isfinite(level), (one + other) / 2, 0).sum(axis=0) / np.maximum(above.sum(axis=0), 1)
    return np.where(heights < level, middle, heights)


def _metres(height_mm: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.where(height_mm == _NONE_MM, np.nan, height_mm / 1000)


def _highest_bit(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    filled = bits.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        filled |= filled >> np.uint64(shift)
    return filled ^ (filled >> np.uint64(1))


def _around(bits: NDArray[np.uint64], reach: int, *, itself: bool) -> NDArray[np.uint64]:
    """Bits of all cells within `reach` cells, the diagonal included."""
    rows, cols = bits.shape
    wide = np.pad(bits, reach)
    joined = np.zeros_like(bits)
    for row in range(2 * reach + 1):
        for col in range(2 * reach + 1):
            if itself or (row, col) != (reach, reach):
                joined |= wide[row : row + rows, col : col + cols]
    return joined


def _opposites(heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Neighbours (4, H, W) on both sides of a cell, along the four lines through it; NaN outside."""
    rows, cols = heights.shape
    wide = np.pad(heights, 1, constant_values=np.nan)

    def shifted(row: int, col: int) -> NDArray[np.float64]:
        return wide[1 + row : 1 + row + rows, 1 + col : 1 + col + cols]

    lines = ((0, 1), (1, 0), (1, 1), (1, -1))
    return np.stack([shifted(r, c) for r, c in lines]), np.stack([shifted(-r, -c) for r, c in lines])
