"""Block-wise masks over patch grids, as BEiT and iBOT draw them, with exactly the number of patches required."""

import math

import numpy as np
from numpy.typing import NDArray

SMALLEST_BLOCK = 4
NARROWEST = 0.3
TRIES = 10


def masked_patches(position: int, masked: int, ratio: tuple[float, float], patches: int, uniform: float) -> int:
    """Return how many patches of an image are masked.

    The range of ratios is cut into equal parts, one for each masked image, so that a batch covers the range evenly.

    Args:
        position: Position of the image in the shuffled batch: those below `masked` get a mask.
        masked: Number of images of the batch that get a mask.
        ratio: Range of the share of patches that are masked in such an image.
        patches: Number of patches of the image.
        uniform: Random number of the image in [0, 1).
    """
    if position >= masked:
        return 0
    return round((ratio[0] + (ratio[1] - ratio[0]) * (position + uniform) / masked) * patches)


def draw_mask(grid: tuple[int, int], patches: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Mask exactly `patches` patches, in rectangles as long as they fit (Bao et al. 2022, BEiT, algorithm 1).

    Args:
        grid: Rows and columns of patches.
        patches: Number of patches to mask.
        generator: Generator of all randomness.

    Returns:
        (rows, cols) bool, True where masked.
    """
    mask = np.zeros(grid, bool)
    left, tries = patches, 0
    while left >= SMALLEST_BLOCK and tries < TRIES:
        block = _block(grid, left, generator)
        new = mask[block].size - int(np.count_nonzero(mask[block]))
        if 0 < new <= left:
            mask[block] = True
            left -= new
            tries = 0
        else:
            tries += 1
    # Rectangles rarely add up to the number: single patches fill the rest.
    mask.flat[generator.permutation(np.flatnonzero(~mask))[:left]] = True
    return mask


def _block(grid: tuple[int, int], largest: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """Draw a rectangle of random position, shape and area, the area at most `largest` patches."""
    # area uniform between the smallest and the largest, aspect ratio log-uniform between 0.3 and 1 / 0.3
    area, shape, down, across = generator.random(4).tolist()
    cells = SMALLEST_BLOCK + area * (largest - SMALLEST_BLOCK)
    aspect = math.exp((2 * shape - 1) * math.log(1 / NARROWEST))
    rows = min(grid[0], max(1, round(math.sqrt(cells * aspect))))
    cols = min(grid[1], max(1, round(math.sqrt(cells / aspect))))
    top, left = int(down * (grid[0] - rows + 1)), int(across * (grid[1] - cols + 1))
    return slice(top, top + rows), slice(left, left + cols)
