"""Reading of the small rasters of `rasters`: grids on them, their pixels, the errors they end in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from rasterio.shutil import copy
from rasters import ORIGIN, UTM, make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery

X, Y = ORIGIN
SHAPE = (96, 128)
"""Rows and columns of `make_raster`'s rasters."""


def grid(
    shape: tuple[int, int] = SHAPE,
    *,
    crs: str = UTM,
    resolution: float = 0.5,
    origin: tuple[float, float] = ORIGIN,
) -> GeoBox:
    """A north-up grid; by default that of `make_raster`'s rasters."""
    return GeoBox(shape, Affine(resolution, 0, origin[0], 0, -resolution, origin[1]), crs)


def read(path: Any, geobox: GeoBox | None = None, **options: Any) -> np.ndarray:
    """Open imagery and read (3, h, w) reflectance on a grid."""
    return open_imagery(path, **options).read(geobox or grid()).values


def stored(path: Path) -> np.ndarray:
    """Stored values of a raster, (bands, h, w)."""
    with rasterio.open(path) as dataset:
        return dataset.read()


def point_in(crs: str, x: float = X, y: float = Y) -> tuple[float, float]:
    """A point of UTM zone 31 in another CRS."""
    return Transformer.from_crs(UTM, crs, always_xy=True).transform(x, y)


@contextmanager
def refusal(match: str) -> Iterator[None]:
    """Expect an ImageryError of one line."""
    with pytest.raises(ImageryError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def refused(path: Any, match: str, **options: Any) -> None:
    """Expect that imagery cannot be opened or read, with an error of one line."""
    with refusal(match):
        open_imagery(path, **options).read(grid())


def truncated(folder: Path, dtype: str = "uint8", nodata: float | None = 0) -> Path:
    """Half of a COG: its header, at the front, is whole."""
    factor = 8 if dtype == "uint16" else 1
    whole = make_raster(
        folder / "whole.tif", dtype=dtype, pattern="noise", shape=(1200, 1200), factor=factor, nodata=nodata
    )
    copy(whole, folder / "a.tif", driver="COG", blocksize=128, overviews="NONE")
    path = folder / "a.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
