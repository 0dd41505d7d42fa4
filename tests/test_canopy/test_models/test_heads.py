"""Height bins: from logits to heights and back, and the head of CHMv1 against its formula."""

import numpy as np
import pytest
import torch

from canopy.errors import ModelError
from canopy.models.heads import WARPS, HeightBins, LinearBins


def test_the_height_is_the_mean_of_the_distribution() -> None:
    bins = HeightBins(8, 70.0)
    logits = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    edges_m = 70 * (np.arange(9) / 8) ** 2
    centres_m = (edges_m[1:] + edges_m[:-1]) / 2
    expected = (shares * centres_m.reshape(1, 8, 1, 1)).sum(1)
    np.testing.assert_allclose(bins.height_m(logits).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("spacing", sorted(WARPS))
def test_edges_lie_at_whole_positions(spacing: str) -> None:
    bins = HeightBins(32, 40.0, spacing)
    assert (bins.edges_m.diff() > 0).all()
    assert (bins.edges_m[0], bins.edges_m[-1]) == (0, pytest.approx(40, rel=1e-6))
    np.testing.assert_allclose(bins.position(bins.edges_m).numpy(), np.arange(33), atol=1e-3)
    outside = bins.position(torch.tensor([-5.0, 100.0]))
    np.testing.assert_allclose(outside.numpy(), [0, 32], atol=1e-3)


def test_an_unknown_spacing_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no spacing 'mixlog' of height bins: sqrt, linear, log, mixed expected"):
        HeightBins(8, 70.0, "mixlog")


def test_the_median_of_a_certain_bin_is_its_middle() -> None:
    bins = HeightBins(10, 20.0, "linear")
    certain = torch.full((1, 10, 1, 1), -100.0)
    certain[0, 3] = 100.0
    assert bins.quantiles_m(certain, (0.5,)).item() == pytest.approx(7.0, abs=1e-3)


def test_chmv1_head_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 256, 3, 5)).astype(np.float32)
    weights = np.maximum(logits, 0).astype(np.float64) + 0.1
    bins = np.linspace(0.001, 10, 256).reshape(1, 256, 1, 1)
    expected = 10 * (weights / weights.sum(1, keepdims=True) * bins).sum(1)
    heights = LinearBins(256, 100.0).height_m(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(heights, expected, rtol=1e-6)
    nothing = LinearBins(256, 100.0).height_m(torch.full((1, 256, 1, 1), -5.0))
    assert nothing.item() == pytest.approx(10 * (0.001 + 10) / 2, rel=1e-6)


def test_the_median_is_the_height_that_half_of_the_distribution_lies_below() -> None:
    bins = HeightBins(4, 8.0, "linear")
    # shares .4, .3, .2, .1 of bins of 2 m: half of the mass is reached a third into the second bin
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().view(1, 4, 1, 1)
    assert bins.median_m(logits).item() == pytest.approx(2 + 2 / 3, rel=1e-5)
    assert bins.decoded_m(logits, "median").item() == bins.median_m(logits).item()
    assert bins.decoded_m(logits, "mean").item() == pytest.approx(0.4 * 1 + 0.3 * 3 + 0.2 * 5 + 0.1 * 7)


def test_a_thin_tail_of_tall_bins_lifts_the_mean_and_not_the_median() -> None:
    bins = HeightBins(64, 70.0)
    logits = torch.full((1, 64, 1, 1), -20.0)
    logits[0, 0], logits[0, 40] = 2.0, 0.0
    assert bins.height_m(logits).item() > 3
    assert bins.median_m(logits).item() < 0.02
