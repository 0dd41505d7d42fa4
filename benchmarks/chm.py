"""Speed and memory of `canopy chm`: returns per second and core, and how the cost grows with the cloud.

    python benchmarks/chm.py cloud.laz
    CANOPY_TEST_DATA=FOLDER python benchmarks/chm.py     # lidar/autzen_west_feet.laz in that folder
    python benchmarks/chm.py --sides 3000 6000           # memory of generated clouds, all outputs, metres

Each run is a process of its own. The grown cloud is the same one four times, side by side, in one file. Generated
clouds have a return a square metre, in squares of 1 km as national lidar comes, half of them trees on a slope. On a
shared machine CPU time is the one to compare: wall time includes the work of others.
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
import pyproj

CLOUD = Path(os.environ.get("CANOPY_TEST_DATA", "")) / "lidar" / "autzen_west_feet.laz"
RATE, PEAK_GB, RATIO = 250_000, 2.0, 4.4
RUN = """
import json, resource, sys, time
from pathlib import Path
from canopy.lidar import build_chm
wall, cpu = time.perf_counter(), time.process_time()
out, every = Path(sys.argv[2]), len(sys.argv) > 3
ground_out = out.with_name("ground.tif") if every else None
chm = build_chm([Path(sys.argv[1])], out, ground_out=ground_out, quality=every, overwrite=True)
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
    parser.add_argument("--sides", type=int, nargs="+", default=[], help="sides of generated clouds, metres")
    arguments = parser.parse_args()
    cloud = arguments.cloud
    if arguments.sides:
        measure_memory(arguments.sides)
        return
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


def measure_memory(sides: list[int]) -> None:
    """Print the peak memory of rasters of several sizes."""
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            run = measure(generate(Path(folder) / "cloud.las", side), Path(folder), "every output")
        cells = side**2
        print(
            f"{cells / 1e6:6.1f} M cells  {run['points'] / 1e6:6.1f} M points  {run['cpu_s']:6.0f} s CPU  "
            f"peak {run['peak_gb']:.2f} GB  {run['peak_gb'] * 2**30 / cells:6.1f} bytes a cell",
            flush=True,
        )


def generate(out: Path, side: int) -> Path:
    """Write a cloud of a square, a square kilometre after the other."""
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.offsets, header.scales = [300_000, 4_100_000, 0], [0.001] * 3
    header.add_crs(pyproj.CRS("EPSG:32611"))
    rng = np.random.default_rng(0)
    with laspy.open(out, "w", header=header) as writer:
        for east, north in np.ndindex(-(-side // 1000), -(-side // 1000)):
            width, height = (min(1000, side - 1000 * index) for index in (east, north))
            count = width * height
            x, y = 1000 * east + rng.uniform(0, width, count), 1000 * north + rng.uniform(0, height, count)
            tree = (np.sin(x / 17) + np.cos(y / 23) > 0) & (rng.random(len(x)) < 0.8)
            part = laspy.ScaleAwarePointRecord.zeros(len(x), header=header)
            part.x, part.y = 300_000 + x, 4_100_000 + y
            part.z = 500 + 0.05 * x + 10 * np.sin(y / 300) + np.where(tree, rng.uniform(10, 18, len(x)), 0)
            part.classification = np.where(tree, 5, 2).astype(np.uint8)
            writer.write_points(part)
    return out


def measure(cloud: Path, folder: Path, *every: str) -> dict[str, float]:
    """Measure one run in a process of its own; with a further argument, of every output."""
    arguments = [sys.executable, "-c", RUN, str(cloud), str(folder / "chm.tif"), *every]
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
