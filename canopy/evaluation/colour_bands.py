"""Colours and near-infrared of uint8 imagery on another grid: hides CRSs, resampling, and what a file says of alpha."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from canopy.errors import EvaluationError
from tiles.heights import open_raster, rasterio_window, readable
from tiles.opacity import declared_alpha, false_alpha
from tiles.windows import PixelWindow

COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True)
class PixelGrid:
    """Pixels that imagery is brought to."""

    crs: str
    """CRS, as WKT."""
    transform: Affine
    """From (column, row) to the CRS."""
    shape: tuple[int, int]
    """Rows and columns."""

    @classmethod
    def of(cls, dataset: DatasetReader) -> Self:
        """Return the pixels of a raster."""
        return cls(dataset.crs.to_wkt(), dataset.transform, dataset.shape)

    def meets(self, source: DatasetReader) -> bool:
        """Return whether a raster lies on any of this ground."""
        west, south, east, north = array_bounds(*self.shape, self.transform)
        bounds = transform_bounds(source.crs, self.crs, *source.bounds, densify_pts=64)
        return bool(bounds[0] < east and bounds[2] > west and bounds[1] < north and bounds[3] > south)


@dataclass(frozen=True)
class ColourBands:
    """Open imagery on a grid, of 255 levels."""

    path: Path
    """File, for messages."""
    warped: WarpedVRT
    """The imagery on the grid; its last band says where it is known."""
    colours: tuple[int, ...]
    """Bands of red, green and blue, from 1; fewer where the file has fewer bands."""
    infrared: int | None
    """Band of near-infrared; None where there is none."""

    def read(self, bands: tuple[int, ...], window: PixelWindow) -> NDArray[np.float32]:
        """Read bands (B, H, W) over a window that may reach beyond the grid; NaN where they are unknown."""
        values = np.full((len(bands), *window.shape), np.nan, np.float32)
        inside = window.intersect(PixelWindow(0, 0, *self.warped.shape))
        if inside is not None:
            with readable(self.path):
                part = rasterio_window(inside)
                # The alpha band itself: GDAL takes a last band of five for no mask, and then all is known.
                known_px = self.warped.read(self.warped.count, window=part) > 0
                values[:, *inside.slices_in(window)] = np.where(
                    known_px, self.warped.read(bands, window=part), np.float32(np.nan)
                )
        return values

    def read_infrared(self, window: PixelWindow) -> NDArray[np.float32]:
        """Read near-infrared (H, W) over a window; NaN where it is unknown, everywhere if there is none."""
        if self.infrared is None:
            return np.full(window.shape, np.nan, np.float32)
        return np.asarray(self.read((self.infrared,), window)[0])


@contextmanager
def open_colours(path: Path, grid: PixelGrid) -> Iterator[ColourBands]:
    """Open RGB imagery; near-infrared is the first band that is neither a colour nor opacity.

    Raises:
        EvaluationError: Fewer than three bands, other values than uint8, no CRS, or other ground than the grid's.
        RasterError: The file cannot be read.
    """
    with _opened(path) as source:
        bands = _data_bands(source)
        if len(bands) < 3 or {source.dtypes[band - 1] for band in bands} != {"uint8"}:
            raise EvaluationError(
                f"{path}: {source.count} bands of {source.dtypes[0]}; 3 or more of uint8 expected besides alpha"
            )
        kinds = [source.colorinterp[band - 1] for band in bands]
        is_named = all(kinds.count(colour) == 1 for colour in COLOURS)
        colours = tuple(bands[kinds.index(colour)] for colour in COLOURS) if is_named else bands[:3]
        others = [band for band in bands if band not in colours]
        with _on_grid(path, source, grid) as warped:
            yield ColourBands(path, warped, colours, others[0] if others else None)


@contextmanager
def open_infrared(path: Path, grid: PixelGrid) -> Iterator[ColourBands]:
    """Open near-infrared: the last band of a file that is not opacity.

    Raises:
        EvaluationError: Bands of which the last may be a colour, other values than uint8, no CRS, or other ground than
            the grid's.
        RasterError: The file cannot be read.
    """
    with _opened(path) as source:
        bands = _data_bands(source)
        band = bands[-1]
        if len(bands) in (2, 3):
            # the last is blue of RGB, and green of colour-infrared
            raise EvaluationError(
                f"{path}: {len(bands)} bands; near-infrared alone, or as the last of four or more, expected"
            )
        if source.dtypes[band - 1] != "uint8":
            raise EvaluationError(f"{path}: {source.dtypes[band - 1]} near-infrared, uint8 expected")
        with _on_grid(path, source, grid) as warped:
            yield ColourBands(path, warped, (), band)


@contextmanager
def _opened(path: Path) -> Iterator[DatasetReader]:
    """Open a raster; of a file whose declared alpha is data, a virtual copy that declares none.

    GDAL declares band 4 of most 4-band 8-bit GeoTIFFs as alpha, also where it is near-infrared, and would then leave
    out the pixels where it is 0.
    """
    with ExitStack() as files:
        source = files.enter_context(open_raster(path))
        if source.crs is None:
            raise EvaluationError(f"{path} has no CRS: a georeferenced raster expected (rio edit-info --crs EPSG:n)")
        with readable(path):
            band = false_alpha(source)
        if band is not None:
            copy = files.enter_context(MemoryFile(ext=".vrt"))
            rasterio.shutil.copy(source, copy.name, driver="VRT")
            kinds = [*source.colorinterp[: band - 1], ColorInterp.undefined, *source.colorinterp[band:]]
            with rasterio.open(copy.name, "r+") as virtual:
                virtual.colorinterp = kinds
            source = files.enter_context(rasterio.open(copy.name))
        yield source


def _data_bands(source: DatasetReader) -> tuple[int, ...]:
    """Return the bands of a raster that are not opacity, from 1."""
    alpha = declared_alpha(source)
    return tuple(band for band in source.indexes if band != alpha)


@contextmanager
def _on_grid(path: Path, source: DatasetReader, grid: PixelGrid) -> Iterator[WarpedVRT]:
    """Bring a raster to a grid, with an alpha band as its last.

    Raises:
        EvaluationError: It lies on other ground.
    """
    if not grid.meets(source):
        raise EvaluationError(f"{path} lies elsewhere: imagery of the same ground expected; check its CRS")
    height, width = grid.shape
    options: dict[str, Any] = {"add_alpha": declared_alpha(source) is None, "resampling": Resampling.bilinear}
    with WarpedVRT(source, crs=grid.crs, transform=grid.transform, height=height, width=width, **options) as warped:
        yield warped
