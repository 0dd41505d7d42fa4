"""Tiles of one size, cut from larger images and mirrored up from smaller ones."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tiles.windows import window_starts


def tile_windows(shape: tuple[int, ...], tile_px: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of tiles side by side; the last of a row or column is moved back inside.

    Args:
        shape: Rows and columns of the image.
        tile_px: Side of the tiles, pixels.
    """
    for row in window_starts(shape[0], tile_px):
        for col in window_starts(shape[1], tile_px):
            yield slice(row, row + tile_px), slice(col, col + tile_px)


def mirror_to_side(tile: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    """Mirror a small image (3, h, w) up to the side of a tile, to the right and downwards."""
    gaps = [(0, tile_px - length) for length in tile.shape[1:]]
    return np.pad(tile, [(0, 0), *gaps], mode="symmetric")
