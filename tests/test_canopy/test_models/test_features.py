"""Features averaged over the ground of a footprint."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from canopy.models.features import footprint_mean
from canopy.models.network import PATCH_PX


def test_the_mean_is_weighted_by_a_gaussian_on_the_ground() -> None:
    gsd_m, sigma_m = 0.5, 12.0  # 1.5 patches of 8 m
    tokens = torch.randn(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    sigma = sigma_m / (PATCH_PX * gsd_m)
    expected = ndimage.gaussian_filter(
        tokens.double().numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, 4, 4)
    )
    np.testing.assert_allclose(footprint_mean(tokens, sigma_m, gsd_m).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("sigma_m", [0.5, 6.0, 40.0])
def test_even_ground_keeps_its_features_up_to_the_edge(sigma_m: float) -> None:
    tokens = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 5, 6)
    torch.testing.assert_close(footprint_mean(tokens, sigma_m, 0.5), tokens)


def test_a_narrow_footprint_is_its_own_patch() -> None:
    tokens = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(footprint_mean(tokens, 0.5, 0.5), tokens)
