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
    """Recompute activations in the backward pass and compile the blocks, where the settings say so.

    Args:
        encoder: Encoder to change in place.
        scale: Settings.
        device: Device of the encoder.
    """
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
