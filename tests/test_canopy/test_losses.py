"""Height losses and bins, against numpy, finite differences and what they should not notice."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.heads import WARPS, HeightBins
from canopy.training.config import LossWeights, Ramp, weight_at
from canopy.training.losses import (
    absolute,
    best_shift,
    charbonnier,
    gradient_loss,
    histogram_loss,
    patch_gradient,
    silog,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: list[Loss] = [charbonnier, absolute, silog, gradient_loss, patch_gradient]


def heights(seed: int, shape: tuple[int, ...] = (2, 16, 16)) -> Tensor:
    return 1 + 20 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known_of(shape: tuple[int, ...], seed: int = 9) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.1


def test_silog_equals_its_equation() -> None:
    pred, truth, known = heights(0), heights(1), known_of((2, 16, 16))
    g = np.log(pred.numpy() + 1e-3) - np.log(truth.numpy() + 1e-3)
    g = g[known.numpy()]
    expected = np.sqrt(np.mean(g**2) - 0.85 * np.mean(g) ** 2)
    assert silog(pred, truth, known).item() == pytest.approx(expected, rel=1e-6)
    assert silog(pred, truth, known).item() == pytest.approx(np.sqrt(g.var() + 0.15 * g.mean() ** 2), rel=1e-6)


def test_absolute_error_equals_numpy() -> None:
    pred, truth, known = heights(0), heights(1), known_of((2, 16, 16))
    expected = np.abs(pred.numpy() - truth.numpy())[known.numpy()].mean()
    assert absolute(pred, truth, known).item() == pytest.approx(expected, rel=1e-9)


def numpy_patch_gradient(pred: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """One scale of the term for one fully known chip, by scipy's filters."""
    one, other = np.log(pred + 1e-3), np.log(truth + 1e-3)
    gradients = [np.stack([ndimage.sobel(z, axis=axis, mode="nearest") / 8 for axis in (1, 0)]) for z in (one, other)]
    steep = [np.sqrt((g**2).sum(axis=0) + 1e-8) for g in gradients]
    inner = np.s_[2:-2, 2:-2]  # all of a square of 5 x 5 must be known
    total = np.abs(steep[0] - steep[1])[inner].mean()
    for side in (3, 5):
        ranges = [
            ndimage.maximum_filter(z, side, mode="nearest") - ndimage.minimum_filter(z, side, mode="nearest")
            for z in (one, other)
        ]
        total += np.abs(ranges[0] - ranges[1])[inner].mean()
    cosine = (gradients[0] * gradients[1]).sum(axis=0) / (steep[0] * steep[1])
    return float(total + (1 - cosine)[inner][steep[1][inner] > 0.05].mean())


def test_patch_gradient_equals_numpy_at_one_scale() -> None:
    pred, truth = heights(0, (1, 12, 12)), heights(1, (1, 12, 12))
    known = torch.ones(1, 12, 12, dtype=torch.bool)
    made = patch_gradient(pred, truth, known, scales=1).item()
    assert made == pytest.approx(numpy_patch_gradient(pred[0].numpy(), truth[0].numpy()), rel=1e-6)
    assert patch_gradient(truth, truth, known).item() == pytest.approx(0, abs=1e-3)
    # a scene twice as tall has the same shape: its logarithm is the same but for a constant
    assert patch_gradient(2 * truth, truth, known).item() == pytest.approx(0, abs=2e-3)
    assert patch_gradient(truth.flip(2), truth, known).item() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences(loss: Loss) -> None:
    pred, truth = heights(2, (1, 8, 8)).requires_grad_(), heights(3, (1, 8, 8))
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda p: loss(p, truth, known), (pred,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_cells_change_neither_value_nor_gradient(loss: Loss) -> None:
    truth, known = heights(1), known_of((2, 16, 16), seed=4)
    spoilt = torch.where(known, truth, torch.nan)
    values, gradients = [], []
    for given in (truth, spoilt):
        pred = heights(0).requires_grad_()
        value = loss(pred, given, known)
        value.backward()  # type: ignore[no-untyped-call]
        assert pred.grad is not None
        values.append(value.item())
        gradients.append(pred.grad)
    assert values[0] == values[1]
    assert torch.equal(*gradients)
    assert torch.isfinite(gradients[1]).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_ground_without_a_known_cell_costs_nothing(loss: Loss) -> None:
    pred = heights(0).requires_grad_()
    value = loss(pred, torch.full((2, 16, 16), torch.nan, dtype=torch.float64), torch.zeros(2, 16, 16) > 0)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0, abs=1e-3)
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()


def test_labels_move_to_where_they_fit_and_no_further() -> None:
    truth = torch.zeros(2, 16, 16)
    truth[:, 5:9, 5:9] = 10
    pred = torch.roll(truth, (1, -1), dims=(1, 2))
    pred[1] = truth[1]
    moved = best_shift(pred, truth, 1)
    known = ~moved.isnan()
    assert torch.equal(moved[known], pred[known])
    assert known[0].sum() == 15 * 15
    assert torch.equal(moved[1], truth[1])
    assert torch.equal(best_shift(pred, truth, 0), truth)
    far = best_shift(torch.roll(truth, 3, dims=1), truth, 1)
    assert torch.isfinite(far[:, 1:-1, 1:-1]).all()


def test_flat_ground_does_not_move() -> None:
    flat = torch.full((1, 8, 8), 2.0)
    assert torch.equal(best_shift(flat, flat, 1), flat)


@pytest.mark.parametrize("spacing", WARPS)
def test_bins_run_from_the_ground_to_the_top_and_find_their_heights(spacing: str) -> None:
    bins = HeightBins(64, 70.0, spacing)
    assert bins.edges_m[0] == 0
    assert bins.edges_m[-1].item() == pytest.approx(70.0, rel=1e-6)
    assert (bins.edges_m.diff() > 0).all()
    torch.testing.assert_close(bins.position(bins.edges_m), torch.arange(65.0), atol=1e-3, rtol=1e-4)
    middles = (bins.edges_m[1:] + bins.edges_m[:-1]) / 2
    assert (bins.position(middles).floor() == torch.arange(64)).all()
    assert bins.position(torch.tensor([-3.0, 99.0])).tolist() == [0.0, 64.0]
    at = torch.tensor([0.3, 4.0, 33.0])
    known = torch.ones(1, 1, 3, dtype=torch.bool)
    logits = -((torch.arange(64.0).view(1, 64, 1, 1) + 0.5 - bins.position(at)) ** 2)
    assert (bins.height_m(logits)[0, 0] - at).abs().max() < 2.5
    assert histogram_loss(logits, at.view(1, 1, 3), known, bins) < histogram_loss(
        logits, 2 * at.view(1, 1, 3), known, bins
    )
    low, middle, high = bins.quantiles_m(logits, (0.05, 0.5, 0.95))[0]
    assert (low < middle).all() and (middle < high).all()


def test_mixed_bins_are_logarithmic_below_and_linear_above() -> None:
    share = torch.linspace(0, 1, 65, dtype=torch.float64)
    expected = (1 - share) * ((1 + 70.0) ** share - 1) + share * (70.0 * share)
    torch.testing.assert_close(HeightBins(64, 70.0, "mixed").edges_m, expected.float())
    widths = {name: HeightBins(64, 70.0, name).edges_m.diff() for name in WARPS}
    assert widths["log"][0] < widths["mixed"][0] < widths["linear"][0]
    assert widths["linear"][-1] < widths["mixed"][-1] < widths["log"][-1]
    with pytest.raises(ModelError, match="no spacing 'cubic'"):
        HeightBins(64, 70.0, "cubic")


def test_a_curriculum_ramps_its_weights() -> None:
    ramp = Ramp(first=1.0, last=0.0, begins=0.2, ends=0.6)
    assert [round(weight_at(ramp, share), 3) for share in (0, 0.2, 0.4, 0.6, 1)] == [1, 1, 0.5, 0, 0]
    step = Ramp(first=0.0, last=2.0, begins=0.5, ends=0.5)
    assert [weight_at(step, share) for share in (0.5, 0.51)] == [0, 2]
    assert weight_at(0.3, 0.9) == 0.3
    LossWeights.model_validate({"silog": {"first": 1, "last": 0, "ends": 0.3}, "charbonnier": {"first": 0, "last": 1}})
    with pytest.raises(ValidationError, match="begin before"):
        Ramp(first=1, last=0, begins=0.6, ends=0.2)
    with pytest.raises(ValidationError, match="every loss term is 0"):
        LossWeights(histogram=0, charbonnier=0, gradient=0)
