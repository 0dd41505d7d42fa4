"""Areas without imagery that no exact value marks: collars of mosaics, and declared nodata blurred by compression.

Decided once on a coarse grid over the whole file, so an area does not depend on the window read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy import ndimage

from canopy.imagery.scene import RasterScene, read_window

Values = NDArray[Any]
Mask = NDArray[np.bool_]

_LOSSY_LEVEL = 2
_LOSSY_FRINGE = 8
_GRID_PX = 1024
_MIN_SHARE = 0.0005
_MIN_CELLS = 4
_MIN_HOLE_CELLS = 64
"""A JPEG block: fewer dark or white cells away from the border are shadows and roofs."""
_GROW_CELLS = 2
_MOST_PX = 2**33
"""Pixels of a file without overviews that are searched: all are decoded for it."""
_LONGEST_PX = 2**24
"""Side of a file that is searched: its outermost rows and columns are read whole."""


@dataclass(frozen=True, eq=False)
class Collar:
    """An area of one colour that is no image: black or white frames, or nodata after lossy compression."""

    cells: Mask
    """(rows, columns) coarse grid over the file; True on the area and next to it."""
    shape: tuple[int, int]
    """The file's rows and columns."""
    level: float
    """Value of the area in all bands."""
    tolerance: float
    """Largest difference from the level there; above 0 after lossy compression."""

    def covers(self, values: Values, row0: int, col0: int) -> Mask | None:
        """Return the pixels (h, w) of a window (3, h, w) that belong to the area; None for none."""
        rows = (row0 + np.arange(values.shape[1])) * self.cells.shape[0] // self.shape[0]
        cols = (col0 + np.arange(values.shape[2])) * self.cells.shape[1] // self.shape[1]
        near = self.cells[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        if not near.any():
            return None
        return np.asarray(_near(values, self.level, self.tolerance) & self.cells[rows[:, None], cols[None, :]])


def find_collars(dataset: DatasetReader, scene: RasterScene, white: float | None) -> tuple[Collar, ...]:
    """Find the areas of a file without imagery that no exact test marks.

    - Black or white in all bands, connected to the file's border, where nothing is declared or all is declared opaque.
      White must also reach a corner: collars of turned and of tiled images do, bright fields seldom.
    - Declared nodata in lossy data: no exact test finds all of it, and one takes black shadows for it.

    Black pixels away from the border (shadow, water) stay valid.

    Args:
        dataset: The scene's open file.
        scene: Facts of the file.
        white: Stored value of white, None where the file's values have no known top.
    """
    if not _is_searchable(dataset):
        return ()
    fuzzy = scene.lossy and scene.dtype == "uint8"
    if fuzzy and scene.lossy_nodata is not None:
        return _areas(dataset, scene, [scene.lossy_nodata], _LOSSY_LEVEL, _LOSSY_FRINGE)
    if scene.marked:
        return ()
    levels = [0.0] if white is None else [0.0, white]
    return _areas(dataset, scene, levels, _LOSSY_LEVEL if fuzzy else 0, _LOSSY_FRINGE if fuzzy else 0)


def _is_searchable(dataset: DatasetReader) -> bool:
    """Return whether a file is small enough, or has overviews, for a look at all of it."""
    small = dataset.height * dataset.width <= _MOST_PX or bool(dataset.overviews(1))
    return small and max(dataset.shape) <= _LONGEST_PX


@dataclass(frozen=True, eq=False)
class _Strip:
    """An outermost row or column of a file."""

    cells: tuple[Any, Any]
    """Row and column of the coarse grid of each pixel."""
    values: Values
    """(3, n)."""
    valid: Mask
    """(n,)."""


def _areas(
    dataset: DatasetReader, scene: RasterScene, levels: Sequence[float], tolerance: float, fringe: float
) -> tuple[Collar, ...]:
    """Find the areas of each level.

    Args:
        dataset: The scene's open file.
        scene: Facts of the file.
        levels: Values that an area may have in all bands.
        tolerance: Largest difference from the level inside an area.
        fringe: Largest difference from the level at its edge.
    """
    declared = scene.lossy_nodata is not None
    grid = min(dataset.height, _GRID_PX), min(dataset.width, _GRID_PX)
    # A frame touches the border, so the border alone settles most files.
    strips = _border(dataset, scene, grid)
    seeds = {level: _seeds(strips, level, tolerance, grid, corner=level > 0 and not declared) for level in levels}
    if not declared and not any(cells.any() for cells in seeds.values()):
        return ()
    # One decimated read of the whole file, for the few files with something at their border.
    coarse, valid = read_window(dataset, scene, Window(0, 0, dataset.width, dataset.height), grid)
    if not declared and valid is not None:
        return ()
    collars = []
    for level, cells in seeds.items():
        area = _select(_near(coarse, level, tolerance) | cells, cells, declared, corner=level > 0 and not declared)
        if area is not None:
            collars.append(Collar(area, dataset.shape, level, fringe))
    return tuple(collars)


def _select(cells: Mask, border: Mask, holes: bool, corner: bool) -> Mask | None:
    """Return the large components of coarse cells, grown; None for none.

    Args:
        cells: (rows, columns) cells of the level.
        border: Cells of the level on the file's outermost pixels.
        holes: Whether components away from the border count too.
        corner: Whether only components at a corner of the file count.
    """
    # Components of four neighbours; label 0 is everything else.
    labels, _ = ndimage.label(cells)
    areas = np.bincount(labels.ravel())
    touching = np.zeros(areas.size, bool)
    touching[labels[[0, 0, -1, -1], [0, -1, 0, -1]] if corner else labels[border]] = True
    large = touching & (areas >= max(_MIN_CELLS, _MIN_SHARE * cells.size))
    if holes:
        large |= areas >= max(_MIN_HOLE_CELLS, _MIN_SHARE * cells.size)
    large[0] = False
    if not large.any():
        return None
    # Grown, so that pixels of cells that the frame covers in part are tested one by one.
    return np.asarray(ndimage.binary_dilation(large[labels], iterations=_GROW_CELLS))


def _border(dataset: DatasetReader, scene: RasterScene, grid: tuple[int, int]) -> list[_Strip]:
    """Read the outermost rows and columns of a file."""
    height, width = dataset.shape
    rows, cols = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    windows = [((rows[row], cols), Window(0, row, width, 1)) for row in (0, height - 1)]
    windows += [((rows, cols[col]), Window(col, 0, 1, height)) for col in (0, width - 1)]
    strips = []
    for cells, window in windows:
        values, valid = read_window(dataset, scene, window)
        opaque = np.ones(values[0].size, bool) if valid is None else valid.ravel()
        strips.append(_Strip(cells, values.reshape(3, -1), opaque))
    return strips


def _seeds(strips: Sequence[_Strip], level: float, tolerance: float, grid: tuple[int, int], corner: bool) -> Mask:
    """Return the cells of the coarse grid with pixels of a level on the file's border.

    Args:
        strips: The file's border.
        level: Value in all bands.
        tolerance: Largest difference from it.
        grid: Rows and columns of the coarse grid.
        corner: Whether nothing counts unless a corner pixel of the file has the level.
    """
    cells = np.zeros(grid, bool)
    pixels = [_near(strip.values, level, tolerance) & strip.valid for strip in strips]
    # One white roof at the border must not cost a look at the whole file.
    if corner and not any(line[[0, -1]].any() for line in pixels):
        return cells
    for strip, line in zip(strips, pixels, strict=True):
        rows, cols = np.broadcast_arrays(*strip.cells)
        cells[rows[line], cols[line]] = True
    return cells


def _near(values: Values, level: float, tolerance: float) -> Mask:
    return np.asarray(((values >= level - tolerance) & (values <= level + tolerance)).all(axis=0))
