"""Time of two plots far apart over that of the same plots close together: the area between should cost nothing.

    python benchmarks/apart.py [--distance-m 14000] [--rounds 3]

Both maps are made by `canopy predict` with the bundled model from the same two scenes of noise, so they hold the same
tiles of trees; only the empty area between the plots differs. Times are those of whole calls in one process.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import shapely
from odc.geo.geom import Geometry

from canopy import predict
from canopy.models.model import CanopyModel, load_model

CRS = "EPSG:32612"
SIDE_M, CORNER = 150, (500000, 4900100)


def write_scene(path: Path, offset_m: float) -> Path:
    """Write a scene of noise whose corner lies that far east and south of CORNER."""
    values = np.random.default_rng(0).integers(1, 255, (3, 2 * SIDE_M, 2 * SIDE_M), dtype=np.uint8)
    transform = rasterio.Affine(0.5, 0, CORNER[0] + offset_m, 0, -0.5, CORNER[1] - offset_m)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 2 * SIDE_M, "width": 2 * SIDE_M}
    with rasterio.open(path, "w", crs=CRS, transform=transform, **profile) as out:
        out.write(values)
    return path


def plot(offset_m: float) -> shapely.Polygon:
    """Return a plot of 50 m in the middle of a scene."""
    west, south = CORNER[0] + offset_m + 50, CORNER[1] - offset_m - 100
    return shapely.box(west, south, west + 50, south + 50)


def seconds(folder: Path, distance_m: float, model: CanopyModel) -> float:
    """Return the time of a map of two plots."""
    scenes = [write_scene(folder / f"{name}.tif", offset) for name, offset in (("one", 0.0), ("two", distance_m))]
    area = Geometry(shapely.MultiPolygon([plot(0), plot(distance_m)]), CRS)
    began = time.perf_counter()
    predict(area, scenes, model, folder / "map.tif", overwrite=True)
    return time.perf_counter() - began


def main() -> None:
    """Parse, measure, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distance-m", type=float, default=14000, help="distance east and south (20 km in all)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = load_model()
    with tempfile.TemporaryDirectory() as name:
        seconds(Path(name), SIDE_M, model)  # compiles the model
        for _ in range(arguments.rounds):
            near_s, far_s = (seconds(Path(name), distance, model) for distance in (SIDE_M, arguments.distance_m))
            print(f"next to each other {near_s:.1f} s, far apart {far_s:.1f} s: {far_s / near_s:.2f} times")


if __name__ == "__main__":
    main()
