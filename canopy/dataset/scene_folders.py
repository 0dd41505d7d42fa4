"""Scenes read from folders of GeoTIFFs: `rgb.tif`, `chm_cm.tif`, perhaps `exclude_mask.tif`."""

from pathlib import Path

import numpy as np
import rasterio

from canopy.dataset.scene import BUILDING, UNTRUSTED, Scene
from canopy.dataset.store import UNKNOWN_CM
from canopy.errors import TrainingError, one_line


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
        with rasterio.open(folder / "rgb.tif") as opened:
            image = opened.read((1, 2, 3))
        with rasterio.open(folder / "chm_cm.tif") as opened:
            centimetres, cell_m = opened.read(1), float(opened.res[0])
        height_m = np.where(centimetres == UNKNOWN_CM, np.nan, centimetres / 100).astype(np.float32)
        if (folder / "exclude_mask.tif").is_file():
            with rasterio.open(folder / "exclude_mask.tif") as opened:
                mask = opened.read(1)
            height_m = np.where(mask == BUILDING, 0, np.where(mask == UNTRUSTED, np.nan, height_m)).astype(np.float32)
    except (rasterio.RasterioIOError, IndexError) as error:
        raise TrainingError(f"scene {folder}: {one_line(error)}") from error
    if image.dtype != np.uint8 or image.shape[1:] != (2 * height_m.shape[0], 2 * height_m.shape[1]):
        raise TrainingError(
            f"scene {folder}: image {image.dtype} {image.shape[1:]} over heights {height_m.shape}; "
            "uint8 of twice the heights' rows and columns expected"
        )
    return Scene(folder.name, folder.name, image, height_m, cell_m)
