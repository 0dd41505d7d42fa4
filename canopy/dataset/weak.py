"""Weak labels of a scene on the cells of a store's labelled chips: tree points, heights of single trees, or meadows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from canopy.dataset.scene_files import SceneFiles
from canopy.dataset.store import encode_labels
from canopy.errors import DatasetError
from canopy.evaluation.colour_bands import PixelGrid, open_infrared
from canopy.evaluation.tree_points import TreePoints, read_tree_points
from canopy.evaluation.weak_ground import (
    FAR,
    LEAFY,
    Cells,
    ImagePoints,
    label_ground,
    label_heights,
    label_meadow,
    points_inside,
)
from canopy.imagery.datasets import quiet
from tiles.windows import PixelWindow

NirReader = Callable[[PixelWindow], NDArray[np.float32]]
"""Reads near-infrared (H, W), of 255, of a window of pixels; NaN where there is none."""


@dataclass(frozen=True)
class LabelReader:
    """The weak labels of a scene."""

    points: ImagePoints | None
    """Trees, in cells of the scene; None for imagery of grassland."""
    shape: tuple[int, int]
    """Rows and columns of cells in the scene."""
    cell_m: float
    """Side of a cell, metres."""
    cell_px: int
    """Pixels along the side of a cell."""
    measured: bool
    """Whether the labels are heights of single trees, and nothing is said of the ground around them."""
    nir: NirReader | None = None
    """Near-infrared of the scene, where there is one."""

    def read(self, window: PixelWindow, image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """Return the stored labels (h, w) of a window of pixels, a whole number of cells.

        Args:
            window: Pixels of the scene.
            image: (3, H, W) RGB of the window.
            valid: (H, W) whether there is imagery.
        """
        if self.points is None:
            return encode_labels(label_meadow(image, valid, self.cell_px, self.cell_m / self.cell_px))
        row0, col0, rows, cols = (
            size // self.cell_px for size in (window.row0, window.col0, window.height, window.width)
        )
        cells = Cells(row0, col0, (rows, cols), self.shape, self.cell_m)
        if self.measured:
            return encode_labels(label_heights(self.points, cells))
        rgb = self._cell_means(np.where(valid, image, np.float32(np.nan)))
        nir = None if self.nir is None else self._cell_means(self.nir(window)[None])[0]
        labels = label_ground(self.points, cells, rgb, nir)
        # a model that learnt without this ground separated trees from the open less well in two cities of three
        return encode_labels(np.where(labels == LEAFY, np.float32(FAR), labels))

    def _cell_means(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return means (B, h, w) over cells of (B, H, W) pixels; NaN where a pixel is."""
        bands, rows, cols = values.shape
        px = self.cell_px
        return np.asarray(values.reshape(bands, rows // px, px, cols // px, px).mean(axis=(2, 4)), np.float32)


def open_nir(path: Path, geobox: GeoBox) -> NirReader:
    """Return a reader of the near-infrared of a scene on the scene's pixels.

    Args:
        path: Raster whose last band is near-infrared: one band of its own, or the fourth of RGBN imagery; uint8.
        geobox: Pixels of the scene.

    Raises:
        CanopyError: The raster cannot be read, lies elsewhere, or is not uint8.
    """
    rows, cols = geobox.shape
    grid = PixelGrid(geobox.crs.to_wkt(), geobox.affine, (int(rows), int(cols)))  # type: ignore[union-attr]
    with open_infrared(path, grid):
        pass  # refused before a chip is cut

    def load(window: PixelWindow) -> NDArray[np.float32]:
        with open_infrared(path, grid) as bands:
            return bands.read_infrared(window)

    return load


def require_trees(source: str, scenes: Sequence[SceneFiles], *, measured: bool) -> None:
    """Refuse a source none of whose trees lies in its images: all of their forest would be labelled as open ground.

    Args:
        source: Key of the source.
        scenes: Its scenes, all with the same file of tree points; images that cannot be read are passed over.
        measured: Whether only trees of known height count.

    Raises:
        EvaluationError: The tree points cannot be read.
        DatasetError: No tree lies in an image.
    """
    path = scenes[0].points
    if path is None:
        return
    points = read_tree_points(path)
    # The first image with a tree ends the search; all are opened only where something is wrong.
    answers = (_has_trees(points, scene.image, measured) for scene in scenes)
    readable = 0
    for has_trees in answers:
        if has_trees:
            return
        readable += has_trees is not None
    if readable:
        raise DatasetError(
            f"source {source}: no tree of {path}{' with height_m' * measured} lies in the {readable} images: check the "
            "CRS of the points, or the images that the table names"
        )


def _has_trees(points: TreePoints, image: Path, measured: bool) -> bool | None:
    """Return whether a tree lies in an image; None where the image cannot be read or has no place on the ground."""
    try:
        with quiet(), rasterio.open(image) as opened:
            shape, transform, crs = opened.shape, opened.transform, opened.crs
    except RasterioError:
        return None
    if crs is None:
        return None
    own = points.on_image(image, transform, crs.to_wkt())
    inside = points_inside(own, Cells(0, 0, shape, shape, 1.0))
    return bool((inside & ~np.isnan(own.height_m)).any() if measured else inside.any())
