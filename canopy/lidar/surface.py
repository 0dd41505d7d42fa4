"""Canopy surface: the highest return of each cell, without birds and wires, with pits and small gaps filled.

Birds and wires are returns that others are missing around. In a sparse cloud others are missing around every return: so
distances grow with the spacing of the returns, cell by cell.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.lidar.tables import Tables

Heights = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOWEST_M, HIGHEST_M = -2.0, 120.0
"""Heights between which a return is no outlier; the tallest tree known measures 116 m."""
CANOPY_M = 2.0
LAYERS_M = (CANOPY_M, *(float(m) for m in range(5, 120, 5)))
"""Levels of the pit-free model of Khosravipour et al. (2014)."""

COLUMNS_BYTES = 16
"""Bytes of a cell in the tables of `Columns`."""
HALO_M = 40.0
"""Distance within which returns decide on a cell: wires are followed 10 m beyond strips of 10 m and more."""
FEWEST_RETURNS = 4
"""Returns that a neighbourhood needs before one that lacks others around it is stray."""
_DENSITY_M = 10.0  # side of the square in which the density of returns is measured
_SPREADS = np.array([0, 1, 2, 4, 8])  # few of them, for each costs a pass over the raster

_LAYER_M = 2.0  # thickness of the layers that are counted as occupied, one bit each
_NONE_MM = np.iinfo(np.int32).min
_STRING_WIDTH_M, _STRING_LENGTH_M = 3.0, 10.0


@dataclass(frozen=True)
class Columns:
    """What the second pass over the returns leaves of them in each cell; grows in place."""

    top_mm: NDArray[np.int32]
    """(H, W) height of the highest return."""
    low_top_mm: NDArray[np.int32]
    """(H, W) height of the highest return below the canopy."""
    layers: NDArray[np.uint64]
    """(H, W) bit n: some return lies n to n + 1 layers of 2 m above the ground; bit 0 is never set."""

    @classmethod
    def empty(cls, tables: Tables) -> "Columns":
        """Return columns without returns."""
        return cls(
            tables.new("top", np.int32, _NONE_MM),
            tables.new("low_top", np.int32, _NONE_MM),
            tables.new("layers", np.uint64, 0),
        )

    def add(self, cell: NDArray[np.int64], height_mm: NDArray[np.int32]) -> None:
        """Add returns.

        Args:
            cell: (n,) index of each return's cell.
            height_mm: (n,) height above ground, millimetres.
        """
        possible = (height_mm >= 1000 * LOWEST_M) & (height_mm <= 1000 * HIGHEST_M)
        cell, height_mm = cell[possible], height_mm[possible]
        np.maximum.at(self.top_mm.reshape(-1), cell, height_mm)
        low = height_mm < 1000 * CANOPY_M
        np.maximum.at(self.low_top_mm.reshape(-1), cell[low], height_mm[low])
        bit = np.uint64(1) << (height_mm[~low] // int(1000 * _LAYER_M)).astype(np.uint64)
        np.bitwise_or.at(self.layers.reshape(-1), cell[~low], bit)


def canopy_surface(columns: Columns, count: NDArray[np.int32], cell_m: float) -> Heights:
    """Return canopy height: highest returns, cleaned and filled.

    Args:
        columns: Columns of all returns.
        count: (H, W) number of returns of each cell.
        cell_m: Cell size, metres.

    Returns:
        (H, W) metres, NaN where unknown.
    """
    layers = columns.layers
    top, low = _metres(columns.top_mm), _metres(columns.low_top_mm)
    stray = np.zeros(layers.shape, bool)
    around = spread(count, cell_m)
    for cells in np.unique(around[layers != 0]):
        stray |= (around == cells) & (lone_returns(layers, cell_m, int(cells)) | strings(layers, cell_m, int(cells)))
    # Below a stray return heights are known to 2 m only, unless nothing but the ground lies there.
    below = layers & ~_highest_bit(layers)
    heights = np.where(stray, np.where(below == 0, low, np.nan), top)
    # Holes first: a pit is recognised by its neighbours.
    heights = fill_pits(fill_holes(heights))
    return np.maximum(heights, 0).astype(np.float32)


def spread(count: NDArray[np.int32], cell_m: float) -> NDArray[np.int64]:
    """Return by how many cells a neighbourhood has to grow on each side so that it has some returns.

    A square of 2 n + 1 cells has `FEWEST_RETURNS` on average where n is that number; dense clouds need none.

    Args:
        count: (H, W) number of returns of each cell.
        cell_m: Cell size, metres.
    """
    side = 2 * round(_DENSITY_M / cell_m / 2) + 1
    mean = ndimage.uniform_filter(count.astype(np.float64), side, mode="nearest")
    with np.errstate(divide="ignore"):
        cells = np.ceil((np.sqrt(FEWEST_RETURNS / np.maximum(mean, 1e-9)) - 1) / 2)
    return np.asarray(_SPREADS[np.minimum(np.searchsorted(_SPREADS, cells), len(_SPREADS) - 1)], np.int64)


def lone_returns(layers: NDArray[np.uint64], cell_m: float, grown: int = 0) -> Mask:
    """Return the cells whose highest return has no other within about 2 m sideways and 4 m up or down: birds, noise.

    Args:
        layers: (H, W) occupied layers, as in `Columns`.
        cell_m: Cell size, metres.
        grown: Cells by which neighbourhoods are larger, from `spread`.
    """
    highest = _highest_bit(layers)
    around = _around(layers, max(1, round(2 / cell_m)) + grown, itself=False) | (layers & ~highest)
    # Two layers up and down: 4 m.
    reach = around
    for shift in (np.uint64(1), np.uint64(2)):
        reach = reach | (around << shift) | (around >> shift)
    return np.asarray((highest != 0) & (highest & reach == 0))


def strings(layers: NDArray[np.uint64], cell_m: float, grown: int = 0) -> Mask:
    """Return the cells of wires: returns above 8 m with nothing between them and the ground, in narrow long strips.

    Next to a crown a wire is no strip of its own: there it goes on along the line of the strip.

    Args:
        layers: (H, W) occupied layers, as in `Columns`.
        cell_m: Cell size, metres.
        grown: Cells by which neighbourhoods are larger, from `spread`.
    """
    highest = _highest_bit(layers)
    afloat = (highest >= np.uint64(1 << 4)) & (_around(layers, 1 + grown, itself=True) & _under(highest) == 0)
    # The rim of a crown overhangs open ground too, but a broad canopy adjoins it. In a sparse cloud cells of a canopy
    # are empty: it is broad where cells with their surroundings are not.
    side = max(2, round(_STRING_WIDTH_M / cell_m)) + 2 * grown
    closed = _around(layers, grown, itself=True) if grown else layers
    broad = ndimage.binary_erosion(closed >= np.uint64(1 << 3), np.ones((side, side)), border_value=1)
    broad = ndimage.binary_dilation(broad, np.ones((side + 4, side + 4)))
    narrow = afloat & ~broad
    joined = 1 + grown
    wide = ndimage.binary_dilation(narrow, np.ones((2 * joined + 1, 2 * joined + 1)))
    parts, _ = ndimage.label(wide, np.ones((3, 3)))
    level = np.where(highest == 0, -1, np.log2(np.maximum(highest, np.uint64(1)))).astype(np.int64)
    lone = (highest >= np.uint64(1 << 4)) & (layers & _under(highest) == 0)
    wires = np.zeros(layers.shape, bool)
    for number, span in enumerate(ndimage.find_objects(parts), start=1):
        # The parts are wider than their cells on each side.
        if np.hypot(*(s.stop - s.start for s in span)) * cell_m < _STRING_LENGTH_M:
            continue
        cells = np.argwhere(narrow[span] & (parts[span] == number)) + [s.start for s in span]
        along = _direction(cells)
        if (np.ptp(cells @ along) + 3) * cell_m >= _STRING_LENGTH_M:
            wires[cells[:, 0], cells[:, 1]] = True
            _extend(wires, cells, along, level, lone, cell_m)
    return wires


def _direction(cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the unit vector (2,) along which cells (n, 2) extend most."""
    return np.asarray(np.linalg.eigh(np.cov(cells.T, bias=True))[1][:, -1])


def _extend(
    wires: Mask,
    cells: NDArray[np.int64],
    along: NDArray[np.float64],
    level: NDArray[np.int64],
    lone: Mask,
    cell_m: float,
) -> None:
    """Add to `wires` the lone returns on the straight line of a wire's cells, to 10 m beyond its ends."""
    lateral = np.array([-along[1], along[0]])
    middle = lateral * (cells @ lateral).mean() + along * ((cells @ along).min() + (cells @ along).max()) / 2
    spread, levels = np.abs((cells - middle) @ lateral).max(), level[cells[:, 0], cells[:, 1]]
    if spread * cell_m > _STRING_WIDTH_M / 2:
        return
    reach = np.ptp(cells @ along) / 2 + _STRING_LENGTH_M / cell_m
    first = np.maximum(np.floor(middle - reach * np.abs(along) - spread - 1), 0).astype(int)
    last = np.ceil(middle + reach * np.abs(along) + spread + 2).astype(int)
    near = np.argwhere(lone[first[0] : last[0], first[1] : last[1]]) + first
    near_level = level[near[:, 0], near[:, 1]]
    on_line = (np.abs((near - middle) @ lateral) <= spread + 0.5) & (np.abs((near - middle) @ along) <= reach)
    chosen = near[on_line & (near_level >= levels.min() - 1) & (near_level <= levels.max() + 1)]
    wires[chosen[:, 0], chosen[:, 1]] = True


def _under(highest: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the bits of the layers from 2 m up to 4 m below the highest return."""
    return ((highest >> np.uint64(2)) - np.uint64(1)) & ~np.uint64(1)


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

    Khosravipour et al. (2014) take the highest of surfaces through the returns above 2, 5, 10, 15, ... m, each a
    triangulation with short edges. On the raster: a cell below a level rises to the mean of its neighbours where at
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
    """Return each number's highest bit alone."""
    filled = bits.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        filled |= filled >> np.uint64(shift)
    return filled ^ (filled >> np.uint64(1))


def _around(bits: NDArray[np.uint64], reach: int, *, itself: bool) -> NDArray[np.uint64]:
    """Return the bits of all cells within `reach` cells, the diagonal included."""
    rows, cols = bits.shape
    wide = np.pad(bits, reach)
    joined = np.zeros_like(bits)
    for row in range(2 * reach + 1):
        for col in range(2 * reach + 1):
            if itself or (row, col) != (reach, reach):
                joined |= wide[row : row + rows, col : col + cols]
    return joined


def _opposites(heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the neighbours (4, H, W) on both sides of a cell, along the four lines through it; NaN outside."""
    rows, cols = heights.shape
    wide = np.pad(heights, 1, constant_values=np.nan)

    def shifted(row: int, col: int) -> NDArray[np.float64]:
        return wide[1 + row : 1 + row + rows, 1 + col : 1 + col + cols]

    lines = ((0, 1), (1, 0), (1, 1), (1, -1))
    return np.stack([shifted(r, c) for r, c in lines]), np.stack([shifted(-r, -c) for r, c in lines])
