"""Start `canopy predict` in fresh processes, two at a time, each with an empty cache: none hangs, all maps are equal.

    python tests/hard/fresh_processes.py --folder build/hard [--count 100]

A deadlock at the first call of a compiled library shows only in some of many new processes. Counts lie in
FOLDER/fresh_processes.json, from which the same command continues.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def map_sample(folder: Path) -> str:
    """Map the sample in a new process with an empty cache, and return the sha256 of the map; "" where it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "canopy", "predict", "--aoi", REPOSITORY / "samples" / "region.geojson"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CANOPY_MODELS": str(folder / "models")}
    try:
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"hangs for {LIMIT_S} s", flush=True)
        return ""
    if ended.returncode:
        print(f"ended with {ended.returncode}:\n{ended.stderr[-2000:]}", flush=True)
        return ""
    digest = hashlib.sha256((folder / "region_canopy_height.tif").read_bytes()).hexdigest()
    shutil.rmtree(folder)
    return digest


def main() -> int:
    """Start processes until there are as many as requested; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the maps")
    parser.add_argument("--count", type=int, default=100, help="processes in all")
    arguments = parser.parse_args()
    record = arguments.folder / "fresh_processes.json"
    counts = json.loads(record.read_text()) if record.is_file() else {"done": 0, "seconds": 0.0, "sha256": []}
    while counts["done"] < arguments.count:
        began = time.monotonic()
        folders = [arguments.folder / "fresh_processes" / str(counts["done"] + number) for number in range(2)]
        with ThreadPoolExecutor(2) as pool:
            digests = set(pool.map(map_sample, folders))
        if "" in digests:
            return 1
        counts = {
            "done": counts["done"] + 2,
            "seconds": round(counts["seconds"] + time.monotonic() - began, 1),
            "sha256": sorted(digests.union(counts["sha256"])),
        }
        record.write_text(json.dumps(counts))
        print(f"{counts['done']} processes, {len(counts['sha256'])} different map(s)", flush=True)
    return 1 if len(counts["sha256"]) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
