"""Heights moved from the lattice on which they were computed to another grid: bilinear, or averaged where coarser."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from pyproj import Transformer

from tiles.grid import Lattice
from tiles.windows import PixelWindow

Points = NDArray[np.float64]

MARGIN_PX = 2
_EDGE_POINTS = 65


@dataclass(frozen=True)
class Regridder:
    """Moves heights from a lattice to a grid of any CRS, cell size and origin.

    Positions follow from whole cell indices of the grid, so a cell's bits do not depend on the window through which
    it is computed.
    """

    source: Lattice
    """Lattice of the heights."""
    crs: CRS
    """CRS of the grid."""
    affine: Affine
    """(Column, row) of the grid to its CRS."""
    source_affine: Affine | None = None
    """(Column, row) of the source to its CRS, where its cells do not lie on the lattice."""

    def cover(self, window: PixelWindow) -> PixelWindow:
        """Return the window of the source lattice that a window of the grid needs."""
        steps = np.linspace(0, 1, _EDGE_POINTS)
        rows, cols = window.row0 + steps * window.height, window.col0 + steps * window.width
        row, col = self._to_source(*np.meshgrid(rows, cols, indexing="ij"))
        row0, col0 = int(np.floor(row.min())), int(np.floor(col.min()))
        inner = PixelWindow(row0, col0, int(np.ceil(row.max())) - row0, int(np.ceil(col.max())) - col0)
        return inner.pad(MARGIN_PX)

    def samples(self, window: PixelWindow) -> int:
        """Return how many source cells a cell at the middle of a window spans along a side, rounded; at least 1."""
        row, col = window.row0 + window.height // 2, window.col0 + window.width // 2
        at_row, at_col = self._to_source(np.array([row, row, row + 1.0]), np.array([col, col + 1.0, col]))
        spans = np.hypot(at_row[1:] - at_row[0], at_col[1:] - at_col[0])
        return max(1, round(float(spans.max())))

    def regrid(
        self, heights: NDArray[np.float32], source_window: PixelWindow, window: PixelWindow, samples: int
    ) -> NDArray[np.float32]:
        """Return heights on the grid: each cell is the mean of `samples` x `samples` bilinear samples spread over it.

        Args:
            heights: (H, W) float32 metres over `source_window`, NaN where unknown.
            source_window: Window of the source lattice, at least `cover(window)`.
            window: Window of the grid.
            samples: Number of samples along a side, that of the whole map.

        Returns:
            (h, w) float32 metres over `window`, NaN where less than half of a cell is known.
        """
        total, weight = np.zeros(window.shape), np.zeros(window.shape)
        offsets = (np.arange(samples) + 0.5) / samples
        for down in offsets:
            for right in offsets:
                rows = np.arange(window.row0, window.row1) + down
                cols = np.arange(window.col0, window.col1) + right
                row, col = self._to_source(*np.meshgrid(rows, cols, indexing="ij"))
                _gather(heights, row - 0.5 - source_window.row0, col - 0.5 - source_window.col0, total, weight)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight >= samples**2 / 2, total / weight, np.nan).astype(np.float32)

    def nearest(self, values: NDArray[Any], source_window: PixelWindow, window: PixelWindow) -> NDArray[Any]:
        """Return the values of the source at the centres of cells, 0 outside the source.

        Args:
            values: (H, W) over `source_window`.
            source_window: Window of the source.
            window: Window of the grid.
        """
        rows, cols = np.arange(window.row0, window.row1) + 0.5, np.arange(window.col0, window.col1) + 0.5
        position = self._to_source(*np.meshgrid(rows, cols, indexing="ij"))
        row, col = (np.floor(axis).astype(np.int64) for axis in position)
        row, col = row - source_window.row0, col - source_window.col0
        inside = (row >= 0) & (row < values.shape[0]) & (col >= 0) & (col < values.shape[1])
        return np.where(inside, values[np.where(inside, row, 0), np.where(inside, col, 0)], values.dtype.type(0))

    @cached_property
    def _transformer(self) -> Transformer:
        return Transformer.from_crs(self.crs.to_wkt(), self.source.crs.to_wkt(), always_xy=True)

    def _to_source(self, rows: Points, cols: Points) -> tuple[Points, Points]:
        """Return rows and columns of the source lattice at those of the grid; corners of cells are whole numbers."""
        x = self.affine.a * cols + self.affine.b * rows + self.affine.c
        y = self.affine.d * cols + self.affine.e * rows + self.affine.f
        if self.source.crs != self.crs:
            x, y = self._transformer.transform(x, y)
        if self.source_affine is not None:
            inverse = ~self.source_affine
            return inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c
        return -y / self.source.resolution, x / self.source.resolution


def _gather(heights: NDArray[np.float32], row: Points, col: Points, total: Points, weight: Points) -> None:
    """Add bilinear samples at positions between cell centres; an unknown cell has no weight."""
    top, left = np.floor(row).astype(np.int64), np.floor(col).astype(np.int64)
    down, right = row - top, col - left
    for step_row, share_row in ((0, 1 - down), (1, down)):
        for step_col, share_col in ((0, 1 - right), (1, right)):
            at_row, at_col = top + step_row, left + step_col
            inside = (at_row >= 0) & (at_row < heights.shape[0]) & (at_col >= 0) & (at_col < heights.shape[1])
            values = heights[np.where(inside, at_row, 0), np.where(inside, at_col, 0)]
            share = np.where(inside & ~np.isnan(values), share_row * share_col, 0.0)
            total += share * np.nan_to_num(values, nan=0.0)
            weight += share
