"""Checkpoints: written whole, the last two kept, loaded to the bit."""

from pathlib import Path

import pytest
import torch
from full_disk import files_up_to
from torch import nn

from canopy.errors import OutputError, TrainingError
from canopy.training.checkpoints import (
    CheckpointWriter,
    checkpoint_paths,
    last_checkpoint,
    require_finite,
    restore_checkpoint,
    save_checkpoint,
)
from canopy.training.config import CheckpointKind


def parts(value: float, width: int = 3) -> dict[str, nn.Module]:
    net = nn.Linear(width, 1)
    nn.init.constant_(net.weight, value)
    nn.init.zeros_(net.bias)
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


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_an_optimizer_goes_on_as_it_was(tmp_path: Path, kind: CheckpointKind) -> None:
    nets = [nn.Linear(2, 1), nn.Linear(2, 1)]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1) for net in nets]
    for number in range(3):
        if number == 2:
            writer = CheckpointWriter(tmp_path, kind)
            writer.save({"net": nets[0], "optimizer": optimizers[0]}, 2)
            writer.close()
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


def damage(path: Path, how: str) -> None:
    """Damage a checkpoint as crashes and disks do."""
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "another format":
        torch.save({"weights": torch.zeros(3)}, path)
    elif how == "not finite":
        save_checkpoint(parts(float("nan")), path.parents[1], int(path.stem))
    else:
        path.write_bytes({
            "empty": b"", "half": content[:middle], "short by a byte": content[:-1], "zeros": bytes(len(content)),
            "zeros within": content[:600] + bytes(64) + content[664:], "text": b"No space left on device",
        }[how])  # fmt: skip


DAMAGES = ["empty", "half", "short by a byte", "zeros", "zeros within", "text", "another format", "not finite"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10):
        save_checkpoint(parts(step), tmp_path, step)
    damage(tmp_path / "checkpoints" / "00000010.pt", how)
    restored = parts(0)
    assert restore_checkpoint(restored, tmp_path) == 5
    assert restored["net"].weight.tolist() == [[5.0] * 3]
    assert "00000010.pt" in caplog.text
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("how", ["empty", "not finite"])
def test_a_run_without_a_sound_checkpoint_starts_from_its_beginning(tmp_path: Path, how: str) -> None:
    for step in (5, 10):
        save_checkpoint(parts(step), tmp_path, step)
        damage(tmp_path / "checkpoints" / f"{step:08d}.pt", how)
    assert last_checkpoint(tmp_path) is None
    restored = parts(3)
    assert restore_checkpoint(restored, tmp_path) == 0
    assert restored["net"].weight.tolist() == [[3.0] * 3]


def test_checkpoints_of_later_steps_are_dropped_by_the_next(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(parts(step), tmp_path, step)
    for step in (2, 4, 6):
        save_checkpoint(parts(step), tmp_path, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000004.pt", "00000006.pt"]


def test_other_files_are_neither_read_nor_deleted(tmp_path: Path) -> None:
    save_checkpoint(parts(5), tmp_path, 5)
    (tmp_path / "checkpoints" / "copy of 00000009.pt").write_bytes(b"text")
    save_checkpoint(parts(6), tmp_path, 6)
    save_checkpoint(parts(7), tmp_path, 123_456_789)
    assert restore_checkpoint(parts(0), tmp_path) == 123_456_789
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000006.pt", "123456789.pt", "copy of 00000009.pt"]


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        save_checkpoint(parts(1), tmp_path / run, 1)
    first, second = ((tmp_path / run / "checkpoints" / "00000001.pt").read_bytes() for run in "ab")
    assert first == second


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path: Path, size: int) -> None:
    save_checkpoint(parts(1), tmp_path, 1)
    with (
        pytest.raises(OutputError, match=r"cannot write .*00000002\.pt: File too large .* --resume"),
        files_up_to(size),
    ):
        save_checkpoint(parts(2), tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001.pt"]
    assert restore_checkpoint(parts(0), tmp_path) == 1


def test_state_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    save_checkpoint(parts(1), tmp_path, 1)
    with pytest.raises(TrainingError, match=r"net\.weight is not finite after step 2; last good .*00000001\.pt"):
        require_finite(parts(float("inf")), tmp_path, 2)
    require_finite(parts(1), tmp_path, 2)
    net = nn.BatchNorm1d(1)
    net.running_var.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"norm\.running_var"):
        require_finite({"norm": net}, tmp_path, 2)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_lasting_checkpoints_stay(tmp_path: Path, kind: CheckpointKind) -> None:
    writer = CheckpointWriter(tmp_path, kind, keep_every=4)
    for step in (2, 4, 6, 8, 10, 12):
        writer.save(parts(step), step)
    writer.close()
    assert [int(path.stem) for path in checkpoint_paths(tmp_path)] == [12, 10, 8, 4]
    restored = parts(0)
    assert restore_checkpoint(restored, tmp_path) == 12
    assert restored["net"].weight.tolist() == [[12.0] * 3]


def test_a_sharded_checkpoint_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "sharded")
    writer.save(parts(1), 1)
    assert last_checkpoint(tmp_path) is None
    writer.save(parts(2), 2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "00000001.shards"
    writer.close()
    path = last_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoints" / "00000002.shards"
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    restored = parts(0)
    assert restore_checkpoint(restored, tmp_path) == 1
    assert restored["net"].weight.tolist() == [[1.0] * 3]
    with pytest.raises(TrainingError, match=r"cannot resume from .*00000001\.shards: .* is of another network"):
        restore_checkpoint(parts(0, width=5), tmp_path)
