"""Height losses over known cells. Each takes metres or logits and a mask, and returns a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.models.heads import SqrtBins


def histogram_loss(logits: Tensor, height_m: Tensor, known: Tensor, bins: SqrtBins, sigma: float = 0.75) -> Tensor:
    """Cross-entropy against a Gaussian histogram of the true height (Imani and White 2018; Farebrother et al. 2024).

    The Gaussian is laid on the axis of the bins (square root of height), so its width in metres grows with height,
    as the error of a lidar height at a crown's edge does.

    Args:
        logits: (B, bins, H, W).
        height_m: (B, H, W) metres; anything where unknown.
        known: (B, H, W) bool.
        bins: The head's bins.
        sigma: Standard deviation of the Gaussian, in bins.
    """
    at = bins.position(torch.where(known, height_m, 0.0)).float()
    edges = torch.arange(bins.bins + 1, device=logits.device, dtype=torch.float32).view(1, -1, 1, 1)
    below = torch.special.ndtr((edges - at[:, None]) / sigma)
    mass = below[:, 1:] - below[:, :-1]
    target = mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-6)
    entropy = -(target * logits.float().log_softmax(dim=1)).sum(dim=1)
    return _mean(entropy, known)


def charbonnier(pred_m: Tensor, height_m: Tensor, known: Tensor, epsilon_m: float = 0.1) -> Tensor:
    """Smooth absolute error, sqrt(d^2 + e^2) - e (Charbonnier et al. 1994), metres, over (B, H, W)."""
    difference = torch.where(known, pred_m - height_m, 0.0)
    return _mean((difference.square() + epsilon_m**2).sqrt() - epsilon_m, known)


def gradient_loss(pred_m: Tensor, height_m: Tensor, known: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of gradients at several scales (Li and Snavely 2018, section 4), over (B, H, W)."""
    difference = torch.where(known, pred_m - height_m, 0.0)[:, None]
    weight = known[:, None].float()
    total = difference.new_zeros(())
    for _ in range(scales):
        for axis in (-1, -2):
            step = difference.diff(dim=axis).abs()
            both = weight.unfold(axis, 2, 1).amin(dim=-1)
            total = total + (step * both).sum() / both.sum().clamp_min(1)
        difference, weight = F.avg_pool2d(difference, 2), -F.max_pool2d(-weight, 2)
    return total / (2 * scales)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)
