"""All files that decide what is read from a raster, and the digest of their bytes.

GDAL reads more than the file that is named: georeference from world files, ``.prj`` and ``.aux.xml``, nodata from
``.aux.xml``, masks, overviews, and the pixels of a VRT from its members. A store that knew only the named file would go
on with old pixels, or mix two georeferences, when one of the others changed.
"""

from collections.abc import Iterator
from pathlib import Path

from canopy.errors import DatasetError, ImageryError, one_line
from canopy.imagery.references import Reach, members
from tiles.files import file_sha256

_AFTER_NAME = (".aux.xml", ".msk", ".ovr", ".msk.ovr", ".msk.aux.xml", ".ovr.aux.xml")
"""Endings of companions that keep the raster's whole name."""
_AFTER_STEM = (".wld", ".prj", ".aux", ".aux.xml", ".tab", ".map", ".msk", ".ovr")
"""Endings of companions in place of the raster's suffix; world files are named after the suffix besides."""
_ANY_MEMBER = Reach(allow_outside=True)


def input_files(path: Path) -> tuple[Path, ...]:
    """List a file and all others that decide what GDAL reads from it: companions, and the members of a VRT with theirs.

    Raises:
        ImageryError: A VRT that cannot be parsed, or a member that is missing or is no plain file.
    """
    files = [path, *map(Path, members(str(path), _ANY_MEMBER))]
    return tuple(dict.fromkeys(one for file in files for one in (file, *_companions(file))))


def content(path: Path) -> list[tuple[str, str]]:
    """Return name and sha256 of each input file; a name may say the date, and ties members to their VRT.

    A VRT that cannot be followed is known by its own bytes and by what is wrong with it, and the scene is then dropped
    as damaged when it is read.

    Raises:
        DatasetError: A file cannot be read.
    """
    try:
        files, fault = input_files(path), []
    except ImageryError as error:
        files, fault = (path, *_companions(path)), [("", one_line(error))]
    return [_named_sha256(file) for file in files] + fault


def _named_sha256(path: Path) -> tuple[str, str]:
    try:
        return path.name, file_sha256(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _companions(path: Path) -> Iterator[Path]:
    """Yield the companions of a file that exist."""
    suffix = path.suffix
    # scene.tif has the world file scene.tfw or scene.tifw.
    worlds = (f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w") if len(suffix) > 2 else ()
    names = [f"{path.name}{end}" for end in _AFTER_NAME] + [f"{path.stem}{end}" for end in (*_AFTER_STEM, *worlds)]
    # GDAL also takes scene.TFW.
    upper = [name[: len(path.stem)] + name[len(path.stem) :].upper() for name in names]
    yield from (one for name in (*names, *upper) if (one := path.with_name(name)) != path and one.is_file())
