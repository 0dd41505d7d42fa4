"""Tiles cut from plain GeoTIFFs; the only module of the stage's data path that needs GDAL and PROJ."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError, RasterioError

from canopy.errors import TrainingError, one_line
from pretrain.config import TilesConfig, TileSourceConfig
from pretrain.tiling import tile_windows
from tiles.fill import extend
from tiles.ground import true_gsd_m


@dataclass(frozen=True)
class Cut:
    """A tile cut from a file."""

    image: NDArray[np.uint8]
    """(bands, tile_px, tile_px), first RGB."""
    gsd_m: float
    """GSD in true ground metres."""


def list_files(source: TileSourceConfig) -> list[Path]:
    """List the files of a source, sorted.

    Raises:
        TrainingError: No files.
    """
    files = [source.path] if source.path.is_file() else sorted(source.path.glob(source.pattern))
    if not files:
        raise TrainingError(f"no imagery at {source.path}: a GeoTIFF, or a folder with {source.pattern}, expected")
    return files


def cut_file(path: Path, gsd_m: float | None, config: TilesConfig) -> list[Cut]:
    """Cut the tiles of a file.

    Args:
        path: GeoTIFF.
        gsd_m: GSD of its source; measured at its centre if None.
        config: Side of the tiles, and the share of unknown pixels that a tile may have.

    Raises:
        TrainingError: The file cannot be used; one line says why.
    """
    try:
        image, valid, measured_m = _read(path, gsd_m, config.bands)
    except (RasterioError, CRSError, ProjError) as error:
        raise TrainingError(one_line(error)) from error
    cuts = []
    for rows, cols in tile_windows(image.shape[1:], config.tile_px):
        if valid[rows, cols].mean() >= 1 - config.empty:
            tile = image[:, rows, cols]
            missing = (config.tile_px - tile.shape[1], config.tile_px - tile.shape[2])
            cuts.append(Cut(extend(tile, (0, 0), missing), measured_m))
    return cuts


def _read(path: Path, gsd_m: float | None, bands: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """Read the image (bands, H, W) of a file, the mask (H, W) of its valid pixels, and its GSD."""
    with rasterio.open(path) as opened:
        if opened.count < bands or opened.dtypes[0] != "uint8":
            kind = "RGB" if bands == 3 else f"{bands} bands of"
            raise TrainingError(f"{opened.count} bands of {opened.dtypes[0]}; {kind} uint8 expected")
        return opened.read(range(1, bands + 1)), opened.dataset_mask() > 0, gsd_m or _gsd_m(opened)


def _gsd_m(opened: rasterio.DatasetReader) -> float:
    """Measure the GSD at the centre of an image; a CRS's own unit is no true metre."""
    if opened.crs is None:
        raise TrainingError("no CRS to read the GSD from; give gsd_m of its source")
    gsd_m = true_gsd_m(opened.transform, opened.shape, CRS.from_wkt(opened.crs.to_wkt()))
    if not np.isfinite(gsd_m) or gsd_m <= 0:
        raise TrainingError("its CRS and its georeference name no place on the ground; give gsd_m of its source")
    return gsd_m
