"""Patches of change: cells that are joined across tiles, and kept where they are large and clear enough.

Tiles are labelled one by one, in rows from north to south. A patch that touches no other tile is complete at once. One
that does becomes a node; nodes of neighbouring tiles whose cells meet, by a side or a corner, are joined (union-find),
and the sums of a patch are those of its nodes. So a patch is judged as a whole, whatever tiles it crosses, and all that
is remembered are the nodes and the lowest cells of one row of tiles.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.int32]
Integers = NDArray[np.int64]

CLEAR_SHARE = 0.25
"""Share of a patch's cells that must be clear by themselves."""
NO_NODE = -1
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class TilePatches:
    """Patches of one tile."""

    labels: Labels
    """(H, W) number of the patch, from 1; 0 where nothing changed."""
    cells: Integers
    """(N + 1,) cells of each patch."""
    clear: Integers
    """(N + 1,) cells of each patch that are clear by themselves."""
    is_gain: NDArray[np.bool_]
    """(N + 1,) whether a patch is one of gain, else of loss."""


def label_tile(code: NDArray[np.int8]) -> TilePatches:
    """Label the patches of a tile.

    Args:
        code: (H, W) -2 and -1 for loss, 1 and 2 for gain, 0 for neither; those of 2 are clear by themselves.
    """
    losses, loss_count = ndimage.label(code < 0, _EIGHT)
    gains, gain_count = ndimage.label(code > 0, _EIGHT)
    labels = np.where(gains > 0, gains + loss_count, losses).astype(np.int32)
    count = loss_count + gain_count + 1
    clear = np.bincount(labels[np.abs(code) == 2], minlength=count).astype(np.int64)
    cells = np.bincount(labels.ravel(), minlength=count).astype(np.int64)
    return TilePatches(labels, cells, clear, np.arange(count) > loss_count)


@dataclass
class PatchTable:
    """Patches that cross tiles; tiles are added row by row, from west to east."""

    parent: list[int] = field(default_factory=list)
    """Node that each node was joined to; itself where it was joined to none."""
    cells: list[int] = field(default_factory=list)
    """Cells of each node alone."""
    clear: list[int] = field(default_factory=list)
    """Clear cells of each node alone."""
    is_gain: list[bool] = field(default_factory=list)
    """Whether each node is gain, else loss."""
    _crossing: dict[tuple[int, int], tuple[int, Labels]] = field(default_factory=dict)
    """First node of each tile, by the tile's first row and column, and the labels of that node and those after it."""
    _above: dict[int, int] = field(default_factory=dict)
    """Node of each cell of the last line above, by its column."""
    _left: dict[int, int] = field(default_factory=dict)
    """Node of each cell of the last column of the tile to the left, by its row."""
    _below: dict[int, int] = field(default_factory=dict)
    """Node of each cell of the last line of this row of tiles so far, by its column."""
    _row0: int | None = None
    """First row of this row of tiles."""

    def add(self, row0: int, col0: int, patches: TilePatches) -> None:
        """Add a tile.

        Args:
            row0: First row of the tile.
            col0: First column.
            patches: Patches of the tile.
        """
        if row0 != self._row0:
            self._above, self._below, self._left, self._row0 = self._below, {}, {}, row0
        labels = patches.labels
        touching = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        touching = touching[touching > 0]
        self._crossing[row0, col0] = len(self.parent), touching
        nodes = self.nodes(row0, col0, patches)
        for label in touching.tolist():
            self.parent.append(len(self.parent))
            self.cells.append(int(patches.cells[label]))
            self.clear.append(int(patches.clear[label]))
            self.is_gain.append(bool(patches.is_gain[label]))
        # The line above reaches over the corners of this tile, so tiles that meet at a corner are joined as well.
        self._join(dict(_line(nodes[labels[0]], col0)), self._above)
        self._join(dict(_line(nodes[labels[:, 0]], row0)), self._left)
        self._left = dict(_line(nodes[labels[:, -1]], row0))
        self._below |= dict(_line(nodes[labels[-1]], col0))

    def nodes(self, row0: int, col0: int, patches: TilePatches) -> Integers:
        """Return the node of each label of a tile that was added, `NO_NODE` for a patch inside."""
        first, touching = self._crossing[row0, col0]
        nodes = np.full(patches.cells.size, NO_NODE, np.int64)
        nodes[touching] = first + np.arange(touching.size)
        return nodes

    def totals(self) -> tuple[Integers, Integers]:
        """Return for each node the cells of its whole patch, and how many of them are clear."""
        roots = np.array([self._root(node) for node in range(len(self.parent))], np.int64)
        cells, clear = (
            np.bincount(roots, counts, minlength=roots.size).astype(np.int64) for counts in (self.cells, self.clear)
        )
        return cells[roots], clear[roots]

    @property
    def joined(self) -> int:
        """Patches among the nodes."""
        return sum(self._root(node) == node for node in range(len(self.parent)))

    def _join(self, cells: dict[int, int], others: dict[int, int]) -> None:
        for position, node in cells.items():
            for step in (-1, 0, 1):
                other = others.get(position + step, NO_NODE)
                if other != NO_NODE and self.is_gain[other] == self.is_gain[node]:
                    self._unite(node, other)

    def _unite(self, first: int, second: int) -> None:
        first, second = self._root(first), self._root(second)
        self.parent[max(first, second)] = min(first, second)

    def _root(self, node: int) -> int:
        while self.parent[node] != node:
            # Halving the path keeps it short.
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node


def _line(nodes: Integers, start: int) -> list[tuple[int, int]]:
    positions = np.flatnonzero(nodes != NO_NODE)
    return list(zip((positions + start).tolist(), nodes[positions].tolist(), strict=True))


def judge_tile(
    patches: TilePatches, nodes: Integers, totals: tuple[Integers, Integers], min_cells: float
) -> NDArray[np.int8]:
    """Return the change of each cell after judging whole patches.

    Args:
        patches: Patches of the tile.
        nodes: Node of each label of the tile.
        totals: Cells, and clear cells, of the whole patch of each node.
        min_cells: Fewest cells of a patch.

    Returns:
        (H, W) -1 for loss, 1 for gain, 0 where no change is kept.
    """
    cells, clear = patches.cells.copy(), patches.clear.copy()
    crossing = nodes != NO_NODE
    if crossing.any():
        cells[crossing], clear[crossing] = totals[0][nodes[crossing]], totals[1][nodes[crossing]]
    # A rim along crowns that a shift of the maps draws is thin: hardly any cell of it is clear.
    stays = (clear >= np.maximum(1, CLEAR_SHARE * cells)) & (cells >= min_cells)
    stays[0] = False
    codes = np.where(stays, np.where(patches.is_gain, 1, -1), 0).astype(np.int8)
    return codes[patches.labels]
