"""Crops cover the right ground, colours change as configured, and nothing depends on how a batch is shared."""

import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pretrain.augment import NUMBERS, Draws, blur, crop, draw, recolour
from pretrain.config import ColourConfig, CropConfig

PLAIN = ColourConfig(brightness=0, contrast=0, saturation=0, hue=0, tint=0, gamma=0, haze=0, blur_share=0)


def random_draws(count: int = 2, tiles: int = 3, colour: ColourConfig = PLAIN, seed: int = 0, **crops: Any) -> Draws:
    uniform = torch.rand(count, tiles, NUMBERS, generator=torch.Generator().manual_seed(seed))
    return draw(CropConfig(count=count, px=16, **crops), colour, uniform)


def take(draws: Draws, rows: slice) -> Draws:
    """Return the parameters of some of the tiles."""
    return replace(draws, **{field.name: getattr(draws, field.name)[:, rows] for field in fields(draws)})


def with_geometry(draws: Draws, angle: float, flip: float, centre: tuple[float, float], gsd: float) -> Draws:
    """Return the same draws with geometry set by hand."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -flip * s], [s, flip * c]]).expand_as(draws.turn)
    return replace(
        draws, turn=turn, centre=torch.tensor(centre).expand_as(draws.centre), gsd=torch.full_like(draws.gsd, gsd)
    )


def ramp(side: int = 64) -> Tensor:
    """Return a tile (1, 3, side, side) whose pixels name their origin: column, row, 50."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 50)])[None].to(torch.uint8)


def test_other_bands_are_cropped_but_keep_their_values() -> None:
    tiles = torch.randint(0, 255, (2, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = ColourConfig(brightness=0.5, hue=0.2, grey=1.0, haze=0.9, haze_share=1.0, blur_share=0.0)
    numbers = torch.rand(1, 2, NUMBERS, generator=torch.Generator().manual_seed(1))
    plain, coloured = (
        crop(tiles, torch.full((2,), 0.5), draw(CropConfig(count=1, px=16), colour, numbers), 16, 0.5)
        for colour in (ColourConfig(**dict.fromkeys(ColourConfig.model_fields, 0)), strong)
    )
    assert coloured.shape == (1, 2, 4, 16, 16)
    torch.testing.assert_close(coloured[:, :, 3], plain[:, :, 3])
    assert (coloured[:, :, :3] - plain[:, :, :3]).abs().max() > 0.1


def test_an_upright_crop_is_the_tile_itself() -> None:
    draws = with_geometry(random_draws(1, 1), 0, 1, (0.25, 0.5), 1.0)
    cut = crop(ramp(), torch.tensor([0.5]), draws, 16, 0.5)[0, 0]
    left, top = round(0.25 * 48), round(0.5 * 48)
    torch.testing.assert_close(cut, ramp()[0, :, top : top + 16, left : left + 16] / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("angle", "flip", "expected"), [
    (math.pi / 2, 1, lambda x: torch.rot90(x, 1, (1, 2))), (0, -1, lambda x: x.flip(1)),
    (math.pi, 1, lambda x: x.flip(1, 2)),
])  # fmt: skip
def test_turns_and_mirrors_are_exact(angle: float, flip: float, expected: Any) -> None:
    draws = with_geometry(random_draws(1, 1), angle, flip, (0.5, 0.5), 1.0)
    cut = crop(ramp(), torch.tensor([0.5]), draws, 16, 0.5)[0, 0]
    torch.testing.assert_close(cut, expected(ramp()[0, :, 24:40, 24:40] / 255), atol=1e-4, rtol=0)


def test_a_crop_covers_ground_in_proportion_to_its_gsd() -> None:
    draws = with_geometry(random_draws(1, 2), 0, 1, (0.5, 0.5), 1.5)
    cut = crop(ramp().expand(2, -1, -1, -1), torch.tensor([0.5, 0.6]), draws, 16, 0.5)[0] * 255
    step = (cut[:, 0, :, 1:] - cut[:, 0, :, :-1]).mean(dim=(1, 2))
    np.testing.assert_allclose(step.numpy(), [1.5, 1.5 * 0.5 / 0.6], rtol=1e-3)


@given(seed=st.integers(0, 999), side=st.sampled_from([20, 33, 64]), px=st.sampled_from([8, 16, 32]))
def test_crops_stay_in_range_at_any_size(seed: int, side: int, px: int) -> None:
    draws = random_draws(2, 2, ColourConfig(grey=0.3), seed)
    cut = crop(ramp(side).expand(2, -1, -1, -1), torch.tensor([0.5, 1.0]), draws, px, 0.5)
    assert cut.shape == (2, 2, 3, px, px)
    assert cut.isfinite().all()
    assert cut.min() >= 0
    assert cut.max() <= 1 + 1e-6


def test_samples_of_a_batch_are_augmented_differently_and_the_same_alone() -> None:
    colour = ColourConfig(grey=0.2, blur_share=0.7, haze_share=0.7)
    draws, tiles, gsd_m = random_draws(2, 4, colour), ramp().expand(4, -1, -1, -1), torch.full((4,), 0.5)
    together = crop(tiles, gsd_m, draws, 16, 0.5)
    assert len({together[c, b].sum().item() for c in range(2) for b in range(4)}) == 8
    halves = [crop(tiles[part], gsd_m[part], take(draws, part), 16, 0.5) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves, dim=1), together)


def test_without_strength_colours_do_not_change() -> None:
    image = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(min=0.01)
    torch.testing.assert_close(recolour(image, random_draws()), image, atol=1e-4, rtol=1e-3)


def test_grey_crops_have_no_colour_and_keep_their_luma() -> None:
    image = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = recolour(image, random_draws(colour=PLAIN.model_copy(update={"grey": 1.0})))
    torch.testing.assert_close(grey[:, :, 0], grey[:, :, 2], atol=1e-3, rtol=0)
    luma = torch.einsum("k,cbkhw->cbhw", torch.tensor([0.299, 0.587, 0.114]), image)
    torch.testing.assert_close(grey[:, :, 0], luma, atol=2e-3, rtol=0)


def test_haze_lifts_the_darks_and_blues_them() -> None:
    colour = PLAIN.model_copy(update={"haze": 1.0, "haze_share": 1.0})
    hazy = recolour(torch.full((2, 3, 3, 8, 8), 0.05), random_draws(colour=colour))
    assert (hazy.mean(dim=(3, 4))[..., 2] > hazy.mean(dim=(3, 4))[..., 0]).all()
    assert hazy.min() > 0.05


def test_blur_equals_torchvision_and_spares_the_others() -> None:
    image = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    blurred = blur(image, torch.tensor([0.0, 0.7, 1.3]))
    assert torch.equal(blurred[0], image[0])
    for i, sigma in ((1, 0.7), (2, 1.3)):
        torch.testing.assert_close(blurred[i], gaussian_blur(image[i], [9, 9], [sigma, sigma]), atol=1e-5, rtol=1e-4)


def test_every_number_changes_one_parameter_of_its_own_crop() -> None:
    # at 0.6 the crop has colour and haze, and is blurred; lower or higher numbers change that
    crops, colour = CropConfig(count=1, px=16), ColourConfig(grey=0.5, haze_share=0.9, blur_share=0.9)
    uniform = torch.full((1, 3, NUMBERS), 0.6)
    base = draw(crops, colour, uniform)
    changed = []
    for column in range(NUMBERS):
        names = set()
        for value in (0.3, 0.95):
            other = uniform.clone()
            other[0, 1, column] = value
            draws = draw(crops, colour, other)
            differs = {f.name: getattr(draws, f.name) != getattr(base, f.name) for f in fields(Draws)}
            assert not any(d[0, [0, 2]].any() for d in differs.values()), "the samples next to it stay"
            names |= {name for name, d in differs.items() if d.any()}
        assert len(names) == 1, column
        changed += names
    assert set(changed) == {f.name for f in fields(Draws)}
    assert Counter(changed)["colour"] == 6, "hue, saturation, grey, three tints"


def test_the_gsd_range_is_covered_and_not_left() -> None:
    gsd = random_draws(4, 500, gsd=(0.5, 1.5)).gsd
    assert gsd.min() >= 0.5 - 1e-6
    assert gsd.max() <= 1.5 + 1e-6
    assert np.median(gsd) == pytest.approx(math.sqrt(0.75), abs=0.03)
