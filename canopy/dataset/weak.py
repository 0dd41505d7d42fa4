"""Weak labels of a scene on the cells of a store's labelled chips: tree points, heights of single trees, or meadows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from canopy.dataset.store import encode_labels
from canopy.evaluation.colour_bands import PixelGrid, open_infrared
from canopy.evaluation.weak_ground import FAR, LEAFY, Cells, ImagePoints, label_ground, label_heights, label_meadow
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
