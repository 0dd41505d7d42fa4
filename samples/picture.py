"""Draw a height map next to its imagery, with a colour bar in metres, and print the path of the picture."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from tiles.style import HEIGHT_RAMP

REPOSITORY = Path(__file__).resolve().parent.parent
HEIGHTS = REPOSITORY / "build" / "demo" / "region_canopy_height.tif"
IMAGERY = REPOSITORY / "samples" / "yellowstone.tif"


def read_heights(path: Path) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Read heights (H, W) float32 metres, NaN where unknown, and the grid they lie on."""
    with rasterio.open(path) as dataset:
        grid = {"crs": dataset.crs, "transform": dataset.transform, "height": dataset.height}
        return dataset.read(1, masked=True).filled(np.nan), {**grid, "width": dataset.width}


def read_imagery(path: Path, grid: dict[str, object]) -> NDArray[np.uint8]:
    """Read imagery (H, W, 4) uint8 red, green, blue, alpha on the grid of the heights."""
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(dataset, resampling=Resampling.bilinear, add_alpha=True, **grid) as warped,
    ):
        return np.moveaxis(warped.read([1, 2, 3, 4]), 0, -1)


def colours() -> LinearSegmentedColormap:
    """Return the height ramp from 0 to its last step."""
    top_m = HEIGHT_RAMP[-1][0]
    return LinearSegmentedColormap.from_list("height", [(m / top_m, colour) for m, colour in HEIGHT_RAMP])


def show(axes: Axes, pixels: NDArray[np.generic], grid: dict[str, object], title: str) -> AxesImage:
    """Draw one panel, its axes in metres from the upper-left corner."""
    metres = abs(grid["transform"].a)  # type: ignore[attr-defined]
    height, width = pixels.shape[:2]
    axes.set_title(title)
    axes.set_xlabel("metres")
    extent = (0, width * metres, height * metres, 0)
    return axes.imshow(pixels, extent=extent, cmap=colours(), vmin=0, vmax=HEIGHT_RAMP[-1][0], interpolation="nearest")


def draw(heights_path: Path, imagery_path: Path, out: Path) -> None:
    """Write the picture of a height map in a projected CRS."""
    heights, grid = read_heights(heights_path)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained", sharey=True)
    show(left, read_imagery(imagery_path, grid), grid, "Imagery")
    panel = show(right, heights, grid, "Canopy height")
    right.set_facecolor("0.85")
    figure.colorbar(panel, ax=right, label="metres above ground", extend="max", shrink=0.85)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Parse the paths, draw, print the path of the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heights", type=Path, nargs="?", default=HEIGHTS)
    parser.add_argument("--imagery", type=Path, default=IMAGERY)
    parser.add_argument("--out", type=Path, help="default: next to the heights, as PNG")
    arguments = parser.parse_args()
    out = arguments.out or arguments.heights.with_suffix(".png")
    draw(arguments.heights, arguments.imagery, out)
    print(out)


if __name__ == "__main__":
    main()
