"""A scene: one piece of ground with an image and heights, in memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

TREE_M = 5.0


@dataclass(frozen=True)
class Scene:
    """One piece of ground with an image and lidar heights.

    Attributes:
        name: Folder's name, with the part of the scene where it is cut.
        group: Prefix under which it is sampled.
        image: (3, 2H, 2W) uint8 RGB at half the heights' cell size.
        height_m: (H, W) float32 metres, NaN where unknown.
        cell_m: Cell size of the heights, metres.
        pseudo: Whether the heights come from another model instead of lidar.
    """

    name: str
    group: str
    image: NDArray[np.uint8]
    height_m: NDArray[np.float32]
    cell_m: float
    pseudo: bool = False

    @cached_property
    def trees(self) -> NDArray[np.int64]:
        """Cells (n, 2) higher than 5 m: row, column."""
        return np.argwhere(self.height_m > TREE_M)
