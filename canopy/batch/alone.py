"""The process of a tile that is computed alone: a task on standard input, its outcome as the last line of output."""

import json
import os
import sys
import threading
from dataclasses import asdict

from canopy.batch.runtime import runtime
from canopy.batch.tasks import Task
from canopy.batch.worker import compute


def _end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Compute the tile of a task that standard input gives."""
    task = Task.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome = compute(task, runtime(task.url))
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
