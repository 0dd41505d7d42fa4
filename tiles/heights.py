"""The one reader of height rasters: whatever the file's unit, scale, band order and fill, heights are metres or NaN.

A raster of heights says its unit in four ways (a unit tag, GDAL's scale and offset, the vertical part of its CRS, its
type) and its unknown cells in three (nodata, a mask or alpha band, a fill value that it does not declare). Every
command reads heights here, so that one file means one thing.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tiles.errors import RasterError, one_line
from tiles.windows import PixelWindow

Heights = NDArray[np.float32]

UNITS_M = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), 0.01),
    **dict.fromkeys(("dm", "decimetre", "decimetres", "decimeter", "decimeters"), 0.1),
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), 0.001),
    **dict.fromkeys(("ft", "foot", "feet", "international foot"), 0.3048),
    **dict.fromkeys(("us-ft", "ftus", "us survey foot", "foot_us"), 1200 / 3937),
}
PLAUSIBLE_M = (-100.0, 1000.0)
"""Heights outside are an undeclared fill value, such as -9999."""
FILLS = (-32768.0, -32767.0, -9999.0, -999.0, 32767.0, 65535.0)
"""Values that mean unknown even where no file declares them: in centimetres they would be plausible heights."""
HEIGHT_BAND = "canopy_height"
_HEIGHT_WORDS = {"height", "heights", "chm"}
_UINT8_UNKNOWN = 255.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeightRaster:
    """An open raster of heights, with everything decided that turns its values into metres."""

    path: Path
    """File, as the user named it."""
    dataset: DatasetReader
    """Open file; belongs to whoever opened it."""
    band: int
    """Number of the band of heights, from 1."""
    unit_m: float
    """Metres in one file value: height = value * unit_m + offset_m."""
    offset_m: float
    """Height of the value 0, metres."""
    unknown: tuple[float, ...]
    """File values that mean unknown, besides the file's own mask."""
    masked: bool
    """Whether the file's own nodata, mask or alpha is believed."""
    unit_override: str | float | None = None
    """Unit that the caller put in place of the file's own."""
    alpha: int | None = None
    """Number of an alpha band that GDAL does not use as the mask, as it is with floating point."""

    @classmethod
    def of(
        cls,
        path: Path,
        dataset: DatasetReader,
        *,
        unit: str | float | None = None,
        nodata: float | None = None,
        remedy: str = "",
        needs_crs: bool = True,
    ) -> Self:
        """Decide band, unit and unknown values of an open raster.

        Args:
            path: File, as the user named it.
            dataset: The same, open.
            unit: Unit in place of the file's own: a name of `UNITS_M`, or the metres in a file value.
            nodata: Value that means unknown, in place of the file's own declaration.
            remedy: Option of the caller that overrides the unit, for messages.
            needs_crs: Whether a raster without CRS is refused.

        Raises:
            RasterError: No CRS, several bands of which none is named as heights, or a unit that no file says.
        """
        if needs_crs and dataset.crs is None:
            raise RasterError(
                f"{path} has no CRS: a georeferenced raster expected (rio edit-info --crs EPSG:n {path.name} sets one)"
            )
        return cls._of_band(path, dataset, _height_band(path, dataset), unit, nodata, remedy)

    @classmethod
    def of_band(cls, path: Path, dataset: DatasetReader, band: int) -> Self:
        """Decide unit and unknown values of a band of an open raster that is known to have heights.

        Args:
            path: File, as the user named it.
            dataset: The same, open.
            band: Number of the band, from 1.

        Raises:
            RasterError: Its unit is unknown.
        """
        return cls._of_band(path, dataset, band, None, None, "")

    @classmethod
    def _of_band(
        cls,
        path: Path,
        dataset: DatasetReader,
        band: int,
        unit: str | float | None,
        nodata: float | None,
        remedy: str,
    ) -> Self:
        unit_m, offset_m = _unit(path, dataset, band, unit, remedy)
        if nodata is not None:
            return cls(path, dataset, band, unit_m, offset_m, (nodata,), False, unit)
        masked = _mask_is_believed(path, dataset, band, unit_m, offset_m)
        fills = _fills(path, dataset, band, unit_m, offset_m)
        return cls(path, dataset, band, unit_m, offset_m, fills, masked, unit, _unused_alpha(dataset, band))

    @property
    def whole(self) -> PixelWindow:
        """All of its cells."""
        return PixelWindow(0, 0, *self.dataset.shape)

    @property
    def nodata_instead(self) -> float | None:
        """Value by which a reader that knows only nodata marks unknown, where the file's own is a height; else None."""
        if self.masked:
            return None
        dtype = np.dtype(self.dataset.dtypes[self.band - 1])
        if dtype.kind == "f":
            return float("nan")
        return float(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)

    def named(self, band: str) -> Self | None:
        """Return another band of the same file by its name, such as `canopy_height_p95`; None where there is none."""
        if band not in self.dataset.descriptions:
            return None
        number = int(self.dataset.descriptions.index(band)) + 1
        return self._of_band(self.path, self.dataset, number, self.unit_override, None, "")

    def reopen(self) -> Self:
        """Open the file once more, for another thread, and close its `dataset` when done; what was decided stays."""
        with readable(self.path):
            return replace(self, dataset=rasterio.open(self.path))

    def read(self, window: PixelWindow | None = None) -> Heights:
        """Return heights over a window.

        Args:
            window: Window, which may leave the raster; all of it if None.

        Returns:
            (H, W) float32 metres, NaN where unknown and off the raster.

        Raises:
            RasterError: The file is damaged.
        """
        window = window or self.whole
        heights_m = np.full(window.shape, np.nan, np.float32)
        inside = window.intersect(self.whole)
        if inside is not None:
            heights_m[inside.slices_in(window)] = self.resample(inside, inside.shape)
        return heights_m

    def resample(self, window: PixelWindow, shape: tuple[int, int]) -> Heights:
        """Return heights over a window inside the raster in another number of cells, by the nearest ones.

        Args:
            window: Window.
            shape: Rows and columns of the answer; overviews are read where it has fewer than the window.

        Returns:
            Heights of that shape, float32 metres, NaN where unknown.

        Raises:
            RasterError: The file is damaged.
        """
        options = {"window": rasterio_window(window), "out_shape": shape}
        with readable(self.path):
            values = self.dataset.read(self.band, masked=self.masked, **options)
            unknown = np.ma.getmaskarray(values)
            if self.alpha is not None:
                unknown = unknown | (self.dataset.read(self.alpha, **options) == 0)
        return self._metres(np.ma.getdata(values), unknown)

    def metres(self, values: "np.ma.MaskedArray[Any, Any]") -> Heights:
        """Return file values of any shape that were read elsewhere as heights: float32 metres, NaN where unknown."""
        return self._metres(np.ma.getdata(values), np.ma.getmaskarray(values))

    def _metres(self, values: NDArray[Any], unknown: NDArray[np.bool_]) -> Heights:
        # Fill values are file values, so they are looked for before the unit is applied.
        for fill in self.unknown:
            unknown = unknown | (values == fill)
        heights_m = values.astype(np.float32)
        if (self.unit_m, self.offset_m) != (1.0, 0.0):
            heights_m = (values * self.unit_m + self.offset_m).astype(np.float32)
        # NaN compares false, and is unknown either way.
        with np.errstate(invalid="ignore"):
            plausible = (heights_m > PLAUSIBLE_M[0]) & (heights_m < PLAUSIBLE_M[1])
        return np.where(unknown | ~plausible, np.float32(np.nan), heights_m)


@contextmanager
def open_heights(
    path: Path,
    *,
    unit: str | float | None = None,
    nodata: float | None = None,
    remedy: str = "",
    needs_crs: bool = True,
) -> Iterator[HeightRaster]:
    """Open a raster of heights.

    Args:
        path: File.
        unit: Unit in place of the file's own: a name of `UNITS_M`, or the metres in a file value.
        nodata: Value that means unknown, in place of the file's own declaration.
        remedy: Option of the caller that overrides the unit, for messages.
        needs_crs: Whether a raster without CRS is refused.

    Raises:
        RasterError: The file is missing, damaged, or no raster of heights.
    """
    with open_raster(path) as dataset:
        yield HeightRaster.of(path, dataset, unit=unit, nodata=nodata, remedy=remedy, needs_crs=needs_crs)


@contextmanager
def open_raster(path: Path) -> Iterator[DatasetReader]:
    """Open any raster; a fault is one line.

    Raises:
        RasterError: The file is missing, damaged or no raster.
    """
    with warnings.catch_warnings(), readable(path):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    with dataset:
        yield dataset


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failed read into one line.

    Raises:
        RasterError: The file is missing, damaged or no raster.
    """
    try:
        yield
    except (RasterioError, OSError) as error:
        raise RasterError(f"cannot read {path}: {one_line(error)}; a complete GeoTIFF expected") from error


def elevation_unit_m(dataset: DatasetReader) -> float:
    """Return the metres in a file value of a terrain model: by its unit tag, else by the unit of its vertical CRS."""
    tag = _unit_tag(dataset, 1)
    return float(dataset.scales[0] * (UNITS_M[tag] if tag in UNITS_M else _vertical_unit_m(dataset)))


def rasterio_window(window: PixelWindow) -> Window:
    """Return the same window for rasterio."""
    return Window(window.col0, window.row0, window.width, window.height)


@lru_cache(maxsize=1024)
def _warn(message: str, *values: object) -> None:
    """Log a warning once, however often the same file is opened."""
    _LOG.warning(message, *values)


def _height_band(path: Path, dataset: DatasetReader) -> int:
    """Return the band of heights: the only one, or the only one whose name says so."""
    names = [str(name or "") for name in dataset.descriptions]
    bands = [k for k, kind in enumerate(dataset.colorinterp, 1) if kind != ColorInterp.alpha]
    if HEIGHT_BAND in names:
        return names.index(HEIGHT_BAND) + 1
    if len(bands) == 1:
        return bands[0]
    exact = [k for k, name in enumerate(names, 1) if name.strip().lower() in _HEIGHT_WORDS]
    by_name = [k for k, name in enumerate(names, 1) if _HEIGHT_WORDS & set(re.findall("[a-z]+", name.lower()))]
    # `height` next to `height_error` is meant; two bands that both only mention height are not.
    for candidates in (exact, by_name):
        if len(candidates) == 1:
            return candidates[0]
    raise RasterError(
        f"{path} has {dataset.count} bands, named {', '.join(map(repr, names))}: one band of heights, or one named "
        f"{HEIGHT_BAND} expected (rio edit-info --bidx N --description {HEIGHT_BAND} {path.name} names band N)"
    )


def _unit(path: Path, dataset: DatasetReader, band: int, unit: str | float | None, remedy: str) -> tuple[float, float]:
    """Return the metres in a file value and the height of value 0: as asked for, as tagged, or as the type says."""
    if unit is not None:
        return (UNITS_M[unit] if isinstance(unit, str) else unit), 0.0
    dtype, scale, offset = dataset.dtypes[band - 1], dataset.scales[band - 1], dataset.offsets[band - 1]
    tag = _unit_tag(dataset, band)
    override = f", or pass {remedy}" if remedy else ""
    if tag and tag not in UNITS_M:
        raise RasterError(
            f"{path}: heights in {tag!r}: m, cm or ft expected; "
            f"tag its unit (rio edit-info --bidx {band} --units m {path.name}){override}"
        )
    # A unit tag names the unit of the values after scale and offset, as GDAL defines them.
    if tag:
        if UNITS_M[tag] != 1:
            _warn("%s: heights converted from %s", path, tag)
        return scale * UNITS_M[tag], offset * UNITS_M[tag]
    # Compound CRSs of American lidar are in feet; those in metres say nothing new.
    vertical_m = _vertical_unit_m(dataset)
    if vertical_m != 1:
        _warn("%s: heights converted from the feet of its vertical CRS", path)
        return scale * vertical_m, offset * vertical_m
    if (scale, offset) != (1, 0) or np.dtype(dtype).kind == "f" or dtype == "uint8":
        return scale, offset
    if dtype == "uint16" and dataset.nodatavals[band - 1] == 65535:
        _warn("%s: uint16 with nodata 65535; read as centimetres", path)
        return 0.01, 0.0
    raise RasterError(
        f"{path}: {dtype} without unit, scale or nodata 65535: its unit is unknown; "
        f"tag its unit (rio edit-info --bidx {band} --units cm {path.name}){override}"
    )


def _unit_tag(dataset: DatasetReader, band: int) -> str:
    """Return a band's unit as the file tags it: lower case, without brackets, empty without a tag."""
    return (dataset.units[band - 1] or "").strip(" []()").lower()


def _vertical_unit_m(dataset: DatasetReader) -> float:
    """Return the metres in the unit of a compound CRS's heights; 1 where the CRS says nothing of heights."""
    parts = CRS.from_wkt(dataset.crs.to_wkt()).sub_crs_list if dataset.crs is not None else []
    return next((float(part.axis_info[0].unit_conversion_factor) for part in parts if part.is_vertical), 1.0)


def _mask_is_believed(path: Path, dataset: DatasetReader, band: int, unit_m: float, offset_m: float) -> bool:
    """Return whether the declared nodata is one: a height of 0 is bare ground, whatever a file declares."""
    nodata = dataset.nodatavals[band - 1]
    if nodata is None or nodata * unit_m + offset_m != 0 or MaskFlags.nodata not in dataset.mask_flag_enums[band - 1]:
        return True
    _warn(
        "%s: declares 0 as nodata; heights of 0 count as bare ground (where they are unknown, give them another value: "
        "gdalwarp -srcnodata 0 -dstnodata -9999)",
        path,
    )
    return False


def _unused_alpha(dataset: DatasetReader, band: int) -> int | None:
    alphas = [k for k, kind in enumerate(dataset.colorinterp, 1) if kind == ColorInterp.alpha and k != band]
    return alphas[0] if alphas and MaskFlags.alpha not in dataset.mask_flag_enums[band - 1] else None


def _fills(path: Path, dataset: DatasetReader, band: int, unit_m: float, offset_m: float) -> tuple[float, ...]:
    """Return the undeclared fill values that would pass for heights."""
    plausible = [fill for fill in FILLS if PLAUSIBLE_M[0] < fill * unit_m + offset_m < PLAUSIBLE_M[1]]
    if dataset.dtypes[band - 1] == "uint8" and unit_m == 1:
        if dataset.nodatavals[band - 1] is None:
            _warn("%s: uint8 without nodata; read as whole metres with 255 unknown", path)
        plausible.append(_UINT8_UNKNOWN)
    return tuple(plausible)
