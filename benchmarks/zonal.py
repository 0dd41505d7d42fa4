"""CPU time of the statistics of polygons on a map: `canopy derive stands` and `tiles.zonal` against exactextract alone.

    python benchmarks/zonal.py [--polygons 10000] [--side 8000]

The map has cells of 1 m, the polygons are irregular and of about 0.8 ha. exactextract computes mean, highest cell and
95th percentile of the same file; we compute these and top height, covers, openings, surface and strata. The two take
turns on parts of the polygons, in one thread.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from exactextract import exact_extract
from odc.geo.crs import CRS

from canopy.products.cells import OpeningRule
from canopy.products.measuring import measure_zones
from canopy.products.reading import open_map
from canopy.products.zones import Zones, areas_m2

UTM, X, Y = "EPSG:32633", 500_000.0, 5_000_000.0
PARTS = 5
OPERATIONS = ["mean", "max", "quantile(q=0.95)"]


def main() -> None:
    """Print microseconds a polygon of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polygons", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=8000, help="Side of the map, cells.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_map(Path(folder) / "map.tif", arguments.side)
        polygons = blobs(arguments.polygons, arguments.side)
        # Neighbours together, as a forester's file has them; else either would read the map many times.
        order = np.lexsort((shapely.bounds(polygons)[:, 0], shapely.bounds(polygons)[:, 1] // 512))
        parts = np.array_split(polygons[order], PARTS)
        canopy_s, extract_s = zip(*(both_s(path, part) for part in parts), strict=True)
    us = [1e6 * sum(times) / arguments.polygons for times in (canopy_s, extract_s)]
    ratio = statistics.median(a / b for a, b in zip(canopy_s, extract_s, strict=True))
    print(f"canopy {us[0]:.0f} us, exactextract {us[1]:.0f} us a polygon of CPU time, ratio {ratio:.2f}")


def both_s(path: Path, polygons: np.ndarray) -> tuple[float, float]:
    """Return the CPU seconds of both on some polygons, of the same means."""
    mean_m: list[np.ndarray] = []
    times = [cpu_s(lambda way=way: mean_m.append(way(path, polygons))) for way in (measure, extract)]
    np.testing.assert_allclose(mean_m[0], mean_m[1], rtol=1e-5)
    return times[0], times[1]


def cpu_s(work: Callable[[], None]) -> float:
    """Return the CPU seconds of some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(path: Path, polygons: np.ndarray) -> np.ndarray:
    """Return the means of polygons by our own way, which computes all figures of a stand."""
    crs = CRS(UTM)
    zones = Zones(tuple(map(str, range(len(polygons)))), polygons, areas_m2(polygons, crs))
    mean_m = np.full(len(polygons), np.nan)
    with open_map(path) as source:
        for group, measured in measure_zones(source, zones, OpeningRule(), ends=False):
            mean_m[group.numbers] = [each.surface.values["mean_m"] for each in measured]
    return mean_m


def extract(path: Path, polygons: np.ndarray) -> np.ndarray:
    """Return the means of polygons by exactextract."""
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(polygon)} for polygon in polygons
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features of GeoJSON have no CRS; these are in the map's
        results = exact_extract(str(path), features, OPERATIONS)
    return np.array([result["properties"]["mean"] for result in results])


def write_map(path: Path, side: int) -> Path:
    """Write heights that look like crowns, tiled and compressed, a strip of blocks at a time."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "count": 1, "height": side, "width": side, "dtype": "float32", "nodata": np.nan}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd"}
    with rasterio.open(path, "w", crs=UTM, transform=Affine(1, 0, X, 0, -1, Y), **profile, **layout) as raster:
        for row in range(0, side, 512):
            height = min(512, side - row)
            crowns = np.kron(rng.normal(15, 8, (height // 4 + 1, side // 4 + 1)), np.ones((4, 4)))[:height, :side]
            values = np.maximum(crowns + rng.normal(0, 1, crowns.shape), 0).astype(np.float32)
            raster.write(values, 1, window=((row, row + height), (0, side)))
    return path


def blobs(count: int, side: int) -> np.ndarray:
    """Return irregular polygons of about 0.8 ha on the map."""
    rng = np.random.default_rng(1)
    turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    centres = rng.uniform(80, side - 80, (count, 1, 2)) * (1, -1) + (X, Y)
    radii = 52 * rng.uniform(0.8, 1.2, (count, 14, 1))
    return shapely.polygons(centres + radii * np.column_stack([np.cos(turns), np.sin(turns)]))


if __name__ == "__main__":
    main()
