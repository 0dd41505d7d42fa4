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
    """Run GDAL calls on a file; failures become one-line ImageryErrors that name the file."""
    try:
        with rasterio.Env(**_GDAL | ({} if network else _NO_NETWORK)):
            yield
    except RasterioError as error:
        raise ImageryError(
            f"{shown(path)}: cannot be read ({shown(one_line(error))}), expected an undamaged raster; copy or "
            "download it again"
        ) from error


def open_dataset(path: str) -> DatasetReader:
    """Open a file on its own GDAL handle, in a format that names no addresses."""
    with gdal(path):
        return DatasetReader(path, driver=list(drivers(path)), sharing=False)


@dataclass(frozen=True)
class OpenFile:
    """An open raster whose references were checked."""

    dataset: DatasetReader
    members: tuple[str, ...]
    """Files of which it is made."""
    stamps: tuple[Stamp, ...]
    """Stamps of it and of its members."""


@contextmanager
def opened(path: str, reach: Reach) -> Iterator[OpenFile]:
    """Open a file after checking what it names.

    Raises:
        ImageryError: The file cannot be read, or names files that may not be read.
    """
    # Stamped before anything is read: a file that changes from here on is noticed.
    stamp(path)
    parts = members(path, reach)
    stamps = stamp(path, parts)
    with quiet(), gdal(path, network=not parts), open_dataset(path) as dataset:
        # GDAL opens overviews on the first decimated read, so there is time to look at their name.
        check_overviews(path, dataset.tags(ns="OVERVIEWS"), reach)
        yield OpenFile(dataset, parts, stamps)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning on files without georeference: `read_placement` makes it an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
