"""Which bands of a raster are red, green and blue."""

from collections.abc import Sequence
from dataclasses import dataclass

from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from canopy.errors import ImageryError

_COLOURS = ("red", "green", "blue")
_NAMES = {"r": "red", "g": "green", "b": "blue"}


@dataclass(frozen=True)
class Bands:
    """Bands of a file that hold its colours."""

    rgb: tuple[int, int, int]
    """1-based bands of red, green and blue; one three times for a panchromatic or palette image."""
    alpha: int | None
    """1-based alpha band."""
    note: str
    """How the bands were chosen, for `describe()`."""
    palette: bool = False
    """Whether the one band indexes a colour table."""


def choose_bands(dataset: DatasetReader, requested: Sequence[int] | None = None) -> Bands:
    """Choose red, green and blue: as requested, by colour interpretation, by band names, then by number of bands.

    Args:
        dataset: An open raster.
        requested: 1-based bands of red, green and blue, from the user.

    Raises:
        ImageryError: A requested band does not exist, or nothing says which band is which.
    """
    alpha = next((i for i, kind in enumerate(dataset.colorinterp, 1) if kind == ColorInterp.alpha), None)
    if requested is not None:
        return _requested_bands(dataset, requested, alpha)
    named = _by_name([kind.name for kind in dataset.colorinterp])
    if named:
        return Bands(named, alpha, f"bands {_join(named)} (colour interpretation)")
    named = _by_name(dataset.descriptions)
    if named:
        return Bands(named, alpha, f"bands {_join(named)} (band names)")
    return _by_count(dataset, alpha)


def _requested_bands(dataset: DatasetReader, requested: Sequence[int], alpha: int | None) -> Bands:
    """Check the bands that the user named."""
    if len(requested) != 3 or not all(1 <= band <= dataset.count for band in requested):
        raise ImageryError(
            f"{dataset.name}: bands {_join(requested)} are requested, expected three numbers from 1 to "
            f"{dataset.count} (red,green,blue); correct --bands"
        )
    red, green, blue = requested
    return Bands((red, green, blue), alpha if alpha not in requested else None, f"bands {_join(requested)} (as asked)")


def _by_name(names: Sequence[str | None]) -> tuple[int, int, int] | None:
    """Return the 1-based bands of red, green and blue when each is named exactly once."""
    plain = [(name or "").strip().lower() for name in names]
    plain = [_NAMES.get(name, name) for name in plain]
    if any(plain.count(colour) != 1 for colour in _COLOURS):
        return None
    red, green, blue = (plain.index(colour) + 1 for colour in _COLOURS)
    return red, green, blue


def _by_count(dataset: DatasetReader, alpha: int | None) -> Bands:
    """Choose by the number of bands: one is panchromatic or a palette, three are in order."""
    colours = [band for band in range(1, dataset.count + 1) if band != alpha]
    if len(colours) == 1:
        band = colours[0]
        if dataset.colorinterp[band - 1] == ColorInterp.palette:
            return Bands((band, band, band), alpha, f"band {band} (palette expanded to RGB)", palette=True)
        return Bands((band, band, band), alpha, f"band {band} (panchromatic, as red, green and blue)")
    if len(colours) == 3:
        red, green, blue = colours
        return Bands((red, green, blue), alpha, f"bands {_join(colours)} (in order)")
    raise ImageryError(
        f"{dataset.name}: {len(colours)} bands without colour names, expected red, green and blue marked "
        "(could be RGBN or BGRN); say which with --bands, for instance --bands 1,2,3 or --bands 3,2,1"
    )


def _join(bands: Sequence[int]) -> str:
    return ",".join(map(str, bands))
