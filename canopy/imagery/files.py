"""Which files an imagery URI means, and whether they are still the same files."""

import glob
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from canopy.errors import ImageryError

SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".img", ".png", ".jpg", ".jpeg", ".ntf", ".nitf"})
REMOTE = ("http://", "https://", "s3://", "gs://", "az://", "/vsi")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_VRT_MEMBER_TAGS = ("SourceFilename", "SourceDataset")


@dataclass(frozen=True)
class Stamp:
    """Identity of a local file at one moment; a remote file has only its path."""

    path: str
    size: int = -1
    mtime_ns: int = -1

    @classmethod
    def of(cls, path: str) -> "Stamp":
        """Read the stamp of a path; a missing file has the stamp of a remote one."""
        try:
            status = Path(path).stat()
        except OSError:
            return cls(path)
        return cls(path, status.st_size, status.st_mtime_ns)


def expand(uri: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """List the rasters that a URI means.

    Args:
        uri: A file, a folder (all rasters below it), a glob or a list of those.

    Returns:
        The paths; a folder and a glob are sorted by name, a list keeps its order. Earlier files lie on top.

    Raises:
        ImageryError: A path is missing, a folder holds no raster, or the scheme is not supported.
    """
    if isinstance(uri, str | Path):
        return _expand_one(str(uri))
    paths = tuple(dict.fromkeys(path for one in uri for path in _expand_one(str(one))))
    if not paths:
        raise ImageryError("imagery: an empty list, expected a raster; name a file or a folder")
    return paths


def _expand_one(uri: str) -> tuple[str, ...]:
    if uri.startswith(REMOTE):
        return (uri,)
    if Path(uri).is_dir():
        return _folder(uri)
    if Path(uri).exists():
        return (uri,)
    if scheme := _SCHEME.match(uri):
        raise ImageryError(
            f"imagery: scheme '{scheme[1]}:' is not supported yet; name a file, a folder, a glob, or an "
            "http(s):// or s3:// address"
        )
    matched = sorted(path for path in glob.glob(uri, recursive=True) if _is_raster(Path(path)))  # noqa: PTH207
    if matched:
        return tuple(matched)
    raise ImageryError(f"{uri}: no such file, expected a raster, a folder or a glob; check the path")


def _folder(folder: str) -> tuple[str, ...]:
    paths = tuple(sorted(str(path) for path in Path(folder).rglob("*") if _is_raster(path)))
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ImageryError(f"{folder}: no raster in this folder, expected {kinds}; check the path")
    return paths


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def stamp(path: str) -> tuple[Stamp, ...]:
    """Return the stamps of a raster, its side files and, for a VRT, its members.

    Raises:
        ImageryError: The file is empty, or a member of a VRT is missing (GDAL would read it as nodata).
    """
    if path.startswith(REMOTE):
        return (Stamp(path),)
    if Path(path).stat().st_size == 0:
        raise ImageryError(f"{path}: 0 bytes, expected a raster; copy or download the file again")
    members = _vrt_members(path, frozenset()) if path.lower().endswith(".vrt") else ()
    sidecars = tuple(side for side in (f"{path}.msk", f"{path}.ovr") if Path(side).exists())
    return tuple(map(Stamp.of, dict.fromkeys((path, *sidecars, *members))))


def _vrt_members(vrt: str, parents: frozenset[str]) -> tuple[str, ...]:
    """List the local files that a VRT reads, nested VRTs included."""
    try:
        tree = ElementTree.parse(vrt)
    except (ElementTree.ParseError, OSError) as error:
        raise ImageryError(f"{vrt}: not a readable VRT ({error}); build it again with gdalbuildvrt") from error
    members: list[str] = []
    for element in (node for tag in _VRT_MEMBER_TAGS for node in tree.iter(tag)):
        member = _member_path(vrt, element)
        if member is None or member in members or member in parents:
            continue
        if not Path(member).exists():
            raise ImageryError(f"{vrt}: its member {member} is missing; restore it or build the VRT again")
        members.append(member)
        if member.lower().endswith(".vrt"):
            members.extend(_vrt_members(member, parents | {vrt, member}))
    return tuple(members)


def _member_path(vrt: str, element: ElementTree.Element) -> str | None:
    """Return a member's local path; None for a remote file or a GDAL connection string, which GDAL itself checks."""
    name = (element.text or "").strip()
    if not name or name.startswith(REMOTE) or (_SCHEME.match(name) and not Path(name).exists()):
        return None
    relative = element.get("relativeToVRT") == "1"
    return str(Path(vrt).parent / name) if relative else name


def check_unchanged(stamps: Sequence[Stamp]) -> None:
    """Raise an ImageryError where a file is not the one that was opened."""
    for old in stamps:
        if old.size >= 0 and Stamp.of(old.path) != old:
            raise ImageryError(
                f"{old.path}: replaced or removed since it was opened, expected the same size and "
                "modification time; start the run again"
            )
