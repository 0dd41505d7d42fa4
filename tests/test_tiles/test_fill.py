"""The fill of unknown pixels: reflection, repeated, from what the image itself holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiles import fill
from tiles.fill import extend, fill_unknown


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    plane = np.random.default_rng(seed).random(shape, np.float32)
    return np.stack([plane, plane / 2, plane / 4])


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 12), width=st.integers(1, 12), top=st.integers(0, 30), left=st.integers(0, 30),
    bottom=st.integers(0, 30), right=st.integers(0, 30),
)  # fmt: skip
def test_a_rectangle_goes_on_as_a_symmetric_pad(
    height: int, width: int, top: int, left: int, bottom: int, right: int
) -> None:
    image = noise((height, width))
    pads = ((0, 0), (top, bottom), (left, right))
    unknown = np.pad(image, pads, constant_values=np.nan)
    np.testing.assert_array_equal(fill_unknown(unknown), extend(image, (top, left), (bottom, right)))
    np.testing.assert_array_equal(fill_unknown(unknown), np.pad(image, pads, mode="symmetric"))


def test_known_pixels_stay_and_all_others_take_a_value_of_the_image() -> None:
    image = noise((40, 50))
    hole = np.random.default_rng(1).random((40, 50)) < 0.7
    image[:, hole] = np.nan
    filled = fill_unknown(image)
    np.testing.assert_array_equal(filled[:, ~hole], image[:, ~hole])
    assert set(filled[0].ravel().tolist()) <= set(image[0][~hole].tolist())
    # One pixel gives all its bands: colours are never mixed.
    np.testing.assert_array_equal(filled[1], filled[0] / 2)


def test_a_part_is_filled_from_the_whole() -> None:
    image = noise((20, 20))
    image[:, :, :10] = np.nan
    part = np.s_[4:16, 2:12]
    np.testing.assert_array_equal(fill_unknown(image, part), fill_unknown(image)[:, *part])
    np.testing.assert_array_equal(fill_unknown(image, part)[:, :, 7], image[:, 4:16, 10])


def test_a_thin_strip_is_reflected_to_and_fro() -> None:
    image = np.full((3, 1, 9), np.nan, np.float32)
    image[:, 0, 4:6] = [[1, 2]] * 3
    assert fill_unknown(image)[0, 0].tolist() == [1, 2, 2, 1, 1, 2, 2, 1, 1]


def test_a_reflection_without_end_takes_the_nearest_known_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "MOST_REFLECTIONS", 1)
    image = np.full((3, 1, 9), np.nan, np.float32)
    image[:, 0, 4:6] = [[1, 2]] * 3
    assert fill_unknown(image)[0, 0].tolist() == [1, 1, 2, 1, 1, 2, 2, 1, 2]


def test_without_one_known_pixel_the_image_is_black() -> None:
    assert not fill_unknown(np.full((3, 4, 5), np.nan, np.float32)).any()


@pytest.mark.parametrize(("shape", "tile_px"), [((5, 8), 8), ((3, 2), 8), ((8, 8), 8)])
def test_a_small_image_is_mirrored_to_the_right_and_downwards(shape: tuple[int, int], tile_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, *shape)).astype(np.uint8)
    tile = extend(image, (0, 0), (tile_px - shape[0], tile_px - shape[1]))
    assert tile.shape == (3, tile_px, tile_px)
    np.testing.assert_array_equal(tile[:, : shape[0], : shape[1]], image)
    # pixel n of a mirrored axis of length L is n mod 2L, counted back in the second half
    rows, cols = ([min(n % (2 * side), 2 * side - 1 - n % (2 * side)) for n in range(tile_px)] for side in shape)
    np.testing.assert_array_equal(tile, image[:, rows][:, :, cols])
