"""The folder of a run: one process at a time, claimed when it has begun, free where it has not."""

import json
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from full_disk import Disk, files_up_to
from training import tiny_config, trained

from canopy.errors import CanopyError, DatasetError, OutputBusyError, OutputError, TrainingError
from canopy.progress import Progress
from canopy.training import decoder, runs, sampling
from canopy.training.checkpoints import save_checkpoint
from canopy.training.decoder import train
from canopy.training.runs import check_run, claim_run, hold_run, report_entry
from tiles.locks import hold


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    config = tiny_config()
    run = trained(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="--resume"):
        train(config, run)
    with pytest.raises(TrainingError, match="differs"):
        train(config.model_copy(update={"batch": 3}), run, resume=True)


def test_a_start_that_fails_leaves_no_folder_and_the_corrected_command_works(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    for changes, error in (
        ({"store": {"path": str(tmp_path / "none")}}, DatasetError),
        ({"encoder": str(tmp_path / "none.safetensors")}, CanopyError),
        ({"detail_weights": str(tmp_path / "none.pth")}, TrainingError),
    ):
        with pytest.raises(error):
            train(tiny_config(**changes), run)
        assert not run.exists()
    assert train(tiny_config(), run).is_file()


def test_a_start_that_fails_in_a_folder_of_the_user_leaves_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DatasetError):
        train(tiny_config(store={"path": str(tmp_path / "none")}), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["notes.txt"]
    check_run(tmp_path, tiny_config(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_never_work_on_one_run(tmp_path: Path, resume: bool) -> None:
    run = trained(tiny_config(), tmp_path / "run") if resume else tmp_path / "run"
    with hold_run(run, tiny_config(), resume=resume), pytest.raises(OutputBusyError, match="another run works on"):
        train(tiny_config(), run, resume=resume)


def test_a_folder_that_another_process_made_in_the_meantime_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, held = tmp_path / "run", ExitStack()

    def second_process(folder: Path) -> None:
        folder.mkdir()
        held.enter_context(hold(folder / ".lock", "busy"))
        (folder / "log.jsonl").write_text("a line")

    monkeypatch.setattr(runs, "make_folder", second_process)
    with held, pytest.raises(OutputBusyError):
        train(tiny_config(), run)
    assert (run / "log.jsonl").read_text() == "a line"


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    with pytest.raises(OutputError, match=r"cannot make the folder .*run"):
        train(tiny_config(), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "text"


def test_resuming_takes_the_lock(tmp_path: Path) -> None:
    run = trained(tiny_config(), tmp_path / "run")
    with hold(run / ".lock", "busy"), pytest.raises(OutputBusyError):
        train(tiny_config(), run, resume=True)


def test_a_run_is_claimed_by_its_configuration(tmp_path: Path) -> None:
    with hold_run(tmp_path / "run", tiny_config(), resume=False):
        claim_run(tmp_path / "run", tiny_config())
        save_checkpoint({}, tmp_path / "run", 1)
    check_run(tmp_path / "run", tiny_config(), resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        check_run(tmp_path / "run", tiny_config(), resume=False)


def test_warnings_and_scores_are_logged_and_steps_reported(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[Progress] = []
    with caplog.at_level(logging.INFO):
        for step in range(45):
            report_entry({"step": step, "loss": 1.5}, 45, shown.append)
        report_entry({"step": 44, "metrics": {"all": {"mae_m": 2.5}}}, 45, shown.append)
        report_entry({"step": 44, "loss": 1.0, "warning": "collapse"}, 46, shown.append)
    assert [progress.done for progress in shown] == [20, 40, 45]
    assert shown[-1] == Progress(45, 45, "steps", "step 45/45  loss 1.500")
    assert caplog.messages == ["step 45/45  held-out MAE [m] {'all': '2.50'}", "step 45/46  collapse"]


@pytest.mark.parametrize("fails", ["loss", "batch"])
def test_a_first_step_that_fails_leaves_no_folder_and_the_corrected_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(CanopyError):
        if fails == "loss":
            patch.setattr(decoder, "height_loss", lambda net, batch, step, **_: net(batch[0]).sum() * float("nan"))
        else:
            patch.setattr(sampling, "draw_chip", torn_chip)
        train(tiny_config(), run)
    assert not run.exists()
    assert train(tiny_config(batch=2), run).is_file()


def test_a_run_that_diverges_before_its_first_checkpoint_does_not_stand_in_the_way(tmp_path: Path) -> None:
    diverging = tiny_config(loop={**EVERY, "lr": 1e30, "steps": 9, "evaluate_every": 9, "checkpoint_every": 9})
    with pytest.raises(TrainingError, match="last good checkpoint: none"):
        train(diverging, tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").is_file()
    assert train(tiny_config(), tmp_path / "run").is_file()
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3


def test_bundles_without_checkpoints_are_not_overwritten(tmp_path: Path) -> None:
    run = trained(tiny_config(), tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(TrainingError, match="--resume"):
        train(tiny_config(batch=2), run)


def torn_chip(*_: Any) -> None:
    raise DatasetError("chip 3 cannot be read")


def test_drafts_of_killed_processes_are_swept(tmp_path: Path) -> None:
    run = trained(tiny_config(), tmp_path / "run")
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    for name in (".last.safetensors.123-abcdef01.tmp", "checkpoints/.00000002.pt.7-0123abcd.tmp", ".config.yaml.9.tmp"):
        (run / name).write_bytes(b"half")
    train(tiny_config(), run, resume=True)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_notes_decide_nothing_of_a_run(tmp_path: Path) -> None:
    run = trained(tiny_config(notes="one"), tmp_path / "run")
    train(tiny_config(notes="in other words"), run, resume=True)


def test_a_best_bundle_that_is_damaged_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = trained(tiny_config(), tmp_path / "whole")
    run = trained(tiny_config(), tmp_path / "run")
    (run / "checkpoints" / "00000002.pt").unlink()
    (run / "best.safetensors").write_bytes(b"")
    train(tiny_config(), run, resume=True)
    assert "best.safetensors" in caplog.text
    assert (run / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def test_scores_without_a_valid_cell_are_logged_as_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report_entry({"step": 0, "metrics": {"all": {"scenes": 1, "n_px": 0}}}, 1, lambda progress: None)
    assert caplog.messages == ["step 1/1  held-out MAE [m] {'all': 'none'}"]


def contents(run: Path) -> dict[str, bytes]:
    """Bytes of the files that a run leaves, less the log's seconds and the checkpoints."""
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files["log.jsonl"].splitlines()]
    log = json.dumps([{key: value for key, value in line.items() if key not in ("seconds", "speed")} for line in lines])
    return {name: b"" if name.endswith(".pt") else content for name, content in files.items()} | {
        "log.jsonl": log.encode()
    }


EVERY = {"steps": 3, "warmup_steps": 1, "amp": False, "checkpoint_every": 2, "evaluate_every": 1}
"""A loop that writes everything there is."""


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "DOMAIN_CHIPS", 16)
        return trained(tiny_config(loop=EVERY), tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize(("size", "fails"), [
    (10, "config.yaml"), (500, "config.yaml"), (2_500, "last.safetensors"), (100_000, "last.safetensors"),
    (400_000, "00000002.pt"),
])  # fmt: skip
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, whole_run: Path, size: int, fails: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError) as caught, files_up_to(size):
        train(tiny_config(loop=EVERY), run)
    message = str(caught.value)
    assert "\n" not in message
    assert str(run / "") in message
    assert fails in message
    assert "MB free in" in message
    assert (run / "config.yaml").exists() == (fails != "config.yaml") == run.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    train(tiny_config(loop=EVERY), run, resume=True)
    assert contents(run) == contents(whole_run)


def test_a_folder_without_permission_is_one_line(disk: Disk) -> None:
    (disk.folder / "empty").mkdir()
    disk.protect()
    for run in (disk.folder / "empty", disk.folder / "run"):
        with pytest.raises(OutputError) as caught:
            train(tiny_config(), run)
        assert "\n" not in str(caught.value)
        assert str(run) in str(caught.value)


def test_a_run_whose_folder_is_read_only_for_a_while_goes_on_afterwards(
    disk: Disk, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = disk.folder / "run", tiny_config(loop=EVERY)

    def stop(entry: dict[str, Any], **how: Any) -> None:
        if entry["step"] == 2 and "loss" in entry:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decoder, "report_entry", stop)
        train(config, run)
    disk.protect()
    with pytest.raises(OutputError, match=f"cannot write {run}") as caught:
        train(config, run, resume=True)
    assert "\n" not in str(caught.value)
    disk.release()
    train(config, run, resume=True)
    assert contents(run) == contents(whole_run)
