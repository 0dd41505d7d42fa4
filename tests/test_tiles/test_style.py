"""The height ramp is the same in QGIS and in previews."""

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from tiles.style import HEIGHT_RAMP, colorize, qml


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_ramp_rises_from_bare_ground_and_darkens_with_every_step():
    heights = [height for height, _ in HEIGHT_RAMP]
    assert heights[0] == 0
    assert heights[-1] == 35
    assert heights == sorted(set(heights))
    luminances = [np.dot(rgb(colour), (0.2126, 0.7152, 0.0722)) for _, colour in HEIGHT_RAMP]
    assert luminances == sorted(luminances, reverse=True)
    assert min(a - b for a, b in pairwise(luminances)) > 5


def test_qml_holds_the_ramp_and_leaves_nodata_transparent():
    text = qml(band=2)
    assert text.startswith("<!DOCTYPE qgis")
    renderer = ElementTree.fromstring(text).find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "2")
    assert renderer.get("nodataColor") == ""
    assert (renderer.get("classificationMin"), renderer.get("classificationMax")) == ("0", "35")
    shader = renderer.find("rastershader/colorrampshader")
    assert (shader.get("colorRampType"), shader.get("clip")) == ("INTERPOLATED", "0")
    items = [(float(item.get("value")), item.get("color")) for item in shader.iter("item")]
    assert items == list(HEIGHT_RAMP)


def test_qml_draws_the_first_band_by_default():
    assert ElementTree.fromstring(qml()).find("pipe/rasterrenderer").get("band") == "1"


@pytest.mark.parametrize(("height_m", "colour"), HEIGHT_RAMP)
def test_colorize_gives_each_step_its_colour(height_m, colour):
    assert tuple(colorize(np.full((1, 1), height_m, np.float32))[0, 0]) == (*rgb(colour), 255)


def test_colorize_clamps_interpolates_and_hides_nan():
    low, high = rgb(HEIGHT_RAMP[0][1]), rgb(HEIGHT_RAMP[-1][1])
    heights = np.array([[-0.5, 80.0, np.nan, 0.5]], np.float32)
    rgba = colorize(heights)
    assert rgba.dtype == np.uint8
    assert rgba.shape == (1, 4, 4)
    assert tuple(rgba[0, 0]) == (*low, 255)
    assert tuple(rgba[0, 1]) == (*high, 255)
    assert tuple(rgba[0, 2]) == (0, 0, 0, 0)
    middle = np.rint(np.add(low, rgb(HEIGHT_RAMP[1][1])) / 2)
    np.testing.assert_array_equal(rgba[0, 3, :3], middle)
