"""Processes that train together under torchrun; a process alone is rank 0 of 1 and needs none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def together() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives the device of this one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def over_ranks(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over all ranks, in place; without gradients."""
    if ranks() > 1:
        dist.all_reduce(value, operation)
    return value


def sync_gradients(net: nn.Module, *, now: bool) -> None:
    """Whether the next backward pass exchanges gradients; of accumulated batches only the last needs to."""
    if isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = now
    elif isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(now)


def whole(state: Any) -> Any:
    """A tree of state with every sharded tensor put together on the CPU; all ranks must call it."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if rank() == 0 else torch.empty(0)
    return state


def share(saved: Any, mine: Any) -> Any:
    """A saved tree of whole tensors, sharded as the tree of a rank's own tensors is; shapes may not differ."""
    if isinstance(mine, dict) and isinstance(saved, dict):
        return {key: share(value, mine.get(key)) for key, value in saved.items()}
    if isinstance(mine, DTensor) and isinstance(saved, Tensor):
        return distribute_tensor(saved.to(mine.device), mine.device_mesh, mine.placements)
    return saved
