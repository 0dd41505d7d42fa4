"""Features of a model's encoder, averaged over the ground that a footprint sees."""

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH_PX = 16


def pooled(tokens: Tensor, sigma_m: float, gsd_m: float) -> Tensor:
    """Tokens (B, C, h, w) averaged over a Gaussian footprint around each."""
    sigma = sigma_m / (PATCH_PX * gsd_m)
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(tokens, (reach, reach, reach, reach), mode="replicate")
    channels = tokens.shape[1]
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
