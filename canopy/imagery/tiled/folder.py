"""Folders of tiles, as mosaics are delivered: ``zoom/column/row.jpg`` of XYZ or TMS, or files named by quadkey."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from canopy.errors import ImageryError
from canopy.imagery.tiled.matrices import TileKey, TileMatrix, of_quadkey

Layout = Literal["xyz", "tms", "quadkey"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TMS_FILE = "tilemapresource.xml"
"""File of GDAL's and others' TMS folders, whose rows count from the south."""
_THREADS = 4
_QUADKEY = re.compile(r"[0-3]{4,30}")
_DEEPEST = 30


class FolderTiles:
    """Tiles of a folder, listed once."""

    connections = _THREADS

    def __init__(self, folder: Path, layout: Layout) -> None:
        """List the tiles of a folder.

        Raises:
            ImageryError: There are none, or one lies outside its zoom.
        """
        self.folder, self.layout = folder, layout
        self.tiles: dict[TileKey, tuple[str, int, int]] = {}
        """Path below the folder, size and modification time of each tile."""
        listed = _quadkey_tiles(folder) if layout == "quadkey" else _zoom_tiles(folder, layout == "tms")
        for key, path in listed:
            status = path.stat()
            self.tiles[key] = path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns
        if not self.tiles:
            expected = "<quadkey>.jpg" if layout == "quadkey" else "<zoom>/<column>/<row>.jpg"
            raise ImageryError(f"{folder}: no tiles, expected files {expected} ({', '.join(SUFFIXES)})")

    def fetch(self, key: TileKey, matrix: TileMatrix, again: bool = False) -> bytes | None:
        """Return the bytes of a tile; see `TileStore.fetch`."""
        entry = self.tiles.get(key)
        if entry is None:
            return None
        name, size, mtime_ns = entry
        path = self.folder / name
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
                raise OSError("replaced")
            return path.read_bytes()
        except OSError as error:
            raise ImageryError(
                f"{path}: replaced or removed since it was opened, expected the same size and modification time; start "
                "the run again"
            ) from error

    def name(self, key: TileKey, matrix: TileMatrix) -> str:
        """Return the path of a tile."""
        return str(self.folder / self.tiles[key][0])

    def identity(self) -> str:
        """Return a hash of names, sizes and times of all tiles."""
        entries = sorted(self.tiles.values())
        return hashlib.sha256(repr((self.layout, entries)).encode()).hexdigest()

    def zooms(self) -> list[int]:
        """Return the zooms that have tiles."""
        return sorted({key.zoom for key in self.tiles})

    def extent(self, zoom: int) -> tuple[int, int, int, int]:
        """Return the first column, first row, last column and last row of the tiles of a zoom."""
        columns, rows = zip(*((key.col, key.row) for key in self.tiles if key.zoom == zoom), strict=True)
        return min(columns), min(rows), max(columns), max(rows)


def recognise(folder: Path) -> Layout | None:
    """Return how the tiles of a folder are laid out; None where it is no folder of tiles.

    A folder of georeferenced rasters with numbers for names is none: tiles are pictures without a place.
    """
    if not folder.is_dir():
        return None
    for path in _entries(folder):
        if path.is_dir() and _number(path.name) is not None:
            column = next((one for one in _entries(path) if one.is_dir() and _number(one.name) is not None), None)
            if column is not None and any(_is_tile(one) and _number(one.stem) is not None for one in _entries(column)):
                return "tms" if (folder / TMS_FILE).is_file() else "xyz"
    pictures = [path for path in _entries(folder) if _is_tile(path)]
    named = [path for path in pictures if _QUADKEY.fullmatch(path.stem) and not _has_world_file(path)]
    return "quadkey" if named and len(named) == len(pictures) else None


def _zoom_tiles(folder: Path, south_up: bool) -> Iterator[tuple[TileKey, Path]]:
    """Yield the tiles of ``zoom/column/row`` folders."""
    for level in _entries(folder):
        zoom = _number(level.name) if level.is_dir() else None
        if zoom is None or zoom > _DEEPEST:
            continue
        for column in _entries(level):
            col = _number(column.name) if column.is_dir() else None
            if col is None:
                continue
            for path in _entries(column):
                row = _number(path.stem)
                if row is not None and _is_tile(path):
                    yield _inside(TileKey(zoom, col, 2**zoom - 1 - row if south_up else row), path), path


def _quadkey_tiles(folder: Path) -> Iterator[tuple[TileKey, Path]]:
    """Yield the tiles whose name is a quadkey, in a folder and those below."""
    for path in sorted(folder.rglob("*")):
        if _QUADKEY.fullmatch(path.stem) and _is_tile(path):
            yield of_quadkey(path.stem), path


def _inside(key: TileKey, path: Path) -> TileKey:
    """Return a tile; refuse one outside the world of its zoom."""
    if not (0 <= key.col < 2**key.zoom and 0 <= key.row < 2**key.zoom):
        raise ImageryError(
            f"{path}: zoom {key.zoom} has {2**key.zoom} columns and rows, expected a tile inside; is the folder laid "
            "out otherwise (xyz+file:, tms+file:, quadkey+file:)?"
        )
    return key


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 12 else None


def _is_tile(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _has_world_file(path: Path) -> bool:
    """Return whether a picture has a place of its own."""
    short = path.suffix[1] + path.suffix[-1] + "w"
    return any(path.with_suffix(end).exists() for end in (f".{short}", f"{path.suffix}w", f"{path.suffix}.aux.xml"))
