"""Where a web map tile lies, read from its path: z/x/y or quadkey, as satellite providers deliver mosaics."""

import re
from dataclasses import dataclass
from pathlib import Path

from affine import Affine

WEB_MERCATOR = "EPSG:3857"
_HALF_M = 20_037_508.342789244
"""Half of the map's side, metres of web mercator."""
_QUADKEY = re.compile(r"[0-3]{6,}")
_IMAGES = {".png", ".jpg", ".jpeg", ".webp"}
_MAX_ZOOM = 30


@dataclass(frozen=True)
class MapTile:
    """Ground of a web map tile."""

    transform: Affine
    """Unit square, (0, 0) its upper-left corner, to coordinates."""
    crs: str = WEB_MERCATOR
    """CRS of the coordinates."""


def locate_tile(path: Path) -> MapTile | None:
    """Return the ground of a tile, or None for a path of neither kind.

    A quadkey has at least six digits, so that a numbered photograph is not taken for a tile.

    Args:
        path: Image file: zoom/column/row or a quadkey before the suffix.
    """
    if path.suffix.lower() not in _IMAGES:
        return None
    if _QUADKEY.fullmatch(path.stem):
        return _tile(*from_quadkey(path.stem))
    parts = (*path.parts[-3:-1], path.stem)
    if len(parts) == 3 and all(part.isascii() and part.isdecimal() for part in parts):
        zoom, x, y = (int(part) for part in parts)
        if zoom <= _MAX_ZOOM and max(x, y) < 2**zoom:
            return _tile(zoom, x, y)
    return None


def from_quadkey(key: str) -> tuple[int, int, int]:
    """Return zoom, column and row of a quadkey: each digit carries one bit of both."""
    x = sum((int(digit) & 1) << bit for bit, digit in enumerate(reversed(key)))
    y = sum((int(digit) >> 1) << bit for bit, digit in enumerate(reversed(key)))
    return len(key), x, y


def _tile(zoom: int, x: int, y: int) -> MapTile:
    side = 2 * _HALF_M / 2**zoom
    return MapTile(Affine(side, 0.0, -_HALF_M + x * side, 0.0, -side, _HALF_M - y * side))
