"""Rasters of heights and masks on the truth's grid: hides grids, CRSs and resampling."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds

from canopy.errors import EvaluationError
from canopy.evaluation.metrics import Heights
from canopy.evaluation.truth_grid import TruthGrid
from tiles.grid import Lattice
from tiles.ground import metres_per_unit, pixel_sides_m, scale_error, unit_m
from tiles.heights import HeightRaster, rasterio_window, readable
from tiles.regrid import Regridder
from tiles.windows import PixelWindow

_SQUARE = 0.05
"""Share by which the sides of square pixels may differ: .4 m over the longest distance from trees."""
_TRUE_SCALE = 0.01
"""A CRS whose units are within this share of true metres keeps distances."""


@dataclass(frozen=True)
class RegriddedHeights:
    """Heights on the grid of another raster: averaged where they are finer, bilinear elsewhere."""

    source: HeightRaster
    """Heights on their own grid."""
    target: DatasetReader
    """Raster whose grid they are read on."""

    def read(self, window: PixelWindow) -> Heights:
        """Return heights over a window of the target's grid; NaN where less than half of a cell is known."""
        # Nested cells are averaged in place; any other grid goes through the regridder, sample by sample.
        if self._nesting is None:
            cover = self._regridder.cover(window)
            covered = cover.intersect(self.source.whole.pad(2))
            if covered is None:
                return np.full(window.shape, np.nan, np.float32)
            return self._regridder.regrid(self.source.read(covered), covered, window, self._samples)
        ratio, row, col = self._nesting
        fine = PixelWindow(
            row + window.row0 * ratio, col + window.col0 * ratio, window.height * ratio, window.width * ratio
        )
        return _block_mean(self.source.read(fine), ratio)

    @cached_property
    def _regridder(self) -> Regridder:
        return regridder(self.source.dataset, self.target)

    @cached_property
    def _samples(self) -> int:
        return self._regridder.samples(PixelWindow(0, 0, *self.target.shape))

    @cached_property
    def _nesting(self) -> tuple[int, int, int] | None:
        """Source cells along a cell, row and column of the first, where cells nest: the same means, faster."""
        if self.source.dataset.crs != self.target.crs:
            return None
        # From cells of the target to cells of the source: a whole number along both axes, and nothing across.
        step = ~self.source.dataset.transform @ self.target.transform
        ratio = round(step.a)
        size = max(*self.target.shape, 1)
        nests = abs(step.a - ratio) + abs(step.e - ratio) + abs(step.b) + abs(step.d) < 1e-3 / size
        aligned = abs(step.c - round(step.c)) + abs(step.f - round(step.f)) < 1e-3
        return (ratio, round(step.f), round(step.c)) if nests and aligned and ratio >= 1 else None


def mask_on(path: Path, mask: DatasetReader, target: DatasetReader, window: PixelWindow) -> NDArray[np.bool_]:
    """Return where a mask on its own grid excludes cells of the target.

    Args:
        path: File of the mask, for messages.
        mask: Mask; any value but 0, nodata and NaN excludes.
        target: Raster whose grid is asked about.
        window: Window of the target.

    Returns:
        (H, W) True where the mask's value at the cell's centre excludes it; False off the mask.
    """
    mover = regridder(mask, target)
    covered = mover.cover(window).intersect(PixelWindow(0, 0, *mask.shape))
    if covered is None:
        return np.zeros(window.shape, bool)
    with readable(path):
        values = mask.read(1, window=rasterio_window(covered), masked=True)
    # 0, nodata and NaN all mean that the mask says nothing against the cell.
    excluded = (np.ma.filled(values, 0) != 0) & ~np.isnan(np.ma.filled(values, 0).astype(np.float64))
    return np.asarray(mover.nearest(excluded, covered, window))


def regridder(source: DatasetReader, target: DatasetReader) -> Regridder:
    """Return what moves cells of one raster to the grid of another."""
    lattice = Lattice(CRS(source.crs.to_wkt()), abs(source.transform.a))
    return Regridder(lattice, CRS(target.crs.to_wkt()), target.transform, source.transform)


def overlap(target: DatasetReader, sources: list[DatasetReader]) -> PixelWindow | None:
    """Return the cells of the target that the bounds of every source reach; None where there are none."""
    window: PixelWindow | None = PixelWindow(0, 0, *target.shape)
    for source in sources:
        left, bottom, right, top = transform_bounds(source.crs, target.crs, *source.bounds, densify_pts=64)
        inverse = ~target.transform
        (col0, row0), (col1, row1) = inverse @ (left, top), inverse @ (right, bottom)
        # A millionth of a cell is rounding of the transform, not ground.
        row, col = int(np.floor(row0 + 1e-6)), int(np.floor(col0 + 1e-6))
        height, width = int(np.ceil(row1 - 1e-6)) - row, int(np.ceil(col1 - 1e-6)) - col
        reach = PixelWindow(row, col, height, width) if height > 0 and width > 0 else None
        window = window.intersect(reach) if window is not None and reach is not None else None
    return window


def cells_outside(window: PixelWindow, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which cells of a window lie beyond a raster of a shape, (H, W)."""
    rows, cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
    return np.asarray(((rows < 0) | (rows >= shape[0]))[:, None] | ((cols < 0) | (cols >= shape[1])))


def truth_grid(dataset: DatasetReader, window: PixelWindow) -> TruthGrid:
    """Return where the cells of a window of the truth lie."""
    east_m, north_m = _metres_per_unit(dataset)
    a: Affine = dataset.transform
    # y grows southward here and northward in the CRS.
    corner_m = (-(a.f + a.e * window.row0) * north_m, (a.c + a.a * window.col0) * east_m)
    return TruthGrid(window.shape, (-a.e * north_m, a.a * east_m), corner_m)


def require_north_up(path: Path, dataset: DatasetReader) -> None:
    """Refuse a raster whose rows and columns do not run south and east.

    Raises:
        EvaluationError: No CRS, rotated or south-up.
    """
    if dataset.crs is None:
        raise EvaluationError(
            f"{path} has no CRS: a georeferenced raster expected (rio edit-info --crs EPSG:n {path.name} sets one)"
        )
    a = dataset.transform
    if a.b or a.d or a.a <= 0 or a.e >= 0:
        raise EvaluationError(f"{path} is rotated or south-up: a north-up raster expected (gdalwarp writes one)")


def square_side_m(path: Path, transform: Affine, shape: tuple[int, int], crs: str) -> float:
    """Return the side of square pixels in true metres, for distances that are counted in pixels.

    Raises:
        EvaluationError: The sides differ, as those of degrees do.
    """
    across_m, down_m = pixel_sides_m(transform, shape, CRS(crs).proj)
    if abs(across_m - down_m) > _SQUARE * max(across_m, down_m):
        raise EvaluationError(
            f"{path} has pixels of {across_m:.3g} x {down_m:.3g} m: square ones expected, because distances are "
            "counted in them (gdalwarp -t_srs EPSG:n -tr M M -r near writes such, n a projected CRS)"
        )
    return max(across_m, down_m)


def require_mask(path: Path, dataset: DatasetReader) -> None:
    """Refuse a mask that cannot be laid over the truth.

    Raises:
        EvaluationError: No CRS, rotated, south-up, or several bands.
    """
    require_north_up(path, dataset)
    if dataset.count != 1:
        raise EvaluationError(f"mask {path} has {dataset.count} bands: one expected, nonzero where excluded")


def _metres_per_unit(dataset: DatasetReader) -> tuple[float, float]:
    """Return true metres in a CRS unit, east and north, at the middle; the CRS's own where it keeps distances."""
    crs = CRS(dataset.crs.to_wkt()).proj
    left, bottom, right, top = dataset.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    own_m = unit_m(crs)
    if not crs.is_geographic and scale_error(crs, x, y) < _TRUE_SCALE:
        return own_m, own_m
    return metres_per_unit(crs, x, y)


def _block_mean(heights: Heights, ratio: int) -> Heights:
    """Return means of ratio x ratio cells, NaN where less than half are known."""
    if ratio == 1:
        return heights
    shape = (heights.shape[0] // ratio, ratio, heights.shape[1] // ratio, ratio)
    cells = heights.reshape(shape)
    valid = ~np.isnan(cells)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, cells, 0).sum(axis=(1, 3), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= ratio**2 / 2, total / count, np.nan).astype(np.float32)
