"""Train and pretrain on a file system that grows from too small to enough: one line each time, and the run goes on.

    python tests/hard/train_full_disk.py --folder build/hard

Needs root and the right to mount a file system in memory; elsewhere the harness says so and ends.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from _training_runs import STAGES, Stage, contents, start, wait

FIRST_KB, FACTOR, MOST_KB = 16, 1.3, 64_000


def mount(folder: Path, size_kb: int, *options: str) -> bool:
    """Mount a file system in memory on a folder, or resize it; return whether that was allowed."""
    what = ",".join((*options, f"size={size_kb}k"))
    return subprocess.run(["mount", "-t", "tmpfs", "-o", what, "tmpfs", folder], check=False).returncode == 0


def grow(stage: Stage, name: str, disk: Path, errors: Path) -> int:
    """Run a stage on a disk that grows whenever it is full; return the number of times that it was."""
    size_kb, failures = float(FIRST_KB), 0
    while status := wait(start(stage, disk / "run", resume=failures > 0, errors=errors)):
        message = errors.read_text()
        if status != 1 or "\n" in message or "cannot write" not in message or str(disk) not in message:
            raise SystemExit(f"{name} at {size_kb:.0f} kB, exit {status}: {message}")
        failures += 1
        size_kb *= FACTOR
        if size_kb > MOST_KB or not mount(disk, int(size_kb), "remount"):
            raise SystemExit(f"{name}: {size_kb:.0f} kB are not enough: {message}")
    print(f"{name}: {failures} times full, done at {size_kb:.0f} kB", flush=True)
    return failures


def main() -> int:
    """Grow the disk under each stage; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the runs")
    arguments = parser.parse_args()
    folder, record = arguments.folder / "train_full_disk", arguments.folder / "train_full_disk.json"
    folder.mkdir(parents=True, exist_ok=True)
    counts = json.loads(record.read_text()) if record.is_file() else {}
    for name, stage in STAGES.items():
        if name in counts:
            continue
        whole, disk, errors = folder / f"whole_{name}", folder / f"disk_{name}", folder / "errors.txt"
        shutil.rmtree(whole, ignore_errors=True)
        if wait(start(stage, whole, resume=False, errors=errors)):
            raise SystemExit(f"the run failed: {errors.read_text()}")
        disk.mkdir(exist_ok=True)
        if not mount(disk, FIRST_KB):
            print("no right to mount a file system here: nothing is tested")
            return 0
        try:
            failures = grow(stage, name, disk, errors)
            if contents(disk / "run") != contents(whole):
                print(f"{name}: the run on the full disk differs from the whole one")
                return 1
        finally:
            subprocess.run(["umount", "-l", disk], check=False)
        record.write_text(json.dumps(counts := {**counts, name: failures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
