"""Rasters of heights and masks on the truth's grid: hides files, units, nodata and resampling."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from canopy.errors import EvaluationError, RasterError, one_line
from canopy.evaluation.metrics import Ground, Heights
from tiles.grid import Lattice
from tiles.ground import metres_per_unit, scale_error, unit_m
from tiles.regrid import Regridder
from tiles.windows import PixelWindow

UNITS_M = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), 0.01),
    **dict.fromkeys(("dm", "decimetre", "decimeter"), 0.1),
    **dict.fromkeys(("ft", "foot", "feet", "international foot"), 0.3048),
    **dict.fromkeys(("us-ft", "ftus", "us survey foot", "foot_us"), 1200 / 3937),
}
PLAUSIBLE_M = (-100.0, 1000.0)
"""Heights outside are undeclared nodata, such as -9999."""

_LOG = logging.getLogger("canopy.evaluation")
_TRUE_SCALE = 0.01


@dataclass(frozen=True)
class Heightfile:
    """An open raster of heights.

    Attributes:
        unit_m: Metres in one file value, after `offset`: height = value * unit_m + offset_m.
    """

    path: Path
    dataset: DatasetReader
    band: int
    unit_m: float
    offset_m: float
    nodata: float | None
    """Value that means unknown besides what the file declares."""

    @classmethod
    def of(cls, path: Path, dataset: DatasetReader, unit: str | None = None) -> Self:
        """Decide band, unit and nodata.

        Raises:
            EvaluationError: Several bands, no CRS, or integers of unknown unit.
        """
        _require_placed(path, dataset)
        band = _height_band(path, dataset)
        unit_m, offset_m = _unit(path, dataset, band, unit)
        untagged = dataset.dtypes[band - 1] == "uint8" and dataset.nodatavals[band - 1] is None
        if untagged:
            _LOG.warning("%s: uint8 without nodata; read as whole metres with 255 unknown", path)
        return cls(path, dataset, band, unit_m, offset_m, 255.0 if untagged else None)

    @property
    def whole(self) -> PixelWindow:
        """All of its cells."""
        return PixelWindow(0, 0, *self.dataset.shape)

    def read(self, window: PixelWindow) -> Heights:
        """Heights in metres over a window that may leave the raster; NaN where unknown.

        Raises:
            RasterError: The file is damaged.
        """
        heights = np.full(window.shape, np.nan, np.float32)
        inside = window.intersect(self.whole)
        if inside is not None:
            with readable(self.path):
                values = self.dataset.read(self.band, window=_rasterio(inside), masked=True)
            heights[inside.slices_in(window)] = self._metres(values)
        return heights

    def _metres(self, values: Any) -> Heights:
        unknown = np.ma.getmaskarray(values)
        if self.nodata is not None:
            unknown = unknown | (values.data == self.nodata)
        heights = values.data.astype(np.float32)
        if (self.unit_m, self.offset_m) != (1.0, 0.0):
            heights = (values.data * self.unit_m + self.offset_m).astype(np.float32)
        with np.errstate(invalid="ignore"):
            plausible = (heights > PLAUSIBLE_M[0]) & (heights < PLAUSIBLE_M[1])
        return np.where(unknown | ~plausible, np.float32(np.nan), heights)


@dataclass(frozen=True)
class Onto:
    """A raster seen on the grid of another: averaged where it is finer, bilinear elsewhere."""

    source: Heightfile
    target: DatasetReader

    def read(self, window: PixelWindow) -> Heights:
        """Heights over a window of the target's grid; NaN where less than half of a cell is known."""
        if self._ratio is None:
            cover = self.regridder.cover(window)
            made = cover.intersect(self.source.whole.pad(2))
            if made is None:
                return np.full(window.shape, np.nan, np.float32)
            return self.regridder.regrid(self.source.read(made), made, window, self._samples)
        ratio, row, col = self._ratio
        first = PixelWindow(
            row + window.row0 * ratio, col + window.col0 * ratio, window.height * ratio, window.width * ratio
        )
        return _block_mean(self.source.read(first), ratio)

    @cached_property
    def regridder(self) -> Regridder:
        """Moves the source's cells to the target's grid."""
        return regridder(self.source.dataset, self.target)

    @cached_property
    def _samples(self) -> int:
        return self.regridder.samples(PixelWindow(0, 0, *self.target.shape))

    @cached_property
    def _ratio(self) -> tuple[int, int, int] | None:
        """(source cells along a cell, row and column of the first) where cells nest; the same means, faster."""
        if self.source.dataset.crs != self.target.crs:
            return None
        step = ~self.source.dataset.transform @ self.target.transform
        ratio = round(step.a)
        size = max(*self.target.shape, 1)
        nests = abs(step.a - ratio) + abs(step.e - ratio) + abs(step.b) + abs(step.d) < 1e-3 / size
        aligned = abs(step.c - round(step.c)) + abs(step.f - round(step.f)) < 1e-3
        return (ratio, round(step.f), round(step.c)) if nests and aligned and ratio >= 1 else None


def mask_on(path: Path, mask: DatasetReader, target: DatasetReader, window: PixelWindow) -> NDArray[np.bool_]:
    """True where the mask, on its own grid, excludes the cell: any nonzero value at its centre."""
    mover = regridder(mask, target)
    made = mover.cover(window).intersect(PixelWindow(0, 0, *mask.shape))
    if made is None:
        return np.zeros(window.shape, bool)
    with readable(path):
        values = mask.read(1, window=_rasterio(made))
    return np.asarray(mover.nearest(values, made, window) != 0)


def regridder(source: DatasetReader, target: DatasetReader) -> Regridder:
    """Moves cells of one raster to the grid of another."""
    lattice = Lattice(CRS(source.crs.to_wkt()), abs(source.transform.a))
    return Regridder(lattice, CRS(target.crs.to_wkt()), target.transform, source.transform)


def overlap(target: DatasetReader, sources: list[DatasetReader]) -> PixelWindow | None:
    """Cells of the target that the bounds of every source reach."""
    window: PixelWindow | None = PixelWindow(0, 0, *target.shape)
    for source in sources:
        left, bottom, right, top = transform_bounds(source.crs, target.crs, *source.bounds, densify_pts=64)
        inverse = ~target.transform
        (col0, row0), (col1, row1) = inverse @ (left, top), inverse @ (right, bottom)
        row, col = int(np.floor(row0 + 1e-6)), int(np.floor(col0 + 1e-6))
        height, width = int(np.ceil(row1 - 1e-6)) - row, int(np.ceil(col1 - 1e-6)) - col
        reach = PixelWindow(row, col, height, width) if height > 0 and width > 0 else None
        window = window.intersect(reach) if window is not None and reach is not None else None
    return window


def ground(dataset: DatasetReader, window: PixelWindow) -> Ground:
    """Where the cells of a window lie, metres from the CRS origin."""
    east_m, north_m = _metres_per_unit(dataset)
    a: Affine = dataset.transform
    corner_m = (-(a.f + a.e * window.row0) * north_m, (a.c + a.a * window.col0) * east_m)
    return Ground(window.shape, (-a.e * north_m, a.a * east_m), corner_m)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns a failed read into one line.

    Raises:
        RasterError: The file is missing, damaged or no raster.
    """
    try:
        yield
    except (RasterioError, OSError) as error:
        cause = one_line(error)
        raise RasterError(f"cannot read {path}: {cause}; a complete GeoTIFF expected") from error


@contextmanager
def opened(path: Path) -> Iterator[DatasetReader]:
    """Opens a raster; a fault is one line.

    Raises:
        RasterError: The file is missing, damaged or no raster.
    """
    import warnings

    with warnings.catch_warnings(), readable(path):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    with dataset:
        yield dataset


def require_mask(path: Path, dataset: DatasetReader) -> None:
    """Refuse a mask that cannot be laid over the truth."""
    _require_placed(path, dataset)
    if dataset.count != 1:
        raise EvaluationError(f"mask {path} has {dataset.count} bands: one expected, nonzero where excluded")


def _require_placed(path: Path, dataset: DatasetReader) -> None:
    if dataset.crs is None:
        raise EvaluationError(f"{path} has no CRS: a georeferenced raster expected (gdal_edit.py -a_srs sets one)")
    a = dataset.transform
    if a.b or a.d or a.a <= 0 or a.e >= 0:
        raise EvaluationError(f"{path} is rotated or south-up: a north-up raster expected (gdalwarp makes one)")


def _height_band(path: Path, dataset: DatasetReader) -> int:
    if dataset.count == 1:
        return 1
    if "canopy_height" in dataset.descriptions:
        return int(dataset.descriptions.index("canopy_height")) + 1
    raise EvaluationError(f"{path} has {dataset.count} bands: one band of heights expected, or one named canopy_height")


def _unit(path: Path, dataset: DatasetReader, band: int, asked: str | None) -> tuple[float, float]:
    """Metres in a file value, and the height of value 0: as asked, as tagged, or as the type says."""
    dtype, scale, offset = dataset.dtypes[band - 1], dataset.scales[band - 1], dataset.offsets[band - 1]
    tag = (dataset.units[band - 1] or "").strip().lower()
    if asked is not None:
        return UNITS_M[asked], 0.0
    if tag:
        if tag not in UNITS_M:
            raise EvaluationError(
                f"{path}: heights in {tag!r}: m, cm or ft expected (--truth-unit overrides the truth's)"
            )
        if UNITS_M[tag] != 1:
            _LOG.warning("%s: heights converted from %s", path, tag)
        return scale * UNITS_M[tag], offset * UNITS_M[tag]
    vertical_m = _vertical_unit_m(dataset)
    if vertical_m != 1:
        _LOG.warning("%s: heights converted from the feet of its vertical CRS", path)
        return scale * vertical_m, offset * vertical_m
    if (scale, offset) != (1, 0) or np.dtype(dtype).kind == "f" or dtype == "uint8":
        return scale, offset
    if dtype == "uint16" and dataset.nodatavals[band - 1] == 65535:
        _LOG.warning("%s: uint16 with nodata 65535; read as centimetres", path)
        return 0.01, 0.0
    raise EvaluationError(
        f"{path} holds {dtype} without unit, scale or nodata 65535: its unit is unknown; "
        "tag it (rasterio: dataset.units), or name the truth's with --truth-unit"
    )


def _vertical_unit_m(dataset: DatasetReader) -> float:
    """Metres in the unit of a compound CRS's heights; 1 where the CRS says nothing of heights."""
    parts = CRS(dataset.crs.to_wkt()).proj.sub_crs_list if dataset.crs is not None else []
    return next((float(part.axis_info[0].unit_conversion_factor) for part in parts if part.is_vertical), 1.0)


def _metres_per_unit(dataset: DatasetReader) -> tuple[float, float]:
    """True metres in a CRS unit, east and north, at the middle; the CRS's own where it keeps distances to 1 %."""
    crs = CRS(dataset.crs.to_wkt()).proj
    left, bottom, right, top = dataset.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    own_m = unit_m(crs)
    if not crs.is_geographic and scale_error(crs, x, y) < _TRUE_SCALE:
        return own_m, own_m
    return metres_per_unit(crs, x, y)


def _block_mean(heights: Heights, ratio: int) -> Heights:
    """Means of ratio x ratio cells, NaN where less than half are known."""
    if ratio == 1:
        return heights
    shape = (heights.shape[0] // ratio, ratio, heights.shape[1] // ratio, ratio)
    cells = heights.reshape(shape)
    known = ~np.isnan(cells)
    count = known.sum(axis=(1, 3))
    total = np.where(known, cells, 0).sum(axis=(1, 3), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= ratio**2 / 2, total / count, np.nan).astype(np.float32)


def _rasterio(window: PixelWindow) -> Window:
    return Window(window.col0, window.row0, window.width, window.height)
