"""Write a map with known faults from a canopy height model, to measure what calibration with spaceborne lidar corrects.

    python recipes/distort_map.py CHM --out map.tif --dem dem.tif

The faults are those of real maps: trees the lower the taller they are (a third at 40 m), noise from crown to crown, and
patches of forest mapped as 0. The interval knows nothing of the truth: like that of canopy-small it follows from the
predicted height, with noise, and doubts half of the missed patches and a twentieth of the bare ground. The terrain is
made up too: hills of up to about 30 degrees, on which RH98 is too tall.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy import ndimage

from tiles.cog import UNCERTAINTY_BANDS, assemble, write_tile
from tiles.heights import open_heights

Array = NDArray[np.float32]
TAGS = {
    "CANOPY_MODEL": "none: distorted from a canopy height model",
    "CANOPY_MODEL_SHA256": "0" * 64,
    "CANOPY_IMAGERY": "none",
    "CANOPY_ACQUISITION_DATETIME": "unknown",
    "CANOPY_VERSION": "0",
}
TREE_M = 2.0
NOISE_M, NOISE_CELLS = 1.5, 3
"""Standard deviation of the noise on trees, and its reach: about a crown."""
PATCH_CELLS, PATCH = 15, 1.3
"""Reach of missed patches, and the standard deviations above which a smooth field is one: a tenth of the ground."""
HEIGHTS_M = (0.0, 1.0, 3.0, 7.0, 12.0, 18.0, 25.0, 40.0)
BELOW_M = (0.0, 1.0, 3.0, 7.0, 11.0, 14.0, 17.0, 20.0)
ABOVE_M = (4.0, 12.0, 16.0, 19.0, 18.0, 15.0, 12.0, 12.0)
"""Reach of the interval below and above predicted heights: about the widths that canopy-small's has by height."""
SPREAD, SPREAD_CELLS = 0.35, 6
"""Standard deviation of the logarithm of the interval's noise, and its reach."""
HIGHEST_M = 60.0
"""Where the bins of a model end."""
DOUBTED_M, DOUBT_CELLS, BARE_DOUBTED = 15.0, 10, 1.65
HILL_M, MEDIAN_SLOPE_DEG = 80.0, 12.0


def distorted(truth_m: Array, seed: int) -> Array:
    """Return height, 5th and 95th percentile of a faulty map of a true one.

    Args:
        truth_m: (H, W) metres, NaN where unknown.
        seed: Seed of all randomness.

    Returns:
        (3, H, W) float32 metres, low end <= height <= high end.
    """
    generator = np.random.default_rng(seed)
    shape = truth_m.shape
    low_m = 0.95 * truth_m * (1 - 0.3 * np.clip(truth_m / 40, 0, 1))
    noise_m = NOISE_M * smooth_field(generator, shape, NOISE_CELLS)
    height_m = np.maximum(low_m + np.where(low_m > TREE_M, noise_m, 0), 0)
    missed = smooth_field(generator, shape, PATCH_CELLS) > PATCH
    height_m = np.where(missed & ~np.isnan(truth_m), 0, height_m)
    above_m = np.interp(height_m, HEIGHTS_M, ABOVE_M) * np.exp(SPREAD * smooth_field(generator, shape, SPREAD_CELLS))
    upper_m = height_m + above_m
    # Doubt is a field of its own: it meets half of the missed patches, and some of the ground that is bare indeed.
    doubt = smooth_field(generator, shape, DOUBT_CELLS)
    doubted = np.where(missed, doubt > 0, (height_m < TREE_M) & (doubt > BARE_DOUBTED))
    doubted_m = DOUBTED_M * np.exp(SPREAD * smooth_field(generator, shape, SPREAD_CELLS))
    upper_m = np.where(doubted, np.maximum(upper_m, doubted_m), upper_m)
    upper_m = np.minimum(upper_m, HIGHEST_M)
    lower_m = np.maximum(height_m - np.interp(height_m, HEIGHTS_M, BELOW_M), 0)
    return np.stack([height_m, lower_m, upper_m]).astype(np.float32)


def hills(shape: tuple[int, int], cell_m: float, seed: int) -> Array:
    """Return the elevations (H, W) of smooth hills whose slope is 12 degrees in the median, metres."""
    elevation = smooth_field(np.random.default_rng([seed, 1]), shape, HILL_M / cell_m)
    slope = np.hypot(*np.gradient(elevation, cell_m))
    return (elevation * np.tan(np.radians(MEDIAN_SLOPE_DEG)) / np.median(slope)).astype(np.float32)


def smooth_field(generator: np.random.Generator, shape: tuple[int, ...], cells: float) -> NDArray[np.float64]:
    """Return Gaussian noise of standard deviation 1 that varies over a number of cells."""
    field = ndimage.gaussian_filter(generator.normal(size=shape), cells)
    return np.asarray(field / field.std(), np.float64)


def write_map(chm: Path, out: Path, seed: int, dem: Path | None = None) -> None:
    """Write the faulty map of a canopy height model, and perhaps the terrain below."""
    with open_heights(chm) as raster:
        truth_m = raster.read()
        geobox = GeoBox(truth_m.shape, raster.dataset.transform, raster.dataset.crs.to_wkt())
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        tile = Path(folder) / "tile.tif"
        write_tile(tile, distorted(truth_m, seed), geobox, plan="distort")
        assemble([(tile, 0, 0)], out, geobox, UNCERTAINTY_BANDS, TAGS)
    if dem is not None:
        _write_terrain(dem, geobox, hills(truth_m.shape, geobox.affine.a, seed))


def _write_terrain(path: Path, geobox: GeoBox, elevation_m: Array) -> None:
    height, width = elevation_m.shape
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "height": height, "width": width}
    with rasterio.open(path, "w", **profile, crs=str(geobox.crs), transform=geobox.affine) as dataset:
        dataset.write(elevation_m, 1)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chm", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="map to write")
    parser.add_argument("--dem", type=Path, help="terrain model to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of all randomness")
    arguments = parser.parse_args()
    write_map(arguments.chm, arguments.out, arguments.seed, arguments.dem)
    print(arguments.out)


if __name__ == "__main__":
    main()
