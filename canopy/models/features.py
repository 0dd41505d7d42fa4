"""Features of a model's encoder, averaged over the ground of a lidar footprint."""

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.models.network import PATCH_PX

REACH_SIGMA = 3
"""Half width of the window of a Gaussian footprint, in standard deviations."""


def footprint_mean(tokens: Tensor, sigma_m: float, gsd_m: float) -> Tensor:
    """Return the mean of tokens over a Gaussian footprint around each patch.

    Args:
        tokens: (B, C, h, w) tokens of patches.
        sigma_m: Standard deviation of the footprint, metres.
        gsd_m: Ground sampling distance of the image, metres.

    Returns:
        (B, C, h, w) means; beyond the edge, the edge's tokens are repeated.
    """
    sigma = sigma_m / (PATCH_PX * gsd_m)
    reach = max(1, round(REACH_SIGMA * sigma))
    weights = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(tokens, (reach, reach, reach, reach), mode="replicate")
    channels = tokens.shape[1]
    # A Gaussian is separable: one pass along the rows, one along the columns.
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
