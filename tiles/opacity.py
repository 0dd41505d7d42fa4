"""Which band of a raster is opacity: a declaration that is checked against the values."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.windows import Window

ALPHA_WINDOWS = 3
"""Windows along each axis in which a declared alpha is looked at."""
_OPAQUE_SHARE = 0.5
_SAMPLE_PX = 96


def declared_alpha(dataset: DatasetReader) -> int | None:
    """Return the 1-based band that is declared to be opacity."""
    return next((i for i, kind in enumerate(dataset.colorinterp, 1) if kind == ColorInterp.alpha), None)


def is_opacity(values: NDArray[Any]) -> bool:
    """Return whether a band declared as alpha is one: opaque pixels have one value, data has many.

    GDAL declares band 4 of every 4-band 8-bit GeoTIFF as alpha, also where it is near-infrared.

    Args:
        values: (n,) sample of the band.
    """
    visible = values[values > 0]
    # Pixels of 0 are holes of an opacity and dark pixels of data: only the others distinguish the two.
    levels, counts = np.unique(visible, return_counts=True)
    if levels.size <= 1:
        return True
    # Feathered seams have all levels too, but most of an image lies between seams.
    opaque = {1, 255, 65_535} if visible.dtype.kind == "f" else {255, 65_535, np.iinfo(visible.dtype).max}
    return float(counts[np.isin(levels, list(opaque))].sum()) >= _OPAQUE_SHARE * visible.size


def false_alpha(dataset: DatasetReader) -> int | None:
    """Return the 1-based band that is declared to be opacity and is data; None where there is none."""
    alpha = declared_alpha(dataset)
    if alpha is None:
        return None
    parts = [dataset.read(alpha, window=window).ravel() for window in spread_windows(dataset, ALPHA_WINDOWS)]
    return None if is_opacity(np.concatenate(parts)) else alpha


def spread_windows(dataset: DatasetReader, count: int) -> Iterator[Window]:
    """Yield windows, `count` along each axis, spread evenly over a file."""
    for i, j in np.ndindex(count, count):
        row, rows = _part(dataset.height, i, count)
        col, cols = _part(dataset.width, j, count)
        yield Window(col, row, cols, rows)


def _part(size: int, index: int, count: int) -> tuple[int, int]:
    """Return start and length of one of the evenly spread windows along an axis."""
    length = min(_SAMPLE_PX, max(1, size // count))
    return round((size - length) * index / (count - 1)), length
