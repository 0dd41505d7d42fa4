"""QGIS itself opens maps, styles, projects and shots, and the colours it draws are those of its legend."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from map_server import serving
from rasters import make_raster

from canopy.example.qgis_algorithm import write_qgis_algorithm
from canopy.products.cover import derive_cover
from canopy.products.project import write_product_project
from canopy.products.trees import derive_trees
from tiles.qgis import add_layer_style, shots_qml, write_map_project
from tiles.style import HEIGHT_RAMP, WIDTH_RAMP, colorize, qml

pytestmark = pytest.mark.slow

Look = Callable[..., dict[str, Any]]
BACKGROUND = [255, 0, 255]
METRES = ["0 m", "1 m", "2 m", "5 m", "10 m", "15 m", "20 m", "25 m", "30 m", "≥ 35 m"]


def rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def strip(folder: Path, name: str, values: list[float]) -> tuple[Path, list[list[float]]]:
    """Write a map with one cell of 10 m a value, and return the centres of its cells."""
    row = np.array([[values]], np.float32)
    path = make_raster(folder / name, values=row, dtype="float32", nodata=np.nan, resolution=10.0)
    return path, [[500_000 + 10 * col + 5, 4_999_995] for col in range(len(values))]


@pytest.mark.parametrize("ramp", [HEIGHT_RAMP, WIDTH_RAMP], ids=["height", "width"])
def test_every_value_of_the_legend_has_the_colour_of_its_pixels(qgis: Look, tmp_path: Path, ramp: Any) -> None:
    path, places = strip(tmp_path, "steps.tif", [value for value, _ in ramp])
    path.with_suffix(".qml").write_text(qml(1, ramp), encoding="utf-8")
    seen = qgis(files=[str(path)], places=places, width=400, height=400)
    assert seen["layers"][0]["renderer"] == "singlebandpseudocolor"
    labels = [f"{value:g} m" for value, _ in ramp]
    assert seen["legend"]["steps.tif"][1:] == [*labels[:-1], f"≥ {labels[-1]}"]
    assert seen["colours"] == [rgb(colour) for _, colour in ramp]


def test_nodata_is_transparent_and_bare_ground_is_not(qgis: Look, tmp_path: Path) -> None:
    path, places = strip(tmp_path, "map.tif", [np.nan, 0, 7.5, 80])
    path.with_suffix(".qml").write_text(qml(), encoding="utf-8")
    seen = qgis(files=[str(path)], places=places, width=400, height=400)
    assert seen["colours"][0] == BACKGROUND
    expected = colorize(np.array([0, 7.5, 80], np.float32)[None])[0, :, :3]
    np.testing.assert_allclose(seen["colours"][1:], expected, atol=1)


def test_project_of_the_sample_opens_elsewhere_without_a_missing_layer(
    qgis: Look, sample_map: Path, tmp_path: Path, pictures: Path
) -> None:
    for path in sample_map.parent.glob("sample*"):
        if path.is_file():
            shutil.copy(path, tmp_path / path.name)
    with rasterio.open(sample_map) as src:
        heights = src.read(1)
        rows, cols = np.nonzero(np.isfinite(heights))
        chosen = [(int(rows[i]), int(cols[i])) for i in np.linspace(0, len(rows) - 1, 25).astype(int)]
        places = [list(src.xy(*cell)) for cell in chosen]
        centre, bounds = src.xy(heights.shape[0] // 2, heights.shape[1] // 2), src.bounds
    # Two pixels of the picture a cell, so that each shows one cell alone.
    request = {
        "project": str(tmp_path / "sample.qgz"), "show": ["Canopy height"], "places": places, "width": 600,
        "height": 658, "extent": list(bounds), "picture": str(pictures / "qgis-map.png"),
        "page": str(pictures / "qgis.png"),
    }  # fmt: skip
    seen = qgis(**request)
    assert seen["read"] and not seen["errors"]
    assert seen["crs"] == "EPSG:32612"
    assert [layer["name"] for layer in seen["layers"]] == [
        "Area of interest", "Canopy height", "Canopy height, 5th percentile", "Canopy height, 95th percentile",
        "Width of the interval",
    ]  # fmt: skip
    assert all(layer["valid"] for layer in seen["layers"])
    assert seen["legend"]["Canopy height"][1:] == METRES
    west, south, east, north = seen["view"]
    assert west < centre[0] < east and south < centre[1] < north
    expected = colorize(np.array([[heights[cell] for cell in chosen]]))[0, :, :3].astype(int)
    np.testing.assert_allclose(seen["colours"], expected, atol=2)


def test_width_layer_of_a_project_shows_the_difference_of_the_bands(qgis: Look, sample_map: Path) -> None:
    with rasterio.open(sample_map) as src:
        rows, cols = np.nonzero(np.isfinite(src.read(1)))
        chosen = [(int(rows[i]), int(cols[i])) for i in np.linspace(0, len(rows) - 1, 9).astype(int)]
        width = src.read(3) - src.read(2)
        places, bounds = [list(src.xy(*cell)) for cell in chosen], list(src.bounds)
    request = {"show": ["Width of the interval"], "width": 600, "height": 658, "extent": bounds, "places": places}
    seen = qgis(project=str(sample_map.with_suffix(".qgz")), **request)
    steps, colours = zip(*WIDTH_RAMP, strict=True)
    expected = [[np.interp(width[cell], steps, [rgb(c)[i] for c in colours]) for i in range(3)] for cell in chosen]
    np.testing.assert_allclose(seen["colours"], expected, atol=2)


def test_products_of_the_sample_open_in_one_project(
    qgis: Look, sample_map: Path, tmp_path: Path, pictures: Path
) -> None:
    for path in sample_map.parent.glob("sample.*"):
        shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "sample.tif"
    derive_trees(path, tmp_path / "trees.gpkg", overwrite=True)
    derive_cover(path, tmp_path / "cover.tif", cell_m=10)
    project = write_product_project(path, tmp_path / "forest.qgz")
    seen = qgis(project=str(project), picture=str(pictures / "qgis-products.png"), width=600, height=658)
    assert seen["read"] and not seen["errors"]
    assert [(layer["name"], layer["renderer"], layer["visible"]) for layer in seen["layers"]] == [
        ("Tops (trees)", "singleSymbol", True),
        ("Crowns (trees)", "graduatedSymbol", True),
        ("Share of ground above 2 m (cover)", "singlebandpseudocolor", False),
        ("Canopy height", "singlebandpseudocolor", True),
    ]
    assert all(layer["valid"] for layer in seen["layers"])
    assert seen["legend"]["Share of ground above 2 m (cover)"][1:] == ["0%", "10%", "30%", "60%", "100%"]


def test_dates_next_to_a_map_are_named_in_the_legend(qgis: Look, tmp_path: Path) -> None:
    path, _ = strip(tmp_path, "map.tif", [1, 2, 3])
    days = np.array([[[0, 17_897, 18_262]]], np.uint16)
    make_raster(tmp_path / "map_dates.tif", values=days, dtype="uint16", nodata=0, resolution=10.0)
    from tiles.aoi import read_aoi

    area = read_aoi(shapely.box(500_000, 4_999_990, 500_030, 5_000_000), crs="EPSG:32631")
    project = write_map_project(path, area).project
    seen = qgis(project=str(project), show=["Acquisition date"], extent=[500_000, 4_999_990, 500_030, 5_000_000],
                places=[[500_005, 4_999_995], [500_015, 4_999_995]], width=300, height=100)  # fmt: skip
    assert seen["legend"]["Acquisition date"][-2:] == ["2019-01-01", "2020-01-01"]
    assert seen["colours"] == [BACKGROUND, rgb("#fde725")]


def test_shots_open_styled_and_discs_have_the_colour_of_their_class(qgis: Look, tmp_path: Path, pictures: Path) -> None:
    heights, x = [1.0, 7.0, 50.0], [500_050.0, 500_100.0, 500_150.0]
    points = [shapely.Point(value, 5_000_000) for value in x]
    path = tmp_path / "shots.gpkg"
    geopandas.GeoDataFrame({"rh98": heights}, geometry=points, crs="EPSG:32631").to_file(path, layer="shots")
    add_layer_style(path, "shots", "geom", "Relative height 98", shots_qml())
    places = [[value + offset, 5_000_000.0] for value in x for offset in (8, 16)]
    request = {"places": places, "extent": [500_000, 4_999_900, 500_200, 5_000_100], "width": 400, "height": 400}
    seen = qgis(files=[f"{path}|layername=shots"], picture=str(pictures / "qgis-shots.png"), **request)
    labels = next(iter(seen["legend"].values()))
    assert labels == [
        "0–2 m", "2–5 m", "5–10 m", "10–15 m", "15–20 m", "20–25 m", "25–30 m", "30–35 m", "≥ 35 m",
    ]  # fmt: skip
    # 8 m from the centre lies inside a disc of 25 m, 16 m outside.
    assert seen["colours"][1::2] == [BACKGROUND] * 3
    assert seen["colours"][4] == rgb(HEIGHT_RAMP[-1][1])
    assert sqlite3.connect(path).execute("SELECT count(*) FROM shots").fetchone() == (3,)


def test_a_served_map_opens_as_wmts_with_the_colours_of_its_heights(qgis: Look, tmp_path: Path, pictures: Path) -> None:
    from tiles.server.app import create_app
    from tiles.server.catalog import open_catalog

    steps = np.array([0, 5, 15, 35], np.float32)
    values = np.broadcast_to(np.repeat(steps, 64), (1, 64, 256))
    path = make_raster(tmp_path / "steps.tif", values=values, dtype="float32", nodata=np.nan, resolution=1.0)
    with rasterio.open(path) as src:
        x, y = rasterio.warp.transform(
            src.crs, "EPSG:3857", *zip(*(src.xy(32, 32 + 64 * n) for n in range(4)), strict=True)
        )
        bounds = rasterio.warp.transform_bounds(src.crs, "EPSG:3857", *src.bounds)
    with serving(create_app(open_catalog(path))) as address:
        layer = json.loads(urlopen(f"{address}layers").read())["layers"][0]["id"]
        source = (
            "contextualWMSLegend=0&crs=EPSG:3857&dpiMode=7&featureCount=10&format=image/png&styles=default"
            f"&layers={layer}&tileMatrixSet=WebMercatorQuad&url={address}wmts/1.0.0/WMTSCapabilities.xml"
        )
        seen = qgis(
            files=[{"wmts": source}], extent=list(bounds), width=800, height=200,
            places=[list(place) for place in zip(x, y, strict=True)], picture=str(pictures / "qgis-wmts.png"),
        )  # fmt: skip
    assert seen["layers"][0]["valid"] and seen["layers"][0]["crs"] == "EPSG:3857"
    np.testing.assert_allclose(seen["colours"], colorize(steps[None])[0, :, :3], atol=3)


@pytest.fixture
def algorithm(tmp_path: Path) -> dict[str, str]:
    """Parameters of the algorithm's runs: the script as users get it, and the command of this environment."""
    import sys

    command = Path(sys.executable).with_name("canopy")
    if not command.is_file():
        pytest.skip(f"no {command}: install the package")
    return {"algorithm": str(write_qgis_algorithm(tmp_path / "scripts")), "COMMAND": str(command)}


def test_algorithm_maps_a_polygon_layer_and_loads_the_styled_result(
    qgis: Look, algorithm: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    image = make_raster(tmp_path / "image.tif", shape=(160, 160))
    area = geopandas.GeoDataFrame(geometry=[shapely.box(500_020, 4_999_950, 500_050, 4_999_980)], crs="EPSG:32631")
    area.to_file(tmp_path / "stands.gpkg", layer="stands")
    parameters = {"AREA": f"{tmp_path}/stands.gpkg|layername=stands", "IMAGERY": str(image), "MODEL": str(tiny_model)}
    seen = qgis("qgis_algorithm_session.py", parameters=parameters, out=str(tmp_path / "out" / "h.tif"), **algorithm)
    assert seen["error"] is None
    assert seen["result"] == str(tmp_path / "out" / "h.tif")
    assert seen["torch"] is False
    assert seen["progress"] == 100
    assert seen["legend"][1:] == METRES
    with rasterio.open(tmp_path / "out" / "h.tif") as src:
        assert src.bounds == (500_020, 4_999_950, 500_050, 4_999_980)


def test_algorithm_maps_a_view_and_says_what_is_wrong_in_one_line(
    qgis: Look, algorithm: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    image = make_raster(tmp_path / "image.tif", shape=(160, 160))
    view = "500020,500040,4999960,4999980 [EPSG:32631]"
    parameters = {"EXTENT": view, "IMAGERY_SOURCE": str(image), "MODEL": str(tiny_model)}
    seen = qgis("qgis_algorithm_session.py", parameters=parameters, out=str(tmp_path / "h.tif"), **algorithm)
    assert seen["error"] is None
    wrong = parameters | {"IMAGERY_SOURCE": str(tmp_path / "none.tif")}
    seen = qgis("qgis_algorithm_session.py", parameters=wrong, out=str(tmp_path / "n.tif"), **algorithm)
    assert "none.tif" in seen["error"] and "\n" not in seen["error"]
    seen = qgis("qgis_algorithm_session.py", parameters={"MODEL": "x"}, out=str(tmp_path / "n.tif"), **algorithm)
    assert seen["error"].startswith("no area: choose a polygon layer")
    seen = qgis(
        "qgis_algorithm_session.py", parameters=parameters, out=str(tmp_path / "n.tif"),
        **algorithm | {"COMMAND": "no-such-canopy"},
    )  # fmt: skip
    assert seen["error"].startswith("no command no-such-canopy: install it with pip install canopy-chm")


def test_algorithm_stops_when_it_is_cancelled(qgis: Look, algorithm: dict[str, str], tmp_path: Path) -> None:
    """A command that never ends stands in for a long map, so that the test needs no timing."""
    command = tmp_path / "canopy"
    command.write_text("#!/bin/sh\necho 'tile 1/4  0.1 Mpx/s'\nexec sleep 300\n")
    command.chmod(0o755)
    parameters = {"EXTENT": "0,1,0,1 [EPSG:4326]"}
    seen = qgis(
        "qgis_algorithm_session.py", parameters=parameters, out=str(tmp_path / "h.tif"), cancel_at=25,
        **algorithm | {"COMMAND": str(command)},
    )  # fmt: skip
    assert (seen["error"], seen["result"], seen["progress"]) == (None, None, 25)
