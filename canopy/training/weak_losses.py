"""Losses of weak labels on the distribution over height bins: what a label says of a height that was not measured.

A label that only bounds a height is a censored observation: its likelihood is the mass of the bins that it leaves. A
hinge on the expected height would do less: it is met by a mode at the ground with a thin tail, and the median of a tree
is then 0. Labels are those of `canopy.evaluation.weak_ground`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.evaluation.weak_ground import BARE, FAR, TREE
from canopy.models.heads import HeightBins
from canopy.training.losses import histogram_loss, masked_mean

FAR_M = 2.0
"""Height that ground without trees stays below: shrubs may grow there."""
TREE_M = 3.0
"""Height that a tree's top reaches."""
FAR_MOST = 6.0
"""Largest loss of a cell without trees: one where a tree was overlooked does not rule the batch."""
STEM_REACH = 2
"""Cells between a stem's foot and the top of its crown: crowns lean, and positions are a metre or two off."""


def log_mass_above(logits: Tensor, bins: HeightBins, height_m: float) -> Tensor:
    """Return the logarithm of the probability that a height is above `height_m`.

    Args:
        logits: (B, bins, H, W) unnormalised log-probabilities.
        bins: Height bins of the head.
        height_m: Height, metres; a bin that it divides counts with the part above it.

    Returns:
        (B, H, W) log-probabilities.
    """
    return _log_mass(logits, 1 - _part_below(bins, height_m, logits))


def log_mass_below(logits: Tensor, bins: HeightBins, height_m: float) -> Tensor:
    """Return the logarithm of the probability that a height is below `height_m`: as `log_mass_above`."""
    return _log_mass(logits, _part_below(bins, height_m, logits))


def bare_loss(logits: Tensor, labels: Tensor, bins: HeightBins) -> Tensor:
    """Return the cross-entropy against the histogram of height 0 over bare cells.

    Args:
        logits: (B, bins, H, W) unnormalised log-probabilities.
        labels: (B, H, W) labels.
        bins: Height bins of the head.
    """
    return histogram_loss(logits, torch.zeros_like(labels), labels == BARE, bins)


def far_loss(logits: Tensor, labels: Tensor, bins: HeightBins) -> Tensor:
    """Return the mean of -log P(height below `FAR_M`), each at most `FAR_MOST`, over ground without trees."""
    surprise = -log_mass_below(logits, bins, FAR_M)
    return masked_mean(surprise.clamp(max=FAR_MOST), labels == FAR)


def tree_loss(logits: Tensor, labels: Tensor, bins: HeightBins) -> Tensor:
    """Return the mean of -log P(height above `TREE_M`) over trees, each at its best cell of 3 x 3.

    A point lies within a cell or so of the crown's middle, so one cell of the nine has to be a tree.
    """
    best = F.max_pool2d(log_mass_above(logits, bins, TREE_M)[:, None], 3, stride=1, padding=1)[:, 0]
    return masked_mean(-best, labels == TREE)


def stem_loss(logits: Tensor, labels: Tensor, bins: HeightBins) -> Tensor:
    """Return the cross-entropy against the histogram of each stem's height, at the highest cell within reach of it.

    The cell is chosen by expected height, among those at most `STEM_REACH` cells and half a cell away.
    """
    chip, row, col = torch.nonzero(labels > 0, as_tuple=True)
    if not len(chip):
        return logits.sum() * 0.0
    rows, cols = labels.shape[-2:]
    span = torch.arange(-STEM_REACH, STEM_REACH + 1, device=labels.device)
    down, right = (offset.flatten() for offset in torch.meshgrid(span, span, indexing="ij"))
    near = down.square() + right.square() <= (STEM_REACH + 0.5) ** 2
    # (n, k) cells around each stem; those beyond the chip are never the highest
    row, col = row[:, None] + down[near], col[:, None] + right[near]
    inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    row, col = row.clamp(0, rows - 1), col.clamp(0, cols - 1)
    expected_m = torch.where(inside, bins.height_m(logits.detach())[chip[:, None], row, col], -1.0)
    highest = expected_m.argmax(dim=1, keepdim=True)
    row, col = row.gather(1, highest)[:, 0], col.gather(1, highest)[:, 0]
    height_m = labels[labels > 0].view(-1, 1, 1)
    return histogram_loss(logits[chip, :, row, col][..., None, None], height_m, height_m > 0, bins)


WEAK_LOSSES = {"bare": bare_loss, "far": far_loss, "trees": tree_loss, "stems": stem_loss}
"""Losses of weak labels, by their names in `LossWeights`."""


def _part_below(bins: HeightBins, height_m: float, like: Tensor) -> Tensor:
    """Return the part (bins,) of each bin that lies below a height, on the axis on which a bin is even."""
    position = bins.position(torch.tensor([height_m], device=like.device)).float()
    return (position - torch.arange(bins.bins, device=like.device)).clamp(0, 1)


def _log_mass(logits: Tensor, parts: Tensor) -> Tensor:
    """Return the logarithm of the mass (B, H, W) of parts (bins,) of the bins, none of which may be all."""
    used = parts > 0
    shares = logits.float().log_softmax(dim=1)[:, used]
    return torch.logsumexp(shares + parts[used].log().view(1, -1, 1, 1), dim=1)
