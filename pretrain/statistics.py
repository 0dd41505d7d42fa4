"""Colours and edges of a patch in numbers: targets that need no teacher.

Wei et al. 2022 (MaskFeat, arXiv 2112.09133, section 3.3) predict histograms of hidden patches instead of their pixels;
colours and oriented gradients served best among features that are not learnt. Unlike there, a gradient keeps its
magnitude, for a crown differs from a meadow by its contrast.
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
    """Return histograms of colour and of oriented gradients for every patch.

    Args:
        image: (n, 3, H, W) float32 RGB in [0, 1].
        patch_px: Side of a patch, a multiple of 4.

    Returns:
        (n, patches, STATISTICS) float32, patches in raster order.
    """
    centres = torch.tensor(LEVELS, device=image.device).view(1, 1, -1, 1, 1)
    # In place: the seven memberships of every pixel are the largest tensor of a step.
    members = (image[:, :, None] - centres).square_().mul_(-1 / BIN_WIDTH**2).exp_().flatten(1, 2)
    grey = image.mean(dim=1, keepdim=True)
    parts = [F.avg_pool2d(members, patch_px).flatten(2).movedim(1, 2)]
    parts += [_oriented(F.avg_pool2d(grey, 2**scale), patch_px >> scale) for scale in range(SCALES)]
    return torch.cat(parts, dim=2)


def _oriented(grey: Tensor, side_px: int) -> Tensor:
    """Return the mean magnitude of the gradients of each direction.

    Args:
        grey: (n, 1, H, W) float32.
        side_px: Side of a patch.

    Returns:
        (n, patches, DIRECTIONS) float32.
    """
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    # Angles a half turn apart are one direction: an edge has no front.
    direction = torch.atan2(down, across).remainder(math.pi) / math.pi * DIRECTIONS
    channel, magnitude = (
        F.pixel_unshuffle(values, side_px).flatten(2).movedim(1, 2)
        for values in (direction.long().clamp(max=DIRECTIONS - 1), torch.hypot(across, down))
    )
    histogram = magnitude.new_zeros(*magnitude.shape[:2], DIRECTIONS)
    return histogram.scatter_add(2, channel, magnitude) / side_px**2


class Standardiser(nn.Module):
    """Running mean and variance of targets, over all ranks.

    Args:
        count: Number of values in a target.
        momentum: Momentum of the running mean and variance.
    """

    mean: Tensor
    square: Tensor

    def __init__(self, count: int = STATISTICS, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("square", torch.zeros(count))
        # 0 before the first batch, then 1; the name is stored in checkpoints
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def forward(self, targets: Tensor) -> Tensor:
        """Take targets into the running values, then bring the targets to mean 0 and variance 1.

        Args:
            targets: (n, patches, count) float32.
        """
        flat = targets.flatten(0, 1)
        count = over_ranks(flat.new_tensor(float(len(flat))), ReduceOp.SUM)
        started = self.get_buffer("seen")
        keep = self.momentum * started  # the first batch replaces the zeros
        self.mean.lerp_(over_ranks(flat.sum(dim=0)) / count, 1 - keep)
        self.square.lerp_(over_ranks(flat.square().sum(dim=0)) / count, 1 - keep)
        started.fill_(1)
        return (targets - self.mean) / (self.square - self.mean.square()).clamp(min=1e-6).sqrt()
