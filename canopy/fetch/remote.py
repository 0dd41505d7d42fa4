"""Files of a service, read by ranges with its token: as rasters, and as streams for laspy.

A file is known by its size and entity tag from the first answer on: another one is an error, never a mixture.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from canopy.errors import SourceError, one_line
from canopy.http import Answer, Headers, HttpClient, redacted
from canopy.imagery.remote import Fetch, Part, RemoteFile, failures, open_file
from canopy.imagery.signing import sign

_EXPIRED = (400, 403)
"""Statuses of an address whose signature is no longer valid."""


class Ranges:
    """Asks for ranges of one file, with a new address once the old one has expired."""

    def __init__(
        self,
        client: HttpClient,
        url: str,
        headers: Headers | None = None,
        renew: Callable[[], str] | None = None,
        signing: str = "",
    ) -> None:
        """Name the file.

        Args:
            client: Client that sends the requests.
            url: Address of the file.
            headers: Headers of each request.
            renew: Function that returns a new address in place of one that has expired.
            signing: Address that gives signatures, for files of a store that wants one.
        """
        self._client, self._url, self._headers, self._renew = client, url, headers, renew
        self._signing = signing
        self.requests = 0
        """Number of ranges that were asked for."""

    def __call__(self, start: int, stop: int) -> Part:
        """Return a range.

        Raises:
            SourceError: It cannot be read.
        """
        self.requests += 1
        answer = self._answer(start, stop)
        size = answer.total_bytes
        etag = answer.etag or answer.headers.get("last-modified", "")
        return Part(answer.content, len(answer.content) if size is None else size, etag)

    def _answer(self, start: int, stop: int) -> Answer:
        def ask(url: str) -> Answer:
            return self._client.read_range(url, start, stop, headers=self._headers)

        if self._signing:
            return sign(self._client, self._signing, self._url, ask)
        try:
            return ask(self._url)
        except SourceError as error:
            if self._renew is None or error.status not in _EXPIRED:
                raise
            self._url = self._renew()
        return ask(self._url)


def open_ranges(fetch: Fetch, url: str) -> RemoteFile:
    """Ask for the first bytes of a file.

    Raises:
        SourceError: There is no such file.
        ImageryError: It is empty.
    """
    return RemoteFile(redacted(url), fetch)


class RemoteStream(io.RawIOBase):
    """A remote file as a stream, for libraries that read files."""

    def __init__(self, file: RemoteFile) -> None:
        """Begin at the first byte."""
        super().__init__()
        self._file, self._position = file, 0

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
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        content = self._file.read(self._position, self._file.size if size < 0 else self._position + size)
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class RemoteRaster:
    """A raster of a server; opened and closed by a `with` block, for one thread."""

    def __init__(self, file: RemoteFile) -> None:
        """Name the file."""
        self.file = file
        self._dataset: DatasetReader | None = None

    def __enter__(self) -> "RemoteRaster":
        with self._reading("the header"):
            self._dataset = open_file(self.file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._dataset is not None:
            self._dataset.close()

    @property
    def name(self) -> str:
        """Address without secrets, for messages."""
        return self.file.address

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

    def read_overview(self, side_px: int) -> NDArray[Any]:
        """Return band 1 of the whole raster, reduced to a side; of use where the raster has overviews.

        Raises:
            SourceError: A block is missing or cannot be decoded.
        """
        with self._reading("an overview"):
            return np.asarray(self.dataset.read(1, out_shape=(side_px, side_px), masked=False))

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
            with failures():
                yield
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise SourceError(f"{self.name}: {what} cannot be read: {one_line(error, 200)}") from error
