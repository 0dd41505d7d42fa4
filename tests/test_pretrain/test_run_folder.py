"""The folder of a run of pretraining: one process at a time; kills, full disks and damage end in the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_up_to
from pretraining import tiny_config, tiny_tiles

from canopy.errors import OutputBusyError, OutputError, TrainingError
from canopy.models.bundle import read_bundle
from pretrain import training
from pretrain.dinov2 import SelfDistillation
from pretrain.training import pretrain

LOOP = {"steps": 6, "checkpoint_every": 2, "evaluate_every": 3}


@pytest.fixture(autouse=True)
def tiles_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "read_tiles", lambda config: tiny_tiles())


def pretrained(run: Path, **how: Any) -> Path:
    pretrain(tiny_config(loop=LOOP), run, **how)
    return run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "read_tiles", lambda config: tiny_tiles())
        return pretrained(tmp_path_factory.mktemp("runs") / "whole")


def contents(run: Path) -> dict[str, Any]:
    """What a run leaves: bytes of the bundle and the configuration, losses, names of the rest."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "files": sorted(path.relative_to(run).as_posix() for path in run.rglob("*")),
        "bundle": (run / "last.safetensors").read_bytes(),
        "config": (run / "config.yaml").read_bytes(),
        "losses": [line.get("loss") for line in lines],
    }


def test_a_run_that_ends_collapsed_fails_and_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = {"kind": "none", "temperature": [1.0, 1.0]}  # targets that say nothing of the image
    config = tiny_config(loop=LOOP, target=flat, monitor_every=2)
    message = r"ended in a collapse: information 0\.0.*measured at step 4.*lower target\.temperature"
    with pytest.raises(TrainingError, match=message):
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").is_file()
    with pytest.raises(TrainingError, match=message):
        pretrain(config, tmp_path / "run", resume=True)
    # without DINO nothing trains the prototypes by which class tokens are judged
    pretrain(tiny_config(loop=LOOP, target=flat, monitor_every=2, terms={"dino": 0}), tmp_path / "ibot")


def stop_at(step: int) -> Any:
    def report(entry: dict[str, Any], **how: Any) -> None:
        if entry["step"] == step:
            raise KeyboardInterrupt

    return report


def cut_run(run: Path, step: int) -> Path:
    """A run that was interrupted at a step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "report_entry", stop_at(step))
        pretrained(run)
    return run


def test_two_processes_never_work_on_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[str] = []

    def second(entry: dict[str, Any], **how: Any) -> None:
        for resume in (False, True):
            # before the first checkpoint the lock refuses both, afterwards the run itself refuses a new start
            with pytest.raises((OutputBusyError, TrainingError)) as caught:
                pretrained(tmp_path / "run", resume=resume)
            busy.append(str(caught.value))

    monkeypatch.setattr(training, "report_entry", second)
    pretrained(tmp_path / "run")
    assert len(busy) == 2 * len((tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert all("another run works on" in message for message in busy[1::2])


@pytest.mark.parametrize(("size", "fails"), [(100, "config.yaml"), (5_000, "00000002.pt"), (200_000, "00000002.pt")])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, whole_run: Path, size: int, fails: str
) -> None:
    with pytest.raises(OutputError) as caught, files_up_to(size):
        pretrained(tmp_path / "run")
    assert fails in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run").exists() == (fails != "config.yaml")
    assert contents(pretrained(tmp_path / "run", resume=True)) == contents(whole_run)


def test_a_bundle_that_finds_no_room_is_written_when_there_is(
    tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(tmp_path / "run", 2)
    with pytest.raises(OutputError, match=r"last\.safetensors"), monkeypatch.context() as patch:
        patch.setattr("canopy.models.bundle.save_file", full)
        pretrained(run, resume=True)
    assert contents(pretrained(run, resume=True)) == contents(whole_run)


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("damaged", ["empty checkpoint", "torn log", "draft", "all checkpoints"])
def test_what_a_crash_leaves_is_passed_over(tmp_path: Path, whole_run: Path, damaged: str) -> None:
    run = cut_run(tmp_path / "run", 5)
    checkpoints = sorted((run / "checkpoints").iterdir())
    if damaged == "draft":
        (run / ".last.safetensors.77-0a0b0c0d.tmp").write_bytes(b"half")
    elif damaged == "torn log":
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 5, "metrics": {"x": 1}')
    else:
        for path in checkpoints if damaged == "all checkpoints" else checkpoints[-1:]:
            path.write_bytes(b"")
    assert contents(pretrained(run, resume=True)) == contents(whole_run)


def test_a_gradient_that_is_not_finite_costs_a_step_and_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = SelfDistillation.loss

    def poisoned(self: SelfDistillation, batch: Any, step: int) -> torch.Tensor:
        loss = sound(self, batch, step)
        return loss + (0 * self.student.encoder.mask_token).sqrt().sum() if step == 3 else loss

    monkeypatch.setattr(SelfDistillation, "loss", poisoned)
    run = pretrained(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [3]
    weights = read_bundle(run / "last.safetensors").weights
    assert all(bool(torch.from_numpy(array).isfinite().all()) for array in weights.values())


def test_a_first_step_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="loss is nan at step 0"):
        patch.setattr(
            SelfDistillation, "loss", lambda self, batch, step: self.student.encoder.mask_token.sum() * torch.nan
        )
        pretrained(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrained(tmp_path / "run")
