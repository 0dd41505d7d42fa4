"""Applies a calibration to the bands of a tile, and to a whole map in a stream."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from canopy.calibration.curves import Calibration
from canopy.errors import CalibrationError, OutputError, RasterError, one_line
from canopy.progress import Progress, Report, ignore
from tiles.cog import BANDS, UNCERTAINTY_BANDS, write_tile
from tiles.files import require_new
from tiles.publish import MapRecord, publish_map

TILE_PX = 2048
_TAG = "CANOPY_CALIBRATION"


def apply_to_bands(
    calibration: Calibration, bands_m: NDArray[np.float32], geobox: GeoBox, log_gain: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Calibrated bands of a tile.

    Args:
        calibration: To apply.
        bands_m: (1 or 3, H, W) height, or height with its interval; metres.
        geobox: Of the (H, W) pixels.
        log_gain: (H, W) foretold from features, where the calibration reads them.
    """
    if calibration.gain is not None:
        local = calibration.gain.on(geobox)
        log_gain = local if log_gain is None else local + log_gain
    return calibration.apply_bands(bands_m, log_gain=log_gain).astype(np.float32)


def describe(calibration: Calibration) -> dict[str, str]:
    """What identifies a calibration, for tags and the STAC item."""
    return {"kind": calibration.kind, "sha256": calibration.sha256}


def calibrate_map(
    path: Path,
    calibration: Calibration,
    out: Path,
    *,
    overwrite: bool = False,
    report: Report = ignore,
) -> Path:
    """Correct an existing height map, tile by tile.

    Args:
        path: Map of canopy predict.
        calibration: To apply.
        out: Name of the calibrated map; written whole or not at all.
        overwrite: Replace `out`.
        report: Called after each tile.

    Raises:
        CalibrationError: The map is calibrated already, or the calibration reads what no map holds.
        RasterError: `path` is not a height map.
        OutputError: `out` exists or cannot be written.
    """
    require_new(out, overwrite)
    if calibration.features is not None:
        raise CalibrationError("this calibration reads the encoder's features: apply it with canopy predict")
    try:
        with rasterio.open(path) as source, tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as folder:
            bands = _bands(path, source, calibration)
            geobox = GeoBox(source.shape, source.transform, source.crs.to_wkt())
            members = []
            windows = list(_windows(source.shape))
            for number, window in enumerate(windows, 1):
                tile = Path(folder) / f"{window.row_off}_{window.col_off}.tif"
                values = source.read(window=window, masked=True).filled(np.nan).astype(np.float32)
                here = geobox[window.toslices()]
                write_tile(tile, apply_to_bands(calibration, values, here), here, plan="calibrate")
                members.append((tile, int(window.row_off), int(window.col_off)))
                report(Progress(number, len(windows), "tiles", f"tile {number}/{len(windows)}"))
            record = MapRecord.from_tags(source.tags(), describe(calibration))
            publish_map(members, out, geobox, bands, record, Path(folder))
    except rasterio.RasterioIOError as error:
        raise RasterError(f"cannot read {path}: {one_line(error)}") from error
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    return out


def _bands(path: Path, source: Any, calibration: Calibration) -> tuple[str, ...]:
    bands = tuple(source.descriptions)
    if bands not in (BANDS, UNCERTAINTY_BANDS) or source.crs is None:
        raise RasterError(f"{path} has bands {bands}, a height map of canopy predict was expected")
    if f"{_TAG}_SHA256" in source.tags():
        raise CalibrationError(f"{path} is calibrated already: start from the map as it was predicted")
    if calibration.upper > 0 and bands == BANDS:
        raise CalibrationError("this calibration reads canopy_height_p95: map with --uncertainty")
    return bands


def _windows(shape: tuple[int, int]) -> Iterator[Window]:
    for row in range(0, shape[0], TILE_PX):
        for col in range(0, shape[1], TILE_PX):
            yield Window(col, row, min(TILE_PX, shape[1] - col), min(TILE_PX, shape[0] - row))
