"""One file of NEON brought to the disk: whole and checked by its checksum, or a window of it read by ranges."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odc.geo.crs import CRS

from canopy.downloads import download
from canopy.errors import SourceError
from canopy.fetch.checksums import crc32c
from canopy.fetch.collection import Meter
from canopy.fetch.neon_files import NeonApi, NeonFile
from canopy.fetch.options import Box
from canopy.fetch.remote import Ranges, RemoteRaster, open_ranges
from canopy.fetch.windows import copy_window, cut, raster_place, require_corner
from canopy.http import redacted
from canopy.imagery.remote import RemoteFile
from canopy.lidar.headers import check_header
from tiles.cog import read_every_block


@dataclass(frozen=True)
class Part:
    """A file of a tile, or its part in an area."""

    api: NeonApi
    """Service."""
    crs: CRS
    """CRS of all tiles of the visit."""
    file: NeonFile
    """File of the listing."""
    bounds: Box | None
    """Part of the tile that is needed; the whole tile if None."""

    @property
    def identity(self) -> str:
        """What decides the bytes."""
        return f"{self.file.name} {self.file.size} {self.file.crc32c} {self.bounds or 'whole'}"

    def write(self, draft: Path, meter: Meter) -> dict[str, Any]:
        """Download the whole file, check its bytes and where it lies, and write the part that is needed."""
        file = self.file
        whole = draft if self.bounds is None else draft.with_name(f"{draft.name}.whole")
        checksum = crc32c(file.crc32c, file.name) if file.crc32c else None
        # What an earlier run downloaded is taken if its bytes are right; what it began is continued.
        if not (checksum and whole.is_file() and whole.stat().st_size == file.size and checksum.matches(whole)):
            download(
                self.api.client,
                self._addresses(),
                whole,
                headers=self.api.download_headers(file.url),
                size=file.size or None,
                checksum=checksum,
                report=lambda progress: meter(progress.done * 1e6),
            )
        self._check(whole, every_block=checksum is None)
        if self.bounds is not None:
            cut(whole, self.bounds, draft)
            whole.unlink()
        checked = "CRC-32C" if checksum else "every block"
        return {"source": redacted(file.url), "crc32c": file.crc32c, "window": self._window(), "checked": checked}

    def write_window(self, draft: Path, meter: Meter) -> dict[str, Any]:
        """Copy the part of a mosaic by ranges."""
        ranges = file_ranges(self.api, self.file)
        remote = open_ranges(ranges, self.file.url)
        if self.file.size and remote.size != self.file.size:
            raise SourceError(
                f"{self.file.name}: {remote.size} bytes, expected the {self.file.size} that the listing states"
            )
        assert self.bounds is not None
        with RemoteRaster(remote) as raster:
            source = raster.dataset
            crs = CRS(source.crs.to_wkt()) if source.crs else None
            require_corner(tuple(source.bounds), crs, self.file.tile, self.crs, self.file.name)
            copy_window(raster, self.bounds, draft, meter)
        return {
            "source": redacted(self.file.url),
            "etag": remote.etag,
            "source_bytes": remote.size,
            "window": self._window(),
            "requests": ranges.requests,
            "checked": "size, entity tag and every block",
        }

    def _check(self, path: Path, every_block: bool) -> None:
        """Refuse a file that is damaged or lies elsewhere than its name says."""
        if self.file.kind == "clouds":
            check_header(path)
            return
        bounds, crs = raster_place(path)
        require_corner(bounds, crs, self.file.tile, self.crs, self.file.name)
        if every_block:
            for _ in read_every_block(path):
                pass

    def _window(self) -> list[float] | None:
        return None if self.bounds is None else list(self.bounds)

    def _addresses(self) -> Callable[[], str]:
        """Return a function that gives the listed address first, and a fresh one each time that it is refused."""
        listed: Iterator[str] = iter([self.file.url])
        return lambda: next(listed, None) or self.api.fresh_url(self.file)


def remote_file(api: NeonApi, file: NeonFile) -> RemoteFile:
    """Open a file of the service for reading by ranges."""
    return open_ranges(file_ranges(api, file), file.url)


def file_ranges(api: NeonApi, file: NeonFile) -> Ranges:
    """Return what asks for ranges of a file of the service."""
    return Ranges(api.client, file.url, api.download_headers(file.url), lambda: api.fresh_url(file))
