"""Processes that read scenes: results in order, and none outlives the build."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from canopy.dataset.workers import map_in_processes
from canopy.errors import DatasetError

PAUSE_S = 60.0
"""Work that no test waits for."""

SCRIPT = """
import os, pathlib, signal, sys, time
from canopy.dataset.workers import map_in_processes

def work(number):
    pathlib.Path(sys.argv[1], f"{number}-{os.getpid()}").touch()
    if number == int(sys.argv[2]):
        raise ValueError("an error in a worker")
    time.sleep(60 if number else 0.01)
    return -number

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    list(map_in_processes(work, range(4), 2))
"""


def started(folder: Path, failing: int = -1) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """Run a script whose two workers are busy; return it and them."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    (folder / "started").mkdir()
    process = subprocess.Popen(
        [sys.executable, script, folder / "started", str(failing)], cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + PAUSE_S
    while len(list((folder / "started").iterdir())) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    pids = {int(path.name.split("-")[1]) for path in (folder / "started").iterdir()}
    return process, [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def test_results_come_in_order() -> None:
    assert list(map_in_processes(abs, range(-3, 3), 1)) == [3, 2, 1, 0, 1, 2]
    assert list(map_in_processes(abs, range(-3, 3), 2)) == [3, 2, 1, 0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_build(tmp_path: Path, number: int) -> None:
    """A killed parent cannot tell them, and an interrupted one does not wait for work of a minute."""
    process, workers = started(tmp_path)
    assert workers
    process.send_signal(number)
    process.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_an_error_in_one_worker_ends_the_others(tmp_path: Path) -> None:
    process, workers = started(tmp_path, failing=1)
    _, errors = process.communicate(timeout=20)
    assert b"ValueError: an error in a worker" in errors
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(DatasetError, match="was killed, perhaps because memory ran out; run again with fewer --jobs"):
        list(map_in_processes(os._exit, [9, 9], 2))
