"""Height losses and bins, against numpy, finite differences and what they should not notice."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.heads import WARPS, HeightBins
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


def valid_cells(shape: tuple[int, ...], seed: int = 9) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.1


def test_silog_equals_its_equation() -> None:
    pred, truth, valid = heights(0), heights(1), valid_cells((2, 16, 16))
    g = np.log(pred.numpy() + 1e-3) - np.log(truth.numpy() + 1e-3)
    g = g[valid.numpy()]
    expected = np.sqrt(np.mean(g**2) - 0.85 * np.mean(g) ** 2)
    assert silog(pred, truth, valid).item() == pytest.approx(expected, rel=1e-6)
    assert silog(pred, truth, valid).item() == pytest.approx(np.sqrt(g.var() + 0.15 * g.mean() ** 2), rel=1e-6)


def test_charbonnier_equals_numpy() -> None:
    pred, truth = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[4.0, 5.0]]])
    expected = (np.sqrt(9 + 0.01) - 0.1) / 2
    assert charbonnier(pred, truth, torch.ones(1, 1, 2, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_loss_of_a_shifted_height_is_zero() -> None:
    truth = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    assert gradient_loss(truth + 3, truth, valid).item() == pytest.approx(0, abs=1e-6)
    assert gradient_loss(2 * truth, truth, valid).item() > 0.1


def test_histogram_loss_is_least_at_the_true_height() -> None:
    bins = HeightBins(64, 70.0)
    height, valid = torch.full((1, 1, 1), 12.0), torch.ones(1, 1, 1, dtype=torch.bool)
    losses = [
        histogram_loss(peak(bins, torch.tensor([height_m])), height, valid, bins).item()
        for height_m in (6.0, 12.0, 20.0)
    ]
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]


def test_histogram_loss_equals_the_cross_entropy_with_a_gaussian() -> None:
    bins = HeightBins(8, 40.0, "linear")
    logits = torch.randn(1, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    centre = 11.0 / 5
    mass = np.diff(stats.norm.cdf((np.arange(9) - centre) / 0.75))
    expected = -(mass / mass.sum() * logits.log_softmax(dim=1)[0, :, 0, 0].numpy()).sum()
    loss = histogram_loss(logits, torch.full((1, 1, 1), 11.0), torch.ones(1, 1, 1, dtype=torch.bool), bins)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def peak(bins: HeightBins, height_m: Tensor) -> Tensor:
    """Logits (1, bins, 1, n) that peak at heights (n,)."""
    return -((torch.arange(float(bins.bins)).view(1, -1, 1, 1) + 0.5 - bins.position(height_m)) ** 2)


def test_absolute_error_equals_numpy() -> None:
    pred, truth, valid = heights(0), heights(1), valid_cells((2, 16, 16))
    expected = np.abs(pred.numpy() - truth.numpy())[valid.numpy()].mean()
    assert absolute(pred, truth, valid).item() == pytest.approx(expected, rel=1e-9)


def numpy_patch_gradient(pred: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """One scale of the term for one fully valid chip, by scipy's filters."""
    log_pred, log_truth = np.log(pred + 1e-3), np.log(truth + 1e-3)
    gradients = [
        np.stack([ndimage.sobel(z, axis=axis, mode="nearest") / 8 for axis in (1, 0)]) for z in (log_pred, log_truth)
    ]
    steep = [np.sqrt((g**2).sum(axis=0) + 1e-8) for g in gradients]
    inner = np.s_[2:-2, 2:-2]  # all of a square of 5 x 5 must be valid
    total = np.abs(steep[0] - steep[1])[inner].mean()
    for side in (3, 5):
        ranges = [
            ndimage.maximum_filter(z, side, mode="nearest") - ndimage.minimum_filter(z, side, mode="nearest")
            for z in (log_pred, log_truth)
        ]
        total += np.abs(ranges[0] - ranges[1])[inner].mean()
    cosine = (gradients[0] * gradients[1]).sum(axis=0) / (steep[0] * steep[1])
    return float(total + (1 - cosine)[inner][steep[1][inner] > 0.05].mean())


def test_patch_gradient_equals_numpy_at_one_scale() -> None:
    pred, truth = heights(0, (1, 12, 12)), heights(1, (1, 12, 12))
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    assert patch_gradient(pred, truth, valid, scales=1).item() == pytest.approx(
        numpy_patch_gradient(pred[0].numpy(), truth[0].numpy()), rel=1e-6
    )
    assert patch_gradient(truth, truth, valid).item() == pytest.approx(0, abs=1e-3)
    # a scene twice as tall has the same shape: its logarithm is the same but for a constant
    assert patch_gradient(2 * truth, truth, valid).item() == pytest.approx(0, abs=2e-3)
    assert patch_gradient(truth.flip(2), truth, valid).item() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences(loss: Loss) -> None:
    pred, truth = heights(2, (1, 8, 8)).requires_grad_(), heights(3, (1, 8, 8))
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda p: loss(p, truth, valid), (pred,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_cells_change_neither_value_nor_gradient(loss: Loss) -> None:
    truth, valid = heights(1), valid_cells((2, 16, 16), seed=4)
    spoilt = torch.where(valid, truth, torch.nan)
    values, gradients = [], []
    for heights_m in (truth, spoilt):
        pred = heights(0).requires_grad_()
        value = loss(pred, heights_m, valid)
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
    valid = ~moved.isnan()
    assert torch.equal(moved[valid], pred[valid])
    assert valid[0].sum() == 15 * 15
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
    height_m = torch.tensor([0.3, 4.0, 33.0])
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    logits = peak(bins, height_m)
    assert (bins.height_m(logits)[0, 0] - height_m).abs().max() < 2.5
    assert histogram_loss(logits, height_m.view(1, 1, 3), valid, bins) < histogram_loss(
        logits, 2 * height_m.view(1, 1, 3), valid, bins
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
