"""A scene on one grid, read in windows: pixels of the image, and the cells of heights that they fill.

A scene may be larger than memory, so nothing here reads all of it at once, and a window's values do not depend on
which windows are read before it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from canopy.dataset.registration import Shift, estimate_shift
from canopy.dataset.scene import BUILDING, UNTRUSTED
from canopy.dataset.scene_files import SceneFiles
from canopy.dataset.tile_trees import MapTile
from canopy.dataset.weak import LabelReader, open_nir
from canopy.errors import DatasetError, one_line
from canopy.evaluation.rasters import square_side_m
from canopy.evaluation.tree_points import read_tree_points
from canopy.imagery import open_imagery
from canopy.imagery.datasets import quiet
from canopy.imagery.source import COARSEST_GSD_RATIO, is_too_coarse
from tiles.ground import is_metric, true_gsd_m
from tiles.heights import HeightRaster, open_heights, open_raster, rasterio_window, readable
from tiles.windows import PixelWindow

HIGHEST_M = 130.0
"""No tree is higher: heights beyond are in another unit."""
MAX_SCENE_PX = 20_000_000_000
"""Most pixels of a scene, 50 km square at 0.35 m: a small file may claim a size that no one could ever read."""
_STRIP_CELLS = 2_000_000
"""Height cells in a window of a pass over a whole scene."""


@dataclass(frozen=True)
class ImageWindow:
    """A window of an image."""

    image: NDArray[np.uint8]
    """(3, H, W) uint8 RGB; 0 where there is no imagery."""
    valid: NDArray[np.bool_]
    """(H, W) whether there is imagery."""


@dataclass
class ImageReader:
    """The image of a scene on its grid. The last window stays in memory: passes over a small scene read it once."""

    shape: tuple[int, int, int]
    """3, rows and columns."""
    load: Callable[[PixelWindow], ImageWindow]
    """Read a window from the file."""
    _last: tuple[PixelWindow, ImageWindow] | None = field(default=None, repr=False)

    def read(self, window: PixelWindow) -> ImageWindow:
        """Read a window inside the grid."""
        # A window inside the last one is a part of it: the same pixels, for they do not depend on the window read.
        if self._last is None or window.intersect(self._last[0]) != window:
            self._last = window, self.load(window)
        outer, content = self._last
        rows, cols = window.slices_in(outer)
        return ImageWindow(content.image[:, rows, cols], content.valid[rows, cols])

    def __getitem__(self, window: tuple[slice, ...]) -> NDArray[np.uint8]:
        """Read the image alone by slices of bands, rows and columns, as registration does."""
        return self.read(_window(window[1:])).image


@dataclass(frozen=True)
class HeightReader:
    """The heights of a scene, with the mask that lies over them."""

    raster: HeightRaster
    """Open raster of heights."""
    geobox: GeoBox
    """Grid of the cells."""
    mask: DatasetReader | None = None
    """Open exclusion mask on the same grid."""
    down: int = 0
    """Rows by which the heights are moved onto the image."""
    right: int = 0
    """Columns by which the heights are moved onto the image."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, cols = self.geobox.shape
        return int(rows), int(cols)

    def read(self, window: PixelWindow) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read heights as labels.

        Returns:
            height_m: (h, w) float32 metres: 0 on buildings, NaN where unknown, excluded, or not moved in.
            building: (h, w) whether a cell is a building.
        """
        moved = replace(window, row0=window.row0 - self.down, col0=window.col0 - self.right)
        height_m, excluded = self._read(moved)
        labels = np.where(excluded == BUILDING, 0, np.where(excluded == UNTRUSTED, np.nan, height_m))
        return labels.astype(np.float32), excluded == BUILDING

    def __getitem__(self, window: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read the heights that registration compares, by slices of rows and columns: NaN on all that is excluded."""
        height_m, excluded = self._read(_window(window))
        return np.where(excluded > 0, np.nan, height_m).astype(np.float32)

    def _read(self, window: PixelWindow) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        # Below ground is noise of the height model's interpolation; np.maximum keeps NaN.
        height_m = np.maximum(self.raster.read(window), 0)
        excluded = np.zeros(window.shape, np.uint8)
        inside = window.intersect(PixelWindow(0, 0, *self.shape))
        if self.mask is not None and inside is not None:
            with readable(Path(self.mask.name)):
                excluded[inside.slices_in(window)] = self.mask.read(1, window=rasterio_window(inside))
        return height_m, excluded


@dataclass(frozen=True)
class GriddedScene:
    """A scene on one grid."""

    image: ImageReader
    """Its image."""
    geobox: GeoBox
    """Grid of the image's pixels."""
    gsd_m: float
    """Side of a pixel, true ground metres."""
    heights: HeightReader | None = None
    """Its heights, moved onto the image; None for unlabelled imagery."""
    shift: Shift | None = None
    """Best shift of the heights onto the image, applied or not."""
    labels: LabelReader | None = None
    """Its weak labels, if it has any."""


@contextmanager
def open_labelled(
    scene: SceneFiles, *, unit: float | None, gsd_m: float, height_cell_m: float, search_m: float
) -> Iterator[GriddedScene]:
    """Open a scene with heights, and register the heights to the image.

    Args:
        scene: Files of the scene; its heights exist.
        unit: Metres in a stored unit of height, in place of the file's own.
        gsd_m: Side of the pixels to read, metres.
        height_cell_m: Side of the height cells, metres: a whole multiple of `gsd_m`.
        search_m: Largest shift that is looked for, metres.

    Raises:
        CanopyError: A file is damaged, the heights are in another grid or unit, or the files do not belong together.
    """
    with ExitStack() as stack:
        heights = _open_heights(scene, unit, height_cell_m, stack)
        cell_px = round(height_cell_m / gsd_m)
        rows, cols = heights.shape
        # The pixels divide the heights' cells, so that each cell is a whole number of them.
        affine = heights.geobox.affine @ Affine.scale(1 / cell_px)
        geobox = GeoBox((rows * cell_px, cols * cell_px), affine, heights.geobox.crs)
        _require_readable(scene.heights, *geobox.shape)
        image = _image_reader(scene.image, geobox, gsd_m)
        _require_plausible(heights)
        # Before registration, which would find no shift and say nothing.
        if not any(image.read(window).valid.any() for window in _strips(rows * cell_px, cols * cell_px)):
            raise DatasetError(
                f"{scene.image} and {scene.heights} lie on different ground: check their CRS and georeference"
            )
        # Unmoved, buildings and excluded ground left out: roofs show in the image and have no height in the label.
        shift = estimate_shift(image, heights, height_cell_m, search_m=search_m)
        if shift.accepted:
            down, right = shift.whole_cells(height_cell_m)
            heights = replace(heights, down=down, right=right)
        yield GriddedScene(image, geobox, gsd_m, heights, shift)


def open_unlabelled(scene: SceneFiles) -> GriddedScene:
    """Open a scene without heights, on the grid of its own pixels.

    Raises:
        CanopyError: The image is damaged, has no georeference, or is not RGB.
    """
    if scene.tile is not None:
        return _open_tile(scene.image, scene.tile)
    gsd_m = open_imagery(scene.image).gsd_m
    with quiet(), rasterio.open(scene.image) as opened:
        geobox = GeoBox(opened.shape, opened.transform, opened.crs)
    _require_readable(scene.image, *geobox.shape)
    return GriddedScene(_image_reader(scene.image, geobox, gsd_m), geobox, gsd_m)


def open_weak(scene: SceneFiles, *, measured: bool, gsd_m: float, cell_px: int) -> GriddedScene:
    """Open a scene with tree points, or of grassland, on a grid of the pixels of labelled chips over its image.

    Args:
        scene: Files of the scene.
        measured: Whether the points have heights, and say nothing of the ground around them.
        gsd_m: Side of the pixels to read, true ground metres.
        cell_px: Pixels along the side of a cell of labels.

    Raises:
        CanopyError: A file is damaged, has no georeference, or the image is not RGB.
    """
    source_gsd_m = open_imagery(scene.image).gsd_m
    with quiet(), rasterio.open(scene.image) as opened:
        shape, transform, crs = opened.shape, opened.transform, opened.crs
    if crs is None:
        raise DatasetError(
            f"{scene.image} is placed by control points alone: a CRS and a transform expected; gdalwarp writes such"
        )
    square_side_m(scene.image, transform, shape, crs.to_wkt())
    # Whole cells that fit inside the image, from its upper left corner on.
    scale = gsd_m / source_gsd_m
    rows, cols = (int(side / scale / cell_px + 1e-6) for side in shape)
    _require_readable(scene.image, rows * cell_px, cols * cell_px)
    if not (rows and cols):
        raise DatasetError(f"{scene.image}: {shape[1]} x {shape[0]} pixels are less than one cell of {cell_px} pixels")
    geobox = GeoBox((rows * cell_px, cols * cell_px), transform @ Affine.scale(scale), crs)
    points = None
    if scene.points is not None:
        points = read_tree_points(scene.points).on_image(scene.image, transform, crs.to_wkt())
        points = points.scaled(1 / (scale * cell_px))
    nir = open_nir(scene.nir, geobox) if scene.nir else None
    labels = LabelReader(points, (rows, cols), gsd_m * cell_px, cell_px, measured, nir)
    return GriddedScene(_image_reader(scene.image, geobox, gsd_m), geobox, gsd_m, labels=labels)


def _image_reader(path: Path, geobox: GeoBox, gsd_m: float) -> ImageReader:
    source = open_imagery(path)
    # Labels would be learnt from detail that the image does not show.
    if is_too_coarse(source.gsd_m, gsd_m):
        raise DatasetError(
            f"{path}: imagery of {source.gsd_m:.3g} m is too coarse for chips of {gsd_m:g} m: "
            f"{COARSEST_GSD_RATIO * gsd_m:g} m or finer expected"
        )

    def load(window: PixelWindow) -> ImageWindow:
        affine = geobox.affine @ Affine.translation(window.col0, window.row0)
        values = source.read(GeoBox(window.shape, affine, geobox.crs)).to_numpy()
        valid = np.isfinite(values[0])
        return ImageWindow(np.rint(255 * np.nan_to_num(values)).astype(np.uint8), valid)

    return ImageReader((3, *geobox.shape), load)


def _open_tile(path: Path, tile: MapTile) -> GriddedScene:
    """Open a map tile, whose path says where it lies and whose pixels are taken as they are."""

    def load(window: PixelWindow) -> ImageWindow:
        try:
            with quiet(), rasterio.open(path) as opened:
                image = opened.read((1, 2, 3), window=rasterio_window(window))
                return ImageWindow(image, opened.dataset_mask(window=rasterio_window(window)) > 0)
        except RasterioError as error:
            raise DatasetError(f"{path} cannot be read ({one_line(error)}); copy it again") from error

    try:
        with quiet(), rasterio.open(path) as opened:
            shape, bands = opened.shape, opened.count
    except RasterioError as error:
        raise DatasetError(f"{path} cannot be read ({one_line(error)}); copy it again") from error
    _require_readable(path, *shape)
    if bands < 3:
        raise DatasetError(f"{path}: {bands} bands, red, green and blue expected")
    geobox = GeoBox(shape, tile.transform @ Affine.scale(1 / shape[1], 1 / shape[0]), tile.crs)
    return GriddedScene(ImageReader((3, *shape), load), geobox, true_gsd_m(geobox.affine, shape, CRS(tile.crs)))


def _open_heights(scene: SceneFiles, unit: float | None, cell_m: float, stack: ExitStack) -> HeightReader:
    """Open heights and mask for as long as the stack lasts."""
    path = Path(str(scene.heights))
    # The source's unit is that of stored heights; heights computed from clouds are in metres.
    unit = None if scene.clouds else unit
    raster = stack.enter_context(open_heights(path, unit=unit, remedy="height_unit_m in the source"))
    dataset = raster.dataset
    crs = CRS.from_wkt(dataset.crs.to_wkt())
    # The vertical part of a compound CRS says the unit of heights, which the reader applied.
    horizontal = crs.sub_crs_list[0].to_wkt() if crs.is_compound else dataset.crs
    geobox = GeoBox(dataset.shape, dataset.transform, horizontal)
    _require_grid(path, geobox, cell_m)
    if scene.exclude is None:
        return HeightReader(raster, geobox)
    mask = stack.enter_context(open_raster(scene.exclude))
    if scene.clouds:
        mask = stack.enter_context(_regridded(mask, geobox))
    elif mask.shape != dataset.shape:
        raise DatasetError(f"{scene.exclude}: {mask.shape} cells over heights of {dataset.shape}")
    return HeightReader(raster, geobox, mask)


def _require_readable(path: Path | None, rows: int, cols: int) -> None:
    if rows * cols > MAX_SCENE_PX:
        raise DatasetError(
            f"{path}: {cols} x {rows} pixels to read, at most {MAX_SCENE_PX / 1e9:g} Gpx expected; cut it into parts"
        )


def _require_grid(path: Path, geobox: GeoBox, cell_m: float) -> None:
    if geobox.crs is None or not is_metric(geobox.crs.proj):
        raise DatasetError(f"{path}: CRS {geobox.crs}, a projected one in metres expected; reproject it")
    affine = geobox.affine
    north_up = affine.b == affine.d == 0 and affine.e < 0
    sides_fit = all(math.isclose(side, cell_m, rel_tol=1e-6) for side in (affine.a, -affine.e))
    if not (north_up and sides_fit):
        raise DatasetError(
            f"{path}: cells of {abs(affine.a):g} x {abs(affine.e):g} m, {cell_m:g} m and north up expected; "
            "regrid it, or set height_cell_m"
        )


def _require_plausible(heights: HeightReader) -> None:
    """Refuse heights that no forest has, before any chip is cut from them."""
    highest_m, path = -math.inf, heights.raster.path
    for window in _strips(*heights.shape):
        highest_m = max(highest_m, float(np.fmax.reduce(heights.raster.read(window), axis=None, initial=-np.inf)))
    if math.isinf(highest_m):
        raise DatasetError(f"{path}: all heights are unknown")
    if highest_m > HIGHEST_M:
        raise DatasetError(
            f"{path}: heights up to {highest_m:.0f} m, trees end at {HIGHEST_M:.0f}; "
            "feet or centimetres? set height_unit_m (0.3048, 0.01)"
        )


def _regridded(mask: DatasetReader, geobox: GeoBox) -> WarpedVRT:
    """Lay a mask on the grid of heights from clouds, whose extent is that of the returns; 0 beyond the mask."""
    grid = {"crs": str(geobox.crs), "transform": geobox.affine, "height": geobox.shape[0], "width": geobox.shape[1]}
    # Hardly any tolerance, so that a cell does not depend on the window it is read in; 0 is an error to GDAL.
    return WarpedVRT(mask, resampling=Resampling.nearest, src_nodata=None, nodata=0, tolerance=1e-6, **grid)


def _strips(rows: int, cols: int) -> Iterator[PixelWindow]:
    """Yield windows of whole rows that cover a raster."""
    height = max(1, _STRIP_CELLS // max(1, cols))
    for row in range(0, rows, height):
        yield PixelWindow(row, 0, min(height, rows - row), cols)


def _window(slices: tuple[slice, ...]) -> PixelWindow:
    rows, cols = slices
    return PixelWindow(rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
