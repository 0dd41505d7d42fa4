"""Tiles packed into shards: in a folder or an object store, each tile read by one ranged request; needs no GDAL.

    tiles.parquet            a row a tile: shard, offset, bytes, checksum, GSD, source; written last
    shards/000000.tiles      encoded tiles, one after the other
    parts/000000.parquet     rows of one shard, by which a killed command goes on

A batch draws its tiles from all shards, so the order of training is that of the same tiles in memory, to the bit.
"""

import io
import logging
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from canopy.errors import TrainingError, one_line
from canopy.http import redacted
from canopy.stores import open_prefix
from canopy.tables import parse_table

FORMAT = "canopy tiles 1"
INDEX = "tiles.parquet"
READERS = 32
"""Requests at a time, of one process: enough for 48 tiles a step at 50 ms a request."""
TRIES = 3
"""Times that a tile is read before its bytes count as damaged: a connection may be cut without an error."""
_LOG = logging.getLogger(__name__)
Array = NDArray[np.uint8]


class Objects(Protocol):
    """A folder or the prefix of a bucket."""

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return an object, or a range of it; FileNotFoundError where there is none."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object whole or not at all."""
        ...


@dataclass(frozen=True)
class ShardFormat:
    """What all tiles of a set of shards have in common."""

    tile_px: int
    """Side of the tiles, pixels."""
    bands: int
    """Bands, the first three red, green and blue."""
    quality: int | None
    """Quality of lossy WebP, 1 to 100; None for pixels without loss."""

    def encode(self, tile: Array) -> bytes:
        """Encode a tile (bands, H, W): RGB as WebP, other bands as Zstandard."""
        if self.bands != 3:
            return bytes(pa.compress(np.ascontiguousarray(tile).tobytes(), codec="zstd", asbytes=True))
        how: dict[str, Any] = {"lossless": True, "quality": 0} if self.quality is None else {"quality": self.quality}
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(np.moveaxis(tile, 0, -1))).save(file, format="WEBP", method=2, **how)
        return file.getvalue()

    def decode(self, content: bytes) -> Array:
        """Decode a tile to (bands, H, W).

        Raises:
            ValueError: The bytes are no such tile.
        """
        shape = (self.bands, self.tile_px, self.tile_px)
        try:
            if self.bands != 3:
                raw = pa.decompress(content, decompressed_size=int(np.prod(shape)), codec="zstd", asbytes=True)
                return np.frombuffer(raw, np.uint8).reshape(shape)
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except (OSError, pa.ArrowException, UnidentifiedImageError) as error:
            raise ValueError(one_line(error)) from error
        if pixels.shape != (self.tile_px, self.tile_px, 3):
            raise ValueError(f"{pixels.shape} in place of a tile of {self.tile_px} px")
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


class ShardedTiles:
    """Tiles in shards, read when they are needed.

    Args:
        address: Folder or URI of the shards.
        objects: Its objects.
        index: Rows of all tiles, with the shards' format as metadata.
        max_bad: Damaged tiles that give way to the tile after them.
    """

    def __init__(self, address: str, objects: Objects, index: pa.Table, max_bad: int = 0) -> None:
        metadata = {key.decode(): value.decode() for key, value in (index.schema.metadata or {}).items()}
        self.sha256 = metadata["sha256"]
        quality = metadata["quality"]
        self.format = ShardFormat(int(metadata["tile_px"]), int(metadata["bands"]), int(quality) if quality else None)
        self._address, self._objects, self._max_bad = address, objects, max_bad
        columns = ("shard", "offset", "bytes", "checksum", "gsd_m")
        self._shard, self._offset, self._bytes, self._checksum, self._gsds_m = (
            index[name].combine_chunks().to_numpy(zero_copy_only=False) for name in columns
        )
        sources = index["source"].combine_chunks()
        sources = sources if pa.types.is_dictionary(sources.type) else sources.dictionary_encode()
        self._source = sources.indices.to_numpy(zero_copy_only=False)
        self._names: list[str] = sources.dictionary.to_pylist()
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="tiles")

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, number: int) -> Array:
        for following in range(len(self)):
            tile = self._tile((number + following) % len(self))
            if tile is not None:
                return tile
        raise TrainingError(f"{self._address}: every tile is damaged")

    def read(self, numbers: Sequence[int]) -> Array:
        """Return tiles (n, bands, H, W); they are requested and decoded side by side."""
        return np.stack(list(self._pool.map(self.__getitem__, numbers)))

    def gsd_m(self, number: int) -> float:
        """Return the GSD of a tile, in true ground metres."""
        return float(self._gsds_m[number])

    def sources(self) -> list[str]:
        """Return the source of each tile."""
        return [self._names[number] for number in self._source]

    def _tile(self, number: int) -> Array | None:
        """Return a tile, None where it is damaged: the first time, that is one line in the log."""
        if number in self._bad:
            return None
        for _ in range(TRIES):
            content = self._content(number)
            if zlib.crc32(content) == int(self._checksum[number]):
                try:
                    return self.format.decode(content)
                except ValueError as error:
                    self._skip(number, one_line(error))
                    return None
        self._skip(number, "its bytes are not those that were packed")
        return None

    def _content(self, number: int) -> bytes:
        first = int(self._offset[number])
        key = shard_key(int(self._shard[number]))
        try:
            return self._objects.read(key, first, first + int(self._bytes[number]))
        except FileNotFoundError as error:
            raise TrainingError(f"{self._address}: {key} is missing: pack the tiles again") from error

    def _skip(self, number: int, reason: str) -> None:
        with self._lock:
            if number in self._bad:
                return
            self._bad[number] = reason
            where = f"tile {number} in {shard_key(int(self._shard[number]))} of {self._address}: {reason}"
            if len(self._bad) > self._max_bad:
                raise TrainingError(
                    f"{len(self._bad)} tiles are damaged, the last {where}; up to tiles.max_bad, {self._max_bad}, give "
                    "way to the tiles after them: pack the tiles again, or raise it"
                )
        _LOG.warning("skipped %s", where)


def shard_key(number: int) -> str:
    """Return the name of a shard's object."""
    return f"shards/{number:06d}.tiles"


def part_key(number: int) -> str:
    """Return the name of the object with the rows of one shard."""
    return f"parts/{number:06d}.parquet"


def open_shards(address: str, max_bad: int = 0) -> ShardedTiles:
    """Open tiles that `canopy pack` wrote.

    Args:
        address: Folder, or URI of an object store: ``s3://bucket/folder``, ``gs://``, ``az://``.
        max_bad: Damaged tiles that give way to the tile after them.

    Raises:
        TrainingError: There are none, they are not finished, or the store does not answer.
    """
    objects, shown = open_objects(address), redacted(address)
    try:
        index = parse_table(objects.read(INDEX), read_dictionary=["source"])
    except FileNotFoundError as error:
        raise TrainingError(
            f"{shown} has no {INDEX}: no shards, or not all of them; `canopy pack CONFIG --out {shown}` packs the rest"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise TrainingError(f"{shown}/{INDEX} cannot be read: {one_line(error)}") from error
    if (index.schema.metadata or {}).get(b"format") != FORMAT.encode():
        raise TrainingError(f"{shown}/{INDEX} is not of the format {FORMAT!r}: pack the tiles again")
    return ShardedTiles(shown, objects, index, max_bad)


def open_objects(address: str, *, make: bool = False) -> Objects:
    """Open a folder or the prefix of a bucket, whose failures are errors of one line.

    Args:
        address: Folder or URI.
        make: Whether a folder is made where there is none.

    Raises:
        TrainingError: The address is of no kind that is known, or the store cannot be opened.
    """
    return _Explained(address, open_prefix(address, TrainingError, make=make))


class _Explained:
    """Objects whose failures say which address was asked, and what to do."""

    def __init__(self, address: str, prefix: Any) -> None:
        self._address, self._prefix = redacted(address), prefix

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return an object, or a range of it; see `Objects`."""
        import obstore

        if start is None or stop is None:
            return bytes(self._request(key, lambda: obstore.get(self._prefix, key).bytes()))
        return bytes(self._request(key, lambda: obstore.get_range(self._prefix, key, start=start, end=stop)))

    def write(self, key: str, content: bytes) -> None:
        """Write an object whole or not at all; see `Objects`."""
        import obstore

        self._request(key, partial(obstore.put, self._prefix, key, content))

    def _request(self, key: str, ask: Callable[[], Any]) -> Any:
        from obstore.exceptions import BaseError

        try:
            return ask()
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise TrainingError(
                f"{self._address}/{key}: {one_line(error, 200)}; check the address and the credentials in the "
                "environment, then run the same command again"
            ) from None
