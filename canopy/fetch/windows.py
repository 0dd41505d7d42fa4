"""Windows of rasters on servers, read by ranges and written as small GeoTIFFs."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window

from canopy.errors import SourceError
from canopy.fetch.collection import Meter
from canopy.fetch.options import Box
from canopy.fetch.remote import RemoteRaster
from tiles.cog import read_every_block
from tiles.heights import readable

_STRIP_PX = 512
_BLOCK_PX = 256
_SNAP = 1e-3
"""Share of a pixel by which a corner may be off the grid."""


class LocalRaster:
    """A raster of the disk, read like one of a server."""

    def __init__(self, path: Path, dataset: DatasetReader) -> None:
        """Take an open raster."""
        self.path, self.dataset = path, dataset

    @property
    def name(self) -> str:
        """Name for messages."""
        return str(self.path)

    def read(self, window: Window) -> NDArray[Any]:
        """Return (K, h, w) values of a window.

        Raises:
            RasterError: A block is damaged.
        """
        with readable(self.path):
            return np.asarray(self.dataset.read(window=window, masked=False))


def cut(path: Path, bounds: Box, out: Path) -> None:
    """Write the part of a raster that lies within bounds.

    Raises:
        RasterError: The raster is damaged.
        SourceError: The bounds and the raster have no pixel in common.
    """
    with readable(path), rasterio.open(path) as dataset:
        copy_window(LocalRaster(path, dataset), bounds, out, lambda done: None)


def copy_window(raster: RemoteRaster | LocalRaster, bounds: Box, path: Path, meter: Meter) -> None:
    """Copy the pixels within bounds; every block of the copy is read back.

    In place of a checksum, which a part of a file has none of, each block is decoded: a damaged one raises.

    Args:
        raster: Open raster, north-up.
        bounds: Bounds in its CRS; those beyond the raster are cut.
        path: GeoTIFF to write.
        meter: Called with the bytes written, before compression.

    Raises:
        SourceError: The bounds and the raster have no pixel in common, or a block is damaged.
    """
    source = raster.dataset
    window = pixels_within(raster, bounds)
    transform = source.transform * source.transform.translation(window.col_off, window.row_off)
    profile = {
        "driver": "GTiff", "dtype": source.dtypes[0], "count": source.count, "crs": source.crs,
        "nodata": source.nodata, "height": window.height, "width": window.width, "transform": transform,
        "tiled": True, "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX, "compress": "deflate", "predictor": 2,
        "bigtiff": "if_safer", "photometric": "rgb" if source.count >= 3 else "minisblack",
    }  # fmt: skip
    done = 0
    with rasterio.open(path, "w", **profile) as copy:
        for row in range(0, window.height, _STRIP_PX):
            rows = min(_STRIP_PX, window.height - row)
            values = raster.read(Window(window.col_off, window.row_off + row, window.width, rows))
            copy.write(values, window=Window(0, row, window.width, rows))
            done += values.nbytes
            meter(done)
    for _ in read_every_block(path):
        pass


def pixels_within(raster: RemoteRaster | LocalRaster, bounds: Box) -> Window:
    """Return the pixels that touch bounds, in whole rows and columns.

    Raises:
        SourceError: There are none.
    """
    source = raster.dataset
    west, south, east, north = bounds
    (col0, row0), (col1, row1) = ~source.transform * (west, north), ~source.transform * (east, south)
    col0, row0 = max(0, int(np.floor(col0 + _SNAP))), max(0, int(np.floor(row0 + _SNAP)))
    col1, row1 = min(source.width, int(np.ceil(col1 - _SNAP))), min(source.height, int(np.ceil(row1 - _SNAP)))
    if col1 <= col0 or row1 <= row0:
        raise SourceError(f"{raster.name}: has no pixel within the area, expected some; its name and grid differ")
    return Window(col0, row0, col1 - col0, row1 - row0)


def require_corner(bounds: Box, crs: CRS | None, corner: tuple[int, int], expected: CRS, name: str) -> None:
    """Refuse a tile that does not lie where its name says.

    Args:
        bounds: Bounds of the raster.
        crs: CRS of the raster.
        corner: South-west corner that the name says.
        expected: CRS of the other tiles.
        name: Name of the file, for messages.

    Raises:
        SourceError: It lies elsewhere.
    """
    if crs is None or crs != expected or max(abs(bounds[0] - corner[0]), abs(bounds[1] - corner[1])) > 1:
        raise SourceError(
            f"{name}: its corner is {bounds[0]:.0f}, {bounds[1]:.0f} in {crs}, "
            f"expected {corner[0]}, {corner[1]} in {expected}"
        )


def raster_place(path: Path) -> tuple[Box, CRS | None]:
    """Return bounds and CRS of a raster on the disk.

    Raises:
        RasterError: The file is no raster.
    """
    with readable(path), rasterio.open(path) as raster:
        bounds = tuple(raster.bounds)
        return (bounds[0], bounds[1], bounds[2], bounds[3]), CRS(raster.crs.to_wkt()) if raster.crs else None
