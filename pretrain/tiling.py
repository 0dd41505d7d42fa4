"""Tiles of one size, cut from larger images."""

from collections.abc import Iterator

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
