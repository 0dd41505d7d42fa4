"""Write a map with known faults from a canopy height model, to prove what calibration with spaceborne lidar corrects.

    python recipes/distort_map.py CHM --out map.tif

The faults are those of real maps: trees the lower the taller they are (a third at 40 m), and patches of forest mapped
as 0. Three bands, as of `canopy predict --uncertainty`: the interval is honest, that is wide over the false zeros and
narrow over meadows.
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

Array = NDArray[np.float32]
TAGS = {
    "CANOPY_MODEL": "none: distorted from a canopy height model",
    "CANOPY_MODEL_SHA256": "0" * 64,
    "CANOPY_IMAGERY": "none",
    "CANOPY_ACQUISITION_DATETIME": "unknown",
    "CANOPY_VERSION": "0",
}


def distorted(truth_m: Array, seed: int) -> Array:
    """Return height, 5th and 95th percentile (3, H, W) of a faulty map of a true one (H, W), metres."""
    generator = np.random.default_rng(seed)
    low_m = 0.95 * truth_m * (1 - 0.3 * np.clip(truth_m / 40, 0, 1))
    patches = ndimage.gaussian_filter(generator.normal(size=truth_m.shape), 15)
    missed = patches > 1.3 * patches.std()
    height_m = np.where(missed, 0, low_m)
    spread = np.exp(0.15 * ndimage.gaussian_filter(generator.normal(size=truth_m.shape), 5) * 10)
    upper_m = 1.35 * low_m * np.where(missed, spread, 1) + 0.3
    lower_m = np.where(missed, 0, 0.6 * low_m)
    return np.stack([height_m, lower_m, np.maximum(upper_m, height_m)]).astype(np.float32)


def write_map(chm: Path, out: Path, seed: int) -> None:
    """Write the faulty map of a canopy height model."""
    with rasterio.open(chm) as opened:
        truth_m = opened.read(1, masked=True).filled(np.nan)
        geobox = GeoBox(opened.shape, opened.transform, opened.crs.to_wkt())
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        tile = Path(folder) / "tile.tif"
        write_tile(tile, distorted(truth_m, seed), geobox, plan="distort")
        assemble([(tile, 0, 0)], out, geobox, UNCERTAINTY_BANDS, TAGS)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chm", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write_map(arguments.chm, arguments.out, arguments.seed)
    print(arguments.out)


if __name__ == "__main__":
    main()
