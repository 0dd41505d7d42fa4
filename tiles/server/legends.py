"""Legends of products: the colours in which the server draws a product, with what each of them means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tiles.server.layers import Layer
from tiles.server.tiler import PRODUCT_RAMPS, palette, product_ramp
from tiles.style import CHANGE_LABELS, Ramp

_STEPS = 9
"""Colours of a legend over the values of a product without a style."""


@dataclass(frozen=True)
class LegendEntry:
    """A value of a legend."""

    value: float
    """Value."""
    colour: str
    """Colour, #rrggbb."""
    label: str | None
    """Text; None for a step of a ramp between two texts."""

    def to_json(self) -> dict[str, float | str | None]:
        """Return the JSON object."""
        return {"value": self.value, "colour": self.colour, "label": self.label}


@dataclass(frozen=True)
class Legend:
    """Legend of a product."""

    kind: Literal["ramp", "classes"]
    """Colours that run into each other, or one for each class."""
    entries: tuple[LegendEntry, ...]
    """Values in increasing order."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"kind": self.kind, "entries": [entry.to_json() for entry in self.entries]}


def product_legend(layer: Layer) -> Legend | None:
    """Return the legend of a product; None for heights and imagery, whose colours the reader or the picture decides.

    Args:
        layer: Layer.
    """
    if layer.product is None:
        return None
    if layer.product == "change":
        return Legend("classes", _entries(PRODUCT_RAMPS["change"], [text.capitalize() for text in CHANGE_LABELS]))
    if layer.product in PRODUCT_RAMPS:
        ramp = PRODUCT_RAMPS[layer.product]
        return Legend("ramp", _entries(ramp, [f"{value:.0%}".replace("%", " %") for value, _ in ramp]))
    return Legend("ramp", _stretched_entries(layer))


def _entries(ramp: Ramp, labels: Sequence[str | None]) -> tuple[LegendEntry, ...]:
    return tuple(LegendEntry(value, colour, label) for (value, colour), label in zip(ramp, labels, strict=True))


def _stretched_entries(layer: Layer) -> tuple[LegendEntry, ...]:
    """Return the entries of a ramp over the values of a layer: texts at its ends and in its middle."""
    name, (low, high) = product_ramp(layer)
    colours = np.frombuffer(palette(name).rgb, np.uint8).reshape(-1, 3)[np.linspace(1, 255, _STEPS).round().astype(int)]
    values = np.linspace(low, high, _STEPS).tolist()
    steps = tuple((value, "#" + colour.tobytes().hex()) for value, colour in zip(values, colours, strict=True))
    decimals = max(0, 2 - math.ceil(math.log10(high - low)))
    texts = [f"{value:.{decimals}f}" if number % (_STEPS // 2) == 0 else None for number, value in enumerate(values)]
    return _entries(steps, texts)
