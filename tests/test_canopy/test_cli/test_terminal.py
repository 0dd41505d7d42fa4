"""What a person sees on stderr while a command works."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from canopy.cli import terminal
from canopy.cli.terminal import LogHandler, describe_progress, drop_undecodable_messages, say, show_progress
from canopy.progress import Progress


@pytest.mark.parametrize(
    ("progress", "seconds", "state", "left"),
    [
        (Progress(5, 20, "Mpx", "tile 1/4"), 10, "tile 1/4  0.5 Mpx/s", "30 s left"),
        (Progress(1500, 3000, "files"), 1, "1,500/3,000 files  1.5e+03 files/s", "1 s left"),
        (Progress(10, 1210, "steps"), 10, "10/1,210 steps  1 steps/s", "20 min left"),
        (Progress(20, 20, "Mpx", "tile 4/4"), 10, "tile 4/4  2 Mpx/s", "0 s left"),
    ],
)
def test_progress_says_state_rate_and_time_left(progress: Progress, seconds: float, state: str, left: str) -> None:
    assert describe_progress(progress, seconds) == (state, left)


def test_work_of_an_earlier_run_does_not_count_as_speed() -> None:
    assert describe_progress(Progress(12, 20, "Mpx", resumed=10), 4) == ("12/20 Mpx  0.5 Mpx/s", "16 s left")


def test_each_report_is_a_line_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as report:
        report(Progress(1, 2, "tiles", "tile 1/2"))
        report(Progress(2, 2, "tiles", "tile 2/2"))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:8] for line in err.splitlines()] == ["tile 1/2", "tile 2/2"]


def test_lines_are_neither_wrapped_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    line = "canopy: [bold]" + "x" * 300
    say(line)
    assert capsys.readouterr().err == line + "\n"


def test_log_records_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    LogHandler().emit(logging.LogRecord("canopy", logging.INFO, "", 0, "imagery: %d file", (1,), None))
    assert capsys.readouterr().err == "imagery: 1 file\n"


def test_bar_and_log_share_one_console() -> None:
    assert terminal.console() is terminal.console()
    assert terminal.console().stderr


def test_messages_of_gdal_that_are_not_utf_8_print_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    drop_undecodable_messages()
    undecodable = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")
    others = [
        SimpleNamespace(object="rasterio._env.log_error", err_msg=None, exc_value=ValueError("other")),
        SimpleNamespace(object="some.other", err_msg=None, exc_value=undecodable),
    ]
    for each in (SimpleNamespace(object="rasterio._env.log_error", err_msg=None, exc_value=undecodable), *others):
        sys.unraisablehook(each)
    assert printed == others
