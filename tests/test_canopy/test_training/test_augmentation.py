"""Chips from scenes: image and heights stay together, and chance follows the generator."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from canopy.dataset.scene import Scene
from canopy.training.augmentation import (
    cast_shadows,
    draw_chip,
    jitter_colour,
    jitter_sharpness,
    mix_chips,
    smooth_noise,
)


def board(rows: int = 128, cols: int = 160) -> Scene:
    """A chessboard whose heights equal its brightness."""
    row, col = np.mgrid[0:rows, 0:cols]
    image = np.repeat(((row // 32 + col // 32) % 2 * 200)[None], 3, axis=0).astype(np.uint8)
    return Scene("board", "board", image, image[0, ::2, ::2].astype(np.float32), 1.0)


def test_chips_keep_image_and_heights_together() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        chip, heights = draw_chip(board(), generator, 64, zoom=1.2)
        coarse = F.avg_pool2d(chip[None, :1] * 255, 2)[0, 0]
        assert (coarse - heights).abs().median() < 1


def test_chips_wider_than_the_scene_are_mirrored() -> None:
    scene = board(64, 64)
    scene.height_m[3, 4] = np.nan
    chip, heights = draw_chip(scene, np.random.default_rng(1), 160, zoom=1)
    assert chip.shape == (3, 160, 160)
    assert heights.shape == (80, 80)
    assert 0.4 < (heights > 100).float().mean() < 0.6
    assert heights.isnan().any(), "an unknown cell stays unknown, also where it is mirrored"


def test_half_of_the_chips_are_centred_on_trees() -> None:
    heights = np.zeros((200, 200), np.float32)
    heights[20:23, 170:173] = 15
    scene = Scene("one", "one", np.zeros((3, 400, 400), np.uint8), heights, 1.0)
    generator = np.random.default_rng(0)
    centred = sum(bool(draw_chip(scene, generator, 16, zoom=1)[1][3:5, 3:5].max() == 15) for _ in range(200))
    assert 80 < centred < 120


@pytest.mark.parametrize("zoom", [1.0, 1.5])
def test_zoom_bounds_the_scale(zoom: float) -> None:
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None, :], 128, axis=0)
    scene = Scene("ramp", "ramp", np.repeat(ramp[None], 3, axis=0), np.zeros((64, 64), np.float32), 1.0)
    generator = np.random.default_rng(2)
    slopes = []
    for _ in range(50):
        image = draw_chip(scene, generator, 16, zoom)[0][0] * 255
        slopes.append(float(torch.hypot(image.diff(dim=0)[:, :-1], image.diff(dim=1)[:-1]).median()))
    assert max(slopes) <= zoom + 0.05
    assert min(slopes) >= 1 / zoom - 0.05
    assert max(slopes) - min(slopes) > 0.4 * (zoom - 1)


def test_colour_and_shadows_stay_in_range_and_follow_the_generator() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jitter_colour(image, np.random.default_rng(1), 0), image)
    for change in (lambda x, g: jitter_colour(x, g, 0.2), cast_shadows, jitter_sharpness):
        first, again, other = (change(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.min() >= 0
        assert first.max() <= 1


def test_colour_jitter_brings_dark_and_bright_images_to_like_exposures() -> None:
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(3, 64, 64, generator=generator) * 0.2
    means = [float(jitter_colour(texture + level, np.random.default_rng(5), 0.2).mean()) for level in (0.05, 0.7)]
    assert means[0] == pytest.approx(means[1], abs=0.12)


def test_sharpness_leaves_a_flat_image_flat() -> None:
    flat = torch.full((3, 32, 32), 0.3)
    torch.testing.assert_close(jitter_sharpness(flat, np.random.default_rng(0)), flat)


def test_shadows_only_darken_and_leave_most_of_the_image() -> None:
    image = torch.full((3, 128, 128), 0.5)
    for seed in range(5):
        shaded = cast_shadows(image, np.random.default_rng(seed))
        assert (shaded <= image + 1e-6).all()
        assert 0.02 < (shaded[0] < 0.4).float().mean() < 0.45
        assert (shaded[2] >= shaded[0] - 1e-6).all()


def test_mixed_chips_keep_image_and_heights_together() -> None:
    bare = (torch.zeros(3, 128, 128), torch.zeros(64, 64))
    forest = (torch.ones(3, 128, 128), torch.full((64, 64), 20.0))
    image, height = mix_chips(bare, forest, np.random.default_rng(0))
    assert torch.equal(F.avg_pool2d(image[None, :1], 2)[0, 0] * 20, height)
    assert 0.1 < (height == 0).float().mean() < 0.9


def test_smooth_noise_varies_over_its_size() -> None:
    coarse, fine = (smooth_noise(torch.Size((128, 96)), size, np.random.default_rng(0)) for size in (64, 4))
    assert coarse.shape == fine.shape == (128, 96)
    assert coarse.diff(dim=0).abs().mean() < 0.2 * fine.diff(dim=0).abs().mean()
