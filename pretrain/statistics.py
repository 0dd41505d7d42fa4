"""What a patch shows, in numbers: its colours and its edges, as targets that need no teacher.

Wei et al. 2022 (MaskFeat, arXiv 2112.09133, section 3.3) predict histograms of hidden patches instead of their pixels;
colours and oriented gradients served best among what is not learnt. Unlike there, a gradient keeps its magnitude, for
a crown differs from a meadow by its contrast.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ReduceOp

from canopy.training.ranks import over_ranks

LEVELS = (0.05, 0.17, 0.29, 0.41, 0.53, 0.65, 0.77)
"""Centres of the soft bins of each channel's histogram."""
BIN_WIDTH = 0.1
DIRECTIONS = 8
SCALES = 3
"""Gradients of the image, and of its averages over 2 and 4 pixels."""
STATISTICS = 3 * len(LEVELS) + SCALES * DIRECTIONS


@torch.no_grad()
def patch_statistics(image: Tensor, patch_px: int) -> Tensor:
    """Colour histograms and histograms of oriented gradients.

    Args:
        image: (n, 3, H, W) RGB in [0, 1].
        patch_px: Side of a patch, a multiple of 4.

    Returns:
        (n, patches, STATISTICS), patches in raster order.
    """
    centres = torch.tensor(LEVELS, device=image.device).view(1, 1, -1, 1, 1)
    members = (image[:, :, None] - centres).square_().mul_(-1 / BIN_WIDTH**2).exp_().flatten(1, 2)
    grey = image.mean(dim=1, keepdim=True)
    parts = [F.avg_pool2d(members, patch_px).flatten(2).movedim(1, 2)]
    parts += [_oriented(F.avg_pool2d(grey, 2**scale), patch_px >> scale) for scale in range(SCALES)]
    return torch.cat(parts, dim=2)


def _oriented(grey: Tensor, side: int) -> Tensor:
    """Mean magnitude of the gradients of each direction: (n, 1, H, W) to (n, patches of a side, DIRECTIONS)."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    place = torch.atan2(down, across).remainder(math.pi) / math.pi * DIRECTIONS
    channel, magnitude = (
        F.pixel_unshuffle(values, side).flatten(2).movedim(1, 2)
        for values in (place.long().clamp(max=DIRECTIONS - 1), torch.hypot(across, down))
    )
    histogram = magnitude.new_zeros(*magnitude.shape[:2], DIRECTIONS)
    return histogram.scatter_add(2, channel, magnitude) / side**2


class Standardiser(nn.Module):
    """Running mean and variance of targets, over all ranks.

    Args:
        count: Numbers in a target.
        momentum: Of the running values.
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, count: int = STATISTICS, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("square", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def forward(self, targets: Tensor) -> Tensor:
        """(n, patches, count) to the same with mean 0 and variance 1; takes them in first."""
        flat = targets.flatten(0, 1)
        count = over_ranks(flat.new_tensor(float(len(flat))), ReduceOp.SUM)
        keep = self.momentum * self.seen
        self.mean.lerp_(over_ranks(flat.sum(dim=0)) / count, 1 - keep)
        self.square.lerp_(over_ranks(flat.square().sum(dim=0)) / count, 1 - keep)
        self.seen.fill_(1)
        return (targets - self.mean) / (self.square - self.mean.square()).clamp(min=1e-6).sqrt()
