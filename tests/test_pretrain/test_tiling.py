"""Tiles cover an image, and small images are mirrored up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.tiling import mirror_to_side, tile_windows


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


@pytest.mark.parametrize(("shape", "tile_px"), [((5, 8), 8), ((3, 2), 8), ((8, 8), 8)])
def test_a_small_image_is_mirrored_to_the_right_and_downwards(shape: tuple[int, int], tile_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, *shape)).astype(np.uint8)
    tile = mirror_to_side(image, tile_px)
    assert tile.shape == (3, tile_px, tile_px)
    np.testing.assert_array_equal(tile[:, : shape[0], : shape[1]], image)
    # pixel n of a mirrored axis of length L is n mod 2L, counted back in the second half
    rows, cols = ([min(n % (2 * side), 2 * side - 1 - n % (2 * side)) for n in range(tile_px)] for side in shape)
    np.testing.assert_array_equal(tile, image[:, rows][:, :, cols])
