"""Files and addresses that a raster names: what a stranger's file can make GDAL open.

GDAL follows every name inside a VRT, be it an address or any file of the machine. So the names are read first: members
below the VRT's own folder, or below imagery that the user named, are read; other local files where the user allows
them; addresses never.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from canopy.errors import ImageryError
from canopy.imagery.files import REMOTE, Listing, local_part, shown

_PLAIN_DRIVERS = (
    "GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "HFA", "NITF", "PNG", "JPEG", "JPEGXL", "WEBP", "BMP", "GIF", "BIGGIF",
    "ENVI", "EHdr", "GPKG", "MBTiles",
)  # fmt: skip
"""Formats whose pixels lie in the file itself; others name addresses or further files."""
_MAGIC = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG", b"\xff\xd8", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51",
    b"EHFA_HEADER_TAG", b"NITF", b"NSIF", b"RIFF", b"BM", b"GIF8", b"SQLite format 3",
)  # fmt: skip
"""First bytes of such files."""

_NAMED_FILES = frozenset({"sourcefilename", "sourcedataset", "dempath"})
_KEYED = frozenset({"mdi", "argument", "option", "ooi"})
_NAMED_BY_KEY = re.compile(
    r"^(x_dataset|y_dataset|overview_file|rpc_dem|dem|(src_|dst_)?geoloc_array)$|filename", re.IGNORECASE
)
_CODE = frozenset({"pixelfunctioncode"})
_LOOKED_AT = _NAMED_FILES | _KEYED | _CODE
_NO_PATH = re.compile(r"^[A-Za-z][A-Za-z0-9_+.-]+:|^[<{]|://")
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Reach:
    """Places from which files that rasters name may be read."""

    roots: tuple[Path, ...] = ()
    """Folders and files that the user named."""
    allow_outside: bool = False
    """Whether any local file may be read."""

    @classmethod
    def of(cls, listings: Sequence[Listing], allow_outside: bool) -> "Reach":
        """Return the reach that the user's own words give."""
        files = [Path(path) for one in listings for path in one.paths if one.kind == "file"]
        folders = [one.root for one in listings if one.root is not None]
        return cls((*folders, *files), allow_outside)

    def check(self, raster: str, member: Path) -> None:
        """Raise an ImageryError where a member of a raster lies outside."""
        # Resolved: a link inside the folder may lead out of it.
        resolved, own = member.resolve(), Path(raster).resolve().parent
        if self.allow_outside or any(resolved.is_relative_to(root.resolve()) for root in (own, *self.roots)):
            return
        raise ImageryError(
            f"{raster}: its member {member} lies outside its folder; if you trust the file, put it above its members, "
            "name their folder as imagery too, or pass --allow-outside"
        )


@dataclass(frozen=True)
class _Name:
    """A file name in a VRT."""

    text: str
    relative: bool
    """Whether the name is relative to the VRT's folder."""
    raw: bool
    """Whether GDAL reads the file's bytes as pixels, without a format."""


def drivers(path: str) -> tuple[str, ...]:
    """Return the formats in which GDAL may open a path; a VRT only where `members` has read it."""
    return (*_PLAIN_DRIVERS, "VRT") if local_part(path) == Path(path) else _PLAIN_DRIVERS


def members(path: str, reach: Reach, parents: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """List the local files that a raster is made of, those of nested VRTs included; empty for one that is no VRT.

    Args:
        path: The raster.
        reach: Places where its members may lie.
        parents: VRTs that lead to this one.

    Raises:
        ImageryError: A member is missing (GDAL would read it as nodata), lies outside, is an address, or is no plain
            raster; or the file is a text that describes data elsewhere.
    """
    if local_part(path) != Path(path):
        return ()
    if not is_vrt(path):
        _require_pixels(path)
        return ()
    # A dictionary for its order: stamps and messages follow the VRT.
    listed: dict[str, None] = {}
    for name in _names(path):
        member = _member(path, name)
        if str(member) in listed or str(member) in parents:
            continue
        # Where it lies before whether it exists: a message must not reveal what other folders contain.
        reach.check(path, member)
        if not member.exists():
            raise ImageryError(f"{path}: its member {member} is missing; restore it or build the VRT again")
        listed[str(member)] = None
        if not name.raw:
            _require_plain(path, member)
            listed |= dict.fromkeys(members(str(member), reach, parents | {path, str(member)}))
    return tuple(listed)


def is_vrt(path: str) -> bool:
    """Return whether a local file is a VRT, whatever its suffix."""
    return b"<VRTDataset" in _head(path) or path.lower().endswith(".vrt")


def _require_pixels(path: str) -> None:
    """Refuse a text, such as the description of a tile service."""
    if _head(path).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"<", b"{"):
        raise ImageryError(
            f"{path}: a text that describes data elsewhere, expected a raster; addresses inside files are not "
            "followed, download the data"
        )


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _require_plain(vrt: str, member: Path) -> None:
    """Refuse a member that GDAL would open in a format that names further files or addresses."""
    if not (_head(str(member)).startswith(_MAGIC) or is_vrt(str(member))):
        raise ImageryError(
            f"{vrt}: its member {member} is in a format that can name addresses or other files; copy it into a "
            "GeoTIFF with gdal_translate"
        )


def _names(vrt: str) -> Iterator[_Name]:
    """Yield each file name in a VRT.

    GDAL compares names of elements without regard to case and takes an attribute for a child element.
    """
    try:
        root = ElementTree.parse(vrt).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ImageryError(f"{vrt}: not a readable VRT ({error}); build it again with gdalbuildvrt") from error
    raw_bands = [band for band in root.iter() if _plain(band.tag) == "vrtrasterband" and _is_raw(band)]
    raw = {id(element) for band in raw_bands for element in band.iter()}
    for element in root.iter():
        tag = _plain(element.tag)
        # Nearly all elements of a large mosaic end here.
        if tag not in _LOOKED_AT and _LOOKED_AT.isdisjoint(map(_plain, element.attrib)):
            continue
        attributes = _attributes(element)
        if tag in _CODE or _CODE & attributes.keys():
            raise ImageryError(f"{vrt}: contains program code, which is not run; build it again with gdalbuildvrt")
        key = attributes.get("key") or attributes.get("name") or ""
        if tag in _NAMED_FILES or (tag in _KEYED and _NAMED_BY_KEY.search(key)):
            if len(element):
                raise ImageryError(f"{vrt}: <{tag}> contains elements, expected a name; build it again")
            if text := (element.text or "").strip():
                yield _Name(text, attributes.get("relativetovrt", "").strip() == "1", id(element) in raw)
        for attribute in _NAMED_FILES & attributes.keys():
            yield _Name(attributes[attribute].strip(), False, False)


def _is_raw(band: ElementTree.Element) -> bool:
    return _attributes(band).get("subclass", "").lower() == "vrtrawrasterband"


@lru_cache(maxsize=4096)
def _plain(tag: object) -> str:
    """Return the name of an element or attribute as GDAL compares it."""
    return str(tag).rpartition("}")[2].lower()


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    return {_plain(key): text for key, text in element.attrib.items()}


def _member(vrt: str, name: _Name) -> Path:
    """Return the local file that a name in a VRT means; refuse addresses and connection strings."""
    if name.text.startswith(REMOTE):
        raise ImageryError(
            f"{vrt}: its member {shown(name.text)[:200]} is an address or lies in an archive, and neither is followed; "
            "download or unpack it, or name it as imagery yourself"
        )
    # Not relative means relative to the working folder, in GDAL too.
    path = Path(vrt).parent / name.text if name.relative else Path(name.text)
    if _NO_PATH.search(name.text) and not path.exists():
        raise ImageryError(
            f"{vrt}: its member {shown(name.text)[:200]!r} is no plain file; copy it into a GeoTIFF with gdal_translate"
        )
    return path


def check_overviews(raster: str, tags: Mapping[str, str], reach: Reach) -> None:
    """Raise an ImageryError where a raster's tags name overviews at an address or outside.

    Args:
        raster: The raster.
        tags: Its tags of the domain OVERVIEWS.
        reach: Places where its files may lie.
    """
    for key, text in tags.items():
        if key.upper() == "OVERVIEW_FILE":
            plain = text.removeprefix(":::BASE:::")
            reach.check(raster, _member(raster, _Name(plain, plain != text, raw=False)))
