"""One fixed colour ramp for heights: in QGIS, in previews, everywhere the same metre has the same colour."""

from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

HEIGHT_RAMP: tuple[tuple[float, str], ...] = (
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

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def qml(band: int = 1) -> str:
    """Return a QGIS 3 layer style (QML) that draws one band through `HEIGHT_RAMP`, NaN transparent.

    Args:
        band: Band number, from 1.
    """
    root = ElementTree.Element("qgis", version="3.28.0", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    pipe.append(_renderer(band))
    ElementTree.SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    ElementTree.SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0", colorizeOn="0")
    ElementTree.SubElement(pipe, "rasterresampler", maxOversampling="2")
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    return _DOCTYPE + ElementTree.tostring(root, encoding="unicode") + "\n"


def colorize(heights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour heights through `HEIGHT_RAMP`.

    Args:
        heights: (H, W) floating point, metres above ground, NaN where unknown.

    Returns:
        (H, W, 4) uint8 red, green, blue, alpha; NaN is transparent.
    """
    heights_m, colours = zip(*HEIGHT_RAMP, strict=True)
    steps = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours])
    valid = ~np.isnan(heights)
    rgba = np.zeros((*heights.shape, 4), np.uint8)
    for channel in range(3):
        rgba[valid, channel] = np.rint(np.interp(heights[valid], heights_m, steps[:, channel]))
    rgba[valid, 3] = 255
    return rgba


def _renderer(band: int) -> ElementTree.Element:
    low, high = (f"{HEIGHT_RAMP[i][0]:g}" for i in (0, -1))
    renderer = ElementTree.Element(
        "rasterrenderer",
        type="singlebandpseudocolor",
        band=str(band),
        opacity="1",
        alphaBand="-1",
        nodataColor="",
        classificationMin=low,
        classificationMax=high,
    )
    ElementTree.SubElement(renderer, "rasterTransparency")
    origin = ElementTree.SubElement(renderer, "minMaxOrigin")
    ElementTree.SubElement(origin, "limits").text = "None"
    shader = ElementTree.SubElement(
        ElementTree.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue=low,
        maximumValue=high,
    )
    for height_m, colour in HEIGHT_RAMP:
        ElementTree.SubElement(
            shader, "item", value=f"{height_m:g}", label=f"{height_m:g} m", color=colour, alpha="255"
        )
    return renderer
