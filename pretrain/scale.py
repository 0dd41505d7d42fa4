"""How the networks of a run are spread over devices and fitted into their memory."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from canopy.errors import TrainingError
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


def spread(nets: Sequence[nn.Module], scale: ScaleConfig, *, idle: bool) -> nn.Module:
    """Spread networks over the ranks and return the network to call in place of the first, which is trained.

    Sharded weights are gathered block by block and freed again. Networks that are not trained are sharded too, so
    that their moving averages are taken shard by shard.

    Args:
        nets: Network to train, and networks that are only evaluated.
        scale: Settings: whole copies on every rank, or shares of the weights, in which type and over which ranks.
        idle: Whether some weights get no gradient, as a head that no term of the loss uses.
    """
    student = nets[0]
    if ranks() == 1:
        return student
    if scale.sharding == "ddp":
        return DistributedDataParallel(student, find_unused_parameters=idle)
    mesh, policy = rank_mesh(scale.replicas, next(student.parameters()).device), mixed_precision(scale)
    for net in nets:
        # Blocks before the whole: what a block gathers is freed when the block is done.
        for module in [m for m in net.modules() if isinstance(m, Encoder)]:
            for block in module.vit.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
        # What is not in a block is float32 whatever the policy: embeddings, whose GSD loses digits in bf16, and heads.
        fully_shard(net, mesh=mesh, reshard_after_forward=True)
    return student


def rank_mesh(replicas: int, device: torch.device) -> DeviceMesh:
    """Return all ranks as a mesh: of one dimension, or of groups by the ranks of a group.

    Args:
        replicas: Groups of ranks.
        device: Device of the weights.

    Raises:
        TrainingError: The groups do not divide the ranks.
    """
    if replicas == 1:
        return init_device_mesh(device.type, (ranks(),), mesh_dim_names=("shard",))
    if ranks() % replicas:
        raise TrainingError(f"scale.replicas {replicas} over {ranks()} ranks: a divisor of the ranks expected")
    return init_device_mesh(device.type, (replicas, ranks() // replicas), mesh_dim_names=("replicate", "shard"))


def mixed_precision(scale: ScaleConfig) -> MixedPrecisionPolicy:
    """Return the types that the weights of blocks are gathered in and their gradients are summed in."""
    if not scale.gather_bf16:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
