"""A tile whose worker died, computed alone: in a fresh process, whose end harms no other tile."""

import json
import signal
import subprocess
import sys
import threading
import time

from canopy.batch.failures import write_failure
from canopy.batch.store import Store
from canopy.batch.tasks import Outcome, Task

COMMAND = (sys.executable, "-m", "canopy.batch.alone")
"""Command that reads a task from its standard input and writes the outcome as its last line."""
_STARTUP_S = 120.0
"""Time that the process may take before it begins, on top of twice the tile's limit."""


def run_alone(task: Task, store: Store) -> Outcome:
    """Compute a tile in a fresh process; one that dies there too is poisoned, and not tried again.

    Args:
        task: Tile, whose lease this process has.
        store: Store of the batch.
    """
    limit_s = task.limits.time_s
    began = time.monotonic()
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        # The pipe stays open: the child ends itself when this process dies and the pipe with it.
        child.stdin.write(task.to_json() + "\n")
        child.stdin.flush()
        timer = threading.Timer(_STARTUP_S + 2 * limit_s, child.kill) if limit_s else None
        if timer:
            timer.start()
        try:
            lines = child.stdout.read().splitlines()
            child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            if timer:
                timer.cancel()
    try:
        return Outcome(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        message = f"its worker died, and so did a process that computed it alone ({_ended(child.returncode)})"
        seconds = time.monotonic() - began
        write_failure(store, task.tile.name, "killed", message, seconds)
        return Outcome(task.tile.name, "failed", seconds, "killed", final=True)


def _ended(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        return f"{name}; memory may have run out" if name == "SIGKILL" else name
    return f"exit status {status}"
