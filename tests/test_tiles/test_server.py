"""What the server answers equals what the files contain; what it must refuse gets a status and one line."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import morecantile
import numpy as np
import pytest
import rasterio
from map_server import (
    TAGS,
    UTM,
    X,
    Y,
    decode_terrain,
    lonlat,
    make_map,
    map_values,
    open_client,
    pixels,
    square,
)
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from rasters import make_raster
from shapely.geometry import shape
from starlette.testclient import TestClient

from tiles.errors import RasterError
from tiles.server.tiler import encode_colour, encode_terrain, palette, product_ramp
from tiles.style import HEIGHT_RAMP
from tiles.zonal import zone_statistics

ZOOM = 18
TMS = morecantile.tms.get("WebMercatorQuad")
MAP = "/layers/old"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two maps of the same ground, dates of one of them, and a picture."""
    root = tmp_path_factory.mktemp("maps")
    make_map(root / "old.tif")
    make_map(root / "sub" / "new.tif", map_values(offset_m=2.0)[:1], tags={})
    days = np.full((1, 120, 160), 18_809)  # 2021-07-01
    days[:, :, 80:] = 0
    make_raster(root / "old_dates.tif", crs=UTM, origin=(X, Y), resolution=0.5, dtype="uint16", values=days)
    picture = np.stack([np.full((120, 160), value) for value in (10, 120, 250)])
    make_raster(root.parent / "ortho.tif", crs=UTM, origin=(X, Y), resolution=0.5, dtype="uint8", values=picture)
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with open_client(folder, folder.parent / "ortho.tif") as client:
        yield client


def tile_path(lon: float, lat: float, zoom: int = ZOOM, layer: str = MAP) -> str:
    tile = TMS.tile(lon, lat, zoom)
    return f"{layer}/tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}"


def pixel_of(lon: float, lat: float, zoom: int = ZOOM) -> tuple[int, int]:
    """Return row and column of a place in its tile of 512 px."""
    tile, bounds = TMS.tile(lon, lat, zoom), TMS.xy_bounds(TMS.tile(lon, lat, zoom))
    x, y = TMS.xy(lon, lat)
    side = (bounds.right - bounds.left) / 512
    assert tile.z == zoom
    return int((bounds.top - y) // side), int((x - bounds.left) // side)


def read_tile(client: TestClient, east_m: float, south_m: float, query: str = "", layer: str = MAP) -> np.ndarray:
    """Return the pixel (4,) of a place, as a tile draws it."""
    point = lonlat(east_m, south_m)
    answer = client.get(f"{tile_path(*point, layer=layer)}.png{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return pixels(answer.content)[pixel_of(*point)]


def test_layers_are_listed_heights_first(client: TestClient) -> None:
    layers = client.get("/layers").json()["layers"]
    kinds = [(layer["id"], layer["kind"]) for layer in layers]
    assert kinds == [("old", "height"), ("new", "height"), ("ortho", "imagery")]
    assert client.get("/healthz").json() == {"status": "ok", "layers": 3}


def test_layer_says_what_its_file_records(client: TestClient) -> None:
    layer = client.get(MAP).json()
    west, south, east, north = layer["bounds"]
    assert west == pytest.approx(15, abs=1e-6)  # the central meridian of the zone
    assert (east - west, north - south) == (pytest.approx(0.001017, rel=0.01), pytest.approx(0.00054, rel=0.01))
    assert layer["crs"] == UTM
    assert layer["gsd_m"] == pytest.approx(0.5, rel=1e-3)
    assert layer["shape"] == [120, 160]
    assert [band["name"] for band in layer["bands"]] == [
        "canopy_height",
        "canopy_height_p05",
        "canopy_height_p95",
        "interval_width",
    ]
    assert [band["derived"] for band in layer["bands"]] == [False, False, False, True]
    assert layer["bands"][0]["range"] == {
        "min": 0,
        "p02": pytest.approx(0.25, abs=0.15),
        "p98": pytest.approx(19.4, abs=0.3),
        "max": 159 / 8,
    }
    assert layer["bands"][3]["range"] == {"min": 4, "p02": 4, "p98": 4, "max": 4}
    assert layer["interval"] == {
        "low": "canopy_height_p05",
        "high": "canopy_height_p95",
        "width": "interval_width",
        "level": 0.9,
    }
    assert layer["acquired"] == {"text": "2021-07-01", "start": "2021-07-01T00:00:00Z", "end": "2021-07-01T23:59:59Z"}
    assert (layer["model"], layer["sources"], layer["version"]) == ("canopy-small", ["ortho.tif", "b.tif"], "1.2.3")
    assert layer["attribution"] == "© Survey <of> Somewhere"
    assert layer["links"]["point"] == "http://127.0.0.1:8000/layers/old/point"


def test_unknown_origin_stays_unknown(client: TestClient) -> None:
    layer = client.get("/layers/new").json()
    assert layer["acquired"] == {"text": "unknown", "start": None, "end": None}
    assert (layer["interval"], layer["model"], layer["sources"], layer["attribution"]) == (None, None, [], None)
    assert [band["name"] for band in layer["bands"]] == ["canopy_height"]


def test_no_answer_names_a_folder_of_this_machine(client: TestClient, folder: Path) -> None:
    for path in ("/layers", MAP, "/wmts", "/openapi.json", "/layers/none", f"{MAP}/point?lon=0&lat=0"):
        text = client.get(path).text
        assert str(folder) not in text
        assert "/home" not in text
    assert "/home" in TAGS["CANOPY_IMAGERY"]


def test_tilejson_leads_to_tiles(client: TestClient) -> None:
    document = client.get(f"{MAP}/tilejson.json?encoding=terrain&band=interval_width").json()
    layer = client.get(MAP).json()
    assert document["tilejson"] == "3.0.0"
    assert document["bounds"] == layer["bounds"]
    assert document["attribution"] == "© Survey &lt;of&gt; Somewhere"  # pages show it as HTML
    assert (document["minzoom"], document["maxzoom"]) == (layer["minzoom"], layer["maxzoom"])
    tile = TMS.tile(*lonlat(10, 10), document["maxzoom"])
    address = document["tiles"][0].format(z=tile.z, x=tile.x, y=tile.y)
    heights_m = decode_terrain(pixels(client.get(address).content))
    assert set(np.unique(heights_m)) == {-10_000, 4}


def test_cells_are_as_fine_as_tiles_at_the_highest_zoom(client: TestClient) -> None:
    """At 45 degrees north a pixel of zoom 17 (512 px) is .42 m on the ground, of zoom 16 .84 m."""
    assert client.get(MAP).json()["maxzoom"] == 17


@pytest.mark.parametrize(("east_m", "south_m"), [(0.3, 0.3), (12.3, 40.2), (33.7, 7.1), (79.7, 20.2)])
def test_terrain_tiles_have_the_heights_of_the_file(client: TestClient, east_m: float, south_m: float) -> None:
    rgba = read_tile(client, east_m, south_m, "?encoding=terrain")
    assert decode_terrain(rgba) == pytest.approx(math.floor(east_m * 2) / 8, abs=0.0501 + 1 / 8)
    assert rgba[3] == 255


def test_most_pixels_of_a_terrain_tile_equal_the_cell_under_them(client: TestClient) -> None:
    errors = []
    for east_m in np.arange(0.75, 79, 9.5):
        height_m = client.get(f"{MAP}/point?lon={lonlat(east_m, 10)[0]}&lat={lonlat(east_m, 10)[1]}").json()
        decoded = decode_terrain(read_tile(client, east_m, 10, "?encoding=terrain"))
        errors.append(abs(decoded - height_m["values"]["canopy_height"]))
    # The warper approximates by an eighth of a pixel, so a cell at a pixel's edge may be the next one.
    assert np.quantile(errors, 0.8) <= 0.0501
    assert max(errors) <= 0.0501 + 1 / 8


def test_unknown_is_transparent_and_deep(client: TestClient) -> None:
    assert read_tile(client, 60, 45)[3] == 0
    assert decode_terrain(read_tile(client, 60, 45, "?encoding=terrain")) == -10_000
    assert decode_terrain(read_tile(client, 60, 45, "?encoding=terrain&fill=0")) == 0


def test_colours_follow_the_ramp(client: TestClient) -> None:
    """At 40 m east the height is 10 m, a step of the ramp."""
    assert HEIGHT_RAMP[4] == (10.0, "#78bc68")
    assert read_tile(client, 40.2, 10).tolist() == pytest.approx([0x78, 0xBC, 0x68, 255], abs=4)
    # With a range that ends at 10 m it is the last colour.
    assert read_tile(client, 40.2, 10, "?range=0,10").tolist() == [0x0C, 0x25, 0x46, 255]
    low, high = (read_tile(client, east, 10, "?ramp=viridis&range=0,20") for east in (0.2, 79.8))
    assert low.tolist() == pytest.approx([68, 1, 84, 255], abs=4)
    assert high.tolist() == pytest.approx([253, 231, 37, 255], abs=6)


def test_a_map_is_subtracted_from_another(client: TestClient) -> None:
    query = "?minus=old&encoding=terrain"
    assert decode_terrain(read_tile(client, 20, 10, query, "/layers/new")) == pytest.approx(2, abs=0.1)
    assert decode_terrain(read_tile(client, 20, 10, "?minus=new&encoding=terrain")) == pytest.approx(-2, abs=0.1)
    assert decode_terrain(read_tile(client, 60, 45, query, "/layers/new")) == -10_000
    blue, red = read_tile(client, 20, 10, "?minus=old", "/layers/new"), read_tile(client, 20, 10, "?minus=new")
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_imagery_keeps_its_colours(client: TestClient) -> None:
    assert read_tile(client, 20, 10, layer="/layers/ortho").tolist() == [10, 120, 250, 255]
    answer = client.get(f"{tile_path(*lonlat(20, 10), layer='/layers/ortho')}.webp")
    assert answer.headers["content-type"] == "image/webp"
    assert pixels(answer.content)[pixel_of(*lonlat(20, 10))][:3].tolist() == pytest.approx([10, 120, 250], abs=8)


def test_webp_has_the_same_colours_as_png(client: TestClient) -> None:
    path = tile_path(*lonlat(20, 10))
    png, webp = (pixels(client.get(f"{path}.{suffix}").content) for suffix in ("png", "webp"))
    opaque = png[..., 3] > 0
    assert np.array_equal(png[..., 3], webp[..., 3])
    assert np.array_equal(png[opaque], webp[opaque])


@pytest.mark.parametrize(
    ("product", "value", "expected"),
    [
        ("cover", 0.0, "#f7f4e6"),
        ("cover", 1.0, "#104456"),
        ("change", -1.0, "#b2182b"),
        ("change", 0.0, "#f7f7f7"),
        ("change", 1.0, "#2166ac"),
    ],
)
def test_products_have_the_colours_of_their_style(tmp_path: Path, product: str, value: float, expected: str) -> None:
    values = np.full((1, 120, 160), value)
    values[:, :, 80:] = np.nan
    make_raster(
        tmp_path / "a.tif", crs=UTM, origin=(X, Y), resolution=0.5, dtype="float32", values=values, nodata=np.nan,
        tags={"CANOPY_PRODUCT": product},
    )  # fmt: skip
    with open_client(tmp_path) as client:
        known, unknown = (read_tile(client, east_m, 30, layer="/layers/a") for east_m in (20, 60))
        refusal = client.post("/layers/a/statistics", json=square(5, 5, 5))
        (west, south), (east, north) = lonlat(0, 60), lonlat(80, 0)
        view = {"bbox": f"{west},{south},{east},{north}", "bins": 3, "range": "-1.5,1.5"}
        histogram = client.get("/layers/a/histogram", params=view).json()
    assert known[:3].tolist() == [int(expected[i : i + 2], 16) for i in (1, 3, 5)]
    assert (known[3], unknown[3]) == (255, 0)
    assert (refusal.status_code, f"is {product};" in refusal.text) == (400, True)
    assert np.flatnonzero(histogram["counts"]).tolist() == [round(value) + 1]


@pytest.mark.parametrize(
    ("product", "kind", "labels"),
    [
        ("cover", "ramp", ["0 %", "10 %", "30 %", "60 %", "100 %"]),
        ("change", "classes", ["Loss", "No detectable change", "Gain"]),
        ("biomass", "ramp", ["100", None, None, None, "150", None, None, None, "200"]),
    ],
)
def test_a_product_has_the_legend_of_its_own(tmp_path: Path, product: str, kind: str, labels: list[str | None]) -> None:
    values = np.linspace(98, 202, 120 * 160).reshape(1, 120, 160)
    make_raster(
        tmp_path / "a.tif", crs=UTM, origin=(X, Y), resolution=0.5, dtype="float32", values=values,
        tags={"CANOPY_PRODUCT": product},
    )  # fmt: skip
    make_map(tmp_path / "b.tif")
    with open_client(tmp_path) as client:
        heights, layer = (client.get(f"/layers/{name}").json() for name in ("b", "a"))
        assert heights["legend"] is None
        legend = layer["legend"]
        assert (legend["kind"], [entry["label"] for entry in legend["entries"]]) == (kind, labels)
        # Each colour is the one in which tiles draw its value.
        drawing = product_ramp(client.app.state.catalog.layer("a"))
    colours = np.frombuffer(palette(drawing[0]).rgb, np.uint8).reshape(-1, 3)
    for entry in legend["entries"]:
        (((index,),),) = encode_colour(np.array([[[entry["value"]]]], np.float32), drawing[1])
        colour = [int(entry["colour"][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(colours[index].astype(int) - colour).max() <= 3


def test_a_product_without_a_style_is_drawn_over_its_values(tmp_path: Path) -> None:
    values = np.linspace(50, 350, 120 * 160).reshape(1, 120, 160)
    make_raster(
        tmp_path / "a.tif", crs=UTM, origin=(X, Y), resolution=0.5, dtype="float32", values=values,
        tags={"CANOPY_PRODUCT": "biomass"},
    )  # fmt: skip
    with open_client(tmp_path) as client:
        low, high = (read_tile(client, 40, south_m, layer="/layers/a")[:3].tolist() for south_m in (0.4, 59.6))
    assert (low, high) == ([68, 1, 84], [253, 231, 36])


def test_small_tiles(client: TestClient) -> None:
    content = client.get(f"{tile_path(*lonlat(20, 10))}.png?tilesize=256").content
    assert pixels(content).shape == (256, 256, 4)
    assert pixels(client.get(f"{tile_path(*lonlat(20, 10))}.png").content).shape == (512, 512, 4)


def test_point_is_the_cell_with_interval_and_date(client: TestClient) -> None:
    lon, lat = lonlat(12.3, 7.6)
    answer = client.get(f"{MAP}/point?lon={lon}&lat={lat}").json()
    assert answer["values"] == {
        "canopy_height": 24 / 8,
        "canopy_height_p05": 2,
        "canopy_height_p95": 6,
        "interval_width": 4,
    }
    assert answer["interval"] == {"low_m": 2, "high_m": 6, "level": 0.9}
    assert answer["cell"] == {"row": 15, "col": 24, "x": X + 12.25, "y": Y - 7.75}
    assert (answer["unit"], answer["acquired"]["text"]) == ("m", "2021-07-01")


def test_point_without_height_or_date_says_null(client: TestClient) -> None:
    lon, lat = lonlat(60, 45)
    answer = client.get(f"{MAP}/point?lon={lon}&lat={lat}").json()
    assert set(answer["values"].values()) == {None}
    assert answer["interval"] is None
    assert answer["acquired"] == {"text": "unknown", "start": None, "end": None}  # of the cell, not of the map


def test_point_of_imagery(client: TestClient) -> None:
    lon, lat = lonlat(20, 10)
    answer = client.get(f"/layers/ortho/point?lon={lon}&lat={lat}").json()
    assert answer["values"] == {"red": 10, "green": 120, "blue": 250}
    assert (answer["unit"], answer["interval"]) == (None, None)


def test_statistics_equal_those_of_the_file(client: TestClient, folder: Path) -> None:
    polygon = square(10.2, 5.1, 22.7)
    answer = client.post(f"{MAP}/statistics?threshold=4&bins=4&range=0,8", json=polygon).json()
    (expected,) = zone_statistics(
        folder / "old.tif", [Geometry(shape(polygon), CRS("EPSG:4326"))], threshold_m=4, edges_m=(0, 2, 4, 6, 8)
    )
    (result,) = answer["polygons"]
    assert (answer["layer"], answer["band"], answer["threshold_m"]) == ("old", "canopy_height", 4)
    assert result["id"] == "0"
    for name in ("area_m2", "known_share", "mean_m", "p95_m", "max_m", "h100_m", "cover"):
        assert result[name] == getattr(expected, name), name
    # A metre eastward is a quarter of a metre up; cells are an eighth of a metre apart.
    assert result["mean_m"] == pytest.approx((10.2 + 22.7 / 2) / 4 - 1 / 16, abs=0.01)
    assert result["known_share"] == pytest.approx(1)
    assert result["area_m2"] == pytest.approx(22.7**2, rel=2e-3)
    assert result["interval"] == {
        "low_m": pytest.approx(result["mean_m"] - 1),
        "high_m": pytest.approx(result["mean_m"] + 3),
        "width_m": pytest.approx(4),
        "level": 0.9,
    }
    assert result["histogram"]["edges_m"] == [0, 2, 4, 6, 8]
    assert sum(result["histogram"]["area_m2"]) == pytest.approx(result["area_m2"], rel=1e-6)


def test_statistics_of_features_as_csv(client: TestClient) -> None:
    features = [
        {"type": "Feature", "id": name, "properties": {}, "geometry": square(left_m, 5, 10)}
        for name, left_m in (("stand 1", 5), ("=1+1", 500))
    ]
    answer = client.post(f"{MAP}/statistics?format=csv", json={"type": "FeatureCollection", "features": features})
    assert answer.headers["content-type"].startswith("text/csv")
    first, second = csv.DictReader(io.StringIO(answer.text))
    assert (first["id"], first["acquired"]) == ("stand 1", "2021-07-01")
    assert float(first["mean_m"]) == pytest.approx(10 / 4 - 1 / 16, abs=0.01)
    assert second["id"] == "'=1+1"  # a spreadsheet would compute it
    assert (second["known_share"], second["mean_m"]) == ("0.0", "")
    accepted = client.post(f"{MAP}/statistics", json=features[0], headers={"accept": "text/csv"})
    assert accepted.headers["content-type"].startswith("text/csv")


def test_histogram_counts_the_view(client: TestClient) -> None:
    west, north = lonlat(0, 0)
    east, south = lonlat(20, 20)
    answer = client.get(f"{MAP}/histogram?bbox={west},{south},{east},{north}&bins=5&range=0,5").json()
    assert answer["edges"] == [0, 1, 2, 3, 4, 5]
    # Cells are an eighth of a metre apart, so each bin of a metre is 8 columns of about 40 rows.
    assert answer["counts"] == pytest.approx([320] * 5, rel=0.05)
    assert answer["known"] == pytest.approx(1600, rel=0.05)
    width = client.get(f"{MAP}/histogram?bbox={west},{south},{east},{north}&bins=5&range=0,5&band=interval_width")
    assert width.json()["counts"][4] == width.json()["known"]
    corner = [*lonlat(50, 55), *lonlat(60, 50)]
    unknown = client.get(f"{MAP}/histogram?bbox={','.join(map(str, corner))}").json()
    assert (unknown["known"], sum(unknown["counts"])) == (0, 0)
    assert unknown["unknown"] > 100


def test_wmts_leads_to_tiles(client: TestClient) -> None:
    answer = client.get("/wmts?SERVICE=WMTS&REQUEST=GetCapabilities&VERSION=1.0.0")
    assert answer.headers["content-type"].startswith("application/xml")
    names = {"w": "http://www.opengis.net/wmts/1.0", "o": "http://www.opengis.net/ows/1.1"}
    root = ElementTree.fromstring(answer.content)
    # The address by which QGIS knows a WMTS without further words.
    address = root.find("w:ServiceMetadataURL", names).get("{http://www.w3.org/1999/xlink}href")
    assert address == "http://127.0.0.1:8000/wmts/1.0.0/WMTSCapabilities.xml"
    assert client.get(address).content == answer.content
    layers = root.findall("w:Contents/w:Layer", names)
    assert {layer.findtext("o:Identifier", None, names) for layer in layers} == {"old", "new", "ortho"}
    template = layers[0].find("w:ResourceURL", names).get("template")
    tile = TMS.tile(*lonlat(10, 10), ZOOM)
    address = template.format(TileMatrix=tile.z, TileCol=tile.x, TileRow=tile.y)
    assert pixels(client.get(address).content).shape == (256, 256, 4)
    matrix = root.findall("w:Contents/w:TileMatrixSet/w:TileMatrix", names)[0]
    # The world in one tile of 256 px: OGC's scale of zoom 0 is 1 : 559 082 264.
    assert float(matrix.findtext("w:ScaleDenominator", None, names)) == pytest.approx(559_082_264, rel=1e-6)


def test_openapi_describes_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/layers", "/layers/{layer_id}/point", "/layers/{layer_id}/statistics", "/wmts", "/healthz"} <= set(paths)
    assert not [path for path in paths if "url" in path]
    for page in ("/docs", "/redoc"):  # they load from other hosts
        assert client.get(page).status_code == 404


POLYGON = square(5, 5, 10)
HOSTILE: list[tuple[str, str, dict, int, str]] = [
    ("GET", "/layers/none", {}, 404, "no layer 'none'"),
    ("GET", "/layers/..%2f..%2fetc%2fpasswd", {}, 404, "no such page"),
    ("GET", "/layers/%2e%2e/point?lon=1&lat=1", {}, 404, "no"),
    ("GET", "/..%2f..%2f..%2fetc%2fpasswd", {}, 404, "no such page"),
    ("GET", f"{MAP}?url=file:///etc/passwd", {}, 400, "unknown parameter 'url'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?url=http://example.org/a.tif", {}, 400, "unknown parameter 'url'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?expression=b1*1e9", {}, 400, "unknown parameter 'expression'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?tilesize=100000", {}, 422, "tilesize"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.tif", {}, 400, "no tiles of format 'tif'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.webp?encoding=terrain", {}, 400, "PNG only"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?band=b9", {}, 400, "no band 'b9'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?minus=none", {}, 404, "no layer 'none'"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?minus=ortho", {}, 400, "is imagery"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?range=5,5", {}, 400, "increasing order"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?range=nan,5", {}, 422, "range"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?range=0,1e999", {}, 422, "range"),
    ("GET", f"{tile_path(*lonlat(9, 9))}.png?fill=nan", {}, 422, "fill"),
    ("GET", f"{tile_path(*lonlat(9, 9), layer='/layers/ortho')}.png?band=red", {}, 400, "is imagery"),
    ("GET", f"{MAP}/tiles/WebMercatorQuad/17/1/1.png", {}, 404, "outside the layer"),
    ("GET", f"{MAP}/tiles/WebMercatorQuad/99/1/1.png", {}, 422, "z: "),
    ("GET", f"{MAP}/tiles/WebMercatorQuad/3/-1/1.png", {}, 422, "x: "),
    ("GET", f"{MAP}/tiles/WebMercatorQuad/2/99999999999999999999/1.png", {}, 422, "x: "),
    ("GET", f"{MAP}/tiles/WGS1984Quad/1/1/1.png", {}, 422, "tileMatrixSetId"),
    ("GET", f"{MAP}/point?lon=0&lat=0", {}, 404, "outside layer 'old'"),
    ("GET", f"{MAP}/point?lon=nan&lat=0", {}, 422, "lon"),
    ("GET", f"{MAP}/point?lon=inf&lat=0", {}, 422, "lon"),
    ("GET", f"{MAP}/point?lon=181&lat=0", {}, 422, "lon"),
    ("GET", f"{MAP}/point?lon=1", {}, 422, "lat"),
    ("GET", f"{MAP}/histogram?bbox=1,2,3", {}, 400, "bbox is '1,2,3'"),
    ("GET", f"{MAP}/histogram?bbox=nan,0,1,1", {}, 400, "increasing degrees"),
    ("GET", f"{MAP}/histogram?bbox=0,0,1,1", {}, 404, "outside layer"),
    ("GET", f"{MAP}/histogram?bbox=0,0,1,1&bins=100000", {}, 422, "bins"),
    ("GET", "/layers/ortho/histogram?bbox=0,0,1,1", {}, 400, "is imagery"),
    ("GET", f"{MAP}?{'a' * 5000}=1", {}, 414, "query is longer"),
    ("GET", "/wmts?request=GetFeatureInfo", {}, 400, "GetCapabilities"),
    ("DELETE", MAP, {}, 405, "no such method"),
    ("POST", f"{MAP}/statistics", {"content": b"{"}, 400, "no JSON"),
    ("POST", f"{MAP}/statistics", {"content": b""}, 400, "no JSON"),
    ("POST", f"{MAP}/statistics", {"content": b"[" * 100_000}, 400, "nested too deeply"),
    ("POST", f"{MAP}/statistics", {"content": b" " * (2**20 + 1)}, 413, "larger than 1 MiB"),
    ("POST", f"{MAP}/statistics", {"content": json.dumps(POLYGON).replace("15.0", "NaN").encode()}, 400, "NaN"),
    ("POST", f"{MAP}/statistics", {"json": [POLYGON]}, 400, "type 'None'"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "Point", "coordinates": [15, 45]}}, 400, "type 'Point'"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "Feature", "geometry": None}}, 400, "geometry 'None'"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "FeatureCollection", "features": [1]}}, 400, "no feature"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "FeatureCollection", "features": []}}, 400, "no polygon"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "Polygon", "coordinates": "x"}}, 400, "unreadable"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "Polygon", "coordinates": [[[1, 2], [3]]]}}, 400, "unreadable"),
    ("POST", f"{MAP}/statistics", {"json": {"type": "Polygon", "coordinates": []}}, 400, "no place on earth"),
    (
        "POST",
        f"{MAP}/statistics",
        {"json": {"type": "Polygon", "coordinates": [[[999, 2], [3, 4], [5, 6], [999, 2]]]}},
        400,
        "no place on earth",
    ),
    (
        "POST",
        f"{MAP}/statistics",
        {"json": {"type": "Polygon", "coordinates": [[[15, 45], [15, 45], [15, 45], [15, 45]]]}},
        400,
        "no area",
    ),
    (
        "POST",
        f"{MAP}/statistics",
        {"json": {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": POLYGON}] * 1000}},
        400,
        "1,000 polygons, expected at most 100",
    ),
    (
        "POST",
        f"{MAP}/statistics",
        {"json": {"type": "Polygon", "coordinates": [[[15, 45 + n / 1e6] for n in range(10_001)] + [[15, 45]]]}},
        400,
        "more than 10,000 corners",
    ),
    ("POST", f"{MAP}/statistics", {"json": square(5000, 5000, 10)}, 404, "no polygon meets layer 'old'"),
    ("POST", f"{MAP}/statistics?threshold=nan", {"json": POLYGON}, 422, "threshold"),
    ("POST", f"{MAP}/statistics?band=interval_width", {"json": POLYGON}, 400, "is derived"),
    ("POST", "/layers/ortho/statistics", {"json": POLYGON}, 400, "is imagery"),
]


@pytest.mark.parametrize(("method", "path", "options", "status", "text"), HOSTILE)
def test_hostile_requests_get_a_status_and_one_line(
    client: TestClient, method: str, path: str, options: dict, status: int, text: str
) -> None:
    answer = client.request(method, path, **options)
    assert answer.status_code == status, answer.text[:500]
    detail = answer.json()["detail"]
    assert text in detail
    assert "\n" not in detail
    assert len(detail) <= 500


def test_too_many_cells_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiles.server.queries.MAX_CELLS", 100)
    answer = client.post(f"{MAP}/statistics", json=POLYGON)
    assert answer.status_code == 400
    assert "expected at most 100" in answer.json()["detail"]


def test_other_sites_are_kept_out(client: TestClient) -> None:
    answer = client.get("/layers", headers={"origin": "https://example.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*|\.\w", policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    # A name that an attacker points to 127.0.0.1 is refused.
    assert client.get("/layers", headers={"host": "example.org"}).status_code == 400
    assert client.get("/layers", headers={"host": "localhost:9"}).status_code == 200


def test_page_is_served_from_its_folder_alone(folder: Path, tmp_path: Path) -> None:
    web = tmp_path / "static"
    web.mkdir()
    (web / "index.html").write_text("<h1>maps</h1>")
    (web / "map.mjs").write_text("export {}")
    (tmp_path / "secret").write_text("secret")
    (web / "link").symlink_to(tmp_path / "secret")
    client = open_client(folder, web=web)
    assert client.get("/").text == "<h1>maps</h1>"
    assert client.get("/map.mjs").headers["content-type"].startswith("text/javascript")
    for path in ("/..%2fsecret", "/%2e%2e/secret", "/link", "/none.js"):
        assert client.get(path).status_code == 404, path
        assert "detail" in client.get(path).json()
    assert client.get("/healthz").json()["status"] == "ok"


def test_damaged_file_is_an_error_of_the_server_without_its_path(tmp_path: Path, caplog) -> None:
    path = make_map(tmp_path / "a.tif")
    client = open_client(path)
    path.write_bytes(b"no raster")
    answer = client.get("/layers/a/point?lon=15&lat=45")
    assert answer.status_code == 500
    assert str(tmp_path) not in answer.text
    assert "a.tif" in caplog.text
    path.unlink()
    assert client.get("/layers/a").status_code == 500


def test_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = make_map(tmp_path / "a.tif")
    client = open_client(path)
    lon, lat = lonlat(10.1, 10.1)
    assert client.get(f"/layers/a/point?lon={lon}&lat={lat}").json()["values"]["canopy_height"] == 2.5
    make_map(tmp_path / "b.tif", map_values((60, 60), offset_m=30.0)[:1], tags={}).replace(path)
    assert client.get(f"/layers/a/point?lon={lon}&lat={lat}").json()["values"] == {"canopy_height": 32.5}
    assert client.get("/layers/a").json()["shape"] == [60, 60]


def test_a_layer_that_is_gone_leaves_the_lists_until_it_is_back(tmp_path: Path, caplog) -> None:
    paths = [make_map(tmp_path / name) for name in ("a.tif", "b.tif")]
    client = open_client(tmp_path)
    paths[0].rename(tmp_path / "away")
    assert [layer["id"] for layer in client.get("/layers").json()["layers"]] == ["b"]
    assert client.get("/wmts").status_code == 200
    assert client.get("/layers/a").status_code == 500
    assert "left out" in caplog.text
    assert "a.tif" in caplog.text
    (tmp_path / "away").rename(paths[0])
    assert [layer["id"] for layer in client.get("/layers").json()["layers"]] == ["a", "b"]


def test_head_is_get_without_a_body(client: TestClient) -> None:
    for path in ("/", "/layers", MAP, "/healthz", f"{tile_path(*lonlat(20, 10))}.png"):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert dict(head.headers) == dict(whole.headers), path
    assert client.head("/layers/nope").status_code == 404


@pytest.mark.parametrize(
    ("factor", "fill", "unit", "options"),
    [
        (100, 65535, None, {"dtype": "uint16", "nodata": 65535}),
        (100, -9999, "cm", {"dtype": "int16", "nodata": -9999}),
        (1, -9999, None, {"nodata": None}),
        (1 / 0.3048, math.nan, "ft", {}),
    ],
)
def test_heights_are_metres_however_the_file_stores_them(
    tmp_path: Path, folder: Path, factor: float, fill: float, unit: str | None, options: dict[str, Any]
) -> None:
    """Other commands read such maps as metres; the server shows the same heights at every route."""
    values = map_values()[:1]
    path = make_map(tmp_path / "stored.tif", np.where(np.isnan(values), fill, values * factor), **options)
    with rasterio.open(path, "r+") as raster:
        raster.units = (unit,)
    client, whole = open_client(path), square(0, 0, 60)
    answers = [client.get("/layers/stored").json()["bands"][0]["range"]["max"]]
    lon, lat = lonlat(40.2, 10)
    answers.append(client.get(f"/layers/stored/point?lon={lon}&lat={lat}").json()["values"]["canopy_height"])
    (polygon,) = client.post("/layers/stored/statistics", json=whole).json()["polygons"]
    (same,) = zone_statistics(folder / "old.tif", [Geometry(shape(whole), CRS("EPSG:4326"))])
    answers += [polygon["max_m"], polygon["known_share"]]
    assert answers == pytest.approx([159 / 8, 10, same.max_m, same.known_share], abs=0.01)
    counts = client.get("/layers/stored/histogram?bbox=14,44,16,46&range=0,40").json()
    assert (counts["known"], counts["unknown"], counts["below"], counts["above"]) == (14_400, 4_800, 0, 0)
    rgba = pixels(client.get(f"{tile_path(lon, lat, layer='/layers/stored')}.png?encoding=terrain").content)
    heights = decode_terrain(rgba)
    assert heights[heights > -10_000].min() >= -0.01
    assert heights.max() == pytest.approx(159 / 8, abs=0.06)
    assert (heights == -10_000).any()


@pytest.mark.parametrize(
    ("dtype", "factor", "unit"), [("uint16", 100, "cm"), ("int16", 100, "cm"), ("float32", 1, "m")]
)
def test_ground_at_0_is_ground_where_a_file_declares_0_as_nodata(
    tmp_path: Path, dtype: str, factor: float, unit: str
) -> None:
    """Statistics count such cells as bare ground, so tiles draw them as it."""
    heights = np.where(np.isnan(values := map_values()[:1]), 0, values)
    path = make_map(tmp_path / "stored.tif", heights * factor, dtype=dtype, nodata=0)
    with rasterio.open(path, "r+") as raster:
        raster.units = (unit,)
    client = open_client(path)
    places = [(60.0, 45.0), (40.2, 10.0), (-2.0, 10.0)]  # bare ground, trees of 10 m, outside the map
    drawn = [read_tile(client, *place, "?encoding=terrain", "/layers/stored") for place in places]
    assert [float(decode_terrain(pixel)) for pixel in drawn] == pytest.approx([0, 10, -10_000], abs=0.06)
    (polygon,) = client.post("/layers/stored/statistics", json=square(0, 0, 60)).json()["polygons"]
    assert polygon["known_share"] == pytest.approx(1)


def test_heights_of_an_unknown_unit_are_no_layer(tmp_path: Path) -> None:
    path = make_map(tmp_path / "stored.tif", np.ones((1, 20, 20)), dtype="int16", nodata=-1)
    with pytest.raises(RasterError, match=r"its unit is unknown; tag its unit \(rio edit-info"):
        open_client(path)


def test_terrain_encoding_by_hand() -> None:
    """10 m is the number 100 100, that is 1 * 65536 + 135 * 256 + 4."""
    coded = encode_terrain(np.array([[10.0, np.nan, -10_000.0, 1e9]], np.float32))
    assert coded[:, 0, 0].tolist() == [1, 135, 4]
    assert coded[:, 0, 1].tolist() == [0, 0, 0]
    assert coded[:, 0, 2].tolist() == [0, 0, 1]  # the lowest height is not the code of unknown
    assert coded[:, 0, 3].tolist() == [255, 255, 255]


def test_colour_encoding_by_hand() -> None:
    indexes = encode_colour(np.array([[np.nan, -5, 0, 17.5, 35, 99]], np.float32), (0, 35))
    assert indexes.tolist() == [[0, 1, 1, 128, 255, 255]]
    colours = palette("height").rgb
    assert colours[3:6].hex() == HEIGHT_RAMP[0][1][1:]
    assert colours[-3:].hex() == HEIGHT_RAMP[-1][1][1:]
    assert len(colours) == 768
