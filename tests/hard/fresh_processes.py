"""Start `canopy predict` in fresh processes, two at a time, with the real model: each ends, with the same bytes.

    python tests/hard/fresh_processes.py --folder build/hard [--processes 100]

The first inference of a process once deadlocked in some processes. Each process draws, from its number as the seed,
its threads, its layers, and how often the interpreter switches threads. A process that does not end within the limit
is a hang: it is killed, counted, and fails the harness.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

REPOSITORY = Path(__file__).resolve().parents[2]
AT_ONCE = 2
LIMIT_S = 600
"""Far above the time of a map on a busy machine."""


@dataclass(frozen=True)
class Draw:
    """Conditions of one process."""

    seed: int
    threads: int
    uncertainty: bool
    switch_s: float

    @property
    def kind(self) -> str:
        """Conditions under which maps have the same bytes."""
        return f"threads {self.threads}, uncertainty {self.uncertainty}"


def draw(seed: int) -> Draw:
    """Draw the conditions of the process of a number."""
    rng = random.Random(seed)
    return Draw(seed, rng.choice((1, 2)), rng.random() < 0.5, rng.choice((5e-3, 1e-4, 1e-6)))


def run(process: Draw, folder: Path) -> str:
    """Run the command in a fresh process; return ``ended``, ``hung`` or ``failed``."""
    out = folder / f"{process.seed}.tif"
    code = f"import sys; sys.setswitchinterval({process.switch_s}); from canopy.cli import main; main()"
    flags = ["--uncertainty"] if process.uncertainty else []
    aoi = str(REPOSITORY / "samples" / "region.geojson")
    child = subprocess.Popen(
        [sys.executable, "-c", code, "predict", "--aoi", aoi, "--out", str(out), "--overwrite", *flags],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": str(process.threads)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return "hung"
    if child.returncode:
        print(errors.decode(), flush=True)
        return "failed"
    return "ended"


def pixels(path: Path) -> np.ndarray:
    """Read a map."""
    with rasterio.open(path) as opened:
        values: np.ndarray = opened.read()
    return values


def same_as_first(process: Draw, folder: Path) -> bool:
    """Compare a map with the first of its kind, and remove it."""
    first = folder / f"{process.kind}.npy"
    out = folder / f"{process.seed}.tif"
    values = pixels(out)
    for file in (out, out.with_suffix(".json"), out.with_suffix(".qml")):
        file.unlink(missing_ok=True)
    if not first.is_file():
        np.save(first, values)
    return bool(np.array_equal(np.load(first), values, equal_nan=True))


def main() -> int:
    """Run processes until there are as many as requested; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the maps")
    parser.add_argument("--processes", type=int, default=100, help="processes in all")
    arguments = parser.parse_args()
    folder = arguments.folder / "fresh_processes"
    folder.mkdir(parents=True, exist_ok=True)
    record = arguments.folder / "fresh_processes.json"
    counts = {"ended": 0, "hung": 0, "failed": 0, "differed": 0}
    if record.is_file():
        counts = json.loads(record.read_text())
    else:
        for old in folder.iterdir():
            old.unlink()  # maps of another version
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while (done := counts["ended"] + counts["hung"] + counts["failed"]) < arguments.processes:
            pair = [draw(seed) for seed in range(done, min(done + AT_ONCE, arguments.processes))]
            for process, end in zip(pair, pool.map(lambda process: run(process, folder), pair), strict=True):
                counts[end] += 1
                counts["differed"] += end == "ended" and not same_as_first(process, folder)
                print(f"{process}: {end}", flush=True)
            record.write_text(json.dumps(counts))
    print(json.dumps(counts))
    return 1 if counts["hung"] or counts["failed"] or counts["differed"] else 0


if __name__ == "__main__":
    sys.exit(main())
