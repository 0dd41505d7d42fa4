"""Checkpoints: written whole, the last two kept, loaded to the bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from canopy.errors import TrainingError
from canopy.training.checkpoints import last_checkpoint, restore_checkpoint, save_checkpoint


def parts(value: float, width: int = 3) -> dict[str, nn.Module]:
    net = nn.Linear(width, 1)
    nn.init.constant_(net.weight, value)
    return {"net": net}


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(parts(step), tmp_path, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000002.pt", "00000003.pt"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "00000003.pt"


def test_the_latest_is_loaded(tmp_path: Path) -> None:
    assert restore_checkpoint(parts(0), tmp_path) == 0
    save_checkpoint(parts(1), tmp_path, 1)
    save_checkpoint(parts(2), tmp_path, 20)
    restored = parts(0)
    assert restore_checkpoint(restored, tmp_path) == 20
    assert restored["net"].weight.tolist() == [[2.0] * 3]


def test_an_optimizer_goes_on_as_it_was(tmp_path: Path) -> None:
    nets = [nn.Linear(2, 1), nn.Linear(2, 1)]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1) for net in nets]
    for number in range(3):
        if number == 2:
            save_checkpoint({"net": nets[0], "optimizer": optimizers[0]}, tmp_path, 2)
            restore_checkpoint({"net": nets[1], "optimizer": optimizers[1]}, tmp_path)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_a_checkpoint_of_another_network_is_a_clear_error(tmp_path: Path) -> None:
    save_checkpoint(parts(1, width=4), tmp_path, 1)
    with pytest.raises(TrainingError, match=r"cannot resume from .*00000001\.pt"):
        restore_checkpoint(parts(0), tmp_path)
