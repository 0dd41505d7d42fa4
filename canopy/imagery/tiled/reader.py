"""Decoded tiles: fetched ahead by a few threads, remembered in bounded memory, and each a picture of its own place."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b, sha256
from typing import Any

import numpy as np

from canopy.errors import SourceError
from canopy.imagery.colours import Mask, Values
from canopy.imagery.tiled.client import TileStore, broken_tile
from canopy.imagery.tiled.decoding import Tile, TileContentError, Unknown, decode
from canopy.imagery.tiled.matrices import TileKey, TileMatrix
from tiles.windows import PixelWindow

_MEMORY_BYTES = 96 * 2**20
_FEWEST_TILES = 64


class TileReader:
    """The tiles of a store, for all threads of a process."""

    def __init__(self, store: TileStore, matrices: Sequence[TileMatrix], unknown: Unknown) -> None:
        """Read a store.

        Args:
            store: Where the bytes come from.
            matrices: Matrices of the store by zoom.
            unknown: What means "no imagery here".
        """
        self.store = store
        self._matrices = {matrix.zoom: matrix for matrix in matrices}
        self.unknown = unknown
        self._lock = threading.Lock()
        self._tiles: OrderedDict[TileKey, Future[Tile | None]] = OrderedDict()
        self._pictures: dict[bytes, TileKey] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._process = -1
        side = max(width * height for width, height in (matrix.tile_px for matrix in matrices))
        self._most_tiles = max(_FEWEST_TILES, _MEMORY_BYTES // (3 * side))

    def __reduce__(self) -> tuple[type["TileReader"], tuple[Any, ...]]:
        return TileReader, (self.store, tuple(self._matrices.values()), self.unknown)

    @property
    def ahead(self) -> int:
        """Tiles worth requesting before they are needed: enough that no thread waits, and that all are remembered."""
        return min(8 * self.store.connections, self._most_tiles // 2)

    def request(self, keys: Iterable[TileKey]) -> None:
        """Begin to fetch tiles that are not at hand."""
        for key in keys:
            self._future(key)

    def keys(self, matrix: TileMatrix, window: PixelWindow) -> list[TileKey]:
        """Return the tiles that a window of a matrix's pixels needs; its columns may go once more around the world."""
        width, height = matrix.tile_px
        keys = [
            TileKey(matrix.zoom, col % matrix.columns, row)
            for row in range(window.row0 // height, (window.row1 - 1) // height + 1)
            for col in range(window.col0 // width, (window.col1 - 1) // width + 1)
        ]
        return [key for key in keys if matrix.may_have(key)]

    def read(self, matrix: TileMatrix, window: PixelWindow) -> tuple[Values, Mask | None]:
        """Return the pixels of a window, (3, h, w), and which are known, (h, w), None where all are.

        Raises:
            SourceError: A tile cannot be had, is no picture twice, or is the same picture as another one.
            ImageryError: A file of a folder is not the one that was opened.
        """
        width, height = matrix.tile_px
        values = np.zeros((3, *window.shape), np.uint8)
        valid = np.zeros(window.shape, np.bool_)
        for row in range(window.row0 // height, (window.row1 - 1) // height + 1):
            for col in range(window.col0 // width, (window.col1 - 1) // width + 1):
                key = TileKey(matrix.zoom, col % matrix.columns, row)
                tile = self._get(key) if matrix.may_have(key) else None
                part = window.intersect(ground := PixelWindow(row * height, col * width, height, width))
                if tile is None or part is None:
                    continue
                rows, cols = part.slices_in(window)
                tile_rows, tile_cols = part.slices_in(ground)
                values[:, rows, cols] = tile.values[:, tile_rows, tile_cols]
                valid[rows, cols] = True if tile.valid is None else tile.valid[tile_rows, tile_cols]
        return values, None if valid.all() else valid

    def _get(self, key: TileKey) -> Tile | None:
        """Wait for a tile; one that failed is fetched again when it is needed again."""
        future = self._future(key)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._tiles.get(key) is future:
                    del self._tiles[key]
            raise

    def _future(self, key: TileKey) -> "Future[Tile | None]":
        with self._lock:
            if self._threads is None or self._process != os.getpid():
                # Threads do not survive a fork, nor do the tiles that they were to bring.
                self._threads = ThreadPoolExecutor(self.store.connections, thread_name_prefix="tiles")
                self._process = os.getpid()
                self._tiles.clear()
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
            while len(self._tiles) >= self._most_tiles:
                self._tiles.popitem(last=False)
            self._tiles[key] = future = self._threads.submit(self._fetch, key)
            return future

    def _fetch(self, key: TileKey) -> Tile | None:
        """Fetch and decode a tile; what is no picture is fetched once more."""
        matrix = self._matrices[key.zoom]
        for again in (False, True):
            content = self.store.fetch(key, matrix, again)
            if content is None:
                return None
            try:
                tile = decode(content, matrix.tile_px, self.unknown)
            except TileContentError as error:
                reason = str(error)
            else:
                if tile is not None:
                    self._require_own_picture(key, content)
                return tile
        raise broken_tile(self.store.name(key, matrix), reason)

    def _require_own_picture(self, key: TileKey, content: bytes) -> None:
        """Refuse a picture that was sent for another place too: "no data here", drawn as a picture.

        The first of the two may be on its way into the map already, so this is an error and not an unknown tile.
        """
        digest = blake2b(content, digest_size=8).digest()
        with self._lock:
            first = self._pictures.setdefault(digest, key)
        if first != key:
            names = [self.store.name(one, self._matrices[one.zoom]) for one in (first, key)]
            raise SourceError(
                f"{names[0]} and {names[1]} are the same picture byte for byte, expected pictures of the ground: a "
                f"placeholder for no imagery? Add #blank={sha256(content).hexdigest()[:16]} to the address"
            )
