"""Scenes read from folders of GeoTIFFs: `rgb.tif`, `chm_cm.tif`, perhaps `exclude_mask.tif`."""

from pathlib import Path

import numpy as np
import rasterio

from canopy.dataset.scene import Scene
from canopy.errors import TrainingError, one_line

UNKNOWN_CM = 65535


def read_scenes(root: Path) -> tuple[Scene, ...]:
    """Scenes of a folder, each in a folder of its own: `rgb.tif`, `chm_cm.tif`, perhaps `exclude_mask.tif`.

    Raises:
        TrainingError: No folder, no scenes, or a scene that breaks the format.
    """
    return tuple(_read_scene(folder, folder.name) for folder in _scene_folders(root))


def _scene_folders(root: Path) -> list[Path]:
    folders = sorted(path.parent for path in root.glob("*/rgb.tif")) if root.is_dir() else []
    if not folders:
        raise TrainingError(f"no scenes under {root}: folders with rgb.tif and chm_cm.tif expected")
    return folders


def _read_scene(folder: Path, group: str) -> Scene:
    try:
        with rasterio.open(folder / "rgb.tif") as opened:
            image = opened.read((1, 2, 3))
        with rasterio.open(folder / "chm_cm.tif") as opened:
            centimetres, cell_m = opened.read(1), float(opened.res[0])
        height_m = np.where(centimetres == UNKNOWN_CM, np.nan, centimetres / 100).astype(np.float32)
        if (folder / "exclude_mask.tif").is_file():
            with rasterio.open(folder / "exclude_mask.tif") as opened:
                mask = opened.read(1)
            height_m = np.where(mask == 1, 0, np.where(mask == 2, np.nan, height_m)).astype(np.float32)
    except (rasterio.RasterioIOError, IndexError) as error:
        raise TrainingError(f"scene {folder}: {one_line(error)}") from error
    if image.dtype != np.uint8 or image.shape[1:] != (2 * height_m.shape[0], 2 * height_m.shape[1]):
        raise TrainingError(
            f"scene {folder}: image {image.dtype} {image.shape[1:]} over heights {height_m.shape}; "
            "uint8 of twice the heights' rows and columns expected"
        )
    return Scene(folder.name, group, image, height_m, cell_m)
