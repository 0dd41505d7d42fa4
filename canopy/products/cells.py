"""What products compute of every cell of a height map: openings of the canopy, and the area of its surface.

Openings (Brokaw 1982): cells lower than 2 m that are joined by their sides, from a smallest area on. Surface: the
triangles between the centres of neighbouring cells, two for each cell; its ratio to the ground is the rumple index
(Parker et al. 2004).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.errors import ProductError
from canopy.products.reading import ProductMap
from tiles.heights import Heights
from tiles.windows import PixelWindow

OPEN_BELOW_M = 2.0
"""Height below which a cell is open."""
MIN_OPENING_M2 = 10.0
"""Smallest area of an opening."""
MAX_HALO_PX = 4096
"""Most cells that are read around a window, so that memory does not grow with the smallest area of an opening."""


@dataclass(frozen=True)
class OpeningRule:
    """Which cells are part of an opening."""

    below_m: float = OPEN_BELOW_M
    """Height below which a cell is open, metres."""
    min_m2: float = MIN_OPENING_M2
    """Smallest area of an opening, square metres."""

    def __post_init__(self) -> None:
        """Refuse values that no opening has."""
        if not (0 < self.below_m < math.inf and 0 <= self.min_m2 < math.inf):
            raise ProductError(
                f"openings below {self.below_m:g} m of at least {self.min_m2:g} m2: a height above 0 and an area of 0 "
                "or more expected"
            )


@dataclass(frozen=True)
class Cells:
    """Cells of a window."""

    window: PixelWindow
    """Window."""
    heights_m: Heights
    """(H, W) float32 heights, NaN where unknown."""
    is_opening: NDArray[np.bool_]
    """(H, W) whether the cell is part of an opening."""
    surface: Heights
    """(H, W) float32 area of the surface over that of the ground, NaN where unknown."""
    low_m: Heights | None
    """(H, W) lower ends of the 90 % intervals; None without intervals."""
    high_m: Heights | None
    """(H, W) upper ends."""

    def part(self, window: PixelWindow) -> "Cells":
        """Return the cells of a window inside this one."""
        inside = window.slices_in(self.window)
        low_m, high_m = (ends[inside] if ends is not None else None for ends in (self.low_m, self.high_m))
        return Cells(window, self.heights_m[inside], self.is_opening[inside], self.surface[inside], low_m, high_m)


def read_cells(source: ProductMap, window: PixelWindow, rule: OpeningRule) -> Cells:
    """Read a window and compute what depends on cells around it; the window changes no cell.

    Args:
        source: Map.
        window: Window inside the map.
        rule: Which cells are part of an opening.
    """
    halo_px = opening_halo(source, rule)
    around = window.pad(halo_px)
    heights_m = source.read(around)
    inside = window.slices_in(around)
    interval = source.read_interval(window)
    low_m, high_m = interval if interval is not None else (None, None)
    return Cells(
        window=window,
        heights_m=heights_m[inside],
        is_opening=openings(heights_m, source.cell_m, rule)[inside],
        surface=surface_ratio(heights_m, source.cell_m)[inside],
        low_m=low_m,
        high_m=high_m,
    )


def opening_halo(source: ProductMap, rule: OpeningRule) -> int:
    """Return the cells around a window that decide whether a cell in it is part of an opening.

    An opening that reaches from a cell to beyond the halo has as many cells as the halo is wide: enough for the
    smallest area, whatever lies further away. Beyond the map nothing is open, so no halo is wider than the map.

    Raises:
        ProductError: The halo would not fit into memory.
    """
    cell_m2 = source.cell_m[0] * source.cell_m[1]
    halo_px = min(1 + math.ceil(rule.min_m2 / cell_m2), max(source.shape))
    if halo_px > MAX_HALO_PX:
        raise ProductError(
            f"openings of at least {rule.min_m2:g} m2 on {source.path} of {source.gsd_m:.2f} m: at most "
            f"{(MAX_HALO_PX - 1) * cell_m2:g} m2 expected (canopy derive gaps finds openings of any size)"
        )
    return halo_px


def openings(heights_m: Heights, cell_m: tuple[float, float], rule: OpeningRule) -> NDArray[np.bool_]:
    """Return which cells are part of an opening of the smallest area or more, (H, W).

    Args:
        heights_m: (H, W) heights, NaN where unknown, which is no opening.
        cell_m: Sides of a cell, metres.
        rule: Which cells are part of an opening.
    """
    with np.errstate(invalid="ignore"):
        labels, count = ndimage.label(heights_m < rule.below_m)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    is_large = sizes * (cell_m[0] * cell_m[1]) >= rule.min_m2 * (1 - 1e-9)
    is_large[0] = False
    return np.asarray(is_large[labels])


def surface_ratio(heights_m: Heights, cell_m: tuple[float, float]) -> Heights:
    """Return the area of the surface over that of the ground, (H, W).

    Each cell has the square between its own centre and those to the east, south and south-east, in two triangles. NaN
    where one of the four is unknown.

    Args:
        heights_m: (H, W) heights, NaN where unknown.
        cell_m: Sides of a cell, metres.
    """
    east_m, south_m = np.float32(cell_m[0]), np.float32(cell_m[1])
    ratio = np.full(heights_m.shape, np.nan, np.float32)
    north_west, north_east = heights_m[:-1, :-1], heights_m[:-1, 1:]
    south_west, south_east = heights_m[1:, :-1], heights_m[1:, 1:]
    # A triangle over half a cell with the slopes p and q has the area sqrt(1 + p² + q²) of that half.
    upper = np.sqrt(1 + ((north_east - north_west) / east_m) ** 2 + ((south_west - north_west) / south_m) ** 2)
    lower = np.sqrt(1 + ((south_east - south_west) / east_m) ** 2 + ((south_east - north_east) / south_m) ** 2)
    ratio[:-1, :-1] = (upper + lower) / 2
    return ratio
