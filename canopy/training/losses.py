"""Height losses over valid cells. Each takes metres or logits and a mask, and returns a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.models.heads import HeightBins

FLAT = 0.05
"""Gradient of the logarithm of the true height below which ground has no direction."""
LOG_FLOOR_M = 1e-3


def histogram_loss(logits: Tensor, height_m: Tensor, valid: Tensor, bins: HeightBins, sigma: float = 0.75) -> Tensor:
    """Return the cross-entropy against a Gaussian histogram of the true height.

    After Imani and White 2018, and Farebrother et al. 2024. The Gaussian lies on the axis of the bins (square root of
    height), so its width in metres grows with height, as the error of a lidar height at a crown's edge does.

    Args:
        logits: (B, bins, H, W) unnormalised log-probabilities.
        height_m: (B, H, W) metres; any value where not valid.
        valid: (B, H, W) bool.
        bins: Height bins of the head.
        sigma: Standard deviation of the Gaussian, in bins.
    """
    position = bins.position(torch.where(valid, height_m, 0.0)).float()
    edges = torch.arange(bins.bins + 1, device=logits.device, dtype=torch.float32).view(1, -1, 1, 1)
    # mass of the Gaussian in each bin: Phi((upper edge - height) / sigma) - Phi((lower edge - height) / sigma)
    below = torch.special.ndtr((edges - position[:, None]) / sigma)
    mass = below[:, 1:] - below[:, :-1]
    # part of the Gaussian lies below the ground or above the last bin: normalised, the target still sums to 1
    target = mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-6)
    entropy = -(target * logits.float().log_softmax(dim=1)).sum(dim=1)
    return masked_mean(entropy, valid)


def charbonnier(pred_m: Tensor, height_m: Tensor, valid: Tensor, epsilon_m: float = 0.1) -> Tensor:
    """Return the smooth absolute error, sqrt(d^2 + e^2) - e (Charbonnier et al. 1994), metres, over (B, H, W)."""
    difference = torch.where(valid, pred_m - height_m, 0.0)
    return masked_mean((difference.square() + epsilon_m**2).sqrt() - epsilon_m, valid)


def absolute(pred_m: Tensor, height_m: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute error (L1), metres, over (B, H, W)."""
    return masked_mean(torch.where(valid, pred_m - height_m, 0.0).abs(), valid)


def silog(pred_m: Tensor, height_m: Tensor, valid: Tensor, lam: float = 0.85) -> Tensor:
    """Return the root of the scale-invariant error of log heights (Eigen et al. 2014, equation 4), over (B, H, W).

    With ``g`` the difference of the logarithms: ``sqrt(var(g) + (1 - lam) mean(g)^2)``. A wrong scale costs little, a
    wrong pattern much. CHMv1 and CHMv2 start from it.
    """
    g = torch.where(valid, _log(pred_m) - _log(torch.where(valid, height_m, 0.0)), 0.0)
    mean = masked_mean(g, valid)
    # mean(g^2) - lam mean(g)^2 = var(g) + (1 - lam) mean(g)^2; the floor keeps the root's gradient finite at 0
    return (masked_mean(g.square(), valid) - lam * mean.square()).clamp_min(1e-8).sqrt()


def patch_gradient(pred_m: Tensor, height_m: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Return how far the shapes of patches differ, whatever their height: edges, relief and direction of log heights.

    After CHMv2 (Brandt et al. 2026), over (B, H, W): at full, half and quarter scale, mean absolute differences of
    Sobel magnitude and of the range within 3 x 3 and 5 x 5 cells, and one minus the cosine between the gradients where
    the truth has one. Each term is a difference of neighbours, so centring the logarithms on their mean, as CHMv2
    does, would change nothing.
    """
    log_pred, log_truth = _log(pred_m)[:, None], _log(torch.where(valid, height_m, 0.0))[:, None]
    weight = valid[:, None].float()
    total = log_pred.new_zeros(())
    for scale in range(scales):
        if scale:
            log_pred, log_truth = (_valid_pool(image, weight) for image in (log_pred, log_truth))
            weight = -F.max_pool2d(-weight, 2)
        # only cells whose whole square of 5 x 5 is valid: the heights of others are not true
        inside = -F.max_pool2d(-F.pad(weight, (2, 2, 2, 2)), 5, stride=1) > 0
        slope, true_slope = _sobel(log_pred), _sobel(log_truth)
        steepness = slope.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
        true_steepness = true_slope.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
        total = total + masked_mean((steepness - true_steepness).abs(), inside)
        for side in (3, 5):
            total = total + masked_mean((_range(log_pred, side) - _range(log_truth, side)).abs(), inside)
        cosine = (slope * true_slope).sum(dim=1, keepdim=True) / (steepness * true_steepness)
        total = total + masked_mean(1 - cosine, inside & (true_steepness > FLAT))
    return total / scales


def gradient_loss(pred_m: Tensor, height_m: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Return the mean absolute difference of gradients at several scales, over (B, H, W).

    After Li and Snavely 2018, section 4.
    """
    difference = torch.where(valid, pred_m - height_m, 0.0)[:, None]
    weight = valid[:, None].float()
    total = difference.new_zeros(())
    for _ in range(scales):
        for axis in (-1, -2):
            step = difference.diff(dim=axis).abs()
            # a step counts where both of its cells are valid
            both = weight.unfold(axis, 2, 1).amin(dim=-1)
            total = total + (step * both).sum() / both.sum().clamp_min(1)
        difference, weight = F.avg_pool2d(difference, 2), -F.max_pool2d(-weight, 2)
    return total / (2 * scales)


def best_shift(pred_m: Tensor, height_m: Tensor, cells: int) -> Tensor:
    """Move heights by up to `cells`, each chip to where it fits the prediction best by mean absolute error.

    For labels whose registration is no better than a cell; cells moved in from beyond the chip are unknown.

    Args:
        pred_m: (B, H, W) metres.
        height_m: (B, H, W) metres, NaN where unknown.
        cells: Largest move along each axis; 0 leaves the heights alone.

    Returns:
        (B, H, W) metres, NaN where unknown.
    """
    if cells == 0:
        return height_m
    padded = F.pad(height_m, (cells,) * 4, value=torch.nan)
    rows, cols = height_m.shape[-2:]
    span = range(2 * cells + 1)
    moved = torch.stack([padded[:, r : r + rows, c : c + cols] for r in span for c in span])
    # all moves are compared over the same inner cells, to which none brings cells from beyond the chip
    inner = (slice(None), slice(None), slice(cells, rows - cells), slice(cells, cols - cells))
    errors = (moved - pred_m.detach())[inner].abs().flatten(2).nanmean(dim=2)
    centre = errors[len(moved) // 2]
    best = torch.where(errors.isnan(), torch.inf, errors).argmin(dim=0)
    # equal errors, as over flat ground, are no reason to move
    better = errors.gather(0, best[None])[0] < centre - 1e-6
    best = torch.where(better, best, len(moved) // 2)
    return moved[best, torch.arange(len(height_m), device=best.device)]


def _log(height_m: Tensor) -> Tensor:
    return (height_m.clamp_min(0) + LOG_FLOOR_M).log()


def _valid_pool(image: Tensor, weight: Tensor) -> Tensor:
    """Return means of 2 x 2 over valid cells."""
    return F.avg_pool2d(image * weight, 2) / F.avg_pool2d(weight, 2).clamp_min(0.25)


def _sobel(image: Tensor) -> Tensor:
    """Return the gradient (B, 2, H, W) of (B, 1, H, W)."""
    across = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernel = torch.stack([across, across.T])[:, None]
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)


def _range(image: Tensor, side: int) -> Tensor:
    """Return the largest value less the smallest within a square around each cell."""
    reach = side // 2
    padded = F.pad(image, (reach,) * 4, mode="replicate")
    return F.max_pool2d(padded, side, stride=1) + F.max_pool2d(-padded, side, stride=1)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over valid cells; 0 where no cell is valid."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp_min(1)
