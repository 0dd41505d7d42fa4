"""Unknown pixels of a chip, filled before a network sees them."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]


def fill_unknown(chip: Image) -> Image:
    """Give unknown pixels of a chip (3, H, W) the value of the nearest known one, so that no false edge arises."""
    unknown = np.isnan(chip[0])
    if not unknown.any():
        return chip
    if unknown.all():
        return np.zeros_like(chip)
    rows, cols = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return chip[:, rows, cols]
