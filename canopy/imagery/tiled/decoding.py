"""The one decoder of tiles, and what is no picture of the ground: pages, messages, blanks, tiles of one colour."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from canopy.errors import one_line
from canopy.http import excerpt

FORMATS = ("JPEG", "PNG", "WEBP")
_FIRST_BYTES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_TRANSPARENT = ("RGBA", "LA", "PA")
_PLAIN = ("RGB", "L", "P", "1")


class TileContentError(Exception):
    """Bytes that are no tile; the message says what they are, without their address."""


@dataclass(frozen=True)
class Tile:
    """A decoded tile."""

    values: NDArray[np.uint8]
    """(3, h, w) red, green, blue."""
    valid: NDArray[np.bool_] | None
    """(h, w) whether a pixel is known; None where all are."""


@dataclass(frozen=True)
class Unknown:
    """What means "no imagery here", besides an absent tile and one of a single colour."""

    sizes: tuple[int, ...] = ()
    """Lengths in bytes of a service's blank tile."""
    hashes: tuple[str, ...] = ()
    """Beginnings of the sha256 of a service's blank tile."""
    value: float | None = None
    """Value of all three colours of an unknown pixel; None for none."""

    def is_blank(self, content: bytes) -> bool:
        """Return whether a service's answer is its blank tile."""
        if len(content) in self.sizes:
            return True
        return bool(self.hashes) and sha256(content).hexdigest().startswith(self.hashes)


def decode(content: bytes, tile_px: tuple[int, int], unknown: Unknown) -> Tile | None:
    """Decode a tile.

    Args:
        content: What a service sent, or a file contains.
        tile_px: Expected width and height.
        unknown: What means "no imagery here".

    Returns:
        The tile; None where it is blank, fully transparent, or of one colour throughout, as no ground is.

    Raises:
        TileContentError: The bytes are no tile of that size.
    """
    if not content or unknown.is_blank(content):
        return None
    _require_picture(content)
    rgb, valid = _pixels(content, tile_px)
    if unknown.value is not None:
        measured = (rgb != np.uint8(unknown.value)).any(axis=0) if 0 <= unknown.value <= 255 else None
        valid = measured if valid is None or measured is None else valid & measured
    # The first row settles it for nearly all tiles; all pixels of each would take a tenth of the decoding.
    one_colour = (rgb[:, 0] == rgb[:, 0, :1]).all() and (rgb == rgb[:, :1, :1]).all()
    if (valid is not None and not valid.any()) or one_colour:
        return None
    return Tile(rgb, None if valid is None or valid.all() else valid)


def _require_picture(content: bytes) -> None:
    """Refuse a page or a message, which services send with status 200."""
    if content.startswith(_FIRST_BYTES):
        return
    start = content[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = "a text of HTML or XML" if start.startswith(b"<") else "a text of JSON" if start[:1] in b"{[" else "a file"
    said = f" ({excerpt(content)})" if start[:1] in (b"<", b"{", b"[") else ""
    raise TileContentError(f"{kind}{said}, expected a tile in {', '.join(FORMATS)}")


def _pixels(content: bytes, tile_px: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return (3, h, w) colours and where they are opaque, None for a picture without opacity."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            # Before decoding, so that a small file cannot claim memory.
            if picture.size != tile_px:
                raise TileContentError(
                    f"{picture.width} x {picture.height} px, expected {tile_px[0]} x {tile_px[1]}; a service of larger "
                    "tiles is named with #tile=512"
                )
            if picture.mode in _TRANSPARENT or "transparency" in picture.info:
                rgba = np.asarray(picture.convert("RGBA"))
                return np.moveaxis(rgba[..., :3], -1, 0), rgba[..., 3] > 0
            if picture.mode not in _PLAIN:
                raise TileContentError(f"a picture of mode {picture.mode}, expected 8-bit RGB or grey")
            coloured = picture if picture.mode == "RGB" else picture.convert("RGB")
            return np.moveaxis(np.asarray(coloured), -1, 0), None
    # Pillow meets damage with errors of any kind: SyntaxError for a broken PNG, struct.error for a cut one.
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError) as error:
        raise TileContentError(f"a damaged picture ({one_line(error, 120)}), expected an undamaged one") from error


def declared_blanks(texts: Collection[str]) -> Unknown:
    """Return the blanks that an address names: lengths in bytes, or the first 8 and more digits of a sha256."""
    sizes = tuple(int(text) for text in texts if text.isdecimal() and len(text) < 8)
    hashes = tuple(text.lower() for text in texts if not (text.isdecimal() and len(text) < 8))
    return Unknown(sizes, hashes)
