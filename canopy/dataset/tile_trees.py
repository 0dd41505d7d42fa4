"""Where a web map tile lies, read from its path: z/x/y or quadkey, as satellite providers deliver mosaics."""

import re
from pathlib import Path

WEB_MERCATOR = "EPSG:3857"
_HALF_M = 20_037_508.342789244
_QUADKEY = re.compile(r"[0-3]{6,}")
_IMAGES = {".png", ".jpg", ".jpeg", ".webp"}


def place_tile(path: Path) -> tuple[tuple[float, ...], str] | None:
    """Affine of the whole tile (a side is 1) and CRS, or None for a path of neither kind.

    A quadkey has at least six digits, so that a numbered photograph is not taken for one.
    """
    if path.suffix.lower() not in _IMAGES:
        return None
    if _QUADKEY.fullmatch(path.stem):
        return _place(*from_quadkey(path.stem))
    parts = (*path.parts[-3:-1], path.stem)
    if len(parts) == 3 and all(part.isascii() and part.isdecimal() for part in parts):
        zoom, x, y = (int(part) for part in parts)
        if zoom <= 30 and max(x, y) < 2**zoom:
            return _place(zoom, x, y)
    return None


def from_quadkey(key: str) -> tuple[int, int, int]:
    """Zoom, column and row of a quadkey: each digit holds one bit of both."""
    x = sum((int(digit) & 1) << place for place, digit in enumerate(reversed(key)))
    y = sum((int(digit) >> 1) << place for place, digit in enumerate(reversed(key)))
    return len(key), x, y


def _place(zoom: int, x: int, y: int) -> tuple[tuple[float, ...], str]:
    side = 2 * _HALF_M / 2**zoom
    return (side, 0.0, -_HALF_M + x * side, 0.0, -side, _HALF_M - y * side), WEB_MERCATOR
