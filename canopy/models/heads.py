"""Height bins: from a distribution over bins to a height, its quantiles, and back to a position among the bins."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from canopy.errors import ModelError
from canopy.models.bundle import Decode


def _mixed(share: Tensor, max_m: float) -> Tensor:
    """Return the spacing of CHMv2's kind: the share weighs the linear axis against the logarithmic one."""
    return (1 - share) * ((1 + max_m) ** share - 1) + share * share * max_m


WARPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sqrt": lambda share, max_m: max_m * share**2,
    "linear": lambda share, max_m: max_m * share,
    "log": lambda share, max_m: (1 + max_m) ** share - 1,
    "mixed": _mixed,
}
"""Height at a share of the axis of bins, from 0 to 1, by spacing."""


class HeightBins(nn.Module):
    """Height bins that are even on an axis on which height is warped: fine near the ground, coarse in tall crowns.

    A softmax over the bins is a distribution of the pixel's height; its median or its mean is the height. Classifying
    into ordered bins and decoding by expectation follows AdaBins (Bhat et al. 2021, section 3). The median is the
    height of least absolute error: a thin tail of tall bins does not lift bare ground off 0.

    Args:
        bins: Number of bins.
        max_m: Upper edge of the last bin, metres.
        spacing: ``sqrt``, ``linear``, ``log`` (of 1 m more than the height), or ``mixed``: from log at the ground to
            linear at the top (after Brandt et al. 2026, whose bins change from one to the other in the same way).
    """

    centres_m: Tensor
    edges_m: Tensor

    def __init__(self, bins: int, max_m: float, spacing: str = "sqrt") -> None:
        super().__init__()
        if spacing not in WARPS:
            raise ModelError(f"no spacing {spacing!r} of height bins: {', '.join(WARPS)} expected")
        self.bins, self.max_m, self.spacing = bins, max_m, spacing
        # In float64, rounded once: edges of narrow bins near the ground stay apart.
        edges_m = self._metres(torch.linspace(0, 1, bins + 1, dtype=torch.float64))
        self.register_buffer("edges_m", edges_m.float(), persistent=False)
        self.register_buffer("centres_m", ((edges_m[1:] + edges_m[:-1]) / 2).float(), persistent=False)

    def _metres(self, share: Tensor) -> Tensor:
        """Return the height at a share of the axis of bins."""
        height_m: Tensor = WARPS[self.spacing](share, self.max_m)
        return height_m

    def height_m(self, logits: Tensor) -> Tensor:
        """Return the expected height.

        Args:
            logits: (B, bins, H, W) unnormalised log-probabilities.

        Returns:
            (B, H, W) float32 metres.
        """
        # Bins last: the softmax then reads memory in order, which saves a tenth of a network's time in OpenVINO.
        return (logits.float().permute(0, 2, 3, 1).softmax(dim=-1) * self.centres_m).sum(dim=-1)

    def median_m(self, logits: Tensor) -> Tensor:
        """Return the median height, linear within a bin: (B, bins, H, W) logits to (B, H, W) float32 metres."""
        return self.quantiles_m(logits, (0.5,))[:, 0]

    def decoded_m(self, logits: Tensor, decode: Decode) -> Tensor:
        """Return the median or the mean height: (B, bins, H, W) logits to (B, H, W) float32 metres."""
        return self.median_m(logits) if decode == "median" else self.height_m(logits)

    def quantiles_m(self, logits: Tensor, levels: Sequence[float]) -> Tensor:
        """Return quantiles of the distribution over bins, linear within a bin.

        Args:
            logits: (B, bins, H, W) unnormalised log-probabilities.
            levels: Levels of the quantiles, between 0 and 1.

        Returns:
            (B, len(levels), H, W) float32 metres.
        """
        shares = logits.float().softmax(dim=1)
        cumulative = shares.cumsum(dim=1)
        quantiles_m = []
        for level in levels:
            # The bin in which the cumulative share passes the level, and how far into it the level lies.
            index = (cumulative < level).sum(dim=1, keepdim=True).clamp(max=self.bins - 1)
            share, upto = shares.gather(1, index), cumulative.gather(1, index)
            inside = ((level - upto) / share.clamp_min(1e-12) + 1).clamp(0, 1)
            quantiles_m.append(self._metres((index + inside) / self.bins))
        return torch.cat(quantiles_m, dim=1)

    def position(self, height_m: Tensor) -> Tensor:
        """Return the position of a height on the axis of bins, in bins: 0 at the ground, `bins` at `max_m`."""
        height_m = height_m.clamp(0, self.max_m)
        # The square root has an inverse; the other spacings are inverted between the edges of the bin.
        if self.spacing == "sqrt":
            return self.bins * (height_m / self.max_m).sqrt()
        upper = torch.searchsorted(self.edges_m, height_m.contiguous(), right=True).clamp(1, self.bins)
        low, high = self.edges_m[upper - 1], self.edges_m[upper]
        return upper - 1 + (height_m - low) / (high - low)


class LinearBins(nn.Module):
    """Height bins at equal steps, weighted by rectified logits with an offset: CHMv1's head.

    After Tolan et al. 2024 (RSE 300:113888) as released: bins run from 0.0001 to 1 times `max_m`, and a weight is
    ``relu(logit) + 0.1`` over the sum of all.

    Args:
        bins: Number of bins.
        max_m: Height of the last bin, metres.
    """

    OFFSET = 0.1
    FIRST = 1e-4
    """Height of the first bin, as a share of `max_m`."""

    heights_m: Tensor

    def __init__(self, bins: int, max_m: float) -> None:
        super().__init__()
        heights_m = torch.linspace(self.FIRST * max_m, max_m, bins, dtype=torch.float64).float()
        self.register_buffer("heights_m", heights_m, persistent=False)

    def height_m(self, logits: Tensor) -> Tensor:
        """Return the weighted mean of the bins: (B, bins, H, W) logits to (B, H, W) float32 metres."""
        weights = logits.float().relu() + self.OFFSET
        return torch.einsum("bkhw,k->bhw", weights, self.heights_m) / weights.sum(dim=1)
