"""The first signal interrupts, the second ends the process, even one that waits for ever in native code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

READY = "from pathlib import Path; Path('ready').touch()"
DEADLOCK = f"""
import ctypes, canopy.cli.description

def describe(target):
    mutex, library = ctypes.create_string_buffer(64), ctypes.{{}}(None)
    library.pthread_mutex_lock(mutex)
    {READY}
    library.pthread_mutex_lock(mutex)

canopy.cli.description.describe = describe
"""
SLOW_CLEANUP = f"""
import time, canopy.cli.description

def describe(target):
    try:
        {READY}
        time.sleep(60)
    finally:
        Path("cleaning").touch()
        time.sleep(60)

canopy.cli.description.describe = describe
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("library", ["PyDLL", "CDLL"])
def test_a_second_signal_ends_a_deadlock_in_native_code(tmp_path: Path, library: str, number: signal.Signals) -> None:
    """With the interpreter's lock (PyDLL) as OpenVINO once waited, and without it."""
    running = commands.start("info", "x", folder=tmp_path, setup=DEADLOCK.format(library))
    wait_for(tmp_path / "ready")
    os.kill(running.pid, number)
    time.sleep(0.2)
    assert running.process.is_alive()
    os.kill(running.pid, number)
    assert running.wait(10).returncode == -number


def test_a_second_signal_of_the_other_kind_ends_a_slow_cleanup(tmp_path: Path) -> None:
    running = commands.start("info", "x", folder=tmp_path, setup=SLOW_CLEANUP)
    wait_for(tmp_path / "ready")
    os.kill(running.pid, signal.SIGINT)
    wait_for(tmp_path / "cleaning")
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(10).returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_interrupts_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    code = f"import time, canopy.cli.description as d\ndef describe(target):\n    {READY}\n    time.sleep(60)\n"
    running = commands.start("info", "x", folder=tmp_path, setup=code + "d.describe = describe\n")
    wait_for(tmp_path / "ready")
    os.kill(running.pid, number)
    ended = running.wait(10)
    assert ended.returncode == 130
    assert ended.stderr == "canopy: interrupted; the same command continues where it stopped\n"


EARLY = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "canopy.cli.app":
            os.kill(os.getpid(), signal.%s)

sys.meta_path.insert(0, Finder())
from canopy.cli import main
main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_first_command_is_one_line_too(name: str) -> None:
    """Importing the commands takes seconds on a slow disk, and a user who mistyped does not wait for them."""
    ended = subprocess.run([sys.executable, "-c", EARLY % name], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "canopy: interrupted; the same command continues where it stopped\n"
