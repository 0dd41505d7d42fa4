"""The identity of files: whether they are still the ones that were opened."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from canopy.errors import ImageryError
from canopy.imagery.files import local_part, shown
from canopy.imagery.remote import DIRECT, Access, is_remote_file, remote_file

_PIXEL_SIDE_FILES = (".msk", ".ovr", ".msk.ovr")
"""Side files with pixels of a raster; what world files and .aux.xml say is part of a scene's facts instead.

A viewer may write statistics into .aux.xml during a run, which change no pixel.
"""


@dataclass(frozen=True)
class Stamp:
    """Identity of a file at one moment; one that GDAL reaches by itself (/vsicurl/) has only its path."""

    path: str
    size: int = -1
    mtime_ns: int = -1
    etag: str = ""
    """Entity tag of a remote file, else the time of its last change."""

    @classmethod
    def of(cls, path: str) -> "Stamp":
        """Read the stamp of a path; a missing file has the stamp of a remote one."""
        try:
            status = Path(path).stat()
        except OSError:
            return cls(path)
        return cls(path, status.st_size, status.st_mtime_ns)

    @classmethod
    def of_remote(cls, address: str, access: Access) -> "Stamp":
        """Read the stamp of a remote file, as it was when this process first asked for it."""
        file = remote_file(address, access)
        # A signature in the address changes from day to day, the entity tag with the file alone.
        return cls(shown(address) if file.etag else address, file.size, etag=file.etag)


def stamp(path: str, members: Iterable[str] = (), access: Access = DIRECT) -> tuple[Stamp, ...]:
    """Return the stamps of all files that hold a raster's pixels.

    Args:
        path: The raster.
        members: Files of which it is made.
        access: How the raster is asked for where it is remote.

    Raises:
        ImageryError: The file is empty.
    """
    if is_remote_file(path):
        return (Stamp.of_remote(path, access),)
    local = local_part(path)
    if local is None:
        return (Stamp(path),)
    if (status := Stamp.of(str(local))).size == 0:
        raise ImageryError(f"{path}: 0 bytes, expected a raster; copy or download the file again")
    rasters = [str(local), *members]
    sides = [side for raster in rasters for end in _PIXEL_SIDE_FILES if Path(side := f"{raster}{end}").exists()]
    return (status, *map(Stamp.of, dict.fromkeys((*rasters[1:], *sides))))


def check_unchanged(path: str, stamps: Sequence[Stamp], access: Access = DIRECT) -> None:
    """Raise an ImageryError where a raster's file is not the one that was opened."""
    if is_remote_file(path):
        # Within a process each answer is compared; here a worker compares its own first answer with the run's.
        if (Stamp.of_remote(path, access),) != tuple(stamps):
            raise ImageryError(
                f"{shown(path)}: replaced since it was opened, expected the same size and entity tag; start the run "
                "again"
            )
        return
    for old in stamps:
        if old.size >= 0 and Stamp.of(old.path) != old:
            raise ImageryError(
                f"{old.path}: replaced or removed since it was opened, expected the same size and "
                "modification time; start the run again"
            )
