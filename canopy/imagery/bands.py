"""Which bands of a raster are its colours, and which is its opacity: declarations checked against the values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from canopy.errors import ImageryError
from canopy.imagery.files import shown

_ALIASES = {"r": "red", "g": "green", "b": "blue"}
_BLUE_FIRST = -0.2


class ColourModel(Enum):
    """What the colour bands of a file mean, and the names that mark them."""

    RGB = ("red", "green", "blue")
    CMYK = ("cyan", "magenta", "yellow", "black")
    YCBCR = ("y", "cb", "cr")
    GRAY = ("gray",)
    PALETTE = ("palette",)


@dataclass(frozen=True)
class Bands:
    """Bands of a file that hold its colours."""

    colours: tuple[int, ...]
    """1-based bands, in the order of the colour model's names."""
    model: ColourModel
    alpha: int | None
    """1-based band of opacity."""
    note: str
    """How the bands were chosen, for `describe()`."""
    warning: str | None = None
    """What the user should know of the choice."""


def choose_bands(dataset: DatasetReader, requested: Sequence[int] | None = None, alpha: int | None = None) -> Bands:
    """Choose the colours: as requested, by colour interpretation, by band names, then by number of bands.

    Args:
        dataset: An open raster.
        requested: 1-based bands of red, green and blue, from the user.
        alpha: 1-based band of opacity, which is no colour.

    Raises:
        ImageryError: A requested band does not exist, or nothing says which band is which.
    """
    if requested is not None:
        return _requested_bands(dataset, requested, alpha)
    # Interpretation before names: GDAL reads it from the format itself, names are free text.
    interpretations = [kind.name.lower() for kind in dataset.colorinterp]
    for model in (ColourModel.RGB, ColourModel.CMYK, ColourModel.YCBCR):
        if named := _by_name(interpretations, model.value):
            return Bands(named, model, alpha, f"bands {_join(named)} ({_interpreted(model)})")
    if named := _by_name(dataset.descriptions, ColourModel.RGB.value):
        return Bands(named, ColourModel.RGB, alpha, f"bands {_join(named)} (band names)")
    return _by_count(dataset, alpha)


def _interpreted(model: ColourModel) -> str:
    return "colour interpretation" if model is ColourModel.RGB else f"{model.name}, converted to RGB"


def _requested_bands(dataset: DatasetReader, requested: Sequence[int], alpha: int | None) -> Bands:
    """Check the bands that the user named."""
    if len(requested) != 3 or not all(1 <= band <= dataset.count for band in requested):
        raise ImageryError(
            f"{shown(dataset.name)}: bands {_join(requested)} are requested, expected three numbers from 1 to "
            f"{dataset.count} (red,green,blue); correct --bands"
        )
    opacity = alpha if alpha not in requested else None
    note = f"bands {_join(requested)} (as asked)"
    if len(set(requested)) > 1:
        return Bands(tuple(requested), ColourModel.RGB, opacity, note)
    palette = dataset.colorinterp[requested[0] - 1] == ColorInterp.palette
    return Bands((requested[0],), ColourModel.PALETTE if palette else ColourModel.GRAY, opacity, note)


def _by_name(names: Sequence[str | None], colours: Sequence[str]) -> tuple[int, ...] | None:
    """Return the 1-based bands of the colours when each is named exactly once."""
    plain = [(name or "").strip().lower() for name in names]
    plain = [_ALIASES.get(name, name) for name in plain]
    if any(plain.count(colour) != 1 for colour in colours):
        return None
    return tuple(plain.index(colour) + 1 for colour in colours)


def _by_count(dataset: DatasetReader, alpha: int | None) -> Bands:
    """Choose by the number of bands: one is panchromatic or a palette, three are in order."""
    colours = tuple(band for band in range(1, dataset.count + 1) if band != alpha)
    if len(colours) == 1:
        if dataset.colorinterp[colours[0] - 1] == ColorInterp.palette:
            return Bands(colours, ColourModel.PALETTE, alpha, f"band {colours[0]} (palette expanded to RGB)")
        return Bands(colours, ColourModel.GRAY, alpha, f"band {colours[0]} (panchromatic, as red, green and blue)")
    if len(colours) == 3:
        return Bands(colours, ColourModel.RGB, alpha, f"bands {_join(colours)} (in order)")
    raise ImageryError(
        f"{shown(dataset.name)}: {len(colours)} bands without colour names, expected red, green and blue marked "
        "(could be RGBN or BGRN); say which with --bands, for instance --bands 1,2,3 or --bands 3,2,1"
    )


def with_infrared(bands: Bands, alpha: int, colours: NDArray[Any]) -> Bands:
    """Return the bands of a file whose declared alpha is data: its other declarations are the driver's defaults too.

    Light decides which of the outer bands is blue: what the sun lights is yellowish, shadows are lit by the blue sky.
    So brightness and red minus blue correlate: above -.2 in 99 % of 555 aerial images of forest, farmland and towns.

    Args:
        bands: The bands as declared.
        alpha: The declared alpha.
        colours: (3, n) sample of the bands declared red, green and blue.
    """
    note = f"band {alpha}, declared alpha, has many values: data, not opacity"
    red, green, blue = colours.astype(np.float64)
    brightness, warmth = red + green + blue, red - blue
    # Pearson correlation; an image of one brightness or one colour has none and stays in its order.
    spread = float(brightness.std() * warmth.std())
    correlation = float(np.mean((brightness - brightness.mean()) * (warmth - warmth.mean()))) / spread if spread else 0
    first, second, third = bands.colours
    if correlation < _BLUE_FIRST:
        order = (third, second, first)
        how = f"shadows are bluest in band {first}, so {_join(order)} are taken for red, green, blue (BGRN)"
    else:
        order = (first, second, third)
        how = f"{_join(order)} are taken for red, green, blue (RGBN)"
    return replace(bands, colours=order, note=f"bands {_join(order)} ({note})", warning=(
        f"{note}; {how}; say the order with --bands, or --alpha if it is opacity"
    ))  # fmt: skip


def _join(bands: Sequence[int]) -> str:
    return ",".join(map(str, bands))
