"""Progress and remarks on stderr: one console, shared by the progress bar and the log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from canopy.progress import Progress, Report

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    """Return the one console, so that a line of the log moves the bar down instead of breaking it."""
    from rich.console import Console

    return Console(stderr=True)


def table_console(width: int, stderr: bool = False) -> "Console":
    """Return a console for tables.

    Args:
        width: Columns where the output is no terminal.
        stderr: Whether to print to stderr instead of stdout.
    """
    from rich.console import Console

    terminal = Console(stderr=stderr)
    return terminal if terminal.is_terminal else Console(stderr=stderr, width=width)


def say(line: str) -> None:
    """Print a line to stderr, above the progress bar where one is drawn."""
    console().print(line, markup=False, highlight=False, soft_wrap=True)


class LogHandler(logging.Handler):
    """Handler that prints records of the log with `say`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(self.format(record))


def drop_undecodable_messages() -> None:
    """Keep Python from printing a traceback where a message of GDAL is not UTF-8, as damaged files cause.

    GDAL's messages reach rasterio by a callback that cannot raise. The error of the call itself is raised as usual.
    """
    default = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs", /) -> None:
        from_gdal = "rasterio" in str(unraisable.object) or "rasterio" in str(unraisable.err_msg)
        if not (from_gdal and isinstance(unraisable.exc_value, UnicodeDecodeError)):
            default(unraisable)

    sys.unraisablehook = hook


@contextmanager
def show_progress() -> Iterator[Report]:
    """Draw the progress that a job reports: a bar on a terminal, a line for each report elsewhere."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    began = time.monotonic()
    columns = (TextColumn("{task.fields[state]}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console(), disable=not console().is_terminal) as bar:
        task = bar.add_task("work", total=None, state="starting")

        def report(now: Progress) -> None:
            state, left = describe_progress(now, time.monotonic() - began)
            bar.update(task, total=now.total, completed=now.done, state=state)
            if not console().is_terminal:
                say(f"{state}  {left}")

        yield report


def describe_progress(now: Progress, seconds: float) -> tuple[str, str]:
    """Return the state of a job with the rate of this run, and the time left.

    Args:
        now: Progress of the job.
        seconds: Time since this run began.
    """
    # Units taken over from an earlier run took this one no time, so they are left out of the rate.
    rate = max(1e-9, now.done - now.resumed) / max(1e-6, seconds)
    state = now.detail or f"{now.done:,.0f}/{now.total:,.0f} {now.unit}"
    left_s = max(0.0, now.total - now.done) / rate
    left = f"{left_s / 60:.0f} min left" if left_s >= 60 else f"{left_s:.0f} s left"
    return f"{state}  {rate:.3g} {now.unit}/s", left
