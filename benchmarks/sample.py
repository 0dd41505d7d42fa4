"""Heights of a model over the sample's meadow, shade and sunlit crowns, which differ in colour.

No lidar was flown over the sample at that hour, so these are no errors. But grass is 0 m tall whoever measures it, and
shade lies on grass more often than on leaves: heights there should fall well below those of the crowns next to it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geom import box
from scipy import ndimage

from canopy import prediction
from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.bundle import find_bundle
from canopy.models.model import load_model

DARK, MEADOW_FROM, SMOOTH_BELOW, CROWNS = 75, 115, 10, (75, 125)
NEAR_M, PX_M = 5, 0.5
"""Distance up to which a meadow is one between trees, and side of a pixel."""


def covers(image: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Return masks (H, W) of what is plainly meadow, shade, or a sunlit crown next to its shadow.

    Args:
        image: (3, H, W) digital numbers at 0.5 m.
    """
    red, _, blue = image
    grey = image.mean(axis=0)
    around = ndimage.uniform_filter(grey, 21)
    texture = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, 5) - ndimage.uniform_filter(grey, 5) ** 2, 0))
    shade = (grey < DARK) & (blue > red)
    near_shade = ndimage.uniform_filter(shade.astype(float), 15) > 0.15
    crowns = (grey > CROWNS[0]) & (grey < CROWNS[1]) & (red > blue + 10) & near_shade
    meadow = (around > MEADOW_FROM) & (texture < SMOOTH_BELOW) & ~shade
    near_trees = ndimage.distance_transform_edt(~(shade | crowns)) * PX_M <= NEAR_M
    return {
        "meadow": meadow,
        f"meadow up to {NEAR_M} m from shade or crowns": meadow & near_trees,
        f"meadow further than {NEAR_M} m": meadow & ~near_trees,
        "shade": shade,
        "sunlit crowns": crowns,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="canopy-small")
    arguments = parser.parse_args()
    with rasterio.open(SAMPLE_SCENE) as opened, tempfile.TemporaryDirectory() as folder:
        image = opened.read((1, 2, 3)).astype(float)
        area = box(*opened.bounds, opened.crs.to_wkt())
        out = Path(folder) / "map.tif"
        prediction.predict(area, SAMPLE_SCENE, load_model(find_bundle(arguments.model)), out, crs=str(opened.crs))
        with rasterio.open(out) as opened_map:
            heights = opened_map.read(1)
    print("| cover | share of the sample | mean height m | 90th percentile m |\n|---|---|---|---|")
    for name, mask in covers(image).items():
        height_m = heights[mask & ~np.isnan(heights)]
        print(f"| {name} | {mask.mean():.2f} | {height_m.mean():.2f} | {np.percentile(height_m, 90):.2f} |")


if __name__ == "__main__":
    main()
