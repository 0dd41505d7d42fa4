"""How the networks of a run are spread over devices and fitted into their memory."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from canopy.training.ranks import ranks
from pretrain.config import ScaleConfig
from pretrain.encoder import Encoder


def scale_encoder(encoder: Encoder, scale: ScaleConfig, device: torch.device) -> None:
    """Recompute activations in the backward pass and compile the blocks, as asked."""
    encoder.vit.set_grad_checkpointing(scale.checkpointing)
    for block in encoder.vit.blocks:
        if device.type == "cpu" and hasattr(block, "attn"):
            # the fused kernel's backward pass over short sequences takes half of a step on a CPU (measured)
            block.attn.fused_attn = False
    if scale.compile:
        for block in encoder.vit.blocks:
            block.compile()


def spread(nets: Sequence[nn.Module], sharding: Literal["ddp", "fsdp"], *, idle: bool) -> nn.Module:
    """Spread networks over the ranks; the first is trained, and what is returned is called in its place.

    Sharded weights are gathered block by block and let go again, also by the networks that only look on, whose
    moving averages are then taken shard by shard.

    Args:
        nets: The one to train, and those that look on.
        sharding: Whole copies on every rank, or shares.
        idle: Whether some weights get no gradient, as those of a head that no term of the loss asks.
    """
    student = nets[0]
    if ranks() == 1:
        return student
    if sharding == "ddp":
        return DistributedDataParallel(student, find_unused_parameters=idle)
    for net in nets:
        for module in [m for m in net.modules() if isinstance(m, Encoder)]:
            for block in module.vit.blocks:
                fully_shard(block)
        fully_shard(net, reshard_after_forward=True)
    return student
