"""The log of a run: cut back on resumption, and shown by TensorBoard."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_up_to

from canopy.errors import OutputError, TrainingError
from canopy.training.log import LogEntry, RunLog


def entries(run: Path) -> list[LogEntry]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def write(run: Path, steps: range, *, tensorboard: bool = False) -> list[LogEntry]:
    """Log steps of a run that starts, or goes on, at the first of them; return what was reported."""
    reported: list[LogEntry] = []
    log = RunLog(run, steps.start, reported.append, tensorboard=tensorboard)
    for step in steps:
        log.write(step=step, loss=step / 2, metrics={"all": {"mae_m": 2.5, "r2": None, "good": True}})
    return reported


def test_every_line_is_written_and_reported(tmp_path: Path) -> None:
    reported = write(tmp_path, range(3))
    assert entries(tmp_path) == reported
    assert [entry["step"] for entry in reported] == [0, 1, 2]


def test_lines_after_the_step_that_a_run_goes_on_from_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    write(tmp_path, range(4, 7))
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]
    write(tmp_path, range(2))
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 1]


def test_numbers_are_written_for_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, range(5), tensorboard=True)
    write(tmp_path, range(3, 6), tensorboard=True)
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(n, n / 2) for n in range(6)]
    assert [event.value for event in read.Scalars("metrics/all/mae_m")] == [2.5] * 6
    assert read.Tags()["scalars"] == ["loss", "metrics/all/mae_m"]


def test_absent_tensorboard_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        RunLog(tmp_path, 0, lambda entry: None, tensorboard=True)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.training.log.rank", lambda: 1)
    reported: list[Any] = write(tmp_path, range(2))
    assert reported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [
    b'{"step": 1, "lo', b'{"step": 1, "metrics": {"all": {"mae_m": 2.5}}', b'{"step": 0, "loss": "\xff\xfe"}',
    b"\0\0\0\0", b'{"loss": 2.0}\n', b"[1, 2]\n", b"1\n", b"\n", b'{"step": null}\n',
])  # fmt: skip
def test_torn_lines_are_dropped(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, range(3))
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:1]) + torn)
    write(tmp_path, range(1, 3))
    assert (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True) == lines


def test_an_empty_or_missing_log_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    write(tmp_path, range(5, 7))
    assert [entry["step"] for entry in entries(tmp_path)] == [5, 6]


def test_nothing_is_written_before_the_first_line(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    before = (tmp_path / "log.jsonl").read_bytes()
    RunLog(tmp_path, 0, lambda entry: None, tensorboard=False)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    RunLog(tmp_path / "none", 0, lambda entry: None, tensorboard=False)
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*log\.jsonl: File too large .* --resume"), files_up_to(150):
        write(tmp_path, range(9))
    write(tmp_path, range(1, 3))
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 1, 2]


def test_a_monitor_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def add_scalar(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Broken)
    write(tmp_path, range(3), tensorboard=True)
    assert len(entries(tmp_path)) == 3
    assert [message for message in caplog.messages if "TensorBoard" in message] == caplog.messages
    assert len(caplog.messages) == 1
