"""The log of a run, `log.jsonl`: one JSON object a line, also written for TensorBoard where that is asked for."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from canopy.errors import TrainingError
from canopy.training.checkpoints import REMEDY
from canopy.training.ranks import rank
from tiles.files import replacing, reported

LogEntry = dict[str, Any]
"""One line of the log as JSON: `step` and what happened at it."""
_LOG = logging.getLogger(__name__)


class RunLog:
    """The log of rank 0, cut back to the step that a run goes on from; other ranks write none.

    Nothing is written before the first line, so that a start that fails leaves no trace.

    Args:
        run: Folder of the run.
        start: Step that the run starts from; lines of later steps, written before a kill, are dropped.
        report: Function that is called with every line.
        tensorboard: Whether numbers are also written for TensorBoard, into ``tensorboard/`` of the run.

    Raises:
        TrainingError: TensorBoard is asked for but not installed.
    """

    def __init__(self, run: Path, start: int, report: Callable[[LogEntry], None], *, tensorboard: bool) -> None:
        self._path, self._report = run / "log.jsonl", report
        self._earlier: list[str] | None = _earlier_lines(self._path, start)
        self._events = _Events(run / "tensorboard", start) if tensorboard else None

    def write(self, **entry: Any) -> None:
        """Append a line.

        Raises:
            OutputError: The disk is full, or the folder is not writable.
        """
        if rank() > 0:
            return
        line = json.dumps(entry) + "\n"
        with reported(self._path, remedy=REMEDY):
            if self._earlier is None:
                with self._path.open("a", encoding="utf-8") as log:
                    log.write(line)
            else:
                # The cut takes effect with the first new line, in one rename: a kill leaves the old log or the new one.
                with replacing(self._path) as draft:
                    draft.write_text("".join(self._earlier) + line, encoding="utf-8")
                self._earlier = None
        if self._events is not None:
            self._events.add(entry)
        self._report(entry)


def _earlier_lines(path: Path, start: int) -> list[str]:
    """Return the lines of a log before a step; a line that a kill or a full disk has torn is dropped."""
    if not start or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [f"{line}\n" for line in lines if _step_of(line) < start]


def _step_of(line: str) -> float:
    """Return the step of a line; infinity where it is torn."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return float("inf")
    whole = isinstance(step, int) and "\N{REPLACEMENT CHARACTER}" not in line
    return step if whole else float("inf")


class _Events:
    """Numbers of the log for TensorBoard. They are a view of the log: where they cannot be written, the run goes on.

    Args:
        folder: Folder of the events.
        start: Step that the run starts from; numbers of later steps, written before a kill, are hidden.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "loop.tensorboard needs TensorBoard: pip install tensorboard, or leave it out"
            ) from error
        self._open: Callable[[], Any] | None = lambda: SummaryWriter(folder, purge_step=start or None)
        self._writer: Any = None

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a line; the first failure is the last attempt."""
        if self._open is None:
            return
        try:
            self._writer = self._writer or self._open()
            for name, value in _numbers({key: value for key, value in entry.items() if key != "step"}):
                self._writer.add_scalar(name, value, entry["step"])
            self._writer.flush()
        except Exception as error:
            _LOG.warning("numbers for TensorBoard cannot be written any more: %s", error)
            self._open = None


def _numbers(entry: LogEntry, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested entry of the log, their names joined by slashes."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
