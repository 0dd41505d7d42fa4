"""One raster file: its facts, read once when it is opened, and its stored values with their validity."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from rasterio.enums import Compression, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy import ndimage

from canopy.errors import ImageryError, one_line
from canopy.imagery.acquisition import acquisition
from canopy.imagery.bands import Bands
from canopy.imagery.files import Stamp
from canopy.imagery.placement import Placement, gsd_m, outline, read_placement

Values = NDArray[Any]
Mask = NDArray[np.bool_]

_GDAL = {"GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "1", "GDAL_HTTP_TIMEOUT": "60"}
_LOSSY_DRIVERS = ("JPEG", "WEBP", "JP2OpenJPEG")
_LOSSY_BLACK = 2
_LOSSY_FRINGE = 8
_COLLAR_GRID_PX = 1024
_COLLAR_MIN_SHARE = 0.0005
_COLLAR_GROW_CELLS = 2
_SAMPLE_WINDOWS = 5
_SAMPLE_PX = 96

logging.getLogger("rasterio").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class RasterScene:
    """Facts of one raster file, read once."""

    path: str
    stamps: tuple[Stamp, ...]
    placement: Placement
    bands: Bands
    dtype: str
    """Type of the values read; uint8 for an expanded palette."""
    nodata: float | None
    has_mask: bool
    colours: NDArray[np.uint8] | None
    """(n, 4) colour table of a palette image."""
    outline: Geometry
    gsd_m: float
    acquired: tuple[str, str] | None
    """First and last acquisition time, ISO 8601."""


@contextmanager
def gdal(path: str) -> Iterator[None]:
    """Run GDAL calls on a file; failures become one-line ImageryErrors that name the file."""
    try:
        with rasterio.Env(**_GDAL):
            yield
    except RasterioError as error:
        reason = one_line(error)
        raise ImageryError(
            f"{path}: cannot be read ({reason}), expected an undamaged raster; copy or download it again"
        ) from error


def open_dataset(path: str) -> DatasetReader:
    """Open a file on its own GDAL handle."""
    with gdal(path):
        return rasterio.open(path, sharing=False)


def inspect(dataset: DatasetReader, bands: Bands, stamps: tuple[Stamp, ...]) -> RasterScene:
    """Read the facts of an open file.

    Raises:
        ImageryError: The file has no place on Earth, or its values are not intensities.
    """
    path, dtype = dataset.name, str(dataset.dtypes[bands.rgb[0] - 1])
    if np.dtype(dtype).kind not in "uif":
        raise ImageryError(f"{path}: {dtype} values, expected integers or floats; give RGB imagery")
    placement = read_placement(dataset)
    flags = dataset.mask_flag_enums[bands.rgb[0] - 1]
    return RasterScene(
        path=path,
        stamps=stamps,
        placement=placement,
        bands=bands,
        dtype="uint8" if bands.palette else dtype,
        nodata=dataset.nodatavals[bands.rgb[0] - 1],
        has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        colours=_colour_table(dataset, bands.rgb[0]) if bands.palette else None,
        outline=outline(path, placement),
        gsd_m=gsd_m(placement),
        acquired=acquisition(dataset),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning on files without georeference: `read_placement` makes it an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _colour_table(dataset: DatasetReader, band: int) -> NDArray[np.uint8]:
    table = dataset.colormap(band)
    colours = np.zeros((max(256, *(index + 1 for index in table)), 4), np.uint8)
    colours[list(table)] = list(table.values())
    return colours


def read_window(
    dataset: DatasetReader, scene: RasterScene, window: Window, shape: tuple[int, int] | None = None
) -> tuple[Values, Mask | None]:
    """Read stored values.

    A pixel is invalid where the mask or alpha band is 0, a value is not finite, or the values are nodata: all
    three where nodata is 0 or the largest integer (one such band is a dark or saturated colour), else any.

    Args:
        dataset: The scene's open file.
        scene: Facts of the file.
        window: Pixels, inside the raster.
        shape: Rows and columns to decimate to.

    Returns:
        values: (3, height, width), red, green, blue.
        valid: (height, width); None where all pixels are.
    """
    rgb = list(dict.fromkeys(scene.bands.rgb)) if len(set(scene.bands.rgb)) == 1 else list(scene.bands.rgb)
    options: dict[str, Any] = {"window": window}
    if shape is not None:
        options["out_shape"] = (len(rgb), *shape)
    stored = dataset.read(rgb, **options)
    tests = [_not_nodata(stored, scene.nodata), _finite(stored), _unmasked(dataset, scene, window, shape)]
    if scene.colours is not None:
        stored, opaque = _expand(stored[0], scene.colours)
        tests.append(opaque)
    masks = [test for test in tests if test is not None]
    valid = np.logical_and.reduce(masks) if masks else None
    return np.broadcast_to(stored, (3, *stored.shape[1:])), None if valid is None or valid.all() else valid


def _not_nodata(stored: Values, nodata: float | None) -> Mask | None:
    if nodata is None or math.isnan(nodata):
        return None
    extreme = stored.dtype.kind in "ui" and nodata in (0, np.iinfo(stored.dtype).max)
    differs = stored != np.asarray(nodata).astype(np.float32 if stored.dtype == np.float32 else np.float64)
    return np.asarray(differs.any(axis=0) if extreme or nodata == 0 else differs.all(axis=0))


def _finite(stored: Values) -> Mask | None:
    if stored.dtype.kind != "f":
        return None
    return np.asarray(np.isfinite(stored).all(axis=0))


def _unmasked(dataset: DatasetReader, scene: RasterScene, window: Window, shape: tuple[int, int] | None) -> Mask | None:
    if scene.bands.alpha is not None:
        return np.asarray(dataset.read(scene.bands.alpha, window=window, out_shape=shape) > 0)
    if scene.has_mask:
        return np.asarray(dataset.read_masks(scene.bands.rgb[0], window=window, out_shape=shape) > 0)
    return None


def _expand(index: Values, colours: NDArray[np.uint8]) -> tuple[Values, Mask]:
    """Return values (3, h, w) and opacity (h, w) of palette indices (h, w)."""
    rgba = np.moveaxis(colours[np.clip(index.astype(np.int64), 0, len(colours) - 1)], -1, 0)
    return np.ascontiguousarray(rgba[:3]), rgba[3] > 0


def sample(dataset: DatasetReader, scene: RasterScene) -> Values:
    """Sample valid values of all three bands in windows spread evenly over a file; pure black pixels are left out.

    Returns:
        (n,) stored values.
    """
    height, width = dataset.shape
    parts = []
    for i, j in np.ndindex(_SAMPLE_WINDOWS, _SAMPLE_WINDOWS):
        row, rows = _part(height, i)
        col, cols = _part(width, j)
        values, valid = read_window(dataset, scene, Window(col, row, cols, rows))
        lit = values.any(axis=0) if valid is None else values.any(axis=0) & valid
        parts.append(values[:, lit].ravel())
    return np.concatenate(parts)


def _part(size: int, index: int) -> tuple[int, int]:
    """Return start and length of one of the evenly spread windows along an axis."""
    length = min(_SAMPLE_PX, max(1, size // _SAMPLE_WINDOWS))
    return round((size - length) * index / (_SAMPLE_WINDOWS - 1)), length


@dataclass(frozen=True, eq=False)
class Collar:
    """The black frame that mosaicking tools leave around an image when no nodata value is declared."""

    cells: Mask
    """(rows, columns) coarse grid over the file; True on the frame and next to it."""
    shape: tuple[int, int]
    """The file's rows and columns."""
    black: int
    """Largest value that counts as black there; above 0 after lossy compression."""

    def covers(self, values: Values, row0: int, col0: int) -> Mask | None:
        """Return the pixels (h, w) of a window (3, h, w) that belong to the collar; None for none."""
        rows = (row0 + np.arange(values.shape[1])) * self.cells.shape[0] // self.shape[0]
        cols = (col0 + np.arange(values.shape[2])) * self.cells.shape[1] // self.shape[1]
        near = self.cells[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        if not near.any():
            return None
        return np.asarray(_is_black(values, self.black) & self.cells[rows[:, None], cols[None, :]])


def find_collar(dataset: DatasetReader, scene: RasterScene) -> Collar | None:
    """Find a black collar: black in all bands, connected to the file's border.

    Decided once on a coarse grid over the whole file, so it does not depend on the window read. Black pixels
    away from the border (shadow, water) stay valid. A file with nodata, a mask or alpha has no collar.
    """
    if scene.nodata is not None or scene.has_mask or scene.bands.alpha is not None:
        return None
    lossy = dataset.compression in (Compression.jpeg, Compression.webp) or dataset.driver in _LOSSY_DRIVERS
    black = _LOSSY_BLACK if lossy and scene.dtype == "uint8" else 0
    height, width = dataset.shape
    rows, cols = (min(size, _COLLAR_GRID_PX) for size in (height, width))
    seeds = _black_border(dataset, scene, black, (rows, cols))
    if not seeds.any():
        return None
    coarse, _ = read_window(dataset, scene, Window(0, 0, width, height), (rows, cols))
    labels, _ = ndimage.label(_is_black(coarse, black) | seeds)
    touching = np.unique(labels[seeds])
    areas = np.bincount(labels.ravel())[touching]
    large = touching[areas >= max(4, _COLLAR_MIN_SHARE * rows * cols)]
    if not large.size:
        return None
    cells = np.isin(labels, large)
    grown = ndimage.binary_dilation(cells, iterations=_COLLAR_GROW_CELLS)
    return Collar(grown, (height, width), _LOSSY_FRINGE if black else 0)


def _black_border(dataset: DatasetReader, scene: RasterScene, black: int, grid: tuple[int, int]) -> Mask:
    """Return the cells of the coarse grid with black pixels of the file's outermost rows and columns."""
    height, width = dataset.shape
    rows, cols = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    seeds = np.zeros(grid, bool)
    for row in {0, height - 1}:
        values, _ = read_window(dataset, scene, Window(0, row, width, 1))
        seeds[rows[row], cols[_is_black(values, black)[0]]] = True
    for col in {0, width - 1}:
        values, _ = read_window(dataset, scene, Window(col, 0, 1, height))
        seeds[rows[_is_black(values, black)[:, 0]], cols[col]] = True
    return seeds


def _is_black(values: Values, black: int) -> Mask:
    return np.asarray(((values >= 0) & (values <= black)).all(axis=0))
