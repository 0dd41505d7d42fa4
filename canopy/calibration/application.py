"""Applies a calibration to the bands of a tile, and to a whole map in a stream."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetReader

from canopy.calibration.curves import Calibration
from canopy.errors import CalibrationError, OutputError, RasterError, one_line
from canopy.progress import Progress, Report, ignore
from tiles.cog import BANDS, UNCERTAINTY_BANDS, write_tile
from tiles.files import require_new
from tiles.heights import open_heights
from tiles.publish import MapRecord, publish_map, published_area
from tiles.windows import cut_windows

TILE_PX = 2048
_TAG = "CANOPY_CALIBRATION"


def apply_to_bands(
    calibration: Calibration, bands_m: NDArray[np.float32], geobox: GeoBox, log_gain: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Return the calibrated bands of a tile.

    Args:
        calibration: Calibration to apply.
        bands_m: (1, H, W) height, or (3, H, W) height with its interval, metres.
        geobox: Grid of the (H, W) pixels.
        log_gain: (H, W) logarithm of the gain that features predict, where the calibration reads them.
    """
    if calibration.gain is not None:
        # Gains multiply, so their logarithms add up.
        local = calibration.gain.log_gain_on(geobox)
        log_gain = local if log_gain is None else local + log_gain
    return calibration.apply_bands(bands_m, log_gain=log_gain).astype(np.float32)


def describe_calibration(calibration: Calibration) -> dict[str, str]:
    """Return what identifies a calibration, for tags and the STAC item."""
    return {"kind": calibration.kind, "sha256": calibration.sha256}


def calibrate_map(
    path: Path,
    calibration: Calibration,
    out: Path,
    *,
    overwrite: bool = False,
    report: Report = ignore,
) -> Path:
    """Correct an existing height map, tile by tile, and return its path.

    Args:
        path: Map of `canopy predict`.
        calibration: Calibration to apply.
        out: Name of the calibrated map; written whole or not at all.
        overwrite: Replace `out`.
        report: Called after each tile.

    Raises:
        CalibrationError: The map is calibrated already, or the calibration reads what no map contains.
        RasterError: `path` is not a height map.
        OutputError: `out` exists or cannot be written.
    """
    require_new(out, overwrite)
    if calibration.features is not None:
        raise CalibrationError("this calibration reads the encoder's features: apply it with canopy predict")
    with open_heights(path) as heights:
        bands = _bands(path, heights.dataset, calibration)
        # Through the one reader: a map stored in centimetres is calibrated in metres.
        rasters = [band for name in bands if (band := heights.named(name)) is not None]
        record = MapRecord.from_tags(heights.dataset.tags(), describe_calibration(calibration), published_area(path))
        shape, crs = heights.dataset.shape, heights.dataset.crs.to_wkt()
        geobox = GeoBox(shape, heights.dataset.transform, crs)
        try:
            with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as folder:
                members = []
                windows = cut_windows(shape, TILE_PX)
                for number, window in enumerate(windows, 1):
                    tile = Path(folder) / f"{window.row0}_{window.col0}.tif"
                    bands_m = np.stack([raster.read(window) for raster in rasters])
                    grid = geobox[window.row0 : window.row1, window.col0 : window.col1]
                    write_tile(tile, apply_to_bands(calibration, bands_m, grid), grid, plan="calibrate")
                    members.append((tile, window.row0, window.col0))
                    report(Progress(number, len(windows), "tiles", f"tile {number}/{len(windows)}"))
                # Tiles are committed one by one; the map gets its name, style and item in one place, last.
                publish_map(members, out, geobox, bands, record, Path(folder))
        except OSError as error:
            raise OutputError(f"cannot write {out}: {error.strerror or one_line(error)}") from error
    return out


def _bands(path: Path, dataset: DatasetReader, calibration: Calibration) -> tuple[str, ...]:
    """Return the names of the map's bands; refuse what is no map, or not one for this calibration."""
    bands = tuple(dataset.descriptions)
    if bands not in (BANDS, UNCERTAINTY_BANDS):
        raise RasterError(f"{path} has bands {bands}, a height map of canopy predict was expected")
    if f"{_TAG}_SHA256" in dataset.tags():
        raise CalibrationError(f"{path} is calibrated already: start from the map as it was predicted")
    if calibration.upper > 0 and bands == BANDS:
        raise CalibrationError("this calibration reads canopy_height_p95: map with --uncertainty")
    return bands
