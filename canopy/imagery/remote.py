"""Files on servers and in object stores, which GDAL reads through requests of our own.

GDAL decodes; the bytes come from here. Its own network code does not repeat reads of several threads, does not ask
whether the file is still the same, and takes a failed range of a mask for a mask without unknown pixels. Here every
range is asked for again where that may help, every answer is compared with the file that was opened, and a failure is
an error of the read, whatever GDAL makes of it.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from io import RawIOBase
from typing import Any, Protocol, Self
from urllib.parse import unquote, urlsplit

import rasterio
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.io import DatasetReader

from canopy.errors import CanopyError, ImageryError, SourceError, one_line
from canopy.http import Answer, HttpClient
from canopy.imagery.files import shown
from canopy.imagery.signing import sign
from canopy.stores import open_store, store_credentials

SERVERS = ("http://", "https://")
STORES = ("s3://", "gs://", "az://")
_HEAD_BYTES = 2**16
"""First bytes of a file, asked for at once: the directories of most Cloud-Optimized GeoTIFFs."""
_CHUNK_BYTES = 2**16
"""Least that a small read asks for: directories of other files are read in many small steps."""
_CHUNKS = 16
_GAP_BYTES = 2**15
"""Bytes between two ranges that cost less than another request."""
_PARALLEL = 8
_STATUS = re.compile(r"status code: (\d{3})")
_FILES = 256
"""Files whose head is remembered."""
_FORMATS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff", b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG", b"\x89PNG": "PNG", b"\xff\xd8": "JPEG",
}  # fmt: skip
"""Formats whose pixels lie in the file itself, by its first bytes."""


@dataclass(frozen=True)
class Access:
    """How the files of a source are asked for."""

    signing: str = ""
    """Address that gives signatures, for files of a store that wants one; a worker process asks for its own."""
    cached: bool = False
    """Whether ranges may be copied to the folder of ``CANOPY_TILE_CACHE``, where the environment names one."""


DIRECT = Access()
"""Files that are asked for as they are named."""


@dataclass(frozen=True)
class Part:
    """Bytes of a file, and what the answer says of the whole."""

    content: bytes
    size: int
    """Bytes of the whole file."""
    etag: str
    """Entity tag, else the time of the last change; empty where the server gives neither."""


Fetch = Callable[[int, int], Part]
"""Asks for a range of a file: first byte, and the one after the last."""


class Cache(Protocol):
    """Ranges on disk between runs."""

    def get(self, address: str) -> bytes | None:
        """Return what is stored under a name, None for nothing."""
        ...

    def put(self, address: str, content: bytes) -> None:
        """Store content under a name."""
        ...


def is_remote_file(path: str) -> bool:
    """Return whether a path is a file that is read by requests of our own."""
    return path.startswith((*SERVERS, *STORES))


class RemoteFile:
    """One file of a server, for all threads; its first bytes are remembered."""

    def __init__(self, address: str, fetch: Fetch, cache: Cache | None = None) -> None:
        """Ask for the first bytes of a file.

        Args:
            address: Address of the file.
            fetch: Asks for a range.
            cache: Ranges of earlier runs, under names that contain the entity tag.

        Raises:
            SourceError: It cannot be read.
            ImageryError: It is empty.
        """
        self.address, self._fetch, self._cache = address, fetch, cache
        head = fetch(0, _HEAD_BYTES)
        if not head.size:
            raise ImageryError(f"{shown(address)}: 0 bytes, expected a raster; name another file")
        self.size, self.etag, self._head = head.size, head.etag, head.content
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def format(self) -> str:
        """GDAL's name of the file's format.

        Raises:
            ImageryError: The first bytes are those of no raster: a page with an error, or a list of addresses.
        """
        for first, name in _FORMATS.items():
            if self._head.startswith(first):
                return name
        raise ImageryError(
            f"{shown(self.address)}: {_kind(self._head)}, expected GeoTIFF, JPEG 2000, PNG or JPEG; check the address"
        )

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` (exclusive), fewer at the end of the file.

        Raises:
            SourceError: They cannot be read.
            ImageryError: The file is not the one that was opened.
        """
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        if stop <= len(self._head):
            return self._head[start:stop]
        if stop - start > _CHUNK_BYTES:
            return self._range(start, stop)
        first, last = start // _CHUNK_BYTES, (stop - 1) // _CHUNK_BYTES
        content = b"".join(self._chunk(number) for number in range(first, last + 1))
        return content[start - first * _CHUNK_BYTES : stop - first * _CHUNK_BYTES]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return several ranges, merged where they lie close and asked for at the same time.

        Args:
            ranges: First byte, and the one after the last, of each.

        Raises:
            SourceError: One cannot be read.
            ImageryError: The file is not the one that was opened.
        """
        merged = merge(ranges)
        if len(merged) == 1:
            parts = [self.read(*merged[0])]
        else:
            parts = list(_pool(os.getpid()).map(lambda span: self.read(*span), merged))
        spans = list(zip(merged, parts, strict=True))
        return [_cut(spans, start, stop) for start, stop in ranges]

    def _chunk(self, number: int) -> bytes:
        with self._lock:
            if number in self._chunks:
                self._chunks.move_to_end(number)
                return self._chunks[number]
        # Not under the lock: threads that read other chunks do not wait. Two may read the same, which is harmless.
        content = self._range(number * _CHUNK_BYTES, min((number + 1) * _CHUNK_BYTES, self.size))
        with self._lock:
            self._chunks[number] = content
            if len(self._chunks) > _CHUNKS:
                self._chunks.popitem(last=False)
        return content

    def _range(self, start: int, stop: int) -> bytes:
        if self._cache is None or not self.etag:
            return self._asked_range(start, stop)
        # Another file at the same address has another name here.
        name = f"{shown(self.address)} {self.etag} {self.size} {start}-{stop}"
        content = self._cache.get(name)
        if content is None or len(content) != stop - start:
            content = self._asked_range(start, stop)
            self._cache.put(name, content)
        return content

    def _asked_range(self, start: int, stop: int) -> bytes:
        try:
            part = self._fetch(start, stop)
        except SourceError as error:
            # A shorter file has no such bytes.
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._require_same(self._fetch(0, 1))
            raise
        self._require_same(part)
        if len(part.content) != stop - start:
            raise SourceError(
                f"{shown(self.address)}: {len(part.content)} bytes instead of {stop - start}; run again, the finished "
                "part is kept"
            )
        return part.content

    def _require_same(self, part: Part) -> None:
        if (part.size, part.etag) != (self.size, self.etag):
            raise ImageryError(
                f"{shown(self.address)}: replaced since it was opened, expected the same size and entity tag; "
                "start the run again"
            )


def merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the fewest ranges that contain all of these, with gaps of at most 32 kB read for nothing."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= _GAP_BYTES:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged


def _cut(spans: Sequence[tuple[tuple[int, int], bytes]], start: int, stop: int) -> bytes:
    first, content = next((first, content) for (first, last), content in spans if first <= start and stop <= last)
    return content[start - first : stop - first]


def _kind(head: bytes) -> str:
    """Return what the first bytes of a file that is no raster look like."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"<": "a text of HTML or XML", b"{": "a text of JSON"}.get(text, "no raster that is understood")


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads that ask for ranges, those of this process."""
    return ThreadPoolExecutor(_PARALLEL, thread_name_prefix="ranges")


_files: OrderedDict[tuple[str, Access], RemoteFile] = OrderedDict()
_files_lock = threading.Lock()


def remote_file(address: str, access: Access = DIRECT) -> RemoteFile:
    """Return a file, as it was when this process first asked for it.

    Raises:
        SourceError: It cannot be read.
    """
    key = address, access
    with _files_lock:
        if key in _files:
            _files.move_to_end(key)
            return _files[key]
    # Imported here: that package reads through this module.
    from canopy.imagery.tiled.cache import TileCache

    cache = TileCache.of_environment() if access.cached else None
    file = RemoteFile(address, _fetcher(address, access), cache)
    with _files_lock:
        file = _files.setdefault(key, file)
        if len(_files) > _FILES:
            _files.popitem(last=False)
        return file


def forget(address: str, access: Access = DIRECT) -> None:
    """Forget what is remembered of a file, so that it is asked for again."""
    with _files_lock:
        _files.pop((address, access), None)


def _fetcher(address: str, access: Access) -> Fetch:
    return _store_fetcher(address) if address.startswith(STORES) else _server_fetcher(address, access)


@lru_cache(maxsize=1)
def client() -> HttpClient:
    """Return the client of all reads of imagery."""
    return HttpClient(connections=2 * _PARALLEL)


def _server_fetcher(address: str, access: Access) -> Fetch:
    def fetch(start: int, stop: int) -> Part:
        def ask(url: str) -> Answer:
            return client().read_range(url, start, stop)

        answer = sign(client(), access.signing, address, ask) if access.signing else ask(address)
        size = answer.total_bytes
        etag = answer.etag or answer.headers.get("last-modified", "")
        return Part(answer.content, len(answer.content) if size is None else size, etag)

    return fetch


def _store_fetcher(address: str) -> Fetch:
    """Return what asks an object store for ranges, with the credentials of the usual environment."""
    import obstore
    from obstore.exceptions import BaseError

    parts = urlsplit(address)
    name, key = parts.netloc, unquote(parts.path.lstrip("/"))
    if not name or not key:
        raise ImageryError(f"{shown(address)}: expected a bucket and a name, such as s3://bucket/folder/scene.tif")
    try:
        store = open_store(parts.scheme, name, store_credentials(parts.scheme))
    except BaseError as error:
        raise SourceError(
            f"{shown(address)}: {one_line(error, 200)}; check the credentials in the environment"
        ) from None

    def fetch(start: int, stop: int) -> Part:
        try:
            answer = obstore.get(store, key, options={"range": (start, stop)})
            content = bytes(answer.bytes())
        except FileNotFoundError:
            raise SourceError(f"{shown(address)}: no such object; check bucket and name", 404) from None
        except (BaseError, OSError) as error:
            status = _STATUS.search(str(error))
            raise SourceError(
                f"{shown(address)}: cannot be read ({shown(one_line(error, 200))}); check the name, the region and the "
                "credentials in the environment (AWS_..., GOOGLE_..., AZURE_...)",
                int(status[1]) if status else None,
            ) from None
        return Part(content, answer.meta["size"], answer.meta["e_tag"] or str(answer.meta["last_modified"]))

    return fetch


_failures = threading.local()


@contextmanager
def failures() -> Iterator[None]:
    """Raise what failed while GDAL read, instead of what GDAL made of it, and where GDAL went on as if nothing was.

    Raises:
        CanopyError: A request failed, or the file is not the one that was opened.
    """
    outer = getattr(_failures, "first", None)
    _failures.first = None
    try:
        yield
    except Exception as error:
        if _failures.first is not None:
            raise _failures.first from error
        raise
    else:
        if _failures.first is not None:
            raise _failures.first
    finally:
        _failures.first = outer


def _remember(error: CanopyError) -> None:
    if getattr(_failures, "first", None) is None:
        _failures.first = error


class _Handle(RawIOBase):
    """A remote file as GDAL's one thread reads it; it never raises, since GDAL's callbacks must not."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file, self._position = file, 0

    def __enter__(self) -> Self:
        return self

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the start, the present position or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return bytes from the position on; none where they cannot be read."""
        stop = self._file.size if size < 0 else self._position + size
        try:
            content = self._file.read(self._position, stop)
        except CanopyError as error:
            _remember(error)
            return b""
        self._position += len(content)
        return content

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Return ranges; empty ones where they cannot be read."""
        ranges = [(offset, min(offset + size, self._file.size)) for offset, size in zip(offsets, sizes, strict=True)]
        try:
            return self._file.read_many(ranges)
        except CanopyError as error:
            _remember(error)
            return [b""] * len(ranges)


class _Container(MultiByteRangeResourceContainer):  # type: ignore[misc]
    """A folder with one file, as rasterio shows it to GDAL: no side files are looked for."""

    def __init__(self, file: RemoteFile, name: str) -> None:
        self._file, self._name = file, name

    def open(self, path: str, mode: str = "r", **_: Any) -> _Handle:
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return _Handle(self._file)

    def isfile(self, path: str) -> bool:
        return path.endswith(self._name)

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        return self._file.size

    def rm(self, path: str) -> None:
        raise PermissionError(path)


def open_remote(address: str, access: Access = DIRECT, **options: Any) -> DatasetReader:
    """Open a remote file on its own GDAL handle, for the calling thread alone.

    Raises:
        CanopyError: It cannot be read, or is no raster.
    """
    return open_file(remote_file(address, access), **options)


def open_file(file: RemoteFile, **options: Any) -> DatasetReader:
    """Open a file of any fetcher on its own GDAL handle, for the calling thread alone.

    Args:
        file: The file.
        options: GDAL's options of its format.

    Raises:
        CanopyError: It cannot be read, or is no raster.
    """
    name = shown(file.address)
    with failures(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"):
        return rasterio.open(name, driver=file.format, sharing=False, opener=_Container(file, name), **options)
