"""Cloud-Optimized GeoTIFFs written block by block, so that areas far apart do not cost the area between them.

GDAL's COG driver visits each block of the lattice, whether or not it has data, so an empty map of 20 km takes many
seconds. Here only blocks with data are read, averaged, encoded and stored; a block without data has offset and size 0,
which readers take for nodata (GDAL's SPARSE_OK). Header, keys of the CRS and metadata are those that GDAL writes: they
are read from an empty file that it makes of the same virtual raster, cut to one block.

Layout: TIFF 6.0 and BigTIFF; the predictor of floating-point numbers is that of Adobe's Technical Note 3. First all
directories, then the data from the smallest overview to the full resolution, each level row by row.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray

BLOCK_PX = 512
ZSTD_LEVEL = 3
CLASSIC_BYTES = 2**31
"""Files that may become larger than this, by the size of their blocks as they are, are BigTIFFs."""

Position: TypeAlias = tuple[int, int]
"""Row and column of a block among the blocks of its level."""
Image: TypeAlias = NDArray[Any]

_SUBFILE, _WIDTH, _HEIGHT, _OFFSETS, _COUNTS, _METADATA = 254, 256, 257, 324, 325, 42112
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_SHORT, _LONG, _LONG8 = 3, 4, 16
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_LONG8_TYPES = (16, 17, 18)


@dataclass(frozen=True)
class _Format:
    """How a TIFF stores what its classic and its big form store differently."""

    head: int
    """Bytes before GDAL's structural metadata."""
    first: str
    """Where the offset of the first directory is."""
    count: str
    entry: str
    """Tag, type and number of values; the values or their offset follow."""
    pointer: str

    @property
    def inline_bytes(self) -> int:
        """Return how many bytes of values fit into an entry."""
        return struct.calcsize(self.pointer)


_CLASSIC = _Format(head=8, first="<4xI", count="<H", entry="<HHI", pointer="<I")
_BIG = _Format(head=16, first="<8xQ", count="<Q", entry="<HHQ", pointer="<Q")


@dataclass(frozen=True)
class _Tag:
    """A tag of a directory."""

    kind: int
    """Type of its values, as TIFF numbers types."""
    count: int
    values: bytes


@dataclass
class _Level:
    """A level of the pyramid, with what is stored of it."""

    height: int
    width: int
    blocks: list[Position]
    """Blocks with data, row by row."""
    offsets: NDArray[np.uint64] = field(init=False)
    sizes: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        shape = -(-self.height // BLOCK_PX), -(-self.width // BLOCK_PX)
        self.offsets, self.sizes = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)


def write_cog(source: str, header_source: str, out: Path, blocks: Iterable[Position]) -> None:
    """Write a virtual raster as a Cloud-Optimized GeoTIFF with the blocks that are named, at each level.

    Floats are averaged over the known of four pixels in overviews, NaN where none is known; of whole numbers one of the
    four is taken. Compressed by ZSTD with a predictor, bands interleaved by pixel. Memory has the offsets of the
    lattice's blocks and a few of the blocks, whatever the size of the raster.

    Args:
        source: Virtual raster (XML) with all of its data; its bands share a type.
        header_source: The same raster without data, at most a block high and wide.
        out: File to write, replaced if it exists. ``out`` with ``.ovr.tmp`` behind it is used meanwhile.
        blocks: Row and column of the blocks to store. The others must have no data: readers find nodata there.

    Raises:
        OSError, rasterio.errors.RasterioError: The source cannot be read or a file cannot be written; what was written
            stays for the caller to delete.
    """
    spool_path = Path(f"{out}.ovr.tmp")
    with rasterio.open(source) as mosaic:
        levels = _levels(mosaic.height, mosaic.width, blocks)
        block_bytes = mosaic.count * BLOCK_PX**2 * np.dtype(mosaic.dtypes[0]).itemsize
        form = _BIG if block_bytes * sum(len(level.blocks) for level in levels) > CLASSIC_BYTES else _CLASSIC
        prefix, tags = _header(header_source, spool_path, form)
        with ThreadPoolExecutor(os.cpu_count()) as pool, out.open("wb") as file:
            file.seek(len(_directories(prefix, tags, levels, form)))
            if len(levels) > 1:
                with spool_path.open("w+b") as spool:
                    _spool_overviews(mosaic, levels, pool, spool)
                    for level in reversed(levels[1:]):
                        _store(file, level, (_read_at(spool, level, block) for block in level.blocks))
                spool_path.unlink()
            full = ((block, _read_block(mosaic, block)) for block in levels[0].blocks)
            _store(file, levels[0], (data for _, data in _encoded(full, pool)))
            file.seek(0)
            file.write(_directories(prefix, tags, levels, form))


def all_blocks(shape: tuple[int, int]) -> set[Position]:
    """Return the positions of all full-resolution blocks of a raster (height, width)."""
    rows, cols = (-(-length // BLOCK_PX) for length in shape)
    return {(row, col) for row in range(rows) for col in range(cols)}


def _levels(height: int, width: int, blocks: Iterable[Position]) -> list[_Level]:
    """Return the levels, the full resolution first; the last fits into one block."""
    levels = [_Level(height, width, sorted(blocks))]
    while max(height, width) > BLOCK_PX:
        height, width = -(-height // 2), -(-width // 2)
        levels.append(_Level(height, width, sorted({(row // 2, col // 2) for row, col in levels[-1].blocks})))
    return levels


def _read_block(mosaic: Any, block: Position) -> Image:
    """Return a block of the full resolution (bands, BLOCK_PX, BLOCK_PX), NaN or 0 beyond the raster."""
    row, col = block[0] * BLOCK_PX, block[1] * BLOCK_PX
    height, width = min(BLOCK_PX, mosaic.height - row), min(BLOCK_PX, mosaic.width - col)
    values = mosaic.read(window=rasterio.windows.Window(col, row, width, height))
    return _padded(values, BLOCK_PX, BLOCK_PX)


def _padded(values: Image, height: int, width: int) -> Image:
    if values.shape[1:] == (height, width):
        return values
    padded = np.full((len(values), height, width), _fill(values.dtype), values.dtype)
    padded[:, : values.shape[1], : values.shape[2]] = values
    return padded


def _fill(dtype: np.dtype[Any]) -> float:
    return np.nan if dtype.kind == "f" else 0


def _halve(values: Image) -> Image:
    """Return the block at half the resolution: (bands, 2 n, 2 n) to (bands, n, n)."""
    if values.dtype.kind != "f":
        return values[:, ::2, ::2]
    quads = [values[:, row::2, col::2] for row in (0, 1) for col in (0, 1)]
    unknown = [np.isnan(quad) for quad in quads]
    total = sum(np.where(nan, 0, quad) for nan, quad in zip(unknown, quads, strict=True))
    valid_count = 4 - np.sum(unknown, axis=0, dtype=values.dtype)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / valid_count)  # 0 / 0 is NaN: none of the four is known


def _spool_overviews(mosaic: Any, levels: Sequence[_Level], pool: ThreadPoolExecutor, spool: IO[bytes]) -> None:
    """Write the blocks of all overviews in the order in which they are known; levels get offsets in the spool."""
    stored = [set(level.blocks) for level in levels]

    def block_of(depth: int, block: Position) -> Iterator[tuple[tuple[int, Position], Image]]:
        """Yield the overview blocks below a block and then the block itself."""
        values: Image | None = None
        half = BLOCK_PX // 2
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            child = 2 * block[0] + down, 2 * block[1] + right
            if child not in stored[depth - 1]:
                continue
            if depth > 1:
                part: Image | None = None
                for key, part in block_of(depth - 1, child):
                    yield key, part
            else:
                part = _read_block(mosaic, child)
            assert part is not None  # the last block that is yielded is the child
            if values is None:
                values = np.full((len(part), BLOCK_PX, BLOCK_PX), _fill(part.dtype), part.dtype)
            values[:, down * half : (down + 1) * half, right * half : (right + 1) * half] = _halve(part)
        if values is not None:
            yield (depth, block), values

    top = len(levels) - 1
    for (depth, block), data in _encoded((item for root in levels[top].blocks for item in block_of(top, root)), pool):
        levels[depth].offsets[block], levels[depth].sizes[block] = spool.tell(), len(data)
        spool.write(data)


def _read_at(spool: IO[bytes], level: _Level, block: Position) -> bytes:
    spool.seek(int(level.offsets[block]))
    return spool.read(int(level.sizes[block]))


def _store(file: IO[bytes], level: _Level, encoded: Iterable[bytes]) -> None:
    """Append the blocks of a level, with the size before and the last bytes again behind, as the header promises."""
    for block, data in zip(level.blocks, encoded, strict=True):
        file.write(struct.pack("<I", len(data)))
        level.offsets[block], level.sizes[block] = file.tell(), len(data)
        file.write(data)
        file.write(data[-4:])


def _encoded(blocks: Iterable[tuple[Any, Image]], pool: ThreadPoolExecutor) -> Iterator[tuple[Any, bytes]]:
    """Yield key and bytes of each block in order, while the pool encodes those behind it."""
    encode = _encoder()
    waiting: deque[tuple[Any, Future[bytes]]] = deque()
    for key, values in blocks:
        waiting.append((key, pool.submit(encode, values)))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    for oldest, future in waiting:
        yield oldest, future.result()


def _encoder() -> Callable[[Image], bytes]:
    """Return the function that turns a block (bands, rows, columns) into the bytes of a TIFF's tile."""
    import pyarrow

    codec = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)

    def encode(values: Image) -> bytes:
        pixels = np.moveaxis(values, 0, -1)
        data = _float_differences(pixels) if values.dtype.kind == "f" else _differences(pixels)
        return bytes(codec.compress(data.tobytes(), asbytes=True))

    return encode


def _differences(pixels: Image) -> Image:
    """Return whole numbers (rows, columns, bands) as differences to the pixel before: predictor 2."""
    differences = pixels.astype(pixels.dtype.newbyteorder("<"))
    differences[:, 1:] -= pixels[:, :-1]
    return differences


def _float_differences(pixels: Image) -> Image:
    """Return floats (rows, columns, bands) as bytes by predictor 3: (rows, bytes).

    The bytes of a row are sorted by significance, then each is the difference to that of a pixel before.
    """
    rows, columns, bands = pixels.shape
    by_value = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8)
    by_significance = by_value.reshape(rows, columns * bands, pixels.dtype.itemsize).swapaxes(1, 2).reshape(rows, -1)
    differences = by_significance.copy()
    differences[:, bands:] -= by_significance[:, :-bands]
    return differences


def _header(source: str, draft: Path, form: _Format) -> tuple[bytes, dict[int, _Tag]]:
    """Return what GDAL writes for a raster before its first directory, and the tags of that."""
    options = {"compress": "ZSTD", "level": ZSTD_LEVEL, "predictor": "YES", "blocksize": BLOCK_PX, "sparse_ok": True}
    rasterio.shutil.copy(source, str(draft), driver="COG", bigtiff="YES" if form is _BIG else "NO", **options)
    data = draft.read_bytes()
    draft.unlink()
    (start,) = struct.unpack_from(form.first, data)
    (count,) = struct.unpack_from(form.count, data, start)
    begin, step = start + struct.calcsize(form.count), struct.calcsize(form.entry) + form.inline_bytes
    tags = {}
    for entry_at in range(begin, begin + count * step, step):
        tag, kind, number = struct.unpack_from(form.entry, data, entry_at)
        size, values_at = number * _TYPE_BYTES[kind], entry_at + struct.calcsize(form.entry)
        if size > form.inline_bytes:
            (values_at,) = struct.unpack_from(form.pointer, data, values_at)
        tags[tag] = _Tag(kind, number, data[values_at : values_at + size])
    return data[:start], tags


def _directories(prefix: bytes, tags: dict[int, _Tag], levels: Sequence[_Level], form: _Format) -> bytes:
    """Return everything before the data. Its length depends on the levels' sizes alone."""
    start = len(prefix)
    text = bytearray(prefix)
    struct.pack_into(form.pointer, text, form.head - form.inline_bytes, start)
    for number, level in enumerate(levels):
        text += _directory(_level_tags(tags, level, number > 0, form), len(text), number + 1 == len(levels), form)
    return bytes(text)


def _level_tags(tags: dict[int, _Tag], level: _Level, is_overview: bool, form: _Format) -> dict[int, _Tag]:
    """Return the tags of a level. CRS and metadata are those of the whole file, so overviews have none."""
    own = {tag: value for tag, value in tags.items() if not (is_overview and tag in (*_GEO_TAGS, _METADATA))}
    if is_overview:
        own[_SUBFILE] = _Tag(_LONG, 1, struct.pack("<I", 1))
    for tag, length in ((_WIDTH, level.width), (_HEIGHT, level.height)):
        own[tag] = _Tag(_LONG, 1, struct.pack("<I", length))
    kind, dtype = (_LONG8, "<u8") if form is _BIG else (_LONG, "<u4")
    own[_OFFSETS] = _Tag(kind, level.offsets.size, level.offsets.astype(dtype).tobytes())
    own[_COUNTS] = _Tag(_LONG, level.sizes.size, level.sizes.astype("<u4").tobytes())
    return own


def _directory(tags: dict[int, _Tag], start: int, is_last: bool, form: _Format) -> bytes:
    """Return a directory that begins at `start`: its entries, where the next begins, and values that need space."""
    entry_bytes = struct.calcsize(form.entry) + form.inline_bytes
    values_at = start + struct.calcsize(form.count) + len(tags) * entry_bytes + form.inline_bytes
    entries, values = bytearray(struct.pack(form.count, len(tags))), bytearray()
    for number, tag in sorted(tags.items()):
        entries += struct.pack(form.entry, number, tag.kind, tag.count)
        if len(tag.values) <= form.inline_bytes:
            entries += tag.values.ljust(form.inline_bytes, b"\0")
            continue
        entries += struct.pack(form.pointer, values_at + len(values))
        values += tag.values + b"\0" * (-len(tag.values) % 8)
    values += b"\0" * (-(values_at + len(values)) % 8)
    following = 0 if is_last else values_at + len(values)
    return bytes(entries + struct.pack(form.pointer, following) + values)
