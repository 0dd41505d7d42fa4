"""Kill `canopy train` and `canopy pretrain` at random times: the same bytes in the end, no leftovers.

    python tests/hard/train_kills.py --folder build/hard [--kills 200]

Each round runs one stage in a new folder and sends SIGKILL after a random time, again and again, going on with what
the kill left, until the run ends by itself. It must leave what an uninterrupted run leaves, and nothing else.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from _training_runs import STAGES, Stage, contents, start, wait

ROUND_KILLS = 6
"""After so many kills a round is left to end, so that every round ends."""


def run_whole(stage: Stage, run: Path, errors: Path) -> float:
    """Run a stage without a kill, and return how long it took, seconds."""
    shutil.rmtree(run, ignore_errors=True)
    started = time.monotonic()
    if wait(start(stage, run, resume=False, errors=errors)):
        raise SystemExit(f"the run failed: {errors.read_text()}")
    return time.monotonic() - started


def kill_until_done(stage: Stage, run: Path, rng: random.Random, longest_s: float, errors: Path) -> int:
    """Run a stage with kills at random times until it ends; return the number of kills."""
    kills = 0
    while True:
        process = start(stage, run, resume=kills > 0, errors=errors)
        if kills < ROUND_KILLS:
            time.sleep(rng.uniform(0, longest_s))
            os.kill(process, signal.SIGKILL)
        status = wait(process)
        if status == 0:
            return kills
        if status != -signal.SIGKILL:
            raise SystemExit(f"after {kills} kills the run failed: {errors.read_text()}")
        kills += 1


def main() -> int:
    """Count kills until there are as many as requested; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the runs")
    parser.add_argument("--kills", type=int, default=200, help="kills in all")
    arguments = parser.parse_args()
    folder, record = arguments.folder / "train_kills", arguments.folder / "train_kills.json"
    folder.mkdir(parents=True, exist_ok=True)
    counts = json.loads(record.read_text()) if record.is_file() else {"rounds": 0, "kills": dict.fromkeys(STAGES, 0)}
    errors = folder / "errors.txt"
    longest_s = {name: run_whole(stage, folder / f"whole_{name}", errors) for name, stage in STAGES.items()}
    expected = {name: contents(folder / f"whole_{name}") for name in STAGES}
    while sum(counts["kills"].values()) < arguments.kills:
        seed = counts["rounds"]
        name = list(STAGES)[seed % len(STAGES)]
        run = folder / f"round{seed}"
        shutil.rmtree(run, ignore_errors=True)
        kills = kill_until_done(STAGES[name], run, random.Random(seed), longest_s[name], errors)
        left = contents(run)
        differences = sorted(
            key for key in left.keys() | expected[name].keys() if left.get(key) != expected[name].get(key)
        )
        print(f"round {seed}, {name}: {kills} kills, different: {differences or 'nothing'}", flush=True)
        if differences:
            return 1
        shutil.rmtree(run)
        counts = {"rounds": seed + 1, "kills": {**counts["kills"], name: counts["kills"][name] + kills}}
        record.write_text(json.dumps(counts))
    print(f"{counts['kills']} in {counts['rounds']} rounds: the same bytes, no leftovers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
