"""Processes that train together under torchrun; a process alone is rank 0 of 1 and needs none of this."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def together(timeout_min: float = 30.0) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and give the device of this process.

    Args:
        timeout_min: Longest time that a process waits for the others; then the run ends with an error, so that a
            scheduler can start it again.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=timeout_min))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def over_ranks(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over all ranks, in place; without gradients."""
    if ranks() > 1:
        dist.all_reduce(value, operation)
    return value


def finite_over_ranks(value: Tensor) -> bool:
    """Return whether a scalar is finite on every rank; all ranks must call it, and get the same answer."""
    flag = torch.isfinite(value).float()
    return bool(over_ranks(flag, dist.ReduceOp.MIN))


def sync_gradients(net: nn.Module, *, now: bool) -> None:
    """Let the next backward pass exchange gradients or not; of accumulated batches only the last needs to."""
    if isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = now
    elif isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(now)


def whole(state: Any) -> Any:
    """Return a tree of state with every sharded tensor gathered on the CPU of rank 0; all ranks must call it."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    if isinstance(state, DTensor):
        # a collective call: every rank takes part, but only rank 0 keeps the result in memory
        full = state.full_tensor()
        return full.cpu() if rank() == 0 else torch.empty(0)
    return state


def share(saved: Any, own: Any) -> Any:
    """Return a saved tree of whole tensors, sharded as the tensors of a rank's own tree are; shapes must be equal."""
    if isinstance(own, dict) and isinstance(saved, dict):
        return {key: share(value, own.get(key)) for key, value in saved.items()}
    if isinstance(own, DTensor) and isinstance(saved, Tensor):
        return distribute_tensor(saved.to(own.device), own.device_mesh, own.placements)
    return saved
