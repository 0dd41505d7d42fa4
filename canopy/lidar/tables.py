"""Tables of one value a cell: in memory, or, where they are large, in files of which a part is in memory at a time.

A canopy height model of 400 million cells needs some 14 GB of tables while returns are read, in no order that a program
may choose. Mapped files leave it to the system which pages stay: returns of one file lie close together, so that few
pages are in use at a time.
"""

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tiles.windows import PixelWindow, cut_windows

IN_MEMORY_BYTES = 400 * 2**20
"""Tables that need more than this together are files."""
_FILL_VALUES = 1 << 20
_PART_RETURNS = 20_000


class Tables:
    """Tables of the same raster."""

    def __init__(self, folder: Path, shape: tuple[int, int], bytes_a_cell: int) -> None:
        """Plan tables.

        Args:
            folder: Folder for the files of large tables.
            shape: Rows and columns of the raster.
            bytes_a_cell: Bytes of all tables together, a cell.
        """
        self._folder, self._shape = folder, shape
        self._mapped = shape[0] * shape[1] * bytes_a_cell > IN_MEMORY_BYTES
        self._files: dict[str, mmap.mmap] = {}

    def new(self, name: str, dtype: DTypeLike, fill: float, shape: tuple[int, int] | None = None) -> NDArray[Any]:
        """Return a new table (H, W).

        Args:
            name: Name of the table, of its file too.
            dtype: Type of the values.
            fill: First value of every cell.
            shape: Rows and columns, where they are not those of the raster.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        shape = shape or self._shape
        if not self._mapped:
            return np.full(shape, fill, dtype)
        path, count = self._folder / f"{name}.table", shape[0] * shape[1]
        block = np.full(min(count, _FILL_VALUES), fill, dtype)
        # Written, not only reserved: a full disk is an error here, and a crash of the process when a page is touched.
        with path.open("wb") as file:
            for first in range(0, count, len(block)):
                file.write(block[: count - first].data)
        with path.open("r+b") as file:
            self._files[name] = mmap.mmap(file.fileno(), 0)
        return np.frombuffer(self._files[name], dtype).reshape(shape)

    def parts(self, cell: NDArray[np.int64]) -> Iterator[NDArray[np.int64] | slice]:
        """Yield selections of returns to add one after the other; between them the memory of pages is given back.

        Args:
            cell: (n,) index of each return's cell. Where it jumps about, every return may touch a page of its own.
        """
        if not self._mapped:
            yield slice(None)
            return
        order = np.argsort(cell, kind="stable")
        for first in range(0, len(order), _PART_RETURNS):
            yield order[first : first + _PART_RETURNS]
            self.release()

    def release(self) -> None:
        """Give back the memory of pages in use; they are read again when they are touched."""
        for mapped in self._files.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def remove(self, *names: str) -> None:
        """Remove the files of tables that are no longer used; the caller keeps no table of those names."""
        for name in names:
            mapped = self._files.pop(name, None)
            if mapped is not None:
                with contextlib.suppress(BufferError):  # a view is left: the file goes with the folder
                    mapped.close()
                with contextlib.suppress(OSError):
                    (self._folder / f"{name}.table").unlink()


@dataclass(frozen=True)
class Block:
    """A part of a raster that is computed at once."""

    core: PixelWindow
    """Cells that are computed."""
    padded: PixelWindow
    """Cells that are looked at: the core and cells around it, within the raster."""

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the core in an array of the padded cells."""
        return self.core.slices_in(self.padded)

    def of(self, table: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of the padded cells of a table (H, W)."""
        rows, cols = slices(self.padded)
        return np.array(table[rows, cols])


def blocks(shape: tuple[int, int], side: int, halo: int) -> Iterator[Block]:
    """Yield blocks of a raster, row by row.

    Args:
        shape: Rows and columns of the raster.
        side: Side of a block's core, cells.
        halo: Cells around the core that are looked at.
    """
    whole = PixelWindow(0, 0, *shape)
    for core in cut_windows(shape, side):
        padded = core.pad(halo).intersect(whole)
        assert padded is not None  # the core lies in the raster
        yield Block(core, padded)


def slices(window: PixelWindow) -> tuple[slice, slice]:
    """Return the rows and columns of a window."""
    return slice(window.row0, window.row1), slice(window.col0, window.col1)
