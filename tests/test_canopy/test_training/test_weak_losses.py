"""Losses of weak labels, against values computed by hand on three bins."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from canopy.evaluation.weak_ground import BARE, FAR, TREE
from canopy.models.heads import HeightBins
from canopy.training.losses import histogram_loss
from canopy.training.weak_losses import (
    FAR_MOST,
    bare_loss,
    far_loss,
    log_mass_above,
    log_mass_below,
    stem_loss,
    tree_loss,
)

BINS = HeightBins(3, 12.0, "linear")
"""Bins of 4 m: 2 m divides the first in halves, 3 m at three quarters."""


def logits(*shares: tuple[float, float, float]) -> Tensor:
    """Return logits (1, 3, 1, n) of distributions over the three bins, cell by cell."""
    return torch.tensor(shares, dtype=torch.float32).log().T[None, :, None]


def labels(*values: float) -> Tensor:
    return torch.tensor([[list(values)]], dtype=torch.float32)


def test_a_bin_that_the_height_divides_counts_in_part() -> None:
    shares = logits((0.5, 0.3, 0.2))
    assert log_mass_below(shares, BINS, 2.0).exp().item() == pytest.approx(0.25)
    assert log_mass_above(shares, BINS, 3.0).exp().item() == pytest.approx(0.5 / 4 + 0.5)
    assert log_mass_above(shares, BINS, 4.0).exp().item() == pytest.approx(0.5)


def test_the_two_sides_of_a_height_make_one_whatever_the_spacing() -> None:
    random = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    for spacing in ("sqrt", "mixed"):
        bins = HeightBins(64, 70.0, spacing)
        whole = log_mass_below(random, bins, 2.0).exp() + log_mass_above(random, bins, 2.0).exp()
        torch.testing.assert_close(whole, torch.ones(2, 3, 3))


def test_far_ground_pays_for_what_lies_above_two_metres_and_no_more_than_the_most() -> None:
    shares = logits((0.5, 0.3, 0.2), (1e-6, 0.5, 0.5), (0.1, 0.1, 0.8))
    # -log(0.25); -log(5e-7) is 14.5, cut off at 6; the third cell has another label
    expected = (-math.log(0.25) + FAR_MOST) / 2
    assert far_loss(shares, labels(FAR, FAR, BARE), BINS).item() == pytest.approx(expected, rel=1e-4)


def test_a_tree_pays_for_the_best_of_nine_cells_alone() -> None:
    shares = torch.full((1, 3, 5, 5), 0.0)
    shares[0, :, 1, 1] = torch.tensor([0.2, 0.4, 0.4]).log()
    shares[0, :, 4, 4] = torch.tensor([0.01, 0.01, 0.98]).log()  # two cells away: out of reach
    labelled = torch.full((1, 5, 5), torch.nan)
    labelled[0, 2, 2] = TREE
    uniform, best = 1 / 12 + 2 / 3, 0.2 / 4 + 0.8
    assert best > uniform
    assert tree_loss(shares, labelled, BINS).item() == pytest.approx(-math.log(best), rel=1e-5)


def test_bare_ground_pays_against_a_histogram_of_zero() -> None:
    # The Gaussian at 0 of width 0.75 bins, cut off at the ground: mass Phi of 1, 2 and 3 bins over 0.75.
    phi = [0.5 * (1 + math.erf(edge / 0.75 / math.sqrt(2))) for edge in range(4)]
    mass = [high - low for low, high in itertools.pairwise(phi)]
    target = [part / sum(mass) for part in mass]
    shares = (0.7, 0.2, 0.1)
    expected = -sum(part * math.log(share) for part, share in zip(target, shares, strict=True))
    assert bare_loss(logits(shares, (0.1, 0.1, 0.8)), labels(BARE, FAR), BINS).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_a_stem_is_compared_with_the_highest_cell_in_reach() -> None:
    shares = torch.zeros(1, 3, 7, 7)
    shares[0, :, 1, 3] = torch.tensor([0.1, 0.1, 0.8]).log()  # two cells above the stem: in reach
    shares[0, :, 5, 5] = torch.tensor([0.01, 0.01, 0.98]).log()  # two down and two right: beyond 2.5 cells
    labelled = torch.full((1, 7, 7), torch.nan)
    labelled[0, 3, 3] = 10.0
    at_stem = torch.zeros(1, 3, 1, 1)
    at_stem[0, :, 0, 0] = shares[0, :, 1, 3]
    expected = histogram_loss(at_stem, torch.full((1, 1, 1), 10.0), torch.ones(1, 1, 1, dtype=torch.bool), BINS)
    assert stem_loss(shares, labelled, BINS).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [far_loss, tree_loss, bare_loss, stem_loss])
def test_chips_without_a_label_give_no_loss_and_no_gradient(loss: object) -> None:
    random = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = loss(random, torch.full((1, 6, 6), torch.nan), BINS)  # type: ignore[operator]
    value.backward()
    assert value.item() == 0
    assert random.grad is not None and not random.grad.any()


def test_gradients_pull_where_the_labels_say() -> None:
    random = torch.zeros(1, 3, 1, 2, requires_grad=True)
    far_loss(random, labels(FAR, FAR), BINS).backward()
    assert random.grad is not None
    assert (random.grad[0, 0] < 0).all() and (random.grad[0, 2] > 0).all(), "descent raises the lowest bin"
