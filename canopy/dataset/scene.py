"""A scene: one piece of ground with an image and heights, in memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

TREE_M = 5.0
"""Cells higher than this count as trees."""
BUILDING, UNTRUSTED = 1, 2
"""Classes of an exclusion mask: buildings, whose height is 0, and ground whose heights are not to be trusted."""


@dataclass(frozen=True)
class Scene:
    """One piece of ground with an image and lidar heights."""

    name: str
    """Name of the folder or chip."""
    group: str
    """Name whose prefixes say how often the scene is sampled."""
    image: NDArray[np.uint8]
    """(3, 2H, 2W) uint8 RGB at half the heights' cell size."""
    height_m: NDArray[np.float32]
    """(H, W) float32 metres, NaN where unknown."""
    cell_m: float
    """Cell size of the heights, metres."""
    pseudo: bool = False
    """Whether the heights come from another model instead of lidar."""

    @cached_property
    def trees(self) -> NDArray[np.int64]:
        """Cells (n, 2) higher than `TREE_M`: row, column."""
        return np.argwhere(self.height_m > TREE_M)
