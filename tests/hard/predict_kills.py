"""Kill `canopy predict` at random times, with the real model over many tiles: same bytes in the end, no leftovers.

    python tests/hard/predict_kills.py --folder build/hard [--kills 200]

Each round starts the command in a new output folder and sends SIGKILL after a random time, again and again, until the
command ends by itself. The map must equal that of an uninterrupted run, with its style and item, and nothing else may
lie in the folder.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from _kills import kill_until_done

REPOSITORY = Path(__file__).resolve().parents[2]
TILE_PX = 64
COMMAND = f"import canopy.prediction.run as run; run.TILE_PX = {TILE_PX}; from canopy.cli import main; main()"
ROUND_KILLS = 12
"""After so many kills a round is left to end, so that every round ends."""


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    aoi = REPOSITORY / "samples" / "region.geojson"
    arguments = ["predict", "--aoi", str(aoi), "--uncertainty", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run_to_end(out: Path) -> None:
    """Run the command and require that it succeeds."""
    process = start(out)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the command failed:\n{errors.decode()}")


def main() -> int:
    """Count kills until there are as many as requested; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the maps")
    parser.add_argument("--kills", type=int, default=200, help="kills in all")
    arguments = parser.parse_args()
    folder = arguments.folder / "predict_kills"
    folder.mkdir(parents=True, exist_ok=True)
    record = arguments.folder / "predict_kills.json"
    counts = json.loads(record.read_text()) if record.is_file() else {"rounds": 0, "kills": 0}
    whole = folder / "whole.tif"
    whole.unlink(missing_ok=True)
    for companion in (whole.with_suffix(".json"), whole.with_suffix(".qml")):
        companion.unlink(missing_ok=True)
    began = time.monotonic()
    run_to_end(whole)
    longest_s = 1.1 * (time.monotonic() - began)
    while counts["kills"] < arguments.kills:
        seed = counts["rounds"]
        out = folder / f"round{seed}" / "map.tif"
        out.parent.mkdir(exist_ok=True)
        leftover = out.with_name(f"{out.name}.partial")
        kills = kill_until_done(partial(start, out), leftover.exists, random.Random(seed), longest_s, ROUND_KILLS)
        names = sorted(path.name for path in out.parent.iterdir())
        same = out.read_bytes() == whole.read_bytes()
        print(f"round {seed}: {kills} kills, same bytes: {same}, files: {names}", flush=True)
        if not same or names != ["map.json", "map.qml", "map.tif"]:
            return 1
        for path in out.parent.iterdir():
            path.unlink()
        out.parent.rmdir()
        counts = {"rounds": seed + 1, "kills": counts["kills"] + kills}
        record.write_text(json.dumps(counts))
    print(f"{counts['kills']} kills in {counts['rounds']} rounds: same bytes, no leftovers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
