"""The first bytes of a LAS or LAZ file, checked before a library believes them.

A header says how many records to read, how large they are and where they lie. Readers allocate and loop by these
numbers: a file of some kilobytes may ask for 53 GB, or for four billion records. Each number is checked against the
size of the file and against the others.

Offsets and sizes: LAS 1.4 R16, tables 3, 8 and 9; LASzip's record and chunk table: laszip.hpp.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import lazrs

from canopy.errors import LidarError

MAX_RECORD_BYTES = 4096
"""Largest record of a point: the largest standard one has 67 bytes, extra dimensions may follow."""
MAX_CHUNK_BYTES = 2**30
"""Largest chunk of LAZ that is decoded; usual ones have 1.5 MB."""
_LEAST_HEADER, _VLR, _EVLR, _LAS_1_4 = 227, 54, 60, 375
_RECORD_BYTES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)
"""Bytes of a point in each format, without extra dimensions."""
_LASZIP_ID, _LASZIP_USER = 22204, b"laszip encoded"
_CHUNKED, _LAYERED, _VARIABLE = (2, 3), 3, 0xFFFFFFFF
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}
"""Compressed layers of each kind of item in a chunk; extra dimensions (14) have one a byte."""
_COMPRESSED_FORMATS = 0x80


@dataclass(frozen=True)
class _Numbers:
    """Numbers of a header that others depend on."""

    size: int
    """Bytes of the file."""
    header: int
    """Bytes of the header."""
    points: int
    """Offset of the points."""
    vlrs: int
    """Number of variable length records."""
    format: int
    """Point format."""
    compressed: bool
    """Whether the points are compressed."""
    record: int
    """Bytes of a point."""
    count: int
    """Number of points."""
    evlr_start: int
    """Offset of the extended records."""
    evlrs: int
    """Number of extended records."""


def check_header(path: Path) -> None:
    """Refuse a file whose header does not fit its bytes.

    Raises:
        LidarError: The file is no LAS or LAZ file, or is damaged.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        numbers = _numbers(path, file)
        records = _check_records(path, file, numbers)
        if numbers.compressed:
            if records is None:
                raise _damaged(path, "compressed points without a record of LASzip")
            _check_laszip(path, file, numbers, records)
        elif numbers.count * numbers.record > numbers.size - numbers.points:
            whole = (numbers.size - numbers.points) // numbers.record
            raise _damaged(path, f"it ends after {whole:,} of {numbers.count:,} points; copy it again")


def _numbers(path: Path, file: BinaryIO) -> _Numbers:
    """Read the numbers of a header, each within the file."""
    size = path.stat().st_size
    head = file.read(_LAS_1_4).ljust(_LAS_1_4, b"\0")
    if head[:4] != b"LASF" or size < _LEAST_HEADER:
        raise LidarError(f"{path}: not a point cloud, expected LAS, LAZ or COPC")
    header, points, vlrs, kind, record, count = struct.unpack_from("<HIIBHI", head, 94)
    evlr_start, evlrs = 0, 0
    if head[25] >= 4 and header >= _LAS_1_4:
        evlr_start, evlrs, count = struct.unpack_from("<QIQ", head, 235)
    numbers = _Numbers(
        size, header, points, vlrs, kind & 0x3F, bool(kind & _COMPRESSED_FORMATS), record, count, evlr_start, evlrs
    )
    if not _LEAST_HEADER <= header <= points <= size:
        raise _damaged(path, f"header of {header} bytes and points from byte {points:,} in a file of {size:,}")
    if numbers.format >= len(_RECORD_BYTES):
        raise _damaged(path, f"point format {numbers.format}, 0 to {len(_RECORD_BYTES) - 1} expected")
    if not _RECORD_BYTES[numbers.format] <= record <= MAX_RECORD_BYTES:
        least = _RECORD_BYTES[numbers.format]
        raise _damaged(path, f"points of {record:,} bytes, {least} to {MAX_RECORD_BYTES:,} expected")
    return numbers


def _check_records(path: Path, file: BinaryIO, numbers: _Numbers) -> bytes | None:
    """Walk over the records before and after the points, and return LASzip's if there is one."""
    laszip, position = None, numbers.header
    if numbers.vlrs * _VLR > numbers.points - numbers.header:
        raise _damaged(path, f"{numbers.vlrs:,} records in {numbers.points - numbers.header:,} bytes")
    for _ in range(numbers.vlrs):
        head = _bytes_at(file, position, _VLR)
        length = struct.unpack_from("<H", head, 20)[0] if len(head) == _VLR else numbers.size
        if position + _VLR + length > numbers.points:
            raise _damaged(path, "a record reaches into the points")
        if head[2:18].rstrip(b"\0") == _LASZIP_USER and struct.unpack_from("<H", head, 18)[0] == _LASZIP_ID:
            laszip = _bytes_at(file, position + _VLR, length)
        position += _VLR + length
    position = numbers.evlr_start
    if numbers.evlrs and not numbers.points <= position <= numbers.size - numbers.evlrs * _EVLR:
        raise _damaged(path, f"{numbers.evlrs:,} extended records from byte {position:,} in {numbers.size:,}")
    for _ in range(numbers.evlrs):
        head = _bytes_at(file, position, _EVLR)
        length = struct.unpack_from("<Q", head, 20)[0] if len(head) == _EVLR else numbers.size
        if position + _EVLR + length > numbers.size:
            raise _damaged(path, "an extended record reaches beyond the end; copy the file again")
        position += _EVLR + length
    return laszip


def _check_laszip(path: Path, file: BinaryIO, numbers: _Numbers, laszip: bytes) -> None:
    """Refuse chunks that no point fills, items that are not the point, and more chunks than the file can have."""
    if len(laszip) < 34:
        raise _damaged(path, "a record of LASzip that is too short")
    compressor, chunk = struct.unpack_from("<H", laszip, 0)[0], struct.unpack_from("<I", laszip, 12)[0]
    if compressor not in _CHUNKED:
        return  # the library says that it cannot read these
    items = struct.unpack_from("<H", laszip, 32)[0]
    if len(laszip) < 34 + 6 * items:
        raise _damaged(path, f"a record of LASzip that is too short for {items} items")
    kinds = [struct.unpack_from("<HH", laszip, 34 + 6 * item) for item in range(items)]
    record = sum(size for _, size in kinds)
    if record != numbers.record:
        raise _damaged(path, f"compressed points of {record} bytes, {numbers.record} expected")
    if chunk != _VARIABLE and not 0 < chunk * numbers.record <= MAX_CHUNK_BYTES:
        raise _damaged(path, f"chunks of {chunk:,} points")
    table = struct.unpack("<q", _bytes_at(file, numbers.points, 8).ljust(8, b"\0"))[0]
    if table == -1:  # written by a stream: the offset stands at the end
        table = struct.unpack("<q", _bytes_at(file, numbers.size - 8, 8).ljust(8, b"\0"))[0]
    if not numbers.points + 8 <= table <= numbers.size - 8:
        raise _damaged(path, f"a chunk table at byte {table:,} of {numbers.size:,}; copy the file again")
    chunks = struct.unpack_from("<I", _bytes_at(file, table, 8), 4)[0]
    # A chunk begins with a whole point; where chunks have one length, the number of points gives that of chunks.
    most = (numbers.size - numbers.points) // _RECORD_BYTES[numbers.format] + 1
    if chunk != _VARIABLE:
        most = min(most, -(-numbers.count // chunk) + 1)
    if chunks > most:
        raise _damaged(path, f"{chunks:,} chunks, at most {most:,} expected")
    if compressor == _LAYERED:
        layers = sum(size if kind == 14 else _LAYERS.get(kind, 0) for kind, size in kinds)
        _check_layers(path, file, numbers, lazrs.LazVlr(laszip), layers)


def _check_layers(path: Path, file: BinaryIO, numbers: _Numbers, laszip: lazrs.LazVlr, layers: int) -> None:
    """Refuse chunks whose layers are larger than the chunk: each layer is allocated as large as it says."""
    file.seek(numbers.points)
    position = numbers.points + 8
    for _, length in lazrs.read_chunk_table(file, laszip):
        # A whole point, the number of points, the length of each layer, and then the layers.
        sizes = _bytes_at(file, position + numbers.record + 4, 4 * layers).ljust(4 * layers, b"\0")
        need = numbers.record + 4 + 4 * layers + sum(struct.unpack(f"<{layers}I", sizes))
        if need > length or position + length > numbers.size:
            raise _damaged(path, f"a chunk of {length:,} bytes asks for {need:,}; copy the file again")
        position += length


def _bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _damaged(path: Path, reason: str) -> LidarError:
    return LidarError(f"{path}: damaged: {reason}")
