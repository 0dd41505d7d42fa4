"""The height ramp is the same in QGIS and in previews."""

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from tiles.style import HEIGHT_RAMP, WIDTH_RAMP, colorize, colour_at, date_renderer, qml, raster_pipe, style_document


def labels(text: str, tag: str = "item") -> list[str]:
    return [item.get("label") for item in ElementTree.fromstring(text).iter(tag)]


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


def test_legend_lists_metres_step_by_step():
    assert labels(qml())[:4] == ["0 m", "1 m", "2 m", "5 m"]
    assert labels(qml())[-1] == "≥ 35 m"
    assert labels(qml(1, WIDTH_RAMP)) == ["0 m", "2 m", "5 m", "10 m", "15 m", "≥ 20 m"]
    # A continuous legend would show its two ends alone.
    assert next(ElementTree.fromstring(qml()).iter("rampLegendSettings")).get("useContinuousLegend") == "0"


@pytest.mark.parametrize("spelling", ["Option", "prop"])
def test_qml_has_the_ramp_itself_in_both_spellings(spelling):
    ramp = next(ElementTree.fromstring(qml()).iter("colorramp"))
    attributes = ("k", "v") if spelling == "prop" else ("name", "value")
    settings = {entry.get(attributes[0]): entry.get(attributes[1]) for entry in ramp.iter(spelling)}
    assert settings["color1"] == "247,244,230,255"
    assert settings["color2"] == "12,37,70,255"
    stops = [stop.split(";") for stop in settings["stops"].split(":")]
    assert [round(35 * float(share), 3) for share, _ in stops] == [height for height, _ in HEIGHT_RAMP[1:-1]]
    assert stops[2][1] == "181,214,124,255"


def test_few_dates_are_classes_and_many_a_ramp():
    def date_qml(days):
        return style_document(raster_pipe(date_renderer(days)))

    few = date_qml([18_262, 17_897])
    assert labels(few, "paletteEntry") == ["2019-01-01", "2020-01-01"]
    assert [entry.get("value") for entry in ElementTree.fromstring(few).iter("paletteEntry")] == ["17897", "18262"]
    many = date_qml(range(17_897, 18_263))
    assert (labels(many)[0], labels(many)[-1]) == ("2019-01-01", "2020-01-01")
    assert labels(date_qml([]), "paletteEntry") == []


def test_colour_at_interpolates_and_clamps():
    assert [colour_at(height) for height in (-1, 0, 5, 99)] == ["#f7f4e6", "#f7f4e6", "#b5d67c", "#0c2546"]
    assert colour_at(0.5, ((0, "#000000"), (1, "#0000ff"))) == "#000080"


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
