"""Height bins: how a distribution over bins is made from a height, and a height from it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SqrtBins(nn.Module):
    """Height bins of equal width in the square root of height: fine near the ground, coarse in tall crowns.

    A softmax over the bins is a distribution of the pixel's height; its mean is the height. Classifying
    into ordered bins and decoding by expectation follows AdaBins (Bhat et al. 2021, section 3).

    Args:
        bins: Number of bins.
        max_m: Upper edge of the last bin, metres.
    """

    centres_m: Tensor

    def __init__(self, bins: int, max_m: float) -> None:
        super().__init__()
        self.bins, self.max_m = bins, max_m
        edges_m = max_m * torch.linspace(0, 1, bins + 1, dtype=torch.float64) ** 2
        self.register_buffer("centres_m", ((edges_m[1:] + edges_m[:-1]) / 2).float(), persistent=False)

    def height_m(self, logits: Tensor) -> Tensor:
        """Expected height.

        Args:
            logits: (B, bins, H, W) unnormalised log-probabilities.

        Returns:
            (B, H, W) float32 metres.
        """
        return torch.einsum("bkhw,k->bhw", logits.float().softmax(dim=1), self.centres_m)

    def quantiles_m(self, logits: Tensor, levels: Sequence[float]) -> Tensor:
        """Quantiles of the distribution over bins, linear within a bin.

        Args:
            logits: (B, bins, H, W) unnormalised log-probabilities.
            levels: Between 0 and 1.

        Returns:
            (B, len(levels), H, W) float32 metres.
        """
        shares = logits.float().softmax(dim=1)
        below = shares.cumsum(dim=1)
        found = []
        for level in levels:
            place = (below < level).sum(dim=1, keepdim=True).clamp(max=self.bins - 1)
            share, upto = shares.gather(1, place), below.gather(1, place)
            inside = ((level - upto) / share.clamp_min(1e-12) + 1).clamp(0, 1)
            found.append(self.max_m * ((place + inside) / self.bins) ** 2)
        return torch.cat(found, dim=1)

    def position(self, height_m: Tensor) -> Tensor:
        """Where a height lies on the axis of bins, in bins: 0 at the ground, `bins` at `max_m`."""
        return self.bins * (height_m.clamp(0, self.max_m) / self.max_m).sqrt()
