"""A file on a server, read by ranges as if it were a local one: for GDAL, laspy and h5py.

A file is known by its size and entity tag from the first answer on: another one is an error, never a mixture of two
files. Ranges that touch are merged into one request.
"""

import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio._vsiopener import MultiByteRangeResourceContainer
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from canopy.errors import SourceError, one_line
from canopy.http import Headers, HttpClient, redacted

PIECE_BYTES = 64 * 1024
"""Bytes that are fetched and remembered together."""
_KEPT_PIECES = 512
_RUN_PIECES = 256
"""Most pieces of one request: 16 MB."""
_EXPIRED = (400, 403)
"""Statuses of an address whose signature is no longer valid."""


class RemoteFile(io.RawIOBase):
    """A file of a server, opened for reading; safe to share between threads that seek nowhere."""

    def __init__(
        self,
        client: HttpClient,
        url: str,
        headers: Headers | None = None,
        renew: Callable[[], str] | None = None,
    ) -> None:
        """Ask for the first bytes.

        Args:
            client: Client that sends the requests.
            url: Address of the file.
            headers: Headers of each request.
            renew: Function that returns a new address in place of one that has expired.

        Raises:
            SourceError: No such file, or a server without ranges.
        """
        super().__init__()
        self._client, self._url, self._headers, self._renew = client, url, headers, renew
        self._lock = threading.Lock()
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self.requests = 0
        """Number of requests so far."""
        self.bytes_read = 0
        """Bytes received so far."""
        first = self._request(0, PIECE_BYTES, None)
        total = first.total_bytes
        if total is None:
            raise SourceError(f"{redacted(url)}: the server does not say how large the file is", first.status)
        self.size: int = total
        """Size of the file, bytes."""
        self.etag: str | None = first.etag
        """Entity tag of the file; None where the server has none."""
        self._pieces[0] = first.content

    @property
    def url(self) -> str:
        """Address of the file without its secrets."""
        return redacted(self._url)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        stop = self.size if size < 0 else min(self.size, self._position + size)
        content = self.read_at(self._position, stop)
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Return several ranges, as GDAL asks for them."""
        return [self.read_at(start, min(self.size, start + size)) for start, size in zip(offsets, sizes, strict=True)]

    def read_at(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` (exclusive).

        Raises:
            SourceError: The server does not send them, or the file has changed.
        """
        if stop <= start:
            return b""
        first, last = start // PIECE_BYTES, (stop - 1) // PIECE_BYTES
        with self._lock:
            pieces = {number: piece for number in range(first, last + 1) if (piece := self._remembered(number))}
            for run in _runs([number for number in range(first, last + 1) if number not in pieces]):
                pieces |= self._fetched(run)
        content = b"".join(pieces[number] for number in range(first, last + 1))
        return content[start - first * PIECE_BYTES : stop - first * PIECE_BYTES]

    def _remembered(self, number: int) -> bytes | None:
        piece = self._pieces.get(number)
        if piece is not None:
            self._pieces.move_to_end(number)
        return piece

    def _fetched(self, run: range) -> dict[int, bytes]:
        """Fetch neighbouring pieces in one request, and remember them."""
        start, stop = run.start * PIECE_BYTES, min(self.size, run.stop * PIECE_BYTES)
        answer = self._request(start, stop, self.etag)
        if len(answer.content) != stop - start or answer.total_bytes != self.size:
            raise SourceError(f"{self.url}: replaced while it is read; start the run again", answer.status)
        pieces = {
            number: answer.content[(number - run.start) * PIECE_BYTES : (number + 1 - run.start) * PIECE_BYTES]
            for number in run
        }
        self._pieces.update(pieces)
        while len(self._pieces) > _KEPT_PIECES:
            self._pieces.popitem(last=False)
        return pieces

    def _request(self, start: int, stop: int, etag: str | None) -> Any:
        """Send one request; where the address has expired, once more with a new one."""
        self.requests += 1
        try:
            answer = self._client.read_range(self._url, start, stop, etag=etag, headers=self._headers)
        except SourceError as error:
            if self._renew is None or error.status not in _EXPIRED:
                raise
            self._url = self._renew()
            answer = self._client.read_range(self._url, start, stop, etag=etag, headers=self._headers)
        self.bytes_read += len(answer.content)
        return answer


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    """Yield runs of successive numbers, none longer than one request may be."""
    if not numbers:
        return
    breaks = [0, *(np.flatnonzero(np.diff(numbers) > 1) + 1).tolist(), len(numbers)]
    for begin, end in itertools.pairwise(breaks):
        run = range(numbers[begin], numbers[end - 1] + 1)
        yield from (run[step : step + _RUN_PIECES] for step in range(0, len(run), _RUN_PIECES))


class _Opener(MultiByteRangeResourceContainer):  # type: ignore[misc]
    """GDAL's view of one remote file: no neighbours, no writing."""

    def __init__(self, name: str, remote: RemoteFile) -> None:
        self._name, self._remote = name, remote
        self.failure: BaseException | None = None

    def open(self, path: str, mode: str = "r", **_: Any) -> "_Handle":
        if path != self._name or "w" in mode:
            raise FileNotFoundError(path)
        return _Handle(self)

    def read_at(self, start: int, stop: int) -> bytes:
        """Return bytes; the reason of a failure is remembered, because GDAL only says that reading failed."""
        try:
            return self._remote.read_at(start, min(stop, self._remote.size))
        except BaseException as error:
            self.failure = error
            raise

    def isfile(self, path: str) -> bool:
        return path == self._name

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        return self._remote.size

    def rm(self, path: str) -> None:
        raise PermissionError(path)


class _Handle(io.RawIOBase):
    """A position in a remote file; GDAL opens several."""

    def __init__(self, opener: _Opener) -> None:
        super().__init__()
        self._opener, self._position = opener, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._opener.size("")}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._opener.size("") if size < 0 else self._position + size
        content = self._opener.read_at(self._position, stop)
        self._position += len(content)
        return content

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        return [self._opener.read_at(start, start + size) for start, size in zip(offsets, sizes, strict=True)]


class RemoteRaster:
    """A GeoTIFF of a server; closes with its `with` block."""

    def __init__(self, remote: RemoteFile) -> None:
        """Name the file; it is opened by `with`."""
        self.remote = remote
        self._name = remote.url.rpartition("/")[2] or "raster.tif"
        self._opener = _Opener(self._name, remote)
        self._dataset: DatasetReader | None = None

    def __enter__(self) -> "RemoteRaster":
        # No neighbours are looked for: nodata and place are decided by this file and by us, not by an .aux.xml.
        with self._reading("the header"), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            self._dataset = rasterio.open(self._name, opener=self._opener)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._dataset is not None:
            self._dataset.close()

    @property
    def name(self) -> str:
        """Address without secrets, for messages."""
        return self.remote.url

    @property
    def dataset(self) -> DatasetReader:
        """The open raster."""
        assert self._dataset is not None
        return self._dataset

    def read(self, window: Any, bands: Sequence[int] | None = None) -> NDArray[Any]:
        """Return (K, h, w) values of a window, in the raster's own dtype.

        Raises:
            SourceError: A block is missing or cannot be decoded.
        """
        with self._reading("a block"):
            return np.asarray(self.dataset.read(bands, window=window, masked=False))

    def read_mask(self, window: Any) -> NDArray[np.uint8]:
        """Return (h, w) of the raster's own mask of band 1, 0 where masked.

        Raises:
            SourceError: A block is missing or cannot be decoded.
        """
        with self._reading("a block of the mask"):
            return np.asarray(self.dataset.read_masks(1, window=window))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RasterioError, CPLE_BaseError, OSError) as error:
            if self._opener.failure is not None:
                raise self._opener.failure from error
            raise SourceError(f"{self.remote.url}: {what} cannot be read: {one_line(error, 200)}") from error
