"""How the networks of a run are spread over devices and fitted into their memory."""

from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from canopy.training.ranks import ranks
from pretrain.batch import rank_rows
from pretrain.config import ScaleConfig
from pretrain.encoder import Encoder


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


def scale_encoder(encoder: Encoder, scale: ScaleConfig, device: torch.device, batch: int) -> None:
    """Recompute activations in the backward pass and compile the blocks, where the settings say so.

    Args:
        encoder: Encoder to change in place.
        scale: Settings.
        device: Device of the encoder.
        batch: Tiles of a batch over all ranks, for stochastic depth.

    Raises:
        TrainingError: The ranks do not divide the batch.
    """
    for module in list(encoder.vit.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, BatchDropPath(child.drop_prob, batch))
    encoder.vit.set_grad_checkpointing(scale.checkpointing)
    for block in encoder.vit.blocks:
        if device.type == "cpu" and hasattr(block, "attn"):
            # The fused kernel's backward pass over short sequences takes half of a step on a CPU (measured).
            block.attn.fused_attn = False
    if scale.compile:
        for block in encoder.vit.blocks:
            block.compile()


def spread(nets: Sequence[nn.Module], sharding: Literal["ddp", "fsdp"], *, idle: bool) -> nn.Module:
    """Spread networks over the ranks and return the network to call in place of the first, which is trained.

    Sharded weights are gathered block by block and freed again. Networks that are not trained are sharded too, so
    that their moving averages are taken shard by shard.

    Args:
        nets: Network to train, and networks that are only evaluated.
        sharding: ``ddp``: whole copies on every rank; ``fsdp``: shares of the weights.
        idle: Whether some weights get no gradient, as a head that no term of the loss uses.
    """
    student = nets[0]
    if ranks() == 1:
        return student
    if sharding == "ddp":
        return DistributedDataParallel(student, find_unused_parameters=idle)
    for net in nets:
        # Blocks before the whole: what a block gathers is freed when the block is done.
        for module in [m for m in net.modules() if isinstance(m, Encoder)]:
            for block in module.vit.blocks:
                fully_shard(block)
        fully_shard(net, reshard_after_forward=True)
    return student
