"""Colours and edges of patches: against plain numpy, and as a term of the loss."""

import numpy as np
import pytest
import torch
from pretraining import CPU, run_steps, tiny_config

from pretrain.dinov2 import SelfDistillation
from pretrain.statistics import BIN_WIDTH, DIRECTIONS, LEVELS, STATISTICS, Standardiser, patch_statistics


def test_colours_are_soft_histograms_of_each_patch() -> None:
    image = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    values = patch_statistics(image, 16)
    assert values.shape == (2, 2, STATISTICS)
    right = image[1, 2, :, 16:].numpy()  # the blue of the second patch of the second image
    expected = [np.exp(-(((right - level) / BIN_WIDTH) ** 2)).mean() for level in LEVELS]
    blue = slice(2 * len(LEVELS), 3 * len(LEVELS))
    np.testing.assert_allclose(values[1, 1, blue].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("angle", "direction"), [(0.2, 0), (np.pi / 4 + 0.2, 2), (np.pi / 2 + 0.2, 4), (2.9, 7)])
def test_a_slope_has_its_magnitude_in_its_direction_alone(angle: float, direction: int) -> None:
    y, x = np.mgrid[:32, :32]
    slope = 0.5 + 0.01 * (np.cos(angle) * x + np.sin(angle) * y - 16)
    image = torch.from_numpy(np.repeat(slope[None, None], 3, axis=1)).float()
    edges = patch_statistics(image, 16)[0, :, 3 * len(LEVELS) :].view(4, -1, DIRECTIONS)
    assert (edges[:, 0, ..., direction] > 0.9 * edges[:, 0].sum(dim=-1)).all()
    inner = patch_statistics(torch.from_numpy(np.full((1, 3, 32, 32), 0.5)).float(), 16)[0, :, 3 * len(LEVELS) :]
    assert inner.abs().max() == 0


def test_contrast_counts() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    edges = slice(3 * len(LEVELS), None)
    faint = patch_statistics(0.5 + (image - 0.5) / 4, 16)[..., edges]
    torch.testing.assert_close(4 * faint, patch_statistics(image, 16)[..., edges], rtol=1e-3, atol=1e-5)


def test_standardised_statistics_have_mean_0_and_variance_1() -> None:
    standardise = Standardiser(momentum=0.9)
    values = 3 + 2 * torch.randn(64, 16, STATISTICS, generator=torch.Generator().manual_seed(0))
    first = standardise(values)
    torch.testing.assert_close(first.mean(dim=(0, 1)), torch.zeros(STATISTICS), atol=1e-4, rtol=0)
    torch.testing.assert_close(first.var(dim=(0, 1)), torch.ones(STATISTICS), atol=1e-2, rtol=0)
    standardise(values + 10)
    torch.testing.assert_close(standardise.mean, values.mean(dim=(0, 1)) + 1, atol=1e-4, rtol=0)


def test_tokens_learn_the_statistics_of_their_patches() -> None:
    only = {"dino": 0, "ibot": 0, "koleo": 0, "statistics": 1}
    learner = SelfDistillation(tiny_config(terms=only, local_crops={"count": 0}, loop={"steps": 60}), CPU)
    assert learner.targets.standardisers["statistics"] in learner.parts()["standardisers"].children()
    losses = [entry["statistics"] for entry in run_steps(learner, 60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
