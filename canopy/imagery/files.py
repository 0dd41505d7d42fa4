"""Which rasters an imagery URI means: a file, a folder, a glob, an address, or a list of those."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from canopy.errors import ImageryError

SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".img", ".png", ".jpg", ".jpeg", ".ntf", ".nitf"})
REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "az://", "/vsi")
_ARCHIVES = ("/vsizip/", "/vsitar/", "/vsigzip/", "/vsi7z/")
# At least two letters, so that a drive of Windows is no scheme.
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_OPENER = re.compile(r"/vsiriopener_[0-9a-f]+/")
"""Where rasterio shows a remote file to GDAL."""
_ADDRESS = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/@\s?#'"]*@)?([^\s?#'"]*)[^\s'"()]*""")


@dataclass(frozen=True)
class Listing:
    """Rasters that one URI of the user means."""

    uri: str
    kind: Literal["file", "folder", "glob"]
    paths: tuple[str, ...]
    """Files; those of a folder and a glob are sorted by name."""
    root: Path | None = None
    """Folder that the user named, or that a glob searches."""


def expand(uri: str | Path | Sequence[str | Path]) -> tuple[Listing, ...]:
    """List the rasters that a URI means.

    Args:
        uri: A file, a folder (all rasters below it), a glob, an address, or a list of those.

    Returns:
        One listing for each URI. Earlier files lie on top of later ones.

    Raises:
        ImageryError: A path is missing, a folder contains no raster, or the scheme is not supported.
    """
    uris = [uri] if isinstance(uri, str | Path) else list(uri)
    if not uris:
        raise ImageryError("imagery: an empty list, expected a raster; name a file or a folder")
    return tuple(_expand_one(str(one)) for one in uris)


def _expand_one(uri: str) -> Listing:
    if uri.startswith(REMOTE):
        return Listing(uri, "file", (uri,))
    if _is_dir(uri):
        return Listing(uri, "folder", _folder(uri), Path(uri))
    if _exists(uri):
        return Listing(uri, "file", (uri,))
    if scheme := _SCHEME.match(uri):
        raise ImageryError(
            f"imagery: scheme '{scheme[1]}:' is not supported yet; name a file, a folder, a glob, or an "
            "http(s):// or s3:// address (copy a subdataset into a GeoTIFF with gdal_translate first)"
        )
    root, pattern = _split_glob(uri)
    matches = sorted(glob.glob(pattern, root_dir=root, recursive=True)) if len(uri) < 4096 else []  # noqa: PTH207
    paths = tuple(path for name in matches if _is_raster(Path(path := os.path.join(root or "", name))))  # noqa: PTH118
    if paths:
        return Listing(uri, "glob", paths, Path(root or "."))
    raise ImageryError(f"{uri[:300]}: no such file, expected a raster, a folder or a glob; check the path")


def _split_glob(pattern: str) -> tuple[str | None, str]:
    """Split a glob into the folders that exist under their literal name, ``site[1]`` too, and the rest."""
    parts = Path(pattern).parts
    for count in range(len(parts) - 1, 0, -1):
        if _is_dir(folder := str(Path(*parts[:count]))):
            return folder, str(Path(*parts[count:]))
    return None, pattern


def _is_dir(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _folder(folder: str) -> tuple[str, ...]:
    paths = tuple(sorted(str(path) for path in Path(folder).rglob("*") if _is_raster(path)))
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ImageryError(f"{folder}: no raster in this folder, expected {kinds}; check the path")
    return paths


def _is_raster(path: Path) -> bool:
    """Return whether a file found by searching may be imagery; tiles of an unfinished map are not."""
    unfinished = any(part.endswith(".partial") for part in path.parts[:-1])
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not unfinished and path.is_file()


def is_remote(path: str) -> bool:
    """Return whether GDAL reaches a path over a network."""
    return path.startswith(REMOTE) and local_part(path) is None and not path.startswith("/vsimem/")


def local_part(path: str) -> Path | None:
    """Return the local file behind a path: itself, or the archive of a /vsizip/ path; None for an address."""
    if not path.startswith(REMOTE):
        return Path(path)
    while path.startswith(_ARCHIVES):
        path = path.split("/", 2)[2]
    if path.startswith(REMOTE):
        return None
    # A path such as archive.zip/folder/scene.tif, or {archive.zip}/scene.tif.
    candidate = Path(path.removeprefix("{").partition("}")[0])
    return next((parent for parent in (candidate, *candidate.parents) if parent.is_file()), None)


def shown(text: str) -> str:
    """Return a text with every address in it stripped of user, password, query and fragment."""
    return _ADDRESS.sub(r"\1\2", _OPENER.sub("", text))
