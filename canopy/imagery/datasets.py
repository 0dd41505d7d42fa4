"""Opening of raster files: formats that name nothing else, references checked first, failures in one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from canopy.errors import ImageryError, one_line
from canopy.imagery.files import shown
from canopy.imagery.identity import Stamp, stamp
from canopy.imagery.references import Reach, check_overviews, drivers, members
from canopy.imagery.remote import DIRECT, Access, failures, forget, is_remote_file, open_remote

_GDAL = {
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}
_NO_NETWORK = {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none"}
"""For VRTs: what their members name once more stays closed too."""

logging.getLogger("rasterio").addHandler(logging.NullHandler())


@contextmanager
def gdal(path: str, *, network: bool = True) -> Iterator[None]:
    """Run GDAL calls on a file; failures become one-line errors that name the file."""
    try:
        with failures(), rasterio.Env(**_GDAL | ({} if network else _NO_NETWORK)):
            yield
    except RasterioError as error:
        raise ImageryError(
            f"{shown(path)}: cannot be read ({shown(one_line(error))}), expected an undamaged raster; copy or "
            "download it again"
        ) from error


def open_dataset(path: str, access: Access = DIRECT, overview: int | None = None) -> DatasetReader:
    """Open a file on its own GDAL handle, in a format that names no addresses.

    Args:
        path: The file.
        access: How it is asked for where it is remote.
        overview: Number of the overview that is opened in place of the file's own pixels.
    """
    options = {} if overview is None else {"OVERVIEW_LEVEL": overview}
    with gdal(path):
        if is_remote_file(path):
            return open_remote(path, access, **options)
        return DatasetReader(path, driver=list(drivers(path)), sharing=False, **options)


@dataclass(frozen=True)
class OpenFile:
    """An open raster whose references were checked."""

    path: str
    """Path or address, as the user or a catalogue names it."""
    access: Access
    """How the file is asked for where it is remote."""
    dataset: DatasetReader
    members: tuple[str, ...]
    """Files of which it is made."""
    stamps: tuple[Stamp, ...]
    """Stamps of it and of its members."""


@contextmanager
def opened(path: str, reach: Reach, access: Access = DIRECT) -> Iterator[OpenFile]:
    """Open a file after checking what it names; a remote one is asked for again.

    Raises:
        ImageryError: The file cannot be read, or names files that may not be read.
    """
    # Stamped before anything is read: a file that changes from here on is noticed.
    forget(path, access)
    stamp(path, access=access)
    parts = members(path, reach)
    stamps = stamp(path, parts, access)
    with quiet(), gdal(path, network=not parts), open_dataset(path, access) as dataset:
        # GDAL opens overviews on the first decimated read, so there is time to look at their name.
        check_overviews(path, dataset.tags(ns="OVERVIEWS"), reach)
        yield OpenFile(path, access, dataset, parts, stamps)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning on files without georeference: `read_placement` makes it an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
