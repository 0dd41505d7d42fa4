"""GEDI: shots read and filtered per second, footprints per second over a large map, and the memory of both.

The granule is as large as a full L2A (150,000 shots in eight beams) with random content in the layout of V002; the map
is 40,000 x 40,000 px of 0.5 m, the footprints lie all over it. Each runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas
import h5py
import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.windows import Window

from canopy.gedi import simulation
from canopy.gedi.filters import ShotFilter
from canopy.gedi.footprints import footprint_statistics
from canopy.gedi.shots import read_granules
from canopy.gedi.storage import write_shots

BLOCK_PX = 2000


def make_granule(path: Path, shots: int) -> None:
    """Write a granule of that many shots."""
    generator = np.random.default_rng(0)
    count = shots // 8
    beams = {}
    for number, name in enumerate(simulation.BEAMS):
        along_m = np.arange(count) * 60.0
        rh_m = np.sort(generator.gamma(2, 5, (count, 1)) * np.linspace(0, 1, 101)[None], axis=1)
        x, y = 300_000 + along_m * 0.6, 4_000_000 - along_m * 0.8 + 600 * number
        numbers = simulation.shot_numbers(1, number, count)
        beams[name] = simulation.BeamShots(numbers, x, y, rh_m, generator.random(count), along_m)
    simulation.write_l2a(path, beams, CRS(32611), generator)
    with h5py.File(path, "a") as file:
        file["BEAM0101/solar_elevation"][::3] = 10


def make_map(path: Path, side_px: int) -> None:
    """Write a map of woodland, one patch repeated."""
    generator = np.random.default_rng(0)
    patch = np.round(generator.gamma(2, 5, (BLOCK_PX // 10, BLOCK_PX // 10)), 1).astype(np.float32).repeat(10, 0)
    patch = patch.repeat(10, 1)
    shape = {"width": side_px, "height": side_px, "count": 1, "dtype": "float32"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "BIGTIFF": "YES"}
    grid = {"crs": "EPSG:32611", "transform": Affine(0.5, 0, 300_000, 0, -0.5, 4_000_000), "nodata": np.nan}
    with rasterio.open(path, "w", driver="GTiff", **shape, **layout, **grid) as dataset:
        for row in range(0, side_px, BLOCK_PX):
            for col in range(0, side_px, BLOCK_PX):
                dataset.write(patch, 1, window=Window(col, row, BLOCK_PX, BLOCK_PX))


def read(folder: Path) -> dict[str, float]:
    """Time a granule to GeoParquet."""
    began = time.perf_counter()
    rules = ShotFilter()
    reading = read_granules([folder / "granule.h5"], rules)
    write_shots(reading, folder / "shots.parquet", rules)
    return {"count": reading.read, "seconds": time.perf_counter() - began}


def footprints(folder: Path, shots: int, side_px: int) -> dict[str, float]:
    """Time footprints all over the map."""
    generator = np.random.default_rng(1)
    x, y = (
        300_000 + generator.uniform(20, side_px / 2 - 20, shots),
        4_000_000 - generator.uniform(20, side_px / 2 - 20, shots),
    )
    points = geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(x, y, crs="EPSG:32611"))
    began = time.perf_counter()
    statistics = footprint_statistics(folder / "map.tif", points)
    assert statistics["p98"].notna().all()
    return {"count": shots, "seconds": time.perf_counter() - began}


def peak_mib() -> float:
    """Return the peak memory of this process alone; getrusage would give the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=150_000)
    parser.add_argument("--footprints", type=int, default=100_000)
    parser.add_argument("--side-px", type=int, default=40_000)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part, folder = arguments.part[0], Path(arguments.part[1])
        measured = read(folder) if part == "read" else footprints(folder, arguments.footprints, arguments.side_px)
        print(json.dumps({**measured, "peak_mib": peak_mib()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_granule(Path(folder) / "granule.h5", arguments.shots)
        make_map(Path(folder) / "map.tif", arguments.side_px)
        print("| what | shots | shots per second | peak MiB |\n|---|---|---|---|")
        for part in ("read", "footprints"):
            command = [sys.executable, __file__, "--part", part, folder]
            command += ["--footprints", str(arguments.footprints), "--side-px", str(arguments.side_px)]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rate = measured["count"] / measured["seconds"]
            print(f"| {part} | {measured['count']:,} | {rate:,.0f} | {measured['peak_mib']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
