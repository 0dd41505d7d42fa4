"""The share of each cell of a grid that lies inside a polygon, exactly.

Each edge is cut where it crosses the lines of the grid. A piece then lies in one cell: it changes by its height what
lies inside all cells to its right in that row, and by the trapezoid between it and the cell's right side what lies
inside its own cell; a running sum along the row gives the shares. That is Green's theorem, cell by cell, as scan
converters of outline fonts use it (Catmull 1978, A hidden-surface algorithm with anti-aliasing, for the area of a
polygon in a cell).
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

_ROUNDING = 1e-9
"""Shares as near to 0 or 1 are 0 or 1: sums of many pieces leave a rest of rounding."""


def cell_shares(
    area: BaseGeometry, bounds: tuple[float, float, float, float], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the share of each cell of a north-up grid that lies inside an area.

    Args:
        area: Valid polygons in the CRS of the grid.
        bounds: Left, bottom, right and top of the grid.
        shape: Rows and columns, (H, W).

    Returns:
        (H, W) float64, 0 to 1.
    """
    left, bottom, right, top = bounds
    rows, cols = shape
    starts, ends = _edges(area)
    scale = np.array([cols / (right - left), rows / (bottom - top)])
    starts, ends = (starts - (left, top)) * scale, (ends - (left, top)) * scale
    # An edge above or below the grid changes no row of it; a level one has no height.
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    reaching = (high > 0) & (low < rows) & (high > low)
    starts, ends = _cut(starts[reaching], ends[reaching], (cols, rows))
    middle, height = (starts + ends) / 2, ends[:, 1] - starts[:, 1]
    row = np.floor(middle[:, 1]).astype(np.int64)
    # To the left of the grid a piece counts for all of its row, to the right for no cell.
    x = np.clip(middle[:, 0], 0, cols)
    col = np.minimum(np.floor(x).astype(np.int64), cols)
    inside = (row >= 0) & (row < rows)
    flat, height, beyond = (row * (cols + 2) + col)[inside], height[inside], (x - col)[inside]
    cells = rows * (cols + 2)
    changes = np.bincount(flat, height * (1 - beyond), cells) + np.bincount(flat + 1, height * beyond, cells)
    shares = np.cumsum(changes.reshape(rows, cols + 2)[:, :cols], axis=1)
    shares[shares < _ROUNDING] = 0
    shares[shares > 1 - _ROUNDING] = 1
    return shares


def _edges(area: BaseGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of an area, (N, 2) starts and ends, in the order that makes shares positive."""
    # In its normal form shells run clockwise and holes the other way: sums of both subtract the holes.
    parts = shapely.get_parts(shapely.normalize(area))
    points, ring = shapely.get_coordinates(shapely.get_rings(parts), return_index=True)
    joined = ring[1:] == ring[:-1]
    return points[1:][joined], points[:-1][joined]


def _cut(starts: NDArray[Any], ends: NDArray[Any], size: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cut edges at the lines of the grid, along both axes.

    Args:
        starts: (N, 2) x and y in cells.
        ends: (N, 2) x and y in cells.
        size: Columns and rows; lines beyond the grid cut nothing.
    """
    count = len(starts)
    steps = ends - starts
    numbers, positions = [np.arange(count), np.arange(count)], [np.zeros(count), np.ones(count)]
    for axis in (0, 1):
        low, high = np.minimum(starts[:, axis], ends[:, axis]), np.maximum(starts[:, axis], ends[:, axis])
        first = np.maximum(np.floor(low) + 1, 0)
        crossed = np.maximum(np.minimum(np.ceil(high) - 1, size[axis]) - first + 1, 0).astype(np.int64)
        edge = np.repeat(np.arange(count), crossed)
        line = first[edge] + np.arange(edge.size) - np.repeat(np.cumsum(crossed) - crossed, crossed)
        numbers.append(edge)
        positions.append((line - starts[edge, axis]) / steps[edge, axis])
    number, position = np.concatenate(numbers), np.concatenate(positions)
    order = np.lexsort((position, number))
    number, position = number[order], position[order]
    same = number[1:] == number[:-1]
    edge = number[1:][same]
    begin, finish = position[:-1][same][:, None], position[1:][same][:, None]
    return starts[edge] + begin * steps[edge], starts[edge] + finish * steps[edge]
