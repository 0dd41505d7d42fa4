"""Resampling whose result does not depend on the window read.

A GeoBox is a window on a grid of pixels. A file on the grid is copied; any other is warped in fixed blocks of
the grid, each from a source window that only the file and the block decide. So each output pixel
is always computed by the same arithmetic, whatever GDAL does inside a block.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.warp import reproject
from rasterio.windows import Window

from canopy.errors import ImageryError
from canopy.imagery.collar import Collar
from canopy.imagery.colours import Mask, Values
from canopy.imagery.files import shown
from canopy.imagery.placement import Placement, Points, transformer
from canopy.imagery.scene import RasterScene, read_window
from tiles.windows import PixelWindow

Rgb = NDArray[np.float32]

_PHASES = 10_000
# Irrational, so that no grid of round numbers lies on the limit between two phases.
_PHASE_OFFSET = 1 / math.pi
_ALIGNED_PX = 1e-3
_BLOCK_PX = 256
_SOURCE_PX = 2048
_MOST_SOURCE_PX = 2**26
"""Pixels of a file read at once; a block needs about `_SOURCE_PX` squared unless the CRS is torn there."""
_AVERAGE_FROM = 2.0
_HALF = 0.499
_TOLERANCE_PX = 0.01


@dataclass(frozen=True)
class PixelGrid:
    """All pixels of one CRS, resolution and phase."""

    crs: str
    """WKT."""
    resolution: tuple[float, float]
    """Signed x and y step in CRS units."""
    phase: tuple[float, float]
    """Where pixel 0 starts, as a share of a pixel east (south) of the CRS origin."""

    def transform(self, col: int, row: int) -> Affine:
        """Return the transform of a window that starts at a pixel."""
        (x_step, y_step), (x_phase, y_phase) = self.resolution, self.phase
        return Affine(x_step, 0, (col + x_phase) * x_step, 0, y_step, (row + y_phase) * y_step)


def locate(geobox: GeoBox) -> tuple[PixelGrid, PixelWindow]:
    """Return the pixel grid of a GeoBox, and its pixels there.

    Raises:
        ImageryError: The GeoBox has no CRS or is rotated.
    """
    affine = geobox.affine
    if geobox.crs is None or affine.b or affine.d:
        raise ImageryError("imagery: a GeoBox without CRS or rotated, expected a north-up grid")
    col, x_phase = _split(affine.c / affine.a)
    row, y_phase = _split(affine.f / affine.e)
    pixel_grid = PixelGrid(geobox.crs.to_wkt(), (affine.a, affine.e), (x_phase, y_phase))
    return pixel_grid, PixelWindow(row, col, *geobox.shape)


def _split(position_px: float) -> tuple[int, float]:
    """Split a position into whole pixels and phase; the phase is snapped so that rounding cannot change it."""
    # Rounded down to 1/10000 of a pixel: a transform that was computed twice gives one grid.
    steps = math.floor(position_px * _PHASES + _PHASE_OFFSET)
    return steps // _PHASES, steps % _PHASES / _PHASES


class Warper:
    """Placed pixels on one pixel grid: which of them decide a block of it."""

    def __init__(self, path: str, placement: Placement, grid: PixelGrid) -> None:
        """Join pixels and a grid; `path` names them in messages."""
        self.path, self.placement, self.grid = path, placement, grid

    @cached_property
    def offset(self) -> tuple[int, int] | None:
        """Column and row of the file's first pixel if its pixels are the grid's; None if it must be warped."""
        transform, crs = self.placement.transform, self.placement.crs
        if transform is None or transform.b or transform.d or not same_crs(crs, self.grid.crs):
            return None
        height, width = self.placement.shape
        starts = []
        for origin, step, size, grid_step, phase in (
            (transform.c, transform.a, width, self.grid.resolution[0], self.grid.phase[0]),
            (transform.f, transform.e, height, self.grid.resolution[1], self.grid.phase[1]),
        ):
            first, last = origin / grid_step - phase, (origin + size * step) / grid_step - phase
            start = round(first)
            # Both ends: a step that differs by a millionth drifts over a large file.
            if max(abs(first - start), abs(last - start - size)) > _ALIGNED_PX:
                return None
            starts.append(start)
        return starts[0], starts[1]

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Source columns and rows per pixel of the grid, at the file's centre."""
        placement, (x_step, y_step) = self.placement, self.grid.resolution
        height, width = placement.shape
        centre = placement.to_ground(np.array([width / 2]), np.array([height / 2]))
        xs, ys = (np.repeat(centres, 3) for centres in transformer(placement.crs, self.grid.crs).transform(*centre))
        cols, rows = self._to_source(xs + np.array([0, x_step, 0]), ys + np.array([0, 0, y_step]))
        if not (np.isfinite(cols).all() and np.isfinite(rows).all()):
            return 1.0, 1.0
        return float(np.hypot(*(cols[1:] - cols[0]))), float(np.hypot(*(rows[1:] - rows[0])))

    @cached_property
    def block_px(self) -> int:
        """Side of a block: smaller the coarser the grid, so that memory stays bounded."""
        return int(2 ** np.clip(math.floor(math.log2(_SOURCE_PX / max(self.scale))), 0, math.log2(_BLOCK_PX)))

    def blocks(self, region: PixelWindow) -> Iterator[PixelWindow]:
        """Yield the blocks that cover a region."""
        side = self.block_px
        for row in range(region.row0 // side, (region.row1 - 1) // side + 1):
            for col in range(region.col0 // side, (region.col1 - 1) // side + 1):
                yield PixelWindow(row * side, col * side, side, side)

    def source_region(self, block: PixelWindow) -> PixelWindow | None:
        """Return the source pixels that decide a block, with a margin around the file for its edge; None for none."""
        steps = np.linspace(0, block.width, 9)
        cols, rows = np.meshgrid(block.col0 + steps, block.row0 + steps)
        (x_step, y_step), (x_phase, y_phase) = self.grid.resolution, self.grid.phase
        cols, rows = self._to_source((cols.ravel() + x_phase) * x_step, (rows.ravel() + y_phase) * y_step)
        finite = np.isfinite(cols) & np.isfinite(rows)
        if not finite.any():
            return None
        # The cubic reaches two output pixels, which are `scale` source pixels wide, and GDAL a few more.
        margin = math.ceil(2 * max(*self.scale, 1)) + 4
        height, width = self.placement.shape
        reach = PixelWindow(0, 0, height, width).pad(margin)
        left, top = math.floor(cols[finite].min()) - margin, math.floor(rows[finite].min()) - margin
        right, bottom = math.ceil(cols[finite].max()) + margin, math.ceil(rows[finite].max()) + margin
        region = reach.intersect(PixelWindow(top, left, bottom - top, right - left))
        return region if region and region.intersect(PixelWindow(0, 0, height, width)) else None

    def _to_source(self, xs: Points, ys: Points) -> tuple[Points, Points]:
        to_scene = transformer(self.grid.crs, self.placement.crs)
        return self.placement.to_pixel(*to_scene.transform(xs, ys))


class Resampler(Warper):
    """One file on one pixel grid."""

    def __init__(self, scene: RasterScene, grid: PixelGrid) -> None:
        """Join a file and a grid."""
        super().__init__(scene.path, scene.placement, grid)
        self.scene = scene

    @cached_property
    def overview(self) -> int | None:
        """Number of the overview to read in place of the file's own pixels; None for these.

        The coarsest with two pixels or more along each side of a pixel of the grid: they are averaged like the file's
        own, so that how the overview was made matters little. File and grid alone decide, never the window.
        """
        fitting = [
            (factor, number)
            for number, factor in enumerate(self.scene.overviews)
            if factor > 1 and min(self.scale) / factor >= _AVERAGE_FROM
        ]
        return max(fitting)[1] if fitting and self.scene.lossy_nodata is None else None


@lru_cache(maxsize=256)
def same_crs(one: str, other: str) -> bool:
    """Compare two WKTs: whether they mean one CRS, in x, y order."""
    return one == other or pyproj.CRS.from_wkt(one).equals(pyproj.CRS.from_wkt(other), ignore_axis_order=True)


def read_aligned(
    dataset: DatasetReader, resampler: Resampler, region: PixelWindow, collars: Sequence[Collar]
) -> tuple[PixelWindow, Values, Mask | None] | None:
    """Read the part of a region that a file on the grid covers; None where they do not meet.

    Returns:
        region: The part, on the grid.
        values: (3, height, width), after scale and offset.
        valid: (height, width) bool; None where all pixels are.
    """
    (col, row), (height, width) = resampler.offset or (0, 0), dataset.shape
    part = region.intersect(PixelWindow(row, col, height, width))
    if part is None:
        return None
    source = PixelWindow(part.row0 - row, part.col0 - col, *part.shape)
    values, valid = _read(dataset, resampler.scene, source, collars)
    return part, values, valid


def _read(
    dataset: DatasetReader, scene: RasterScene, source: PixelWindow, collars: Sequence[Collar]
) -> tuple[Values, Mask | None]:
    """Read the values of source pixels, after scale and offset, and which of them are valid."""
    window = Window(source.col0, source.row0, source.width, source.height)
    values, valid = read_window(dataset, scene, window)
    for collar in collars:
        covered = collar.covers(values, source.row0, source.col0)
        if covered is not None:
            valid = ~covered if valid is None else valid & ~covered
    return scene.physical(values), valid


def warp_block(
    dataset: DatasetReader, resampler: Resampler, block: PixelWindow, collars: Sequence[Collar]
) -> Rgb | None:
    """Resample a file to one block of the grid; see `warp`."""
    return warp(lambda source: _read(dataset, resampler.scene, source, collars), resampler, block)


def warp_overview(dataset: DatasetReader, resampler: Resampler, block: PixelWindow) -> Rgb | None:
    """Resample an overview of a file to one block of the grid; see `warp`.

    Args:
        dataset: The overview.
        resampler: The file and the grid.
        block: Pixels of the grid.

    Returns:
        None where a pixel that decides the block is unknown: then the file's own pixels say exactly which.
    """
    scene, warper = resampler.scene, _overview_warper(resampler, dataset.shape)
    # Some programs leave the mask out of overviews, which then seem to be valid throughout.
    masked = not scene.has_mask or MaskFlags.per_dataset in dataset.mask_flag_enums[scene.bands.colours[0] - 1]
    if warper is None or not masked:
        return None
    source = warper.source_region(block)
    inside = source and source.intersect(PixelWindow(0, 0, *dataset.shape))
    if inside is None:
        return None
    values, valid = _read(dataset, scene, inside, ())
    return None if valid is not None else warp(lambda _: (values, None), warper, block)


@lru_cache(maxsize=1024)
def _overview_warper(resampler: Resampler, shape: tuple[int, int]) -> Warper | None:
    """Return the warper of an overview by its rows and columns; None where it is no copy of the whole file."""
    height, width = resampler.placement.shape
    factor = resampler.scene.overviews[resampler.overview or 0]
    if any(abs(size / factor - pixels) > 1 for size, pixels in zip((height, width), shape, strict=True)):
        return None
    transform = resampler.placement.transform or Affine.identity()
    scaled = transform @ Affine.scale(width / shape[1], height / shape[0])
    placement = replace(resampler.placement, shape=shape, transform=scaled)
    return Warper(resampler.path, placement, resampler.grid)


def warp(read: Callable[[PixelWindow], tuple[Values, Mask | None]], warper: Warper, block: PixelWindow) -> Rgb | None:
    """Resample placed pixels to one block of the grid.

    Downsampling by 2 or more averages the source pixels under a pixel; else cubic convolution, widened to the
    output pixel when downsampling. Invalid source pixels have no weight: near them the cubic gives way to the
    bilinear kernel. An output pixel is valid if at least half of its weight is on valid source pixels.

    Args:
        read: Function that returns the values (3, h, w) of source pixels and which are valid, None if all are.
        warper: The pixels' place, and the grid.
        block: Pixels of the grid.

    Returns:
        (3, side, side) values, NaN where invalid; None where the source does not reach.

    Raises:
        ImageryError: The block needs more source pixels than memory should take.
    """
    source = warper.source_region(block)
    inside = source and source.intersect(PixelWindow(0, 0, *warper.placement.shape))
    if source is None or inside is None:
        return None
    if source.height * source.width > _MOST_SOURCE_PX:
        raise ImageryError(
            f"{shown(warper.path)}: {source.height} x {source.width} of its pixels decide {block.height} x "
            f"{block.width} of the map, {_MOST_SOURCE_PX:.0e} at most expected; resample it with gdalwarp"
        )
    values, valid = read(inside)
    # The usual case costs one warp, an image with holes three or four.
    if valid is None and inside == source:
        return _warp(warper, block, source, values.astype(np.float32), _kernel(warper))
    padded = np.full((3, source.height, source.width), np.nan, np.float32)
    rows, cols = inside.slices_in(source)
    padded[:, rows, cols] = values if valid is None else np.where(valid, values, np.nan)
    return _warp_holes(warper, block, source, padded)


def _kernel(warper: Warper) -> Resampling:
    return Resampling.average if min(warper.scale) >= _AVERAGE_FROM else Resampling.cubic


def _warp_holes(warper: Warper, block: PixelWindow, source: PixelWindow, padded: Rgb) -> Rgb:
    valid = np.isfinite(padded[:1]).astype(np.float32)
    if not valid.any():
        return np.full((3, block.height, block.width), np.nan, np.float32)
    kernel = _kernel(warper)
    positive = Resampling.bilinear if kernel == Resampling.cubic else kernel
    weight = _warp(warper, block, source, valid, positive)
    result = _warp(warper, block, source, padded, positive)
    if kernel == Resampling.cubic:
        # Where all of the cubic's weight is on valid pixels its result is that of an image without holes.
        whole = np.abs(_warp(warper, block, source, valid, kernel) - 1) < 1e-6
        np.copyto(result, _warp(warper, block, source, padded, kernel), where=whole)
    result[:, ~(weight[0] >= _HALF)] = np.nan
    return result


def _warp(warper: Warper, block: PixelWindow, source: PixelWindow, values: Rgb, kernel: Resampling) -> Rgb:
    """Warp (n, h, w) source values to a block, (n, side, side); NaN has no weight."""
    # GDAL's kernels are faster without nodata; a block that is valid throughout needs none.
    nodata = math.nan if np.isnan(values[0]).any() else None
    georeference = warper.placement.window_options(source.col0, source.row0)
    to = warper.grid.transform(block.col0, block.row0)
    unknown = np.full((len(values), block.height, block.width), np.nan, np.float32)
    with (
        _in_memory(values, crs=_crs(warper.placement.crs), **georeference) as origin,
        _in_memory(unknown, crs=_crs(warper.grid.crs), transform=to) as target,
    ):
        reproject(
            rasterio.band(origin, origin.indexes),
            rasterio.band(target, target.indexes),
            src_nodata=nodata,
            dst_nodata=nodata,
            init_dest_nodata=nodata is not None,
            resampling=kernel,
            num_threads=1,
            tolerance=_TOLERANCE_PX,
            XSCALE=1 / max(warper.scale[0], 1),
            YSCALE=1 / max(warper.scale[1], 1),
            SAMPLE_GRID="YES",
            SOURCE_EXTRA=8,
        )
        warped: Rgb = target.read()
    return warped


@contextmanager
def _in_memory(values: Rgb, **georeference: Any) -> Iterator[DatasetWriter]:
    """Open an array (n, h, w) as a dataset in memory.

    `reproject` makes its own when given arrays, but changes Python's warning filters meanwhile, for all
    threads.
    """
    count, height, width = values.shape
    options = {"driver": "MEM", "count": count, "height": height, "width": width, "dtype": "float32"}
    with rasterio.open("/vsimem/canopy", "w+", **options, **georeference) as dataset:
        dataset.write(values)
        yield dataset


@lru_cache(maxsize=256)
def _crs(wkt: str) -> CRS:
    return CRS.from_wkt(wkt)
