"""Run `canopy dataset build` on a file system that grows in small steps: one line each time, and it goes on.

    python tests/hard/dataset_disk.py --folder build/hard [--step-kb 200]

A file system in memory grows until the build succeeds; the store must then equal that of a build with room. Last, the
file system is made read-only, and the command must say so in one line. Needs the right to mount (root on Linux);
without it, nothing is run and the counts say so.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dataset_kills import STORED, digest, run_to_end, start, write_inputs


def mounted(folder: Path, size_kb: int, *options: str) -> bool:
    """Mount a file system in memory of a size, or resize it; return whether that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size_kb}k", *options)), "tmpfs", folder]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def refusal(config: Path, out: Path) -> str | None:
    """Run the command; return the line with which it fails, or None where it succeeds."""
    process = start(config, out, 1)
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    text = errors.decode()
    line = text.strip().splitlines()[-1]
    if process.returncode != 1 or "Traceback" in text or not line.startswith("canopy: ") or str(out.parent) not in line:
        raise SystemExit(f"exit status {process.returncode}, one line that names the folder expected:\n{text}")
    return line


def grow(config: Path, disk: Path, step_kb: int) -> int:
    """Run the command on a growing file system until it succeeds; return the number of runs that failed."""
    failed, size_kb = 0, step_kb
    while (line := refusal(config, disk / "store")) is not None:
        print(f"{size_kb} kB: {line}", flush=True)
        if "MB free" not in line:
            raise SystemExit("the line does not say how much space is left")
        failed, size_kb = failed + 1, size_kb + step_kb
        mounted(disk, size_kb, "remount")
    print(f"{size_kb} kB: done after {failed} failures", flush=True)
    return failed


def main() -> int:
    """Grow the file system, then make it read-only; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the stores")
    parser.add_argument("--step-kb", type=int, default=200, help="growth of the file system, kB")
    arguments = parser.parse_args()
    folder, record = arguments.folder.resolve() / "dataset_disk", arguments.folder / "dataset_disk.json"
    config, whole, disk = write_inputs(folder / "data"), folder / "whole", folder / "disk"
    disk.mkdir(exist_ok=True)
    if not mounted(disk, arguments.step_kb):
        record.write_text(json.dumps({"skipped": "mounting a file system is not allowed"}))
        print("mounting a file system is not allowed: nothing run")
        return 0
    try:
        shutil.rmtree(whole, ignore_errors=True)
        run_to_end(config, whole)
        failed = grow(config, disk, arguments.step_kb)
        same = digest(disk / "store") == digest(whole)
        names = sorted(path.name for path in (disk / "store").iterdir())
        mounted(disk, 100_000, "remount", "ro")
        line = refusal(config, disk / "other")
        print(f"read-only: {line}\nsame bytes: {same}, files: {names}")
        if not same or names != STORED or failed < 2 or line is None:
            return 1
    finally:
        subprocess.run(["umount", disk], check=False)
    record.write_text(json.dumps({"failures": failed, "same_bytes": same}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
