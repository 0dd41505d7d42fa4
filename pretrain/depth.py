"""Stochastic depth: residual branches that are left out for some images of a batch (Huang et al. 2016)."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from canopy.errors import ConfigError
from pretrain.batch import rank_rows


class BatchDropPath(nn.Module):
    """Stochastic depth whose draws do not depend on the number of ranks (Huang et al. 2016, arXiv 1603.09382).

    Every rank draws for the whole batch and takes its rows: all generators are seeded by the step. timm's own would
    drop the same branches for the first image of every rank.

    Args:
        rate: Share of the images for which a branch is dropped.
        batch: Tiles of a batch over all ranks.

    Raises:
        TrainingError: The ranks do not divide the batch.
    """

    def __init__(self, rate: float, batch: int) -> None:
        super().__init__()
        self.rate, self.batch, self.rows = rate, batch, rank_rows(batch)

    def forward(self, tokens: Tensor) -> Tensor:
        """Drop or amplify the branch of each image; tokens are (C B, N, D), crop by crop."""
        if not self.training:
            return tokens
        crops, kept_share = len(tokens) // len(self.rows), 1 - self.rate
        factor = tokens.new_empty(crops, self.batch).bernoulli_(kept_share).div_(kept_share)
        own = factor[:, self.rows.start : self.rows.stop].reshape(-1, *[1] * (tokens.ndim - 1))
        return tokens * own


class SubsetBlock(Block):
    """A block that computes its branches for the images alone that keep them (Oquab et al. 2024, DINOv2, section 5).

    The number of images that keep a branch is exact, and drawn from a rank's own rows: two ranks draw other images than
    one does.
    """

    rate: float
    """Share of the images that leave a branch out."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Add both branches, each to its own random images; tokens are (n, N, D)."""
        if not self.training:
            return super().forward(x, attn_mask, is_causal)
        x = self._add(x, lambda tokens: self.ls1(self.attn(self.norm1(tokens))))
        return self._add(x, lambda tokens: self.ls2(self.mlp(self.norm2(tokens))))

    def _add(self, tokens: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a branch to a random subset, amplified so that its mean over draws is that of the whole branch."""
        images = len(tokens)
        chosen = max(1, round(images * (1 - self.rate)))
        rows = torch.randperm(images, device=tokens.device)[:chosen]
        added = branch(tokens[rows])
        return torch.index_add(tokens, 0, rows, added.to(tokens.dtype), alpha=images / chosen)


def set_drop_path(vit: Any, rate: float, batch: int, *, uniform: bool, subset: bool) -> None:
    """Give the blocks of a vision transformer stochastic depth.

    Args:
        vit: timm model to change in place.
        rate: Rate in the last block.
        batch: Tiles of a batch over all ranks.
        uniform: Whether all blocks have this rate; otherwise it rises linearly from 0 in the first.
        subset: Whether dropped branches are not computed; otherwise draws do not depend on the number of ranks.

    Raises:
        ConfigError: Blocks without stochastic depth, or `subset` with blocks that are not timm's plain ones.
        TrainingError: The ranks do not divide the batch.
    """
    last = max(1, len(vit.blocks) - 1)
    for number, block in enumerate(vit.blocks):
        own_rate = rate if uniform else rate * number / last
        if subset and type(block) is not Block:
            raise ConfigError(
                f"drop_path_subset: blocks of the type {type(block).__name__}; those of timm's vit_* networks expected"
            )
        if own_rate and not hasattr(block, "drop_path1"):
            raise ConfigError(f"drop_path: blocks of the type {type(block).__name__} have none; 0 expected")
        # timm has its own in blocks of a rate above 0, and the identity in others; one of each branch
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, BatchDropPath(own_rate, batch) if own_rate and not subset else nn.Identity())
        if subset and own_rate:
            block.__class__, block.rate = SubsetBlock, own_rate
