"""Crowns: a watershed of the canopy turned upside down, in which each cell climbs to its treetop.

A cell belongs to the tree that is reached by always going to the highest neighbour: the watershed by topographic
distance (Meyer 1994, Signal Processing 38:113-125) of the negative height. It is controlled by markers: a bump that is
no treetop goes on to the highest cell of its window, so its cells join the tree that rules there. Crowns are then cut:
at a share of the top's height, at the lowest canopy and at the widest radius (Silva et al. 2016, Journal of the
American Water Resources Association 52:1157-1168; Dalponte and Coomes 2016, Methods in Ecology and Evolution
7:1236-1245).

A flood from all markers at once has no bounds: who wins far away decides who wins here. A climb has: its length is
limited (`Cut.climb_px`), so what a cell belongs to depends on the cells within that length and on their windows, and on
nothing else. That is what makes tiles and whole maps agree to the last cell.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canopy.products.treetops import Cells, Floats, WindowLine, climb_windows, reach_px, steepest, window_px

NO_TREE = -1
_CLIMB_PER_RADIUS = 2
"""Longest climb, radii of the widest crown: an ascent meanders."""


@dataclass(frozen=True)
class Cut:
    """Where crowns end, in cells and metres."""

    lowest_m: float
    """Lowest canopy and lowest treetop, metres."""
    share: float
    """Lowest cell of a crown, as a share of its top's height."""
    radius_px: float
    """Largest distance of a cell from its top, cells."""

    @property
    def climb_px(self) -> int:
        """Return the longest climb from a cell to its top, cells along the longer axis of each step."""
        return _CLIMB_PER_RADIUS * int(np.ceil(self.radius_px))


@dataclass(frozen=True)
class Crowns:
    """Trees of an array of heights."""

    tops: Cells
    """(N,) flat indices of treetops, increasing."""
    owner: Cells
    """(H, W) number of the tree in `tops` of each cell, `NO_TREE` where there is none."""
    surface_m: Floats
    """(H, W) smoothed heights, -inf below the canopy and where unknown."""


def halo_px(cut: Cut, line: WindowLine, sigma_px: float, cell_m: float) -> int:
    """Return the context from which all crowns of tops inside a tile follow exactly, cells.

    A crown's cells, and the cells over which they climb, lie within the longest climb L of the top. The step of each
    follows from its window, of radius W, on heights smoothed over R cells. Were a climb to leave the zone within L of
    the tile, where steps are exact, and come back to a top in the tile, it would be longer than L, and be refused. So
    L + W + R cells do, and one for the neighbours of a crown's rim.
    """
    return cut.climb_px + max(window_px(line, cell_m), 1) + reach_px(sigma_px) + 1


def find_crowns(surface_m: Floats, line: WindowLine, cut: Cut, cell_m: float) -> Crowns:
    """Return the trees of smoothed heights.

    Args:
        surface_m: (H, W) float32 metres, NaN where unknown.
        line: Width of the search window by height.
        cut: Where crowns end.
        cell_m: Side of a cell, metres.
    """
    with np.errstate(invalid="ignore"):
        canopy = np.where(surface_m >= np.float32(cut.lowest_m), surface_m, np.float32(-np.inf))
    target = steepest(canopy).ravel()
    heights = canopy.ravel()
    cells = np.arange(target.size, dtype=np.int32)
    is_canopy = heights > -np.inf
    length = np.ones(target.size, np.int16)
    length[target == cells] = 0
    peaks = np.flatnonzero((target == cells) & is_canopy).astype(np.int32)
    climbed = climb_windows(canopy, peaks, line, cell_m)
    target[peaks] = climbed
    length[peaks] = _distance(peaks, climbed, canopy.shape[1])
    tops = peaks[climbed == peaks]
    root, length = _follow(target, length, cut.climb_px)
    owner = _cut(heights, root, length, tops, cut, canopy.shape[1])
    return Crowns(tops, owner.reshape(canopy.shape), canopy)


def _distance(first: Cells, second: Cells, width: int) -> NDArray[np.int16]:
    """Return the distance of cells along the longer axis."""
    (row1, col1), (row2, col2) = np.divmod(first, width), np.divmod(second, width)
    return np.asarray(np.maximum(abs(row1 - row2), abs(col1 - col2)), np.int16)


def _follow(target: Cells, length: NDArray[np.int16], longest: int) -> tuple[Cells, NDArray[np.int16]]:
    """Return where climbs end and how long they are; a climb that is longer than the longest may end anywhere on it."""
    # Each round doubles the steps taken at once. A step is at least one cell long, so this many rounds do.
    for _ in range(max(1, longest).bit_length()):
        length = np.minimum(length + length[target], longest + 1).astype(np.int16)
        target = target[target]
    return target, length


def _cut(heights: Floats, root: Cells, length: NDArray[np.int16], tops: Cells, cut: Cut, width: int) -> Cells:
    """Return the number of each cell's tree, after the cut."""
    number = np.full(root.size, NO_TREE, np.int32)
    number[tops] = np.arange(tops.size, dtype=np.int32)
    owner = number[root]
    cells = np.flatnonzero((owner != NO_TREE) & (length <= cut.climb_px)).astype(np.int32)
    ends = root[cells]
    (row, col), (top_row, top_col) = np.divmod(cells, width), np.divmod(ends, width)
    inside = (row - top_row) ** 2 + (col - top_col) ** 2 <= cut.radius_px**2
    inside &= heights[cells] >= np.float32(cut.share) * heights[ends]
    result = np.full(root.size, NO_TREE, np.int32)
    result[cells[inside]] = owner[cells[inside]]
    return result
