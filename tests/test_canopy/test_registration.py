"""Shifts between imagery and heights: known ones are found, none is invented."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from forest import Forest, make_forest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from canopy.dataset.registration import NO_SHIFT, estimate_shift, shift_heights


@cache
def forest(seed: int) -> Forest:
    return make_forest(110, seed=seed)


def displaced(seed: int, x_m: float, y_m: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A forest whose heights lie (-x_m, -y_m) beside the image, cut so that no border shows it."""
    image = ndimage.shift(forest(seed).rgb.astype(float), (0, 2 * y_m, -2 * x_m), order=1, mode="nearest")
    return image[:, 20:200, 20:200].astype(np.uint8), forest(seed).chm_m[10:100, 10:100]


@settings(max_examples=25)
@given(st.integers(0, 3), st.floats(-5.5, 5.5), st.floats(-5.5, 5.5))
def test_any_shift_within_reach_is_found_to_half_a_pixel(seed: int, x_m: float, y_m: float) -> None:
    found = estimate_shift(*displaced(seed, -x_m, -y_m), 1.0)
    aligned = estimate_shift(*displaced(seed, 0, 0), 1.0)
    assert found.x_m - aligned.x_m == pytest.approx(x_m, abs=0.25)
    assert found.y_m - aligned.y_m == pytest.approx(y_m, abs=0.25)
    assert found.accepted or np.hypot(x_m, y_m) < 1.5


@pytest.mark.parametrize("seed", range(6))
def test_aligned_rasters_are_left_alone(seed: int) -> None:
    found = estimate_shift(*displaced(seed, 0, 0), 1.0)
    assert not found.accepted
    assert found.length_m < 0.5


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(31, 60))
def test_unrelated_rasters_yield_no_shift(one: int, other: int) -> None:
    image, _ = displaced(one % 8, 0, 0)
    _, heights = displaced(8 + other % 8, 0, 0)
    assert not estimate_shift(image, heights, 1.0).accepted


def test_noise_yields_no_shift() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        image = ndimage.gaussian_filter(generator.normal(size=(3, 120, 120)), (0, 2, 2))
        heights = ndimage.gaussian_filter(generator.normal(size=(60, 60)), 1)
        assert not estimate_shift(255 * (image - image.min()) / np.ptp(image), 20 * (heights + 1), 1.0).accepted


def test_unknown_cells_are_left_out() -> None:
    image, heights = displaced(0, -3, 2)
    holes = np.random.default_rng(0).random(heights.shape) < 0.1
    holes[20:40, 50:70] = True
    whole, holed = (estimate_shift(image, h, 1.0) for h in (heights, np.where(holes, np.nan, heights)))
    assert holed.accepted
    assert holed.x_m == pytest.approx(whole.x_m, abs=0.25)
    assert holed.y_m == pytest.approx(whole.y_m, abs=0.25)


@pytest.mark.parametrize("heights", [np.full((40, 40), np.nan), np.zeros((40, 40)), np.zeros((2, 2))])
def test_nothing_to_compare_yields_no_shift(heights: NDArray[np.float64]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 2 * len(heights), 2 * len(heights)))
    assert estimate_shift(image, heights, 1.0) == NO_SHIFT


def test_applying_the_shift_undoes_the_displacement() -> None:
    image, heights = displaced(1, 4, -3)
    found = estimate_shift(image, heights, 1.0)
    again = estimate_shift(image, shift_heights(heights, found, 1.0), 1.0)
    assert found.length_m > 4
    assert again.length_m < 0.75
    moved = shift_heights(heights, found, 1.0)
    assert np.isnan(moved).sum() == pytest.approx(90 * 3 + 90 * 4 - 12, abs=1)


def test_a_raster_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="whole multiple"):
        estimate_shift(np.zeros((3, 50, 50)), np.zeros((40, 40)), 1.0)


def read_pair(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    with rasterio.open(folder / "rgb.tif") as opened:
        image = opened.read()
    with rasterio.open(folder / "chm_cm.tif") as opened:
        centimetres = opened.read(1)
    return image, np.where(centimetres == 65535, np.nan, centimetres / 100).astype(np.float32)


@pytest.mark.parametrize(("scene", "shift_m"), [("osbs_006", (2.6, 1.4)), ("bart_041", (2.1, -2.1))])
def test_real_shifts_are_found(shared_data: Path, scene: str, shift_m: tuple[float, float]) -> None:
    # The expected shifts were measured apart, by the greenness of the image alone without any filtering.
    found = estimate_shift(*read_pair(shared_data / "pairs" / scene), 1.0)
    assert found.accepted
    assert np.hypot(found.x_m - shift_m[0], found.y_m - shift_m[1]) < 1


def test_real_well_aligned_scenes_are_left_alone(shared_data: Path) -> None:
    scenes = sorted(path.name for path in (shared_data / "pairs").glob("teak_*"))
    moved = [
        scene
        for scene in ("osbs_003", "neon_osbs_1ha", *scenes)
        if estimate_shift(*read_pair(shared_data / "pairs" / scene), 1.0).accepted
    ]
    assert moved == []


def test_heights_of_another_scene_are_not_moved(shared_data: Path) -> None:
    images = {name: read_pair(shared_data / "pairs" / name) for name in ("teak_043", "osbs_003", "bart_041")}
    for one, (image, _) in images.items():
        for other, (_, heights) in images.items():
            assert one == other or not estimate_shift(image, heights, 1.0).accepted


@pytest.mark.parametrize("shift_m", [(0, 0), (3, 2)])
def test_a_park_moved_by_a_known_way_is_moved_back(shared_data: Path, shift_m: tuple[int, int]) -> None:
    image, heights = read_pair(shared_data / "pairs" / "autzen_west")
    with rasterio.open(shared_data / "pairs" / "autzen_west" / "exclude_mask.tif") as opened:
        heights = np.where(opened.read(1) > 0, np.nan, heights)
    moved = ndimage.shift(heights, (-shift_m[1], shift_m[0]), order=0, cval=np.nan)
    found = estimate_shift(image, moved, 1.0, search_m=8)
    assert found.accepted == (shift_m != (0, 0))
    assert np.hypot(found.x_m + shift_m[0], found.y_m + shift_m[1]) < 1.25
