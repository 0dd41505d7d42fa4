"""The log of a run, `log.jsonl`: one JSON object a line, also written for TensorBoard where that is asked for."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from canopy.errors import TrainingError
from canopy.training.ranks import rank

LogEntry = dict[str, Any]
"""One line of the log as JSON: `step` and what happened at it."""


class RunLog:
    """The log of rank 0, cut back to the step that a run goes on from; other ranks write none.

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
        self._events = _event_writer(run, start) if tensorboard else None
        if rank() > 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if start and self._path.is_file() else []
        earlier = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
        self._path.write_text("".join(f"{line}\n" for line in earlier), encoding="utf-8")

    def write(self, **entry: Any) -> None:
        """Append a line."""
        if rank() > 0:
            return
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if self._events is not None:
            for name, value in _numbers({key: value for key, value in entry.items() if key != "step"}):
                self._events.add_scalar(name, value, entry["step"])
            self._events.flush()
        self._report(entry)


def _event_writer(run: Path, start: int) -> Any:
    """Return a TensorBoard writer that hides the numbers of later steps, written before a kill; None on other ranks."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "loop.tensorboard needs TensorBoard: pip install 'canopy-chm[log]', or leave it out"
        ) from error
    return SummaryWriter(run / "tensorboard", purge_step=start or None) if rank() == 0 else None


def _numbers(entry: LogEntry, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested entry of the log, their names joined by slashes."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
