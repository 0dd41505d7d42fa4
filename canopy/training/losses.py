"""Height losses over known cells. Each takes metres or logits and a mask, and returns a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.models.heads import HeightBins


def histogram_loss(logits: Tensor, height_m: Tensor, known: Tensor, bins: HeightBins, sigma: float = 0.75) -> Tensor:
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


def absolute(pred_m: Tensor, height_m: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error (L1), metres, over (B, H, W)."""
    return _mean(torch.where(known, pred_m - height_m, 0.0).abs(), known)


def silog(pred_m: Tensor, height_m: Tensor, known: Tensor, lam: float = 0.85) -> Tensor:
    """Scale-invariant error of log heights (Eigen et al. 2014, equation 4), its root, over (B, H, W).

    With ``g`` the difference of the logarithms: ``sqrt(var(g) + (1 - lam) mean(g)^2)``; a wrong scale costs little, a
    wrong pattern much. CHMv1 and CHMv2 start from it.
    """
    g = torch.where(known, _log(pred_m) - _log(torch.where(known, height_m, 0.0)), 0.0)
    mean = _mean(g, known)
    return (_mean(g.square(), known) - lam * mean.square()).clamp_min(1e-8).sqrt()


def patch_gradient(pred_m: Tensor, height_m: Tensor, known: Tensor, scales: int = 3) -> Tensor:
    """How patches are shaped, whatever their height: edges, relief and direction of log heights, over (B, H, W).

    After CHMv2 (Brandt et al. 2026): at full, half and quarter scale, mean absolute differences of Sobel magnitude and
    of the range within 3 x 3 and 5 x 5 cells, and one minus the cosine between the gradients where the truth has one.
    Each term is a difference of neighbours, so centring the logarithms on their mean, as there, would change nothing.
    """
    one, other = _log(pred_m)[:, None], _log(torch.where(known, height_m, 0.0))[:, None]
    weight = known[:, None].float()
    total = one.new_zeros(())
    for scale in range(scales):
        if scale:
            one, other = (_known_pool(image, weight) for image in (one, other))
            weight = -F.max_pool2d(-weight, 2)
        inside = -F.max_pool2d(-F.pad(weight, (2, 2, 2, 2)), 5, stride=1) > 0
        mine, theirs = _sobel(one), _sobel(other)
        steep = mine.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
        true_steep = theirs.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
        total = total + _mean((steep - true_steep).abs(), inside)
        for side in (3, 5):
            total = total + _mean((_range(one, side) - _range(other, side)).abs(), inside)
        cosine = (mine * theirs).sum(dim=1, keepdim=True) / (steep * true_steep)
        total = total + _mean(1 - cosine, inside & (true_steep > FLAT))
    return total / scales


def best_shift(pred_m: Tensor, height_m: Tensor, cells: int) -> Tensor:
    """Heights moved by up to `cells`, each chip to where it fits the prediction best by mean absolute error.

    For labels whose registration is no better than a cell; what is moved in from beyond the chip is unknown.

    Args:
        pred_m: (B, H, W).
        height_m: (B, H, W), NaN where unknown.
        cells: Largest move along each axis; 0 leaves the heights alone.

    Returns:
        (B, H, W), NaN where unknown.
    """
    if cells == 0:
        return height_m
    padded = F.pad(height_m, (cells,) * 4, value=torch.nan)
    rows, cols = height_m.shape[-2:]
    span = range(2 * cells + 1)
    moved = torch.stack([padded[:, r : r + rows, c : c + cols] for r in span for c in span])
    inner = (slice(None), slice(None), slice(cells, rows - cells), slice(cells, cols - cells))
    errors = (moved - pred_m.detach())[inner].abs().flatten(2).nanmean(dim=2)
    centre = errors[len(moved) // 2]
    best = torch.where(errors.isnan(), torch.inf, errors).argmin(dim=0)
    # equal errors, as over flat ground, are no reason to move
    better = errors.gather(0, best[None])[0] < centre - 1e-6
    best = torch.where(better, best, len(moved) // 2)
    return moved[best, torch.arange(len(height_m), device=best.device)]


FLAT = 0.05
LOG_FLOOR_M = 1e-3


def _log(height_m: Tensor) -> Tensor:
    return (height_m.clamp_min(0) + LOG_FLOOR_M).log()


def _known_pool(image: Tensor, weight: Tensor) -> Tensor:
    """Means of 2 x 2 over known cells."""
    return F.avg_pool2d(image * weight, 2) / F.avg_pool2d(weight, 2).clamp_min(0.25)


def _sobel(image: Tensor) -> Tensor:
    """Gradient (B, 2, H, W) of (B, 1, H, W)."""
    across = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernel = torch.stack([across, across.T])[:, None]
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)


def _range(image: Tensor, side: int) -> Tensor:
    """Largest less smallest within a square about each cell."""
    reach = side // 2
    padded = F.pad(image, (reach,) * 4, mode="replicate")
    return F.max_pool2d(padded, side, stride=1) + F.max_pool2d(-padded, side, stride=1)


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
