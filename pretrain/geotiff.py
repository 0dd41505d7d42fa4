"""Tiles cut from plain GeoTIFFs; the only place of the stage that needs GDAL."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS

from canopy.errors import TrainingError, one_line
from pretrain.config import SourceConfig, TilesConfig
from pretrain.tiling import mirror_to_side, tile_windows
from tiles.ground import true_gsd_m


def cut_files(source: SourceConfig, config: TilesConfig) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Tiles (3, tile_px, tile_px) of a source with their GSD in metres, file by file in the order of names.

    Raises:
        TrainingError: No files, a damaged file, or one that is not RGB uint8 on a known GSD.
    """
    for path in _files(source):
        image, known, gsd_m = _read(path, source.gsd_m)
        for rows, cols in tile_windows(image.shape[1:], config.tile_px):
            if known[rows, cols].mean() >= 1 - config.empty:
                yield mirror_to_side(image[:, rows, cols], config.tile_px), gsd_m


def _files(source: SourceConfig) -> list[Path]:
    files = [source.path] if source.path.is_file() else sorted(source.path.glob(source.pattern))
    if not files:
        raise TrainingError(f"no imagery at {source.path}: a GeoTIFF, or a folder with {source.pattern}, expected")
    return files


def _read(path: Path, gsd_m: float | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """Image (3, H, W), where it is known (H, W), and its GSD."""
    try:
        with rasterio.open(path) as opened:
            if opened.count < 3 or opened.dtypes[0] != "uint8":
                raise TrainingError(f"{path}: {opened.count} bands of {opened.dtypes[0]}; RGB uint8 expected")
            return opened.read((1, 2, 3)), opened.dataset_mask() > 0, gsd_m or _gsd_m(opened)
    except rasterio.RasterioIOError as error:
        raise TrainingError(f"{path}: {one_line(error)}") from error


def _gsd_m(opened: rasterio.DatasetReader) -> float:
    if opened.crs is None:
        raise TrainingError(f"{opened.name}: no CRS to read the GSD from; give gsd_m of its source")
    return true_gsd_m(opened.transform, opened.shape, CRS.from_wkt(opened.crs.to_wkt()))
