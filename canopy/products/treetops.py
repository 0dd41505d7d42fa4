"""Treetops of a canopy height model: the highest cells of windows that widen with height.

Heights are smoothed first, for a crown has many bumps and one top. A cell is a top where no cell of the circle around
it is higher; the circle's width follows from the cell's height (Popescu and Wynne 2004, Photogrammetric Engineering
and Remote Sensing 70:589-604).

Cells are in a strict order: by height, then by row and column of the lattice. So flat ground has one top a window
too, and which one depends neither on the tile nor on the map through which it is seen.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.errors import ProductError

Floats = NDArray[np.float32]
Cells = NDArray[np.int32]

TRUNCATE = 4.0
"""Reach of the Gaussian filter, standard deviations."""
MAX_WINDOW_M = 60.0
"""Widest window that may be asked for, metres: as wide as the widest crown (`TreeOptions`)."""
_GATHER = 2**21
"""Most cells that are compared at once."""


@dataclass(frozen=True)
class WindowLine:
    """Width of the search window by height: a + b h + c h2, within limits."""

    a_m: float
    """Width at height 0, metres."""
    b: float
    """Metres of width a metre of height."""
    c: float
    """Metres of width a square metre of height."""
    max_m: float = 12.0
    """Widest window, metres: the curve grows faster than crowns do beyond the heights to which it was fitted."""
    min_m: float = 1.5
    """Narrowest window, metres."""

    def width_m(self, height_m: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the width of the window at heights, both in metres."""
        # No wider at a lower height: the curve of conifers falls at first.
        return np.clip(self.a_m + self.b * height_m + self.c * height_m**2, self.min_m, self.max_m)

    def __post_init__(self) -> None:
        """Refuse a line that gives no width, or one that no crown has."""
        is_finite = all(map(math.isfinite, (self.a_m, self.b, self.c)))
        if not (is_finite and 0 < self.min_m <= self.max_m <= MAX_WINDOW_M):
            raise ProductError(
                f"window of {self.a_m:g},{self.b:g},{self.c:g} up to {self.max_m:g} m: finite numbers and a widest "
                f"window of {self.min_m:g} to {MAX_WINDOW_M:g} m expected"
            )


WINDOWS = {
    "mixed": WindowLine(2.51503, 0.0, 0.00901),
    "broadleaf": WindowLine(3.09632, 0.0, 0.00895),
    "conifer": WindowLine(3.75105, -0.17919, 0.01241),
}
"""Crown width by height of temperate forests (Popescu and Wynne 2004: combined, deciduous and pine)."""


def smooth(heights_m: Floats, sigma_px: float) -> Floats:
    """Return heights blurred by a Gaussian; unknown cells have no weight and stay unknown.

    The bits of a cell depend on the cells within `reach_px(sigma_px)` alone, not on the array that contains them.

    Args:
        heights_m: (H, W) float32 metres, NaN where unknown.
        sigma_px: Standard deviation, cells; 0 for none.
    """
    if sigma_px == 0:
        return heights_m
    valid = np.isfinite(heights_m)
    if valid.all():
        return _blur(heights_m, sigma_px)
    blurred = _blur(np.where(valid, heights_m, np.float32(0)), sigma_px)
    weight = _blur(valid.astype(np.float32), sigma_px)
    # Where all cells are known the weight is the same constant, by which the branch above does not divide either.
    full = _blur(np.ones((1, 1), np.float32), sigma_px)[0, 0]
    partial = valid & (weight != full)
    blurred[partial] /= weight[partial]
    blurred[~valid] = np.nan
    return blurred


def reach_px(sigma_px: float) -> int:
    """Return how far the filter reaches, cells."""
    return int(TRUNCATE * sigma_px + 0.5)


def _blur(values: Floats, sigma_px: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(values, sigma_px, truncate=TRUNCATE, mode="nearest"), np.float32)


def steepest(surface_m: Floats) -> Cells:
    """Return the highest of each cell and its 8 neighbours, as an index into the flattened array.

    Args:
        surface_m: (H, W) float32 heights; -inf where there is no canopy.

    Returns:
        (H, W) int32; a cell that is higher than its neighbours has its own index.
    """
    rows, cols = surface_m.shape
    own = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    # Along rows first, then along columns: 4 comparisons do for 8 neighbours. Later cells win among equals.
    best, index = surface_m.copy(), own.copy()
    _take_higher(best[:, 1:], index[:, 1:], surface_m[:, :-1], own[:, :-1], is_later=False)
    _take_higher(best[:, :-1], index[:, :-1], surface_m[:, 1:], own[:, 1:], is_later=True)
    highest, target = best.copy(), index.copy()
    _take_higher(highest[1:], target[1:], best[:-1], index[:-1], is_later=False)
    _take_higher(highest[:-1], target[:-1], best[1:], index[1:], is_later=True)
    return target


def _take_higher(best: Floats, index: Cells, other: Floats, other_index: Cells, *, is_later: bool) -> None:
    """Replace cells by others that are higher, or by those as high that come later in the order."""
    higher = other >= best if is_later else other > best
    np.copyto(best, other, where=higher)
    np.copyto(index, other_index, where=higher)


def climb_windows(surface_m: Floats, peaks: Cells, line: WindowLine, cell_m: float) -> Cells:
    """Return the highest cell in the window of each peak; a treetop is its own.

    Args:
        surface_m: (H, W) float32 heights, -inf where there is no canopy.
        peaks: (N,) flat indices of cells that are higher than their neighbours.
        line: Width of the window by height.
        cell_m: Side of a cell, metres.

    Returns:
        (N,) flat indices.
    """
    # A frame as wide as the widest window, so that no index leaves the array.
    pad = window_px(line, cell_m)
    framed = np.pad(surface_m, pad, constant_values=-np.inf)
    rows, cols = np.divmod(peaks, surface_m.shape[1])
    centres = (rows + pad) * framed.shape[1] + cols + pad
    heights = framed.ravel()
    radii = np.floor(line.width_m(heights[centres].astype(np.float64)) / 2 / cell_m + 1e-6).astype(np.int64)
    targets = centres.copy()
    for radius in np.unique(radii):
        members = np.flatnonzero(radii == radius)
        steps = _disc(int(radius), framed.shape[1])
        for part in np.array_split(members, -(-members.size * steps.size // _GATHER)):
            around = centres[part, None] + steps
            values = heights[around]
            # Steps run in the order of cells, so the last of the highest is the first in the strict order.
            last = values.shape[1] - 1 - values[:, ::-1].argmax(axis=1)
            targets[part] = around[np.arange(part.size), last]
    target_rows, target_cols = np.divmod(targets, framed.shape[1])
    return np.asarray((target_rows - pad) * surface_m.shape[1] + target_cols - pad, np.int32)


def window_px(line: WindowLine, cell_m: float) -> int:
    """Return the radius of the widest window, cells."""
    return max(1, math.floor(line.max_m / 2 / cell_m + 1e-6))


def _disc(radius: int, stride: int) -> NDArray[np.int64]:
    """Return the steps from the centre of a disc to its cells in an array of a row length, in increasing order."""
    down, right = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside = down**2 + right**2 <= radius**2
    return np.asarray(np.sort((down * stride + right)[inside]), np.int64)
