"""Speed and memory of `canopy chm`: returns per second and core, and how the cost grows with the cloud.

    python benchmarks/chm.py cloud.laz
    CANOPY_TEST_DATA=FOLDER python benchmarks/chm.py     # lidar/autzen_west_feet.laz in that folder

Each run is a process of its own. The grown cloud is the same one four times, side by side, in one file. On a shared
machine CPU time is the one to compare: wall time includes the work of others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import laspy
import numpy as np

CLOUD = Path(os.environ.get("CANOPY_TEST_DATA", "")) / "lidar" / "autzen_west_feet.laz"
RATE, PEAK_GB, RATIO = 250_000, 2.0, 4.4
RUN = """
import json, resource, sys, time
from pathlib import Path
from canopy.lidar import build_chm
wall, cpu = time.perf_counter(), time.process_time()
chm = build_chm([Path(sys.argv[1])], Path(sys.argv[2]), overwrite=True)
print(json.dumps({
    "points": chm.point_count,
    "wall_s": time.perf_counter() - wall,
    "cpu_s": time.process_time() - cpu,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def main() -> None:
    """Measure the cloud, and the cloud four times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cloud", type=Path, nargs="?", default=CLOUD)
    cloud = parser.parse_args().cloud
    if not cloud.is_file():
        print(f"skipped: there is no {cloud}; name a LAS or LAZ file")
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        one = measure(cloud, Path(folder))
        four = measure(tile_four(cloud, Path(folder) / "four.laz"), Path(folder))
    for name, run in (("once", one), ("four times", four)):
        print(
            f"{name:10s}  {run['points']:>11,.0f} points  {run['wall_s']:6.1f} s wall  {run['cpu_s']:6.1f} s CPU  "
            f"{run['points'] / run['wall_s'] / cores:>9,.0f} points/s and core of {cores}  peak {run['peak_gb']:.2f} GB"
        )
    wall, cpu = (four[clock] / one[clock] for clock in ("wall_s", "cpu_s"))
    print(f"ratio       {wall:.2f} wall  {cpu:.2f} CPU")
    for passed, target in (
        (one["points"] / one["wall_s"] / cores >= RATE, f"{RATE:,} points/s and core"),
        (max(one["peak_gb"], four["peak_gb"]) < PEAK_GB, f"under {PEAK_GB:g} GB"),
        (cpu <= RATIO, f"at most {RATIO} times as much CPU"),
        (wall <= RATIO, f"at most {RATIO} times as long (only on an idle machine)"),
    ):
        print(f"{'reached' if passed else 'MISSED '}     {target}")


def measure(cloud: Path, folder: Path) -> dict[str, float]:
    """Measure one run in a process of its own."""
    arguments = [sys.executable, "-c", RUN, str(cloud), str(folder / "chm.tif")]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def tile_four(cloud: Path, out: Path) -> Path:
    """Write the cloud in a square of two by two, a chunk at a time."""
    with laspy.open(cloud) as reader:
        header = reader.header
        span = np.ceil(header.maxs - header.mins)
        with laspy.open(out, "w", header=header) as writer:
            for east, north in ((0, 0), (1, 0), (0, 1), (1, 1)):
                reader.seek(0)
                for chunk in reader.chunk_iterator(1_000_000):
                    chunk.x, chunk.y = np.asarray(chunk.x) + east * span[0], np.asarray(chunk.y) + north * span[1]
                    writer.write_points(chunk)
    return out


if __name__ == "__main__":
    main()
