"""What a person sees on the terminal while a command works; everything goes to stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from canopy.progress import Progress


def say(line: str) -> None:
    """Print a line to stderr."""
    typer.echo(line, err=True)


@contextmanager
def show_bar() -> Iterator[Any]:
    """A bar on a terminal, a line a step elsewhere: `show(done, total, state, aside)`."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.fields[state]}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("work", total=None, state="starting")

        def show(done: float, total: float, state: str, aside: str = "") -> None:
            bar.update(task, total=total, completed=done, state=state)
            if not console.is_terminal:
                say(state + aside)

        yield show


@contextmanager
def show_progress(noun: str = "tile", unit: str = "Mpx") -> Iterator[Any]:
    """Progress by tiles or the like, with the work done per second and time left."""
    meter = _Meter()
    scale = 1e6 if unit == "Mpx" else 1
    with show_bar() as show:

        def report(now: Progress) -> None:
            rate = meter.rate(now)
            minutes = (now.pixels - now.pixels_done) / rate / 60
            state = f"{noun} {now.tiles_done}/{now.tiles}  {rate / scale:.2f} {unit}/s"
            show(now.pixels_done, now.pixels, state, f"  {minutes:.0f} min left")

        yield report


class _Meter:
    """Useful pixels per second since the first tile of this run began."""

    def __init__(self) -> None:
        import time

        self._clock, self._began, self._resumed = time.monotonic, time.monotonic(), -1

    def rate(self, now: Progress) -> float:
        if self._resumed < 0:
            self._resumed = now.pixels_done - now.pixels_done // now.tiles_done
        return max(1e-9, now.pixels_done - self._resumed) / max(1e-6, self._clock() - self._began)
