"""Scenes read from folders of GeoTIFFs: `rgb.tif`, `chm_cm.tif`, perhaps `exclude_mask.tif`."""

from pathlib import Path

import numpy as np
from rasterio.errors import RasterioError

from canopy.dataset.scene import BUILDING, UNTRUSTED, Scene
from canopy.errors import RasterError, TrainingError, one_line
from tiles.heights import open_heights, open_raster


def read_scenes(root: Path) -> tuple[Scene, ...]:
    """Read all scenes below a folder, each in a folder of its own.

    Args:
        root: Folder of folders with `rgb.tif` (uint8, half the heights' cell size), `chm_cm.tif` (centimetres, 65535
            unknown) and perhaps `exclude_mask.tif`.

    Raises:
        TrainingError: No folder, no scenes, or a scene that breaks the format.
    """
    folders = sorted(path.parent for path in root.glob("*/rgb.tif")) if root.is_dir() else []
    if not folders:
        raise TrainingError(f"no scenes under {root}: folders with rgb.tif and chm_cm.tif expected")
    return tuple(_read_scene(folder) for folder in folders)


def _read_scene(folder: Path) -> Scene:
    try:
        with open_raster(folder / "rgb.tif") as opened:
            image = opened.read((1, 2, 3))
        # The name says the unit, and 65535 means unknown whether the file declares it or not.
        with open_heights(folder / "chm_cm.tif", unit="cm", needs_crs=False) as heights:
            height_m, cell_m = heights.read(), float(heights.dataset.res[0])
        if (folder / "exclude_mask.tif").is_file():
            with open_raster(folder / "exclude_mask.tif") as opened:
                mask = opened.read(1)
            height_m = np.where(mask == BUILDING, 0, np.where(mask == UNTRUSTED, np.nan, height_m)).astype(np.float32)
    except (RasterError, RasterioError, IndexError, ValueError) as error:
        raise TrainingError(f"scene {folder}: {one_line(error)}") from error
    if image.dtype != np.uint8 or image.shape[1:] != (2 * height_m.shape[0], 2 * height_m.shape[1]):
        raise TrainingError(
            f"scene {folder}: image {image.dtype} {image.shape[1:]} over heights {height_m.shape}; "
            "uint8 of twice the heights' rows and columns expected"
        )
    return Scene(folder.name, folder.name, image, height_m, cell_m)
