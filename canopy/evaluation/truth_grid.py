"""The grid of the truth: where its cells lie on the ground, and to which block and cluster of ground each belongs."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_M = 30.0
"""Side of the blocks whose means `block_r2` compares."""
CLUSTER_M = 120.0
"""Side of the clusters that the bootstrap draws."""
MAX_CLUSTERS = 8192


@dataclass(frozen=True)
class TruthGrid:
    """Where the cells of an array lie: metres along its CRS from the CRS origin, y growing southward."""

    shape: tuple[int, int]
    """Rows and columns."""
    cell_m: tuple[float, float]
    """Height and width of a cell, metres."""
    corner_m: tuple[float, float] = (0.0, 0.0)
    """y and x of the upper-left corner, metres. An array without a georeference begins at the origin."""

    def blocks(self, axis: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the block of each row (axis 0) or column (axis 1) from `start` to `stop`, by its centre."""
        # Counted from the CRS origin, so that the same ground is one block in every raster and window.
        centres_m = self.corner_m[axis] + (np.arange(start, stop) + 0.5) * self.cell_m[axis]
        return np.asarray(np.floor(centres_m / BLOCK_M), np.int64)

    @property
    def cluster_blocks(self) -> int:
        """Blocks along a cluster's side: 120 m, doubled until the clusters are few enough to be kept."""
        side = round(CLUSTER_M / BLOCK_M)
        while math.prod(len(self._clusters(axis, side)) for axis in (0, 1)) > MAX_CLUSTERS:
            side *= 2
        return side

    @property
    def cluster_m(self) -> float:
        """Side of a cluster, metres."""
        return self.cluster_blocks * BLOCK_M

    def clusters(self, axis: int) -> range:
        """Return the numbers of the clusters that rows (axis 0) or columns (axis 1) touch."""
        return self._clusters(axis, self.cluster_blocks)

    def _clusters(self, axis: int, side: int) -> range:
        first = int(self.blocks(axis, 0, 1)[0])
        last = int(self.blocks(axis, self.shape[axis] - 1, self.shape[axis])[0])
        return range(first // side, last // side + 1)


@dataclass(frozen=True)
class ClusterNumbers:
    """Numbers of a grid's clusters from 0, row by row; found once, because windows ask for them again and again."""

    side: int
    """Blocks along a cluster's side."""
    rows: range
    """Rows of clusters."""
    cols: range
    """Columns of clusters."""

    @classmethod
    def of(cls, grid: TruthGrid) -> "ClusterNumbers":
        """Return the clusters of a grid."""
        return cls(grid.cluster_blocks, grid.clusters(0), grid.clusters(1))

    @property
    def count(self) -> int:
        """How many clusters the grid touches."""
        return len(self.rows) * len(self.cols)

    def at_blocks(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cluster of each block: (R,) rows and (C,) columns of blocks to (R, C)."""
        # Floor division: blocks north and west of the origin have negative numbers.
        row, col = rows // self.side - self.rows.start, cols // self.side - self.cols.start
        return row[:, None] * len(self.cols) + col
