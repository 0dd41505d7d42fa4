"""From stored colours to red, green and blue: palettes, inks and luma."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from canopy.errors import ImageryError
from canopy.imagery.bands import Bands, ColourModel

Values = NDArray[Any]
Mask = NDArray[np.bool_]


def colour_table(dataset: DatasetReader, bands: Bands) -> NDArray[np.uint8] | None:
    """Read the colour table (n, 4) of a palette image; None for others."""
    if bands.model is not ColourModel.PALETTE:
        return None
    table = dataset.colormap(bands.colours[0])
    colours = np.zeros((max(256, *(index + 1 for index in table)), 4), np.uint8)
    colours[list(table)] = list(table.values())
    return colours


def check_type(name: str, bands: Bands, dtype: str) -> None:
    """Raise an ImageryError where a colour model cannot be converted from a type of values."""
    if bands.model in (ColourModel.CMYK, ColourModel.YCBCR) and np.dtype(dtype).kind != "u":
        raise ImageryError(
            f"{name}: {bands.model.name} in {dtype}, expected unsigned integers; convert it to RGB with gdal_translate"
        )


def to_rgb(stored: Values, bands: Bands, table: NDArray[np.uint8] | None = None) -> tuple[Values, Mask | None]:
    """Convert stored colours to red, green and blue.

    Args:
        stored: (b, h, w) colour bands.
        bands: The bands and their colour model.
        table: (n, 4) colour table of a palette.

    Returns:
        rgb: (3, h, w), of the stored type (uint8 for a palette).
        opaque: (h, w) bool; None where all pixels are.
    """
    if table is not None:
        # Tables have at least 256 entries; what a file does not define is transparent.
        rgba = np.moveaxis(table[np.clip(stored[0].astype(np.int64), 0, len(table) - 1)], -1, 0)
        return np.ascontiguousarray(rgba[:3]), rgba[3] > 0
    if bands.model is ColourModel.CMYK:
        return _from_inks(stored), None
    if bands.model is ColourModel.YCBCR:
        return _from_luma(stored), None
    return np.broadcast_to(stored, (3, *stored.shape[1:])), None


def _from_inks(inks: Values) -> Values:
    """Convert cyan, magenta, yellow and black (4, h, w): light = (top - ink) (top - black) / top."""
    top = np.iinfo(inks.dtype).max
    # In float64: products of two 16-bit numbers overflow uint16, and float32 rounds them.
    light = (top - inks[:3].astype(np.float64)) * (top - inks[3].astype(np.float64)) / top
    return np.asarray(np.rint(light).astype(inks.dtype))


def _from_luma(luma: Values) -> Values:
    """Convert Y, Cb and Cr (3, h, w) of full range, as in JPEG (ITU-T T.871, section 7)."""
    top = np.iinfo(luma.dtype).max
    y, cb, cr = luma.astype(np.float64)
    cb, cr = cb - (top + 1) / 2, cr - (top + 1) / 2
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    return np.asarray(np.clip(np.rint(rgb), 0, top).astype(luma.dtype))
