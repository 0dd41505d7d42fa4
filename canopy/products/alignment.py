"""Two height maps on one lattice: the coarser map's cells, and the finer map moved onto them.

How far the maps lie off each other is estimated in windows spread over their common ground, with the correlation that
registers heights to imagery (`canopy.dataset.registration`); crowns and clearings show in both maps. A shift is
applied only where most windows agree on it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine

from canopy.dataset.registration import MIN_CONFIDENCE, MIN_DISTINCTNESS, SEARCH_M, estimate_shift
from canopy.errors import ProductError
from canopy.evaluation.rasters import RegriddedHeights, overlap
from canopy.products.reading import NORMAL_90, ProductMap
from tiles.heights import Heights
from tiles.windows import PixelWindow

WINDOW_PX = 384
"""Side of the windows in which a shift is estimated, cells."""
GRID = 3
"""Windows along each axis."""
_MIN_CORRELATION = 0.3
_MIN_AGREEING = 0.6
_MIN_SHIFT_CELLS = 0.5


@dataclass(frozen=True)
class Offset:
    """How far one map lies off another."""

    x_m: float
    """Units of the CRS, metres, that are added to the moved map's x coordinates."""
    y_m: float
    """Metres that are added to its y coordinates."""
    windows: int
    """Windows with enough structure to judge."""
    agreeing: int
    """Windows that agree on the shift, to a cell."""
    applied: bool
    """Whether the shift was applied."""

    def __str__(self) -> str:
        agreement = f"{self.agreeing} of {self.windows} windows agree"
        if self.applied:
            return f"moved by {self.x_m:+.1f} m east and {self.y_m:+.1f} m north ({agreement})"
        if not self.windows:
            return "not moved"
        is_right = self.x_m == self.y_m == 0
        return f"lies right ({agreement})" if is_right else f"not moved, for its shift is unclear ({agreement})"


NO_OFFSET = Offset(0.0, 0.0, 0, 0, applied=False)


@dataclass(frozen=True)
class _Grid:
    """Grid of cells, for `RegriddedHeights`, which reads these three of a raster."""

    crs: Any
    """CRS as rasterio has it."""
    transform: Affine
    """Columns and rows to coordinates."""
    shape: tuple[int, int]
    """Rows and columns."""


@dataclass(frozen=True)
class Placed:
    """A map on the cells of the target."""

    source: ProductMap
    """Map."""
    grid: _Grid
    """Target, moved against the map's shift."""

    def read(self, window: PixelWindow) -> Heights:
        """Return heights over a window of the target: (H, W) float32 metres, NaN where unknown."""
        return self._heights.read(window)

    def read_interval(self, window: PixelWindow) -> tuple[Heights, Heights] | None:
        """Return the ends of the 90 % intervals, averaged where cells are: that of a typical cell of the map."""
        if self.source.error_m is not None:
            heights_m, half = self.read(window), np.float32(NORMAL_90 * self.source.error_m)
            return heights_m - half, heights_m + half
        if self._ends is None:
            return None
        return self._ends[0].read(window), self._ends[1].read(window)

    @cached_property
    def _heights(self) -> RegriddedHeights:
        return RegriddedHeights(self.source.heights, self.grid)

    @cached_property
    def _ends(self) -> tuple[RegriddedHeights, RegriddedHeights] | None:
        if self.source.low is None or self.source.high is None:
            return None
        return RegriddedHeights(self.source.low, self.grid), RegriddedHeights(self.source.high, self.grid)


@dataclass(frozen=True)
class Pair:
    """Two maps on one lattice."""

    first: Placed
    """Earlier map."""
    second: Placed
    """Later map."""
    target: ProductMap
    """Map whose cells are used."""
    window: PixelWindow
    """Cells of the target that both maps reach."""
    offset: Offset
    """How the other map was moved."""

    @property
    def has_intervals(self) -> bool:
        """Whether both maps have intervals."""
        return self.first.source.has_intervals and self.second.source.has_intervals


def align(first: ProductMap, second: ProductMap, *, search_m: float = SEARCH_M) -> Pair:
    """Lay two maps on the lattice of the coarser one; of two with cells of one size, on that of the second.

    Args:
        first: Earlier map.
        second: Later map.
        search_m: Largest shift along either axis, metres; 0 for none.

    Raises:
        ProductError: They have no ground in common.
    """
    # A hundredth, so that rounding does not decide.
    target = first if first.gsd_m > 1.01 * second.gsd_m else second
    moved = second if target is first else first
    window = overlap(target.heights.dataset, [moved.heights.dataset])
    if window is None:
        raise ProductError(f"{first.path} and {second.path} have no ground in common: maps of one area expected")
    fixed = Placed(target, _grid(target, 0.0, 0.0))
    loose = Placed(moved, _grid(target, 0.0, 0.0))
    offset = _offset(fixed, loose, window, search_m) if search_m > 0 else NO_OFFSET
    if offset.applied:
        loose = Placed(moved, _grid(target, offset.x_m, offset.y_m))
    placed = (fixed, loose) if target is first else (loose, fixed)
    return Pair(*placed, target, window, offset)


def _grid(target: ProductMap, x_m: float, y_m: float) -> _Grid:
    """Return the grid of a map, against which a map that moves by (x_m, y_m) is read without moving."""
    dataset = target.heights.dataset
    return _Grid(dataset.crs, Affine.translation(-x_m, -y_m) @ dataset.transform, dataset.shape)


def _offset(fixed: Placed, loose: Placed, window: PixelWindow, search_m: float) -> Offset:
    cell_m = fixed.source.transform.a
    shifts = []
    for part in _spread(window):
        heights = np.sqrt(np.maximum(fixed.read(part), 0))
        # The correlation is made for images: three equal bands have brightness alone, which is the height.
        shift = estimate_shift(np.stack([heights] * 3), loose.read(part), cell_m, search_m=search_m)
        # At the border of the search the true peak may lie beyond.
        is_inside = max(abs(shift.x_m), abs(shift.y_m)) < (round(search_m / cell_m) - 0.5) * cell_m
        if is_inside and shift.correlation >= _MIN_CORRELATION and shift.distinctness >= MIN_DISTINCTNESS:
            shifts.append((shift.x_m, shift.y_m, shift.confidence))
    if not shifts:
        return NO_OFFSET
    found_shifts = np.array(shifts)
    # Whole cells of the moved map, so that its heights are not blended with their neighbours once more.
    step_m = loose.source.transform.a if loose.source.crs == fixed.source.crs else cell_m
    middle = np.round(np.median(found_shifts[:, :2], axis=0) / step_m) * step_m
    near = np.hypot(*(found_shifts[:, :2] - middle).T) <= cell_m
    agreeing = int(near.sum())
    clear = float(np.median(found_shifts[near, 2])) >= MIN_CONFIDENCE if agreeing else False
    is_large = float(np.hypot(*middle)) >= _MIN_SHIFT_CELLS * cell_m
    applied = bool(clear and is_large and agreeing >= _MIN_AGREEING * len(shifts))
    # Rounding may leave a negative zero.
    return Offset(float(middle[0]) + 0.0, float(middle[1]) + 0.0, len(shifts), agreeing, applied)


def _spread(window: PixelWindow) -> list[PixelWindow]:
    """Return windows spread over a window; one where it is small."""
    height, width = min(WINDOW_PX, window.height), min(WINDOW_PX, window.width)
    rows, cols = (
        sorted({round(start) for start in np.linspace(0, length - side, min(GRID, -(-length // side)))})
        for length, side in ((window.height, height), (window.width, width))
    )
    return [PixelWindow(window.row0 + row, window.col0 + col, height, width) for row in rows for col in cols]
