"""Shifts between imagery and heights: known ones are found, none is invented."""

from dataclasses import astuple
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

from canopy.dataset.registration import NO_SHIFT, Shift, estimate_shift


@cache
def forest(seed: int) -> Forest:
    return make_forest(110, seed=seed)


def displaced(seed: int, x_m: float, y_m: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A forest whose heights lie (-x_m, -y_m) off the image, cut so that no border shows it."""
    image = ndimage.shift(forest(seed).rgb.astype(float), (0, 2 * y_m, -2 * x_m), order=1, mode="nearest")
    return image[:, 20:200, 20:200].astype(np.uint8), forest(seed).chm_m[10:100, 10:100]


@cache
def aligned_shift(seed: int) -> Shift:
    return estimate_shift(*displaced(seed, 0, 0), 1.0)


def length_m(shift: Shift) -> float:
    return float(np.hypot(shift.x_m, shift.y_m))


def moved(height_m: NDArray[np.floating], shift: Shift) -> NDArray[np.floating]:
    """Heights moved by whole cells, as a build moves them."""
    return ndimage.shift(height_m, shift.whole_cells(1.0), order=0, cval=np.nan)


@settings(max_examples=25)
@given(st.integers(0, 3), st.floats(-5.5, 5.5), st.floats(-5.5, 5.5))
def test_any_shift_within_reach_is_found_to_half_a_pixel(seed: int, x_m: float, y_m: float) -> None:
    shift = estimate_shift(*displaced(seed, -x_m, -y_m), 1.0)
    aligned = aligned_shift(seed)
    assert shift.x_m - aligned.x_m == pytest.approx(x_m, abs=0.25)
    assert shift.y_m - aligned.y_m == pytest.approx(y_m, abs=0.25)
    assert shift.accepted or np.hypot(x_m, y_m) < 1.5


@pytest.mark.parametrize("seed", range(6))
def test_aligned_rasters_are_left_alone(seed: int) -> None:
    shift = aligned_shift(seed)
    assert not shift.accepted
    assert length_m(shift) < 0.5


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(31, 60))
def test_unrelated_rasters_yield_no_shift(one: int, other: int) -> None:
    image, _ = displaced(one % 8, 0, 0)
    _, heights = displaced(8 + other % 8, 0, 0)
    assert not estimate_shift(image, heights, 1.0).accepted


def detail(seed: int) -> NDArray[np.float64]:
    """A texture (320, 320) of crown-sized blobs, of mean 0 and deviation 1."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(320, 320)), 2, mode="wrap")
    return (blobs - blobs.mean()) / blobs.std()


@pytest.mark.parametrize(("rest", "accepted"), [(0.64, True), (0.67, True), (0.73, False), (0.76, False)])
def test_a_shift_is_applied_only_where_no_shift_explains_at_most_seven_tenths_of_it(
    rest: float, accepted: bool
) -> None:
    """Heights that follow the image 4 m away, and so much of the image at their own place that it explains `rest`.

    The ground is so large that both correlations are certain, and their ratio alone decides.
    """
    texture = detail(0)
    image = np.broadcast_to(np.round(120 + 25 * texture), (3, 320, 320)).astype(np.uint8)
    # The texture has a correlation of -0.08 with itself 4 m away once broad structure is removed.
    share = (np.sqrt(rest) + 0.08) / (1 + 0.08 * np.sqrt(rest))
    mixture = np.roll(texture, 8, axis=1) + share * texture + 0.3 * detail(1)
    height_m = 12 + 3 * mixture.reshape(160, 2, 160, 2).mean(axis=(1, 3))
    shift = estimate_shift(image, height_m, 1.0)
    assert (shift.x_m, shift.y_m) == pytest.approx((-4, 0), abs=0.25)
    assert shift.confidence > 0.95 and shift.distinctness > 0.95
    assert (shift.unshifted / shift.correlation) ** 2 == pytest.approx(rest, abs=0.02)
    assert shift.accepted == accepted


@pytest.mark.parametrize("block_px", [40, 64, 179])
def test_blocks_of_a_scene_give_the_shift_of_the_whole(block_px: int) -> None:
    image, heights = displaced(2, -3, 2)
    heights = heights.copy()
    heights[5:30, 40:60] = np.nan
    whole = estimate_shift(image, heights, 1.0, block_px=4096)
    assert whole.accepted
    assert astuple(estimate_shift(image, heights, 1.0, block_px=block_px)) == pytest.approx(astuple(whole), rel=1e-9)


def test_a_block_without_heights_adds_nothing() -> None:
    image, heights = displaced(2, -3, 2)
    heights = heights.copy()
    heights[:45] = np.nan
    whole = estimate_shift(image, heights, 1.0, block_px=4096)
    assert astuple(estimate_shift(image, heights, 1.0, block_px=45)) == pytest.approx(astuple(whole), rel=1e-9)


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
    shift = estimate_shift(image, heights, 1.0)
    assert length_m(shift) > 4
    assert length_m(estimate_shift(image, moved(heights, shift), 1.0)) < 0.75
    assert np.isnan(moved(heights, shift)).sum() == pytest.approx(90 * 3 + 90 * 4 - 12, abs=1)


@pytest.mark.parametrize(
    ("x_m", "y_m", "cell_m", "cells"), [(2.4, -1.6, 1.0, (2, 2)), (2.6, 1.4, 1.0, (-1, 3)), (3, 3, 2.0, (-2, 2))]
)
def test_a_shift_is_rounded_to_whole_cells_down_and_right(
    x_m: float, y_m: float, cell_m: float, cells: tuple[int, int]
) -> None:
    assert Shift(x_m, y_m, 0, 0, 0, 0, accepted=True).whole_cells(cell_m) == cells


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
    # The expected shifts were measured independently, by the greenness of the image alone without any filtering.
    shift = estimate_shift(*read_pair(shared_data / "pairs" / scene), 1.0)
    assert shift.accepted
    assert np.hypot(shift.x_m - shift_m[0], shift.y_m - shift_m[1]) < 1


def test_real_well_aligned_scenes_are_left_alone(shared_data: Path) -> None:
    scenes = sorted(path.name for path in (shared_data / "pairs").glob("teak_*"))
    accepted = [
        scene
        for scene in ("osbs_003", "neon_osbs_1ha", *scenes)
        if estimate_shift(*read_pair(shared_data / "pairs" / scene), 1.0).accepted
    ]
    assert accepted == []


def test_heights_of_another_scene_are_not_moved(shared_data: Path) -> None:
    images = {name: read_pair(shared_data / "pairs" / name) for name in ("teak_043", "osbs_003", "bart_041")}
    for one, (image, _) in images.items():
        for other, (_, heights) in images.items():
            assert one == other or not estimate_shift(image, heights, 1.0).accepted


@pytest.mark.slow
@pytest.mark.parametrize("shift_m", [(0, 0), (3, 2)])
def test_a_park_moved_by_a_known_shift_is_moved_back(shared_data: Path, shift_m: tuple[int, int]) -> None:
    image, heights = read_pair(shared_data / "pairs" / "autzen_west")
    with rasterio.open(shared_data / "pairs" / "autzen_west" / "exclude_mask.tif") as opened:
        heights = np.where(opened.read(1) > 0, np.nan, heights)
    displaced_m = ndimage.shift(heights, (-shift_m[1], shift_m[0]), order=0, cval=np.nan)
    shift = estimate_shift(image, displaced_m, 1.0, search_m=8)
    assert shift.accepted == (shift_m != (0, 0))
    assert np.hypot(shift.x_m + shift_m[0], shift.y_m + shift_m[1]) < 1.25
