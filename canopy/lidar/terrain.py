"""Terrain: what the first pass leaves of the returns in each cell, and the ground between them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.lidar.classes import Role
from canopy.lidar.clouds import Returns
from canopy.lidar.ground import WINDOW_M, distance_to, fill_gaps, find_ground, slopes
from canopy.lidar.tables import Block, Tables

Cells = NDArray[np.float64]

MAX_GROUND_GAP_M = 50.0
"""Farther from any ground return, height is unknown."""
BLOCK_CELLS = 1536
LOWS_BYTES = 32
"""Bytes of a cell in the tables of `Lows`."""

_HALO_M = 6 * WINDOW_M
"""Ground that far away is as good as never seen: openings reach twice their window, trends 40 m, membranes 50 m."""
_ALIGNED_CELLS = 64
"""Halos are multiples of it, so that the coarse cells of a membrane are the same in every block."""
_NONE = np.iinfo(np.int64).max
_POSITION_BITS = 12
_POSITIONS = 1 << _POSITION_BITS
_HIGHEST_MM = 2.0**37
_SLOPE_CELLS_M = 3.0


@dataclass(frozen=True)
class Lows:
    """What the first pass leaves of the returns in each cell; grows in place.

    Everything is a sum of whole numbers or a minimum, so that it does not depend on the order of the returns.
    """

    cell_m: float
    """Cell size, metres."""
    count: NDArray[np.int32]
    """(H, W) number of returns."""
    lowest: NDArray[np.int64]
    """(H, W) lowest return: its elevation in millimetres, then where it lies in the cell, in one number."""
    ground_count: NDArray[np.int32]
    """(H, W) number of ground returns."""
    ground_sum_mm: Cells
    """(H, W) sum of the elevations of ground returns."""
    east_sum_mm: NDArray[np.int32]
    """(H, W) sum of the distances of ground returns from the cell's centre, eastward."""
    south_sum_mm: NDArray[np.int32]
    """(H, W) sum of the distances of ground returns from the cell's centre, southward."""

    @classmethod
    def empty(cls, tables: Tables, cell_m: float) -> "Lows":
        """Return tables without returns."""
        return cls(
            cell_m,
            tables.new("count", np.int32, 0),
            tables.new("lowest", np.int64, _NONE),
            tables.new("ground_count", np.int32, 0),
            tables.new("ground_sum", np.float64, 0),
            tables.new("east_sum", np.int32, 0),
            tables.new("south_sum", np.int32, 0),
        )

    def within(self, inside: tuple[slice, slice]) -> "Lows":
        """Return the tables of some rows and columns; they are views."""
        return replace(self, **{name: getattr(self, name)[inside] for name in TABLES})

    def add(self, cell: NDArray[np.int64], returns: Returns) -> None:
        """Add returns.

        Args:
            cell: (n,) index of each return's cell.
            returns: Returns.
        """
        flat = {name: getattr(self, name).reshape(-1) for name in TABLES}
        np.add.at(flat["count"], cell, 1)
        packed = _packed(returns.z_mm, _within(returns.x, self.cell_m), _within(-returns.y, self.cell_m))
        np.minimum.at(flat["lowest"], cell, packed)
        ground = returns.role >= Role.GROUND
        cell = cell[ground]
        np.add.at(flat["ground_sum_mm"], cell, returns.z_mm[ground])
        np.add.at(flat["ground_count"], cell, 1)
        np.add.at(flat["east_sum_mm"], cell, _off_centre_mm(returns.x[ground], self.cell_m))
        np.add.at(flat["south_sum_mm"], cell, _off_centre_mm(-returns.y[ground], self.cell_m))


TABLES = ("count", "lowest", "ground_count", "ground_sum_mm", "east_sum_mm", "south_sum_mm")
FILES = ("lowest", "ground_count", "ground_sum", "east_sum", "south_sum")
"""Names of the tables that nothing but the ground needs."""


def halo_cells(cell_m: float) -> int:
    """Return the cells around a block that its terrain depends on."""
    return -(-round(_HALO_M / cell_m) // _ALIGNED_CELLS) * _ALIGNED_CELLS


def measured_ground(lows: Lows, block: Block, classified: bool) -> Cells:
    """Return the elevation of the centres of a block's cells with ground, NaN elsewhere; (h, w) of its core.

    Args:
        lows: Tables of all returns.
        block: Block of the raster.
        classified: Whether ground is what the clouds classify as ground; else a filter decides.
    """
    elevation_m = (_classified if classified else _filtered)(lows, block)
    return np.asarray(elevation_m[block.inner])


def filled_ground(measured_m: Cells, block: Block, cell_m: float) -> tuple[Cells, Cells]:
    """Return the terrain of a block, and metres to its nearest cell with ground; (h, w) of its core.

    Args:
        measured_m: (H, W) table of the elevations of cells with ground, NaN elsewhere.
        block: Block of the raster.
        cell_m: Cell size, metres.
    """
    around_m = block.of(measured_m)
    valid = ~np.isnan(around_m)
    if not valid.any():
        # Farther from ground than heights are known: any elevation serves.
        return np.zeros(block.core.shape), np.full(block.core.shape, np.inf)
    return fill_gaps(around_m)[block.inner], distance_to(valid, cell_m)[block.inner]


def extrapolated(elevation_m: Cells) -> None:
    """Fill the outermost rows and columns of elevations (H + 2, W + 2) with the slope that leads there.

    Half of each border cell lies beyond the outermost centres.
    """
    for axis in (0, 1):
        rows = np.moveaxis(elevation_m, axis, 0)
        if len(rows) < 4:
            rows[0], rows[-1] = rows[1], rows[-2]
        else:
            rows[0], rows[-1] = 2 * rows[1] - rows[2], 2 * rows[-2] - rows[-3]


def _classified(lows: Lows, block: Block) -> Cells:
    """Return the elevation of the centres of the cells with ground returns, NaN elsewhere.

    The mean of a cell's returns is the elevation of their mean position; the slope leads from there to the centre.
    """
    tables = lows.ground_count, lows.ground_sum_mm, lows.east_sum_mm, lows.south_sum_mm
    count, total, east, south = (block.of(table) for table in tables)
    if not count.any():
        return np.full(count.shape, np.nan)
    with np.errstate(invalid="ignore"):
        elevation_m, east_m, south_m = total / count / 1000, east / count / 1000, south / count / 1000
    # A plane through a cell has its mean elevation at the mean position of the returns, wherever that lies.
    southward, eastward = slopes(fill_gaps(elevation_m), lows.cell_m)
    return np.asarray(elevation_m - eastward * east_m - southward * south_m)


def _filtered(lows: Lows, block: Block) -> Cells:
    """Return the elevation of the centres of the cells whose lowest return is ground, NaN elsewhere.

    On a slope the lowest return of a cell lies near its downhill corner. The slope of the ground around leads from
    there to the centre; that of single cells would carry the noise of one into the next.
    """
    packed = block.of(lows.lowest)
    empty = packed == _NONE
    if empty.all():
        return np.full(packed.shape, np.nan)
    z_mm, east, south = _unpacked(packed)
    lowest_m = np.where(empty, np.nan, z_mm / 1000)
    ground = find_ground(lowest_m, lows.cell_m)
    if not ground.any():
        return np.where(ground, lowest_m, np.nan)
    size = max(1, round(_SLOPE_CELLS_M / lows.cell_m))
    smooth = ndimage.uniform_filter(fill_gaps(np.where(ground, lowest_m, np.nan)), size, mode="nearest")
    southward, eastward = slopes(smooth, lows.cell_m)
    east_m, south_m = (east - 0.5) * lows.cell_m, (south - 0.5) * lows.cell_m
    return np.where(ground, lowest_m - eastward * east_m - southward * south_m, np.nan)


def _within(position_m: Cells, cell_m: float) -> Cells:
    """Return where in its cell a coordinate lies, 0 to 1."""
    cells = position_m / cell_m
    return np.asarray(cells - np.floor(cells))


def _off_centre_mm(position_m: Cells, cell_m: float) -> NDArray[np.int32]:
    """Return the distance beyond the centre of the cell, in whole millimetres: sums do not depend on their order."""
    return np.rint(1000 * (position_m - (np.floor(position_m / cell_m) + 0.5) * cell_m)).astype(np.int32)


def _packed(z_mm: Cells, east: Cells, south: Cells) -> NDArray[np.int64]:
    """Return elevation and position in one number: of returns at one elevation the minimum is one of them, always."""
    z = np.clip(z_mm, -_HIGHEST_MM, _HIGHEST_MM).astype(np.int64)
    steps = [np.minimum(position * _POSITIONS, _POSITIONS - 1).astype(np.int64) for position in (east, south)]
    return np.asarray((z << (2 * _POSITION_BITS)) + (steps[0] << _POSITION_BITS) + steps[1])


def _unpacked(packed: NDArray[np.int64]) -> tuple[Cells, Cells, Cells]:
    """Return elevation and position of `_packed`, the position to a 4096th of a cell."""
    mask = _POSITIONS - 1
    east, south = ((packed >> _POSITION_BITS) & mask) + 0.5, (packed & mask) + 0.5
    return (packed >> (2 * _POSITION_BITS)).astype(np.float64), east / _POSITIONS, south / _POSITIONS
