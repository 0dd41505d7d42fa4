"""Pieces of gaps joined across tiles, row of tiles by row of tiles; what no further tile can reach is given out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from canopy.products.work import Work, part_name
from canopy.products.writing import GEOMETRY
from tiles.windows import PixelWindow

PIECES = pa.schema([
    ("label", pa.int64()), ("leaves", pa.bool_()), ("is_cut", pa.bool_()), ("cells", pa.int64()),
    ("height_sum", pa.float64()), ("sure_cells", pa.float64()), ("row", pa.int64()), ("col", pa.int64()),
    (GEOMETRY, pa.binary()),
])  # fmt: skip
"""Pieces of a tile; a geometry is null where the piece is larger than any gap."""
EDGES = pa.schema([("side", pa.int64()), ("position", pa.int64()), ("label", pa.int64())])
"""Cells of pieces along the north (0), south (1), west (2) and east (3) side of a tile."""
NORTH, SOUTH, WEST, EAST = range(4)


@dataclass(frozen=True)
class Piece:
    """A gap, or the part of one that is joined so far."""

    cells: int
    """Number of cells."""
    height_sum: float
    """Sum of the heights of the cells, metres."""
    sure_cells: float
    """Cells whose interval lies below the height of an open cell."""
    is_cut: bool
    """Whether it goes on where the map ends or is unknown, as far as anyone can say."""
    row: int
    """Row of its first cell, from the north and then from the west."""
    col: int
    """Column of its first cell."""
    geometry: Any
    """Polygon, or several before they are united; None where it is larger than any gap."""


def join_pieces(windows: list[PixelWindow], work: Work, *, max_cells: float) -> Iterator[list[Piece]]:
    """Join pieces across tiles.

    Args:
        windows: Tiles, row by row.
        work: Folder with the pieces and the edges of every tile.
        max_cells: Most cells of a gap that is drawn; the geometry of a larger one is dropped, so that open land that
            runs through the whole map takes no memory.

    Yields:
        The gaps that are whole after each row of tiles.
    """
    joining = _Joining(max_cells)
    above: dict[int, int] = {}
    for row0 in sorted({window.row0 for window in windows}):
        below: dict[int, int] = {}
        left: dict[int, int] = {}
        whole: list[Piece] = []
        for window in (window for window in windows if window.row0 == row0):
            name = part_name(window)
            tile = (window.row0, window.col0)
            whole += joining.add_tile(tile, work.load_table(name))
            sides = _sides(joining, tile, work.load_table(f"{name}_edges"))
            for position, key in sides[NORTH].items():
                joining.join(key, above.get(position + window.col0))
            for position, key in sides[WEST].items():
                joining.join(key, left.get(position))
            left = sides[EAST]
            below |= {position + window.col0: key for position, key in sides[SOUTH].items()}
        above = below
        yield whole + joining.release(set(above.values()))
    yield joining.release(set())


def _sides(joining: "_Joining", tile: tuple[int, int], edges: pa.Table) -> list[dict[int, int]]:
    """Return the pieces along each side of a tile, by their position along it."""
    sides: list[dict[int, int]] = [{}, {}, {}, {}]
    columns = (edges[name].to_pylist() for name in ("side", "position", "label"))
    for side, position, label in zip(*columns, strict=True):
        sides[side][position] = joining.key(tile, label)
    return sides


class _Joining:
    """Pieces that may go on in tiles that are not read yet, joined by union-find (Tarjan 1975)."""

    def __init__(self, max_cells: float) -> None:
        self._max_cells = max_cells
        self._parents: dict[int, int] = {}
        self._pieces: dict[int, list[Piece]] = {}
        self._keys: dict[tuple[tuple[int, int], int], int] = {}
        self._next = 0

    def add_tile(self, tile: tuple[int, int], pieces: pa.Table) -> list[Piece]:
        """Add the pieces of a tile; those that leave it on no side are returned, whole."""
        whole = []
        geometries = shapely.from_wkb(pieces[GEOMETRY].to_pylist())
        for row, geometry in zip(pieces.drop_columns([GEOMETRY]).to_pylist(), geometries, strict=True):
            label, leaves = row.pop("label"), row.pop("leaves")
            piece = Piece(**row, geometry=geometry)
            if not leaves:
                whole.append(piece)
                continue
            key = self._next
            self._next += 1
            self._keys[tile, label] = key
            self._parents[key], self._pieces[key] = key, [piece]
        return whole

    def key(self, tile: tuple[int, int], label: int) -> int:
        """Return the key of a piece that leaves its tile."""
        return self._keys[tile, label]

    def join(self, one: int, other: int | None) -> None:
        """Join two pieces that touch each other."""
        if other is None:
            return
        first, second = sorted((self._root(one), self._root(other)))
        if first != second:
            self._parents[second] = first
            self._pieces[first] += self._pieces.pop(second)
            cells = sum(piece.cells for piece in self._pieces[first])
            if cells > self._max_cells:
                # Too large to be drawn, whatever follows: its numbers are all that is left to know.
                self._pieces[first] = [_united(self._pieces[first], with_geometry=False)]

    def release(self, reachable: set[int]) -> list[Piece]:
        """Return, whole, the gaps none of whose pieces a further tile can reach, and forget them."""
        roots = {self._root(key) for key in reachable}
        final = sorted(set(self._pieces) - roots)
        gaps = []
        for root in final:
            pieces = self._pieces.pop(root)
            cells = sum(piece.cells for piece in pieces)
            gaps.append(_united(pieces, with_geometry=cells <= self._max_cells))
        gone = {key for key in self._parents if self._root(key) not in roots}
        self._parents = {key: parent for key, parent in self._parents.items() if key not in gone}
        self._keys = {name: key for name, key in self._keys.items() if key not in gone}
        return gaps

    def _root(self, key: int) -> int:
        while self._parents[key] != key:
            # Halving the path keeps later look-ups short.
            self._parents[key] = self._parents[self._parents[key]]
            key = self._parents[key]
        return key


def _united(pieces: list[Piece], *, with_geometry: bool) -> Piece:
    """Return pieces as one."""
    row, col = min((piece.row, piece.col) for piece in pieces)
    geometry = None
    if with_geometry and all(piece.geometry is not None for piece in pieces):
        united = shapely.union_all([piece.geometry for piece in pieces])
        # Corners where two tiles met are no corners of the gap.
        geometry = shapely.simplify(shapely.normalize(united), 0)
    return Piece(
        cells=sum(piece.cells for piece in pieces),
        height_sum=float(np.sum([piece.height_sum for piece in pieces])),
        sure_cells=sum(piece.sure_cells for piece in pieces),
        is_cut=any(piece.is_cut for piece in pieces),
        row=row,
        col=col,
        geometry=geometry,
    )
