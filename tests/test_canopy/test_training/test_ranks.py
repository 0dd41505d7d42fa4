"""A process alone is rank 0 of 1; several ranks are tested with pretraining, which uses all of this module."""

import pytest
import torch
from torch import nn

from canopy.training.ranks import over_ranks, rank, ranks, share, sync_gradients, together, whole


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
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: joined.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: joined.append("left"))
    with pytest.raises(KeyError), together():
        raise KeyError
    assert joined == ["nccl" if torch.cuda.is_available() else "gloo", "left"]
