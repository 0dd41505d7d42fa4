"""Outlines of crowns: the outer ring of each tree's cells, traced for all trees of an array at once.

A ring is walked along the sides of cells with the crown on the right, one side a step. All trees take their step
together, so the work is done by whole arrays; a tree that is back at its start stops. Cells join by their sides, not by
their corners, and holes are filled.
"""

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from canopy.products.crowns import NO_TREE
from canopy.products.treetops import Cells

Integers = NDArray[np.int64]
Geometries = NDArray[np.object_]

# Sides of a cell in the order of the walk: the upper one eastward, then the right, the lower and the left one. For each
# the step (down, right) that leads on along it, and the corner (down, right) of the cell at which it ends.
_STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
_ENDS = np.array([(0, 1), (1, 1), (1, 0), (0, 0)])


def keep_pieces_of_tops(owner: Cells, tops: Cells) -> Cells:
    """Return trees without the cells that are cut off from their top.

    Args:
        owner: (H, W) number of the tree of each cell, `NO_TREE` where there is none.
        tops: (N,) flat indices of the tops of trees 0 to N - 1.
    """
    # Runs of one tree along a row are joined with those below: far fewer than cells.
    begins = np.ones(owner.shape, bool)
    begins[:, 1:] = owner[:, 1:] != owner[:, :-1]
    run = np.cumsum(begins, dtype=np.int32).reshape(owner.shape) - 1
    joined = (owner[1:] == owner[:-1]) & (owner[1:] != NO_TREE) & (begins[1:] | begins[:-1])
    above, below = run[:-1][joined], run[1:][joined]
    count = int(run[-1, -1]) + 1
    graph = coo_array((np.ones(above.size, bool), (above, below)), shape=(count, count))
    piece = connected_components(graph, directed=False)[1]
    keeps = np.zeros(count, bool)
    keeps[piece[run.ravel()[tops]]] = True
    return np.where(keeps[piece][run], owner, np.int32(NO_TREE))


def outlines(owner: Cells, transform: Affine) -> Geometries:
    """Return the outlines of trees as polygons.

    Args:
        owner: (H, W) number of the tree of each cell, `NO_TREE` where there is none; each tree is in one piece.
        transform: Columns and rows to coordinates, north up.

    Returns:
        (N,) polygons of trees 0 to N - 1.
    """
    count = int(owner.max(initial=NO_TREE)) + 1
    if not count:
        return np.empty(0, object)
    # A frame of no tree, so that no step of the walk leaves the array.
    framed = np.pad(owner, 1, constant_values=NO_TREE)
    rings, corners = _walk(framed.ravel(), framed.shape[1], _first_cells(framed, count))
    rows, cols = np.divmod(corners, framed.shape[1])
    x, y = transform.c + transform.a * (cols - 1.0), transform.f + transform.e * (rows - 1.0)
    return np.asarray(shapely.polygons(shapely.linearrings(np.column_stack([x, y]), indices=rings)), object)


def _first_cells(framed: Cells, count: int) -> Integers:
    """Return the flat index of the first cell of each tree, whose upper side is on the outer ring."""
    cells = np.flatnonzero(framed.ravel() != NO_TREE)
    first = np.empty(count, np.int64)
    # Of several values for one place the last one stays, so the first cell is written last.
    first[framed.ravel()[cells[::-1]]] = cells[::-1]
    return first


def _walk(owner: Cells, width: int, first: Integers) -> tuple[Integers, Integers]:
    """Walk around all trees at once.

    Args:
        owner: Numbers of the trees, framed and flattened.
        width: Cells in a row.
        first: (N,) first cell of each tree.

    Returns:
        Tree and corner (flat index of the cell to the lower right of it) of each turn, in order of the trees.
    """
    ahead = _STEPS @ (width, 1)
    ends = _ENDS @ (width, 1)
    # Left of a side that leads east lies north, which is the step of the side before it.
    ahead_left = ahead + np.roll(ahead, 1)
    tree = np.arange(first.size)
    cell, side = first.copy(), np.zeros(first.size, np.int64)
    trees, corners = [], []
    while tree.size:
        # Where two cells of a tree meet at a corner the walk crosses over, and leaves what they enclose inside: a ring
        # that came back to the corner would touch itself.
        turns_left = owner[cell + ahead_left[side]] == tree
        goes_on = ~turns_left & (owner[cell + ahead[side]] == tree)
        turns = ~goes_on
        trees.append(tree[turns])
        corners.append((cell + ends[side])[turns])
        step = np.where(turns_left, ahead_left[side], np.where(goes_on, ahead[side], 0))
        cell = cell + step
        side = (side + np.where(turns_left, 3, np.where(goes_on, 0, 1))) % 4
        walking = (cell != first[tree]) | (side != 0)
        tree, cell, side = tree[walking], cell[walking], side[walking]
    order = np.argsort(np.concatenate(trees), kind="stable")
    return np.concatenate(trees)[order], np.concatenate(corners)[order]
