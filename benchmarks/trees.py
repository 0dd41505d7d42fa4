"""Trees of a generated forest: recall and precision by confidence, and speed against scikit-image's watershed alone.

    python benchmarks/trees.py --accuracy            # tops and crowns against the exact truth
    python benchmarks/trees.py --change              # change between two dates, and false alarms, against the truth
    python benchmarks/trees.py --side 10000          # time and memory on a map of that side, cells of 0.5 m

The watershed of scikit-image (extra `bench`) is given the same cells and the same treetops as markers; what
it is measured on is the flood alone, without reading, smoothing, tops, outlines and files, all of which
`canopy derive trees` is measured with. Each runs in a process of its own, one after the other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely

from canopy.example.stand import Stand, fell, make_stand
from canopy.products.change import ChangeOptions, detect_change
from canopy.products.tree_scores import MappedTrees, match, score
from canopy.products.trees import derive_trees

RATIO, PEAK_GB = 0.7, 1.0
STAND_M = 250
TREES = """
import json, resource, sys, time
from pathlib import Path
from canopy.products.trees import derive_trees
wall, cpu = time.perf_counter(), time.process_time()
trees = derive_trees(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps({
    "trees": trees.trees, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""
WATERSHED = """
import json, resource, sys, time
from pathlib import Path
import geopandas, numpy, rasterio
from skimage.segmentation import watershed
from canopy.products.treetops import smooth
tops = geopandas.read_file(sys.argv[2], layer="tops")
with rasterio.open(sys.argv[1]) as dataset:
    surface = smooth(dataset.read(1), 1.0)
    markers = numpy.zeros(surface.shape, numpy.int32)
    columns, rows = ~dataset.transform @ (tops.top_x.to_numpy(), tops.top_y.to_numpy())
markers[rows.astype(int), columns.astype(int)] = numpy.arange(1, len(tops) + 1)
mask = surface >= 2
wall, cpu = time.perf_counter(), time.process_time()
watershed(-surface, markers, mask=mask)
print(json.dumps({
    "trees": len(tops), "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="score tops and crowns on three generated forests")
    parser.add_argument("--change", action="store_true", help="score the change between two dates")
    parser.add_argument("--side", type=int, help="side of a map to measure speed on, cells")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated forests")
    arguments = parser.parse_args()
    if arguments.accuracy:
        measure_accuracy(arguments.seed)
    if arguments.change:
        measure_change(arguments.seed)
    if arguments.side:
        measure_speed(arguments.side)


def write_map(stand: Stand, path: Path, heights_m: np.ndarray, repeats: int = 1, half_m: float | None = None) -> Path:
    """Write heights, repeated side by side, with intervals of a half width where one is given."""
    bands = [heights_m] if half_m is None else [heights_m, heights_m - half_m, heights_m + half_m]
    names = ("canopy_height", "canopy_height_p05", "canopy_height_p95")[: len(bands)]
    rows, cols = heights_m.shape
    profile = {
        "driver": "GTiff", "count": len(bands), "height": rows * repeats, "width": cols * repeats, "tiled": True,
        "dtype": "float32", "nodata": np.nan, "crs": stand.crs, "transform": stand.transform, "compress": "zstd",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.descriptions = names
        for number, band in enumerate(bands, 1):
            strip = np.tile(band, (1, repeats))
            for repeat in range(repeats):
                out.write(strip, number, window=rasterio.windows.Window(0, repeat * rows, cols * repeats, rows))
    return path


def measure_accuracy(seed: int) -> None:
    """Print recall and precision of tops on three forests with errors, and precision by confidence."""
    kinds = {"mixed, 18 m": (18, 180), "young and dense, 12 m": (12, 400), "old and open, 25 m": (25, 150)}
    confidences, matches = [], []
    for number, (name, (height_m, trees_per_ha)) in enumerate(kinds.items()):
        stand = make_stand(STAND_M, height_m=height_m, trees_per_ha=trees_per_ha, seed=seed + number)
        with tempfile.TemporaryDirectory() as folder:
            path = write_map(stand, Path(folder) / "map.tif", stand.observe(0.5, seed, correlation_m=1.0))
            frame = geopandas.read_parquet(derive_trees(path, Path(folder) / "trees.parquet").path)
        trees = MappedTrees(frame[["top_x", "top_y"]].to_numpy(), frame.height_m.to_numpy(float), None)
        for label, share in (("all", 0.0), ("half of the crown seen", 0.5)):
            chosen = stand.seen_share >= share
            truth = MappedTrees(shapely.get_coordinates(stand.tops())[chosen], stand.trees[chosen, 2], None)
            result = score(trees, truth, within_m=2.0)
            row = result.scores
            classes = "  ".join(f"{key} {value.recall:.2f}" for key, value in result.by_height.items() if value.truth)
            print(
                f"{name:22s} {label:24s} {row.truth:5d} trees  recall {row.recall:.2f}  precision {row.precision:.2f}  "
                f"bias {row.bias_m:+.2f} m  MAE {row.mae_m:.2f} m  recall by height: {classes}"
            )
            if not share:
                matches.append(np.isin(np.arange(len(frame)), match(trees, truth, 2.0)[0]))
                confidences.append(frame.confidence.to_numpy())
    confidence, matched = np.concatenate(confidences), np.concatenate(matches)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (confidence >= low) & (confidence < low + 0.2 + (low == 0.8))
        print(
            f"confidence {low:.1f} to {low + 0.2:.1f}: {inside.sum():5d} trees, precision {matched[inside].mean():.2f}"
        )


def measure_change(seed: int) -> None:
    """Print what is reported of felled trees, and false alarms where nothing changed."""
    before = make_stand(STAND_M, seed=seed)
    after = fell(before, 0.05, growth_m=1.0, patches=2, seed=seed)
    lost_m = before.chm_m - after.chm_m
    gone = np.flatnonzero(~np.isin(before.trees[:, 0], after.trees[:, 0]))
    for error_m, correlation_m in ((0.5, 2.0), (1.0, 2.0), (2.0, 2.0), (2.0, 0.7)):
        half_m = 1.645 * error_m
        observed = [
            stand.observe(error_m, seed + number, correlation_m=correlation_m)
            for number, stand in enumerate((before, after, before))
        ]
        with tempfile.TemporaryDirectory() as folder:
            first, second, again = (
                write_map(before, Path(folder) / f"{number}.tif", heights, half_m=half_m)
                for number, heights in enumerate(observed)
            )
            moved = write_map(before, Path(folder) / "moved.tif", np.roll(observed[2], 1, axis=1), half_m=half_m)
            out, dates, fixed = Path(folder) / "out.tif", ("2018", "2022"), ChangeOptions(search_m=0)
            detect_change(first, second, out, dates=dates)
            with rasterio.open(out) as dataset:
                change = dataset.read(1)
            alarms = []
            for later in (again, moved):
                null = detect_change(first, later, out, fixed, dates=dates, overwrite=True)
                alarms.append((null.loss_m2 + null.gain_m2) / (null.loss_m2 + null.gain_m2 + null.unchanged_m2))
        loss, canopy_lost = change == -1, lost_m > 4
        shares = [loss[before.owner == number].mean() for number in gone if (before.owner == number).sum() > 60]
        felled = np.mean(np.array(shares) > 0.3)
        print(
            f"error {error_m:.1f} m, shared over {correlation_m:.1f} m: {loss[canopy_lost].mean():.2f} of the canopy "
            f"lost is reported, {(lost_m[loss] > 2).mean():.2f} of what is reported was lost; {felled:.2f} of "
            f"{len(shares)} felled crowns above 15 m2; false alarms {alarms[0]:.2%}, a cell off {alarms[1]:.2%}"
        )


def measure_speed(side: int) -> None:
    """Print time and memory of both on one map."""
    stand = make_stand(STAND_M, seed=1)
    repeats = max(1, round(side / len(stand.chm_m)))
    with tempfile.TemporaryDirectory() as folder:
        path = write_map(stand, Path(folder) / "map.tif", stand.observe(0.3, 1), repeats)
        derived = _run(TREES, path, Path(folder) / "trees.gpkg")
        watershed = _run(WATERSHED, path, Path(folder) / "trees.gpkg")
    cells = (repeats * len(stand.chm_m)) ** 2
    print(f"{cells / 1e6:.0f} M cells, {derived['trees']:,} trees")
    for name, run in (("canopy derive trees", derived), ("scikit-image watershed alone", watershed)):
        print(f"{name:30s} {run['wall_s']:7.1f} s wall {run['cpu_s']:7.1f} s CPU  peak {run['peak_gb']:.2f} GB")
    ratio = watershed["cpu_s"] / derived["cpu_s"]
    print(f"speed of the watershed reached: {ratio:.2f} by CPU, {watershed['wall_s'] / derived['wall_s']:.2f} by wall")
    for passed, target in (
        (ratio >= RATIO, f"at least {RATIO}"),
        (derived["peak_gb"] < PEAK_GB, f"under {PEAK_GB:g} GB"),
    ):
        print(f"{'reached' if passed else 'MISSED '}     {target}")


def _run(code: str, *arguments: Path) -> dict[str, float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
