"""Kills at random times of a command that starts in a process group of its own."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable


def kill_until_done(
    start: Callable[[], "subprocess.Popen[bytes]"],
    is_partial: Callable[[], bool],
    rng: random.Random,
    longest_s: float,
    most: int,
) -> int:
    """Run a command with SIGKILL at random times until it ends by itself; return the number of kills.

    Args:
        start: Starts the command, with its errors in a pipe.
        is_partial: Says whether work of an interrupted run lies next to the outputs.
        rng: Generator of the times.
        longest_s: Longest time before a kill.
        most: Kills after which the command is left to end.
    """
    kills = 0
    while True:
        process = start()
        deadline = time.monotonic() + rng.uniform(0, longest_s) if kills < most else float("inf")
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        _, errors = process.communicate()
        # Killed when all was done but the end of the process: the outputs exist, and nothing is left to do.
        complete = b" exists: " in errors and not is_partial()
        if process.returncode and not complete:
            raise SystemExit(f"after {kills} kills the command failed:\n{errors.decode()}")
        return kills
