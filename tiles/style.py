"""Fixed colour ramps for heights and their intervals: the same metre has the same colour in QGIS and in previews."""

from collections.abc import Sequence
from datetime import date, timedelta
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

Ramp = tuple[tuple[float, str], ...]
"""Steps of a colour ramp: (value, colour as #rrggbb), from the lowest value to the highest."""

HEIGHT_RAMP: Ramp = (
    (0.0, "#f7f4e6"),
    (1.0, "#eeeabf"),
    (2.0, "#dfe59b"),
    (5.0, "#b5d67c"),
    (10.0, "#78bc68"),
    (15.0, "#3f9e5b"),
    (20.0, "#1f7e57"),
    (25.0, "#136157"),
    (30.0, "#104456"),
    (35.0, "#0c2546"),
)
"""(height in metres, colour): from pale ground to dark tall trees, darker with every step, so that it also
reads in grey and with any colour vision. Heights above the last step keep its colour."""

WIDTH_RAMP: Ramp = (
    (0.0, "#fdf6ec"),
    (2.0, "#fde0b8"),
    (5.0, "#fdb97d"),
    (10.0, "#f0803c"),
    (15.0, "#c8501b"),
    (20.0, "#8a2f0c"),
)
"""(width of the 5-95 % interval in metres, colour): another hue than heights, darker with every step."""

COVER_RAMP: Ramp = (
    (0.0, "#f7f4e6"),
    (0.1, "#e4e8b0"),
    (0.3, "#b5d67c"),
    (0.6, "#3f9e5b"),
    (1.0, "#104456"),
)
"""(share, colour): cover of trees, in the colours of heights; a step at the tenth from which FAO speaks of a forest."""

CHANGE_RAMP: Ramp = ((-1.0, "#b2182b"), (0.0, "#f7f7f7"), (1.0, "#2166ac"))
"""(change, colour): loss, no detectable change and gain, apart for any colour vision."""
CHANGE_LABELS = ("loss", "no detectable change", "gain")
"""Texts of the steps of `CHANGE_RAMP`."""

DATE_COLOURS = ("#fde725", "#35b779", "#31688e", "#440154")
"""Colours of acquisition dates, from the first to the last; between them colours are interpolated."""

EPOCH = date(1970, 1, 1)
_MAX_DATE_CLASSES = 12
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def qml(band: int = 1, ramp: Ramp = HEIGHT_RAMP) -> str:
    """Return a QGIS 3 layer style (QML) that draws one band in metres through a ramp, NaN transparent.

    Args:
        band: Band number, from 1.
        ramp: Colour ramp of the band, in metres.
    """
    return style_document(raster_pipe(metres_renderer(band, ramp)))


def style_document(*elements: ElementTree.Element, categories: str = "Symbology") -> str:
    """Return a QML document.

    Args:
        elements: Elements of the style.
        categories: Categories of a layer's properties that the style sets.
    """
    root = ElementTree.Element("qgis", version="3.22.0", styleCategories=categories)
    root.extend(elements)
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    return _DOCTYPE + ElementTree.tostring(root, encoding="unicode") + "\n"


def style_elements(document: str) -> tuple[ElementTree.Element, ...]:
    """Return the elements of a QML document that style a layer of a project; none for an empty one."""
    root = ElementTree.fromstring(document) if document else ()
    return tuple(element for element in root if element.tag != "blendMode")


def raster_pipe(renderer: ElementTree.Element) -> ElementTree.Element:
    """Return the pipe of a raster layer: its renderer, between neutral filters."""
    pipe = ElementTree.Element("pipe")
    pipe.append(renderer)
    ElementTree.SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    ElementTree.SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0", colorizeOn="0")
    ElementTree.SubElement(pipe, "rasterresampler", maxOversampling="2")
    return pipe


def colour_at(value: float, ramp: Ramp = HEIGHT_RAMP) -> str:
    """Return the colour (#rrggbb) of a value on a ramp; beyond its ends those of the ends."""
    values, colours = zip(*ramp, strict=True)
    channels = (np.interp(value, values, [_rgb(colour)[i] for colour in colours]) for i in range(3))
    return "#" + "".join(f"{round(channel):02x}" for channel in channels)


def colorize(heights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour heights through `HEIGHT_RAMP`.

    Args:
        heights: (H, W) floating point, metres above ground, NaN where unknown.

    Returns:
        (H, W, 4) uint8 red, green, blue, alpha; NaN is transparent.
    """
    heights_m, colours = zip(*HEIGHT_RAMP, strict=True)
    steps = np.array([_rgb(colour) for colour in colours])
    valid = ~np.isnan(heights)
    rgba = np.zeros((*heights.shape, 4), np.uint8)
    for channel in range(3):
        rgba[valid, channel] = np.rint(np.interp(heights[valid], heights_m, steps[:, channel]))
    rgba[valid, 3] = 255
    return rgba


def metres_renderer(band: int, ramp: Ramp) -> ElementTree.Element:
    """Return the renderer that draws one band in metres through a ramp, with a legend entry at each step."""
    labels = [f"{value:g} m" for value, _ in ramp]
    labels[-1] = f"≥ {labels[-1]}"
    return _interpolated(band, ramp, labels)


def share_qml() -> str:
    """Return a QGIS 3 layer style (QML) that draws the first band, a share from 0 to 1, through a ramp of greens."""
    labels = [f"{value:.0%}" for value, _ in COVER_RAMP]
    return style_document(raster_pipe(_interpolated(1, COVER_RAMP, labels, suffix="")))


def change_qml() -> str:
    """Return a QGIS 3 layer style (QML) that draws the first band, a change from -1 to 1, from loss to gain."""
    return style_document(raster_pipe(_interpolated(1, CHANGE_RAMP, CHANGE_LABELS, suffix="")))


def date_renderer(days: Sequence[int]) -> ElementTree.Element:
    """Return the renderer of days since 1970-01-01: a class for each day where they are few, else a ramp of dates."""
    first, last = (min(days), max(days)) if days else (0, 0)
    stops = np.linspace(first, last, len(DATE_COLOURS))
    ramp = tuple(zip(stops.tolist(), DATE_COLOURS, strict=True))
    if len(days) > _MAX_DATE_CLASSES:
        return _interpolated(1, ramp, [_iso(round(day)) for day, _ in ramp])
    renderer = _renderer("paletted", 1)
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for day in sorted(days):
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(day), label=_iso(day), color=colour_at(day, ramp), alpha="255"
        )
    return renderer


def _iso(day: int) -> str:
    return (EPOCH + timedelta(days=day)).isoformat()


def _renderer(kind: str, band: int, **attributes: str) -> ElementTree.Element:
    """Return a raster renderer that leaves nodata transparent."""
    plain = {"type": kind, "band": str(band), "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    renderer = ElementTree.Element("rasterrenderer", {**plain, **attributes})
    ElementTree.SubElement(renderer, "rasterTransparency")
    origin = ElementTree.SubElement(renderer, "minMaxOrigin")
    ElementTree.SubElement(origin, "limits").text = "None"
    return renderer


def _interpolated(band: int, ramp: Ramp, labels: Sequence[str], suffix: str = " m") -> ElementTree.Element:
    """Return a renderer that interpolates colours between the steps of a ramp."""
    low, high = f"{ramp[0][0]:g}", f"{ramp[-1][0]:g}"
    renderer = _renderer("singlebandpseudocolor", band, classificationMin=low, classificationMax=high)
    shader = ElementTree.SubElement(
        ElementTree.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        labelPrecision="0",
        minimumValue=low,
        maximumValue=high,
    )
    shader.append(_gradient(ramp))
    for (value, colour), label in zip(ramp, labels, strict=True):
        ElementTree.SubElement(shader, "item", value=f"{value:g}", label=label, color=colour, alpha="255")
    # A continuous legend shows the two ends only; this one lists the items with their labels.
    ElementTree.SubElement(shader, "rampLegendSettings", useContinuousLegend="0", suffix=suffix, orientation="2")
    return renderer


def _gradient(ramp: Ramp) -> ElementTree.Element:
    """Return the ramp itself, so that QGIS can classify from it again when the user moves its ends."""
    low, high = ramp[0][0], ramp[-1][0]
    span = (high - low) or 1.0
    stops = ":".join(f"{(value - low) / span:.6f};{_rgba(colour)}" for value, colour in ramp[1:-1])
    settings = {
        "color1": _rgba(ramp[0][1]),
        "color2": _rgba(ramp[-1][1]),
        "discrete": "0",
        "rampType": "gradient",
        "stops": stops,
    }
    return with_options(ElementTree.Element("colorramp", type="gradient", name="[source]"), settings)


def with_options(element: ElementTree.Element, settings: dict[str, str]) -> ElementTree.Element:
    """Add settings to an element in both spellings: QGIS up to 3.28 reads <prop>, later ones <Option>."""
    options = ElementTree.SubElement(element, "Option", type="Map")
    for name, value in settings.items():
        ElementTree.SubElement(options, "Option", name=name, type="QString", value=value)
    for name, value in settings.items():
        ElementTree.SubElement(element, "prop", k=name, v=value)
    return element


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def _rgba(colour: str) -> str:
    """Return #rrggbb as QGIS writes colours in symbols: r,g,b,alpha."""
    return ",".join(str(channel) for channel in (*_rgb(colour), 255))
