"""A process alone is rank 0 of 1; several ranks are tested with pretraining, which uses all of this module."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import canopy.training.ranks as ranks_module
from canopy.training.ranks import finite_over_ranks, over_ranks, rank, ranks, share, sync_gradients, together, whole


def test_a_process_alone_needs_no_group() -> None:
    with together() as device:
        assert device.type in ("cpu", "cuda")
        assert (rank(), ranks()) == (0, 1)
    total = torch.tensor([2.0])
    assert over_ranks(total) is total
    assert total.item() == 2


def test_trees_of_whole_tensors_stay_as_they_are() -> None:
    state = {"a": [torch.ones(2)], "b": {"c": torch.zeros(1)}, "step": 3}
    gathered = whole(state)
    assert torch.equal(gathered["a"][0], state["a"][0])
    assert gathered["step"] == 3
    assert share(state, {"b": {"c": torch.ones(1)}}) == state


def test_networks_that_exchange_no_gradients_are_left_alone() -> None:
    net = nn.Linear(1, 1)
    sync_gradients(net, now=False)
    assert not hasattr(net, "require_backward_grad_sync")


def test_a_group_of_one_rank_is_joined_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: joined.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: joined.append("left"))
    with pytest.raises(KeyError), together():
        raise KeyError
    assert joined == ["nccl" if torch.cuda.is_available() else "gloo", "left"]


def test_the_gradient_is_judged_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank's gradient stops this rank's step too: otherwise their weights part."""
    reduced: list[Any] = []

    def over_ranks(value: Tensor, operation: Any = None) -> Tensor:
        reduced.append(operation)
        return torch.zeros_like(value)

    monkeypatch.setattr(ranks_module, "over_ranks", over_ranks)
    assert not finite_over_ranks(torch.tensor(1.0))
    assert reduced == [torch.distributed.ReduceOp.MIN]
    monkeypatch.undo()
    assert finite_over_ranks(torch.tensor(1.0))
    for norm in (torch.nan, torch.inf):
        assert not finite_over_ranks(torch.tensor(norm))


TWO_RANKS = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from canopy.training.config import LoopConfig
from canopy.training.loop import Supervised, fit
from canopy.training.ranks import rank, together

with together():
    torch.manual_seed(0)
    net = nn.Linear(2, 1)

    def loss(model, x, step):
        value = (model(x) - 3).square().mean()
        # finite on both ranks, but with a gradient that is not on rank 1
        return value + (0 * net.weight).sqrt().sum() if step == 2 and rank() == 1 else value

    learner = Supervised(net, loss, config := LoopConfig(steps=5, lr=0.1, warmup_steps=1, amp=False))
    learner.net = DistributedDataParallel(net)
    fit(learner, lambda n: torch.full((4, 2), n + rank() + 1.0), config, Path(sys.argv[1]), resume=False,
                evaluate=lambda model, step: {}, report=lambda entry: None)
    Path(sys.argv[1], f"rank{rank()}.json").write_text(json.dumps(net.weight.tolist()))
"""


@pytest.mark.slow
def test_a_gradient_of_one_rank_skips_the_step_of_both(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, tmp_path], stderr=subprocess.PIPE, text=True,
            env={**common, "RANK": str(number), "LOCAL_RANK": str(number), "GLOO_SOCKET_IFNAME": "lo"},
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    weights = [json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2)]
    assert weights[0] == weights[1]
    assert np.isfinite(weights).all()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [2]
