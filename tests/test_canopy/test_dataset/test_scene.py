"""Scenes in memory."""

import numpy as np

from canopy.dataset.scene import Scene


def test_trees_are_the_cells_above_five_metres() -> None:
    height_m = np.array([[0, 5.0, np.nan], [5.01, 30, 2]], np.float32)
    scene = Scene("s", "s", np.zeros((3, 4, 6), np.uint8), height_m, 1.0)
    assert scene.trees.tolist() == [[1, 0], [1, 1]]
    assert not scene.pseudo
