"""Where a tree stands, where none does, and where nothing grows: what tree points say of the ground around them.

Every tree that is seen in an image is a point; so ground far from all points has no tree, though perhaps shrubs, or the
outer branches of a wide crown. A near-infrared band shows the part of it that is green and rough, as these are, and the
part that is bare. Ground near a point is under its crown or not: the point does not say. Beyond the image's border
there are no points, so near the border nothing is known either. Of imagery of grassland, where trees are not marked,
texture says what is ground.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

LEAFY, TREE, FAR, BARE = -4.0, -3.0, -2.0, -1.0
"""Labels of cells: far ground that may be under leaves, a tree's top, other ground without trees, bare ground. NaN says
nothing, a positive label is a height."""
FAR_M = 7.2
"""Distance from every point beyond which ground has no tree."""
LEAFY_NDVI, ROUGH, ROUGH_REACH_M = 0.15, 6.0, 2.5
"""NDVI, and standard deviation of brightness (of 255) over the cells within reach, above which far ground may be under
leaves: crowns reach further than `FAR_M` from the point, and hedges have none."""
CLEAR_M = 4.0
"""Distance from every point beyond which ground that looks surely bare is bare."""
BARE_NDVI, SURELY_BARE_NDVI = 0.05, -0.03
"""NDVI below which far ground, and ground next to crowns, is bare."""
BRIGHT = 80.0
"""Least mean of red, green and blue (of 255) of bare ground next to crowns."""
SHADE, SHADE_NIR = 55.0, 40.0
"""Mean of red, green and blue, and near-infrared (of 255), below which a cell is in the shade: never taken as bare."""

SMOOTH = 8.0
"""Standard deviation of brightness (of 255) over `SMOOTH_M`, below which sunlit grassland is ground: crowns and shrubs
have a sunlit and a shaded side."""
SMOOTH_M = 2.5
"""Side of the square over which brightness varies, metres."""
MEADOW_CELLS = 3
"""Least side of a patch of smooth cells."""


@dataclass(frozen=True)
class ImagePoints:
    """Trees in pixels of one image."""

    row: NDArray[np.float64]
    """(n,) rows from the upper edge."""
    col: NDArray[np.float64]
    """(n,) columns from the left edge."""
    height_m: NDArray[np.float64]
    """(n,) heights, metres; NaN where not measured."""

    def scaled(self, factor: float) -> "ImagePoints":
        """Return the points in pixels of another size."""
        return ImagePoints(self.row * factor, self.col * factor, self.height_m)


@dataclass(frozen=True)
class Cells:
    """A window of square cells over an image."""

    row0: int
    """First row of cells."""
    col0: int
    """First column of cells."""
    shape: tuple[int, int]
    """Rows and columns of cells."""
    image_shape: tuple[int, int]
    """Rows and columns of cells in the whole image."""
    cell_m: float
    """Side of a cell, metres."""


def label_ground(
    points: ImagePoints, cells: Cells, rgb: NDArray[np.floating], nir: NDArray[np.floating] | None
) -> NDArray[np.float32]:
    """Label cells by the trees near them.

    Args:
        points: Trees, in cells of the whole image.
        cells: Cells to label.
        rgb: (3, h, w) means of red, green and blue over the cells, of 255; NaN where there is no image.
        nir: (h, w) means of near-infrared, of 255; None where there is none, and then no cell is bare or leafy.

    Returns:
        (h, w) float32: `LEAFY`, `TREE`, `FAR`, `BARE`, or NaN.
    """
    distance_m = _distance_m(points, cells)
    border_m = _border_m(cells)
    imaged = np.isfinite(rgb).all(axis=0)
    labels = np.full(cells.shape, np.nan, np.float32)
    far = imaged & (np.minimum(distance_m, border_m) > FAR_M)
    labels[far] = FAR
    if nir is not None:
        brightness, red = rgb.mean(axis=0), rgb[0]
        ndvi = (nir - red) / np.maximum(nir + red, 1e-6)
        # NaN, where there is no image or no near-infrared, is neither leafy nor bare
        labels[far & (ndvi > LEAFY_NDVI) & _rough(brightness, cells.cell_m)] = LEAFY
        lit = imaged & np.isfinite(nir) & (brightness >= SHADE) & (nir >= SHADE_NIR)
        clear = np.minimum(distance_m, border_m) > CLEAR_M
        labels[lit & far & (ndvi < BARE_NDVI)] = BARE
        labels[lit & clear & (ndvi < SURELY_BARE_NDVI) & (brightness > BRIGHT)] = BARE
    rows, cols = point_cells(points, cells)
    labels[rows, cols] = np.where(imaged[rows, cols], np.float32(TREE), np.float32(np.nan))
    return labels


def label_meadow(image: NDArray[np.uint8], valid: NDArray[np.bool_], cell_px: int, gsd_m: float) -> NDArray[np.float32]:
    """Label the smooth sunlit cells of imagery of grassland as ground of height 0.

    Smooth is not the same as low everywhere: blurred closed forest is smooth too. So this is for imagery that a person
    knows to show grassland and savanna.

    Args:
        image: (3, H, W) red, green and blue, of 255; H and W multiples of `cell_px`.
        valid: (H, W) whether there is imagery.
        cell_px: Pixels along the side of a cell.
        gsd_m: Side of a pixel, metres.

    Returns:
        (h, w) float32: `BARE`, or NaN.
    """
    grey = image.mean(axis=0)
    side_px = 2 * max(round(SMOOTH_M / gsd_m / 2 - 0.5), 1) + 1
    variance = _local_variance(np.where(valid, grey, np.nan), side_px)
    smooth = ndimage.minimum_filter(valid, side_px) & (grey > BRIGHT) & (variance < SMOOTH**2)
    height, width = smooth.shape
    cells = smooth.reshape(height // cell_px, cell_px, width // cell_px, cell_px).all(axis=(1, 3))
    patches = ndimage.binary_opening(cells, np.ones((MEADOW_CELLS, MEADOW_CELLS), bool))
    return np.where(patches, np.float32(BARE), np.float32(np.nan))


def label_heights(points: ImagePoints, cells: Cells) -> NDArray[np.float32]:
    """Label the cells of measured trees with their heights, NaN elsewhere; the tallest of a cell counts."""
    measured = ~np.isnan(points.height_m)
    trees = ImagePoints(points.row[measured], points.col[measured], points.height_m[measured])
    order = np.argsort(trees.height_m, kind="stable")
    trees = ImagePoints(trees.row[order], trees.col[order], trees.height_m[order])
    labels = np.full(cells.shape, np.nan, np.float32)
    rows, cols, heights_m = *point_cells(trees, cells), trees.height_m[points_inside(trees, cells)]
    labels[rows, cols] = heights_m
    return labels


def point_cells(points: ImagePoints, cells: Cells) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column, within the window, of the points inside it."""
    inside = points_inside(points, cells)
    row = np.floor(points.row[inside]).astype(np.int64) - cells.row0
    return row, np.floor(points.col[inside]).astype(np.int64) - cells.col0


def points_inside(points: ImagePoints, cells: Cells) -> NDArray[np.bool_]:
    """Return which points (n,) lie inside the window."""
    row, col = np.floor(points.row) - cells.row0, np.floor(points.col) - cells.col0
    return np.asarray((row >= 0) & (row < cells.shape[0]) & (col >= 0) & (col < cells.shape[1]))


def _rough(brightness: NDArray[np.floating], cell_m: float) -> NDArray[np.bool_]:
    """Return which cells differ from those within `ROUGH_REACH_M`, as leaves do by sun and shade, and lawns do not."""
    side = 2 * max(int(ROUGH_REACH_M / cell_m + 1e-6), 1) + 1
    return _local_variance(brightness, side) > ROUGH**2


def _local_variance(values: NDArray[np.floating], side: int) -> NDArray[np.float64]:
    """Return the variance (H, W) of what is known, not NaN, in the square of `side` cells around each cell."""
    imaged = np.isfinite(values)
    grey, weight = np.where(imaged, values, 0).astype(np.float64), imaged.astype(np.float64)
    share, mean, square = (ndimage.uniform_filter(part, side) for part in (weight, grey, grey**2))
    share = np.maximum(share, 1e-9)
    return np.asarray(square / share - (mean / share) ** 2)


def _distance_m(points: ImagePoints, cells: Cells) -> NDArray[np.float64]:
    """Return the distance of each cell's middle from the nearest point, metres; infinity without points."""
    rows, cols = np.indices(cells.shape) + 0.5
    if not len(points.row):
        return np.full(cells.shape, np.inf)
    middles = np.stack([rows + cells.row0, cols + cells.col0], axis=-1).reshape(-1, 2)
    reach = (FAR_M + 1) / cells.cell_m
    distance, _ = KDTree(np.stack([points.row, points.col], axis=1)).query(middles, distance_upper_bound=reach)
    return np.asarray(distance.reshape(cells.shape) * cells.cell_m)


def _border_m(cells: Cells) -> NDArray[np.float64]:
    """Return the distance of each cell's middle from the image's border, metres."""
    rows, cols = cells.row0 + np.arange(cells.shape[0]) + 0.5, cells.col0 + np.arange(cells.shape[1]) + 0.5
    height, width = cells.image_shape
    down, across = np.minimum(rows, height - rows), np.minimum(cols, width - cols)
    return np.asarray(np.minimum(down[:, None], across[None, :]) * cells.cell_m)
