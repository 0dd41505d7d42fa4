"""Kill `canopy chm` with all outputs at random times: same bytes in the end, nothing else left.

    python tests/hard/chm_kills.py --folder build/hard [--kills 50]

Each round starts the command in a new folder and sends SIGKILL after a random time, again and again, until it ends by
itself. Blocks are small and tables are files, so that kills meet every step. The files must equal those of an
uninterrupted run. Last, the command runs on a file system in memory that grows in steps of 200 kB: one line each time,
and nothing left, until it succeeds. That needs the right to mount (root on Linux); the counts say whether it ran.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from _kills import kill_until_done

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))
ROUND_KILLS = 8
"""After so many kills a round is left to end, so that every round ends."""
STEP_KB = 200
COMMAND = """
import canopy.lidar.chm as chm, canopy.lidar.tables as tables
chm._SURFACE_CELLS, chm.BLOCK_CELLS, tables.IN_MEMORY_BYTES = 32, 64, 0
from canopy.cli import main
main()
"""


def write_cloud(path: Path) -> Path:
    """Write a forest as a classified cloud."""
    from forest import make_forest, write_laz

    return path if path.is_file() else write_laz(make_forest(128, seed=3, holes=1), path)


def start(cloud: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["chm", str(cloud), "--out", str(folder / "chm.tif"), "--ground-out", str(folder / "dtm.tif")]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, "--quality"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file of a folder, those in folders included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def grow(cloud: Path, disk: Path) -> int | None:
    """Run the command on a growing file system until it succeeds; return the failures, None if mounting is denied."""
    size_kb, failed = STEP_KB, 0
    if shutil.which("mount") is None or mount(disk, size_kb):
        return None
    try:
        while True:
            process = start(cloud, disk / "out")
            _, errors = process.communicate()
            text = errors.decode()
            if process.returncode == 0:
                return failed
            line = text.strip().splitlines()[-1]
            if process.returncode != 1 or "Traceback" in text or not line.startswith("canopy: "):
                raise SystemExit(f"at {size_kb} kB exit status {process.returncode}, one line expected:\n{text}")
            if left := content(disk / "out"):
                raise SystemExit(f"at {size_kb} kB files are left: {sorted(left)}")
            print(f"{size_kb} kB: {line}", flush=True)
            failed, size_kb = failed + 1, size_kb + STEP_KB
            mount(disk, size_kb, "remount")
    finally:
        subprocess.run(["umount", disk], check=False)


def mount(disk: Path, size_kb: int, *options: str) -> int:
    """Mount a file system in memory of a size, or resize it; return the exit status."""
    disk.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size_kb}k", *options)), "tmpfs", disk]
    return subprocess.run(command, capture_output=True, check=False).returncode


def main() -> int:
    """Count kills until there are as many as requested, then fill disks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the rasters")
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    arguments = parser.parse_args()
    folder = arguments.folder / "chm_kills"
    folder.mkdir(parents=True, exist_ok=True)
    record = arguments.folder / "chm_kills.json"
    counts = json.loads(record.read_text()) if record.is_file() else {"rounds": 0, "kills": 0, "full_disks": None}
    cloud = write_cloud(folder / "forest.laz")
    shutil.rmtree(folder / "whole", ignore_errors=True)
    began = time.monotonic()
    _, errors = (process := start(cloud, folder / "whole")).communicate()
    if process.returncode:
        raise SystemExit(f"the command failed:\n{errors.decode()}")
    longest_s = 1.1 * (time.monotonic() - began)
    expected = content(folder / "whole")
    while counts["kills"] < arguments.kills:
        seed = 1000 + counts["rounds"]
        print(f"round {counts['rounds']}, seed {seed}", flush=True)
        shutil.rmtree(folder / "killed", ignore_errors=True)
        killed = folder / "killed"
        leftover = killed / "chm.tif.partial"
        counts["kills"] += kill_until_done(
            partial(start, cloud, killed), leftover.exists, random.Random(seed), longest_s, ROUND_KILLS
        )
        counts["rounds"] += 1
        if (files := content(folder / "killed")) != expected:
            raise SystemExit(f"seed {seed}: {sorted(files)} differ from {sorted(expected)}")
        record.write_text(json.dumps(counts))
    counts["full_disks"] = grow(cloud, folder / "disk")
    record.write_text(json.dumps(counts))
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
