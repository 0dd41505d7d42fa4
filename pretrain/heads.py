"""Projection head: from tokens to logits over prototypes."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """MLP, unit sphere, cosine similarity to unit prototypes (Caron et al. 2021, DINO, appendix C).

    Unit prototypes stand for DINO's weight normalisation, its gain fixed at 1 or trained from there.

    Args:
        width: Width of the tokens.
        hidden: Width of the hidden layers.
        bottleneck: Dimensions of the sphere.
        prototypes: Number of prototypes, K.
        layers: Number of linear layers before the sphere.
        gain: Whether each prototype has a trained gain.
    """

    def __init__(
        self, width: int, hidden: int, bottleneck: int, prototypes: int, layers: int = 3, *, gain: bool = False
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])  # no GELU before the sphere
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        # (K, 1), as weight normalisation has it: being a matrix, it decays as in DINOv2's code
        self.prototypes_gain = nn.Parameter(torch.ones(prototypes, 1)) if gain else None
        self.apply(_initialise)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the (..., K) cosine similarities of (..., width) tokens to the prototypes, times their gain."""
        # Both sides are unit vectors, so a logit is a cosine; temperatures divide it in the losses.
        sphere = F.normalize(self.mlp(tokens), dim=-1, eps=1e-6)
        logits = F.linear(sphere, F.normalize(self.prototypes, dim=-1, eps=1e-6))
        return logits if self.prototypes_gain is None else logits * self.prototypes_gain[:, 0]


def _initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers as DINO does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
