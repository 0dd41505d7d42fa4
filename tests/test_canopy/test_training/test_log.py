"""The log of a run: cut back on resumption, and shown by TensorBoard."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from canopy.errors import TrainingError
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
    with pytest.raises(TrainingError, match=r"canopy-chm\[log\]"):
        RunLog(tmp_path, 0, lambda entry: None, tensorboard=True)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.training.log.rank", lambda: 1)
    reported: list[Any] = write(tmp_path, range(2))
    assert reported == []
    assert list(tmp_path.iterdir()) == []
