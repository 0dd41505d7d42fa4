"""Tiles cut from plain GeoTIFFs; the only module of the stage's data path that needs GDAL and PROJ."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS

from canopy.errors import TrainingError, one_line
from pretrain.config import TilesConfig, TileSourceConfig
from pretrain.tiling import mirror_to_side, tile_windows
from tiles.ground import true_gsd_m


def cut_files(source: TileSourceConfig, config: TilesConfig) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield the tiles of a source, file by file in the order of names.

    Args:
        source: Files, and perhaps their GSD.
        config: Side of the tiles, and the share of unknown pixels that a tile may have.

    Yields:
        (3, tile_px, tile_px) uint8 RGB of a tile, and its GSD in true ground metres.

    Raises:
        TrainingError: No files, a damaged file, or one that is not RGB uint8 on a known GSD.
    """
    for path in _files(source):
        image, valid, gsd_m = _read(path, source.gsd_m)
        for rows, cols in tile_windows(image.shape[1:], config.tile_px):
            if valid[rows, cols].mean() >= 1 - config.empty:
                yield mirror_to_side(image[:, rows, cols], config.tile_px), gsd_m


def _files(source: TileSourceConfig) -> list[Path]:
    """List the files of a source, sorted."""
    files = [source.path] if source.path.is_file() else sorted(source.path.glob(source.pattern))
    if not files:
        raise TrainingError(f"no imagery at {source.path}: a GeoTIFF, or a folder with {source.pattern}, expected")
    return files


def _read(path: Path, gsd_m: float | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """Read the image (3, H, W) of a file, the mask (H, W) of its valid pixels, and its GSD."""
    try:
        with rasterio.open(path) as opened:
            if opened.count < 3 or opened.dtypes[0] != "uint8":
                raise TrainingError(f"{path}: {opened.count} bands of {opened.dtypes[0]}; RGB uint8 expected")
            return opened.read((1, 2, 3)), opened.dataset_mask() > 0, gsd_m or _gsd_m(opened)
    except rasterio.RasterioIOError as error:
        raise TrainingError(f"{path}: {one_line(error)}") from error


def _gsd_m(opened: rasterio.DatasetReader) -> float:
    """Measure the GSD at the centre of an image; a CRS's own unit is no true metre."""
    if opened.crs is None:
        raise TrainingError(f"{opened.name}: no CRS to read the GSD from; give gsd_m of its source")
    return true_gsd_m(opened.transform, opened.shape, CRS.from_wkt(opened.crs.to_wkt()))
