"""Tiles cover an image, and small images are mirrored up."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.tiling import tile_windows


@given(rows=st.integers(1, 90), cols=st.integers(1, 90), tile_px=st.integers(1, 40))
def test_tiles_cover_every_pixel_and_stay_inside(rows: int, cols: int, tile_px: int) -> None:
    covered = np.zeros((rows, cols), bool)
    for row, col in tile_windows((rows, cols), tile_px):
        covered[row, col] = True
        assert row.stop - row.start == col.stop - col.start == tile_px
        assert row.stop <= max(rows, tile_px)
        assert col.stop <= max(cols, tile_px)
    assert covered.all()


def test_tiles_lie_side_by_side_and_the_last_one_is_moved_back() -> None:
    assert [(row.start, col.start) for row, col in tile_windows((64, 80), 32)] == [
        (0, 0), (0, 32), (0, 48), (32, 0), (32, 32), (32, 48),
    ]  # fmt: skip
