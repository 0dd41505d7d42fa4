from pathlib import Path

import numpy as np
import pytest
from servers.web import Reply, WebServer
from tile_pyramids import TileRoute, grid
from wmts_service import PM, document, kvp, layer_xml, limits_xml, matrix_xml, set_xml

from canopy.errors import ImageryError, SourceError
from canopy.imagery.tiled import open_tiles
from canopy.imagery.tiled.matrices import TileKey, mercator_matrix
from canopy.imagery.tiled.wmts import WmtsChoice, WmtsLayer, capabilities_address, parse_capabilities

FIXTURES = "03-wmts-wms-wfs"


def parse(content: bytes, **choice) -> WmtsLayer:
    return parse_capabilities(content, "shown", WmtsChoice(**choice))


def test_matrices_are_ordered_by_scale_and_corners_made_exact() -> None:
    layer = parse(document([layer_xml()], [PM]))
    assert [matrix.identifier for matrix in layer.matrices] == ["0", "1", "2", "3", "10", "16", "17"]
    assert [matrix.zoom for matrix in layer.matrices] == [0, 1, 2, 3, 10, 16, 17]
    exact, last = mercator_matrix(17), layer.matrices[-1]
    assert (last.left, last.top, last.pixel) == (exact.left, exact.top, exact.pixel)


def test_limits_of_the_layer_say_where_its_tiles_are() -> None:
    for names in (("16", "17"), ("PM:16", "PM:17")):
        limits = limits_xml({names[0]: (1, 2, 3, 4), names[1]: (2, 4, 7, 9)})
        layer = parse(document([layer_xml(limits=limits)], [PM]))
        assert [(one.identifier, one.limits) for one in layer.matrices] == [("16", (1, 2, 3, 4)), ("17", (2, 4, 7, 9))]


@pytest.mark.parametrize(
    ("crs", "corner"),
    [
        ("urn:ogc:def:crs:EPSG::4326", "90 -180"),
        ("urn:ogc:def:crs:OGC:1.3:CRS84", "-180 90"),
        # Declared in one order, written in the other.
        ("urn:ogc:def:crs:OGC:1.3:CRS84", "90 -180"),
        ("EPSG:4326", "-180 90"),
    ],
)
def test_axes_follow_the_crs_or_what_can_be_meant(crs: str, corner: str) -> None:
    matrix = f"""<TileMatrix><ows:Identifier>a</ows:Identifier><ScaleDenominator>279541132.0143589</ScaleDenominator>
      <TopLeftCorner>{corner}</TopLeftCorner><TileWidth>256</TileWidth><TileHeight>256</TileHeight>
      <MatrixWidth>2</MatrixWidth><MatrixHeight>1</MatrixHeight></TileMatrix>"""
    (one,) = parse(document([layer_xml()], [set_xml("PM", [matrix], crs)])).matrices
    assert (one.left, one.top) == (-180, 90)
    assert one.pixel == pytest.approx(180 / 256)
    assert one.spans_world


def test_a_projected_crs_with_northing_first() -> None:
    matrix = matrix_xml(12, corner="5500000 2000000")
    (one,) = parse(document([layer_xml()], [set_xml("PM", [matrix], "urn:ogc:def:crs:EPSG::3035")])).matrices
    assert (one.left, one.top) == (2_000_000, 5_500_000)


def test_twice_as_fine_tiles_keep_the_grid() -> None:
    fine = matrix_xml(10, "EPSG:3857x2:{}", tile=512, scale=0.5)
    (one,) = parse(document([layer_xml(sets=["x2"])], [set_xml("x2", [fine], "EPSG:3857")])).matrices
    assert one.tile_px == (512, 512)
    assert one.pixel == pytest.approx(mercator_matrix(11).pixel)
    assert one.columns * 512 * one.pixel == pytest.approx(2 * 20037508.342789244)


def test_of_several_sets_web_mercator_is_taken_unless_one_is_named() -> None:
    degrees = set_xml("WGS84", [matrix_xml(3, corner="90 -180")], "urn:ogc:def:crs:EPSG::4326")
    content = document([layer_xml(sets=["WGS84", "PM"])], [degrees, PM])
    assert parse(content).matrix_set == "PM"
    assert parse(content, matrix_set="WGS84").matrix_set == "WGS84"


def test_restful_templates_are_filled() -> None:
    url = """<ResourceURL format="image/jpeg" resourceType="tile"
      template="https://h/{layer}/{Style}/{Time}/{TileMatrixSet}/{tilematrix}/{TileRow}/{TileCol}.jpg"/>
      <ResourceURL format="text/html" resourceType="FeatureInfo" template="https://h/{I}"/>
      <Dimension><ows:Identifier>Time</ows:Identifier><Default>2021-05-01</Default><Value>2020</Value></Dimension>"""
    content = document([layer_xml(extra=url)], [PM])
    assert parse(content).template == "https://h/ortho/normal/2021-05-01/PM/{TileMatrix}/{TileRow}/{TileCol}.jpg"
    assert "/2020/" in parse(content, dimensions={"time": "2020"}).template


@pytest.mark.parametrize(
    ("content", "choice", "message"),
    [
        (
            document([layer_xml("orthophotos")], [PM]),
            {"layer": "orthofotos"},
            "no layer orthofotos; did you mean ortho",
        ),
        (document([layer_xml("a"), layer_xml("b")], [PM]), {}, "2 layers, expected a choice: #layer= one of a, b"),
        (document([layer_xml()], [PM]), {"matrix_set": "XY"}, "no set XY; it has PM"),
        (document([layer_xml()], [PM]), {"style": "old"}, "no style old; it has normal"),
        (document([layer_xml()], [PM]), {"format": "image/jpeg"}, "no format image/jpeg"),
        (document([layer_xml()], [PM]), {"dimensions": {"Time": "2020"}}, "no dimension Time; it has none"),
        (document([], [PM]), {}, "no layers in its capabilities"),
        (b"<html><body>Log in</body></html>", {}, "html .Log in., expected WMTS capabilities"),
        (b"<ServiceExceptionReport>no key</ServiceExceptionReport>", {}, "ServiceExceptionReport .no key."),
        (b'{"error": 1}', {}, "no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><Capabilities>&b;</Capabilities>', {}, "a document with a DOCTYPE"),
        (document([layer_xml()], [PM]).replace(b"image/png", b"image/tiff"), {}, "tiles in image/tiff, expected"),
        (document([layer_xml()], [PM]).replace(b"<TileWidth>256", b"<TileWidth>0"), {}, "matrix .* tiles of 0 x 256"),
        (document([layer_xml()], [PM]).replace(b"6.18:3:3857", b":999999"), {}, "CRS .*999999 of its tiles"),
        (document([layer_xml()], [PM]).replace(b"KVP", b"SOAP"), {}, "no address of GetTile"),
    ],
)
def test_faults_are_one_line(content: bytes, choice: dict, message: str) -> None:
    with pytest.raises(ImageryError, match=message) as error:
        parse(content, **choice)
    assert "\n" not in str(error.value)


def test_the_query_for_capabilities_is_added_where_it_lacks() -> None:
    added = "https://h/wmts?service=WMTS&request=GetCapabilities&version=1.0.0"
    assert capabilities_address("https://h/wmts") == added
    for whole in ("https://h/WMTSCapabilities.xml", "https://h/w?Request=GetCapabilities"):
        assert capabilities_address(whole) == whole


def test_a_service_gives_the_bits_of_a_folder(
    server: WebServer, tiles: dict[TileKey, bytes], expected: np.ndarray
) -> None:
    # The capabilities state a plain address of the same host, as servers behind a proxy do.
    content = document([layer_xml()], [PM], base=f"{server.url}/wmts?map=1&amp;")
    server.route("/wmts", kvp(TileRoute(tiles), content))
    source = open_tiles(f"wmts+{server.url}/wmts#layer=ortho&set=PM")
    np.testing.assert_array_equal(source.read(grid()).values, expected)
    assert server.calls[-1].query["map"] == "1"
    assert source.describe().startswith(f"wmts+{server.url}/wmts#layer=ortho&set=PM, zoom 0 to 17")


def test_tiles_outside_the_limits_are_not_asked_for(server: WebServer, tiles: dict[TileKey, bytes]) -> None:
    key = min(tiles, key=lambda one: (one.col, one.row))
    limits = limits_xml({"17": (key.col, key.row, key.col, key.row)})
    server.route("/wmts", kvp(TileRoute(tiles), document([layer_xml(limits=limits)], [PM], f"{server.url}/wmts?")))
    source = open_tiles(f"wmts+{server.url}/wmts")
    source.read(grid())
    assert server.count() <= 2
    west, _, east, _ = source.footprint.boundingbox.bbox
    assert east - west == pytest.approx(360 / 2**17)


def test_a_key_is_not_sent_to_another_host(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILES_KEY", "a-secret-value")
    server.route("/wmts", Reply(document([layer_xml()], [PM], base="https://other.example.org/wmts?")))
    with pytest.raises(ImageryError, match=r"its tiles are at other\.example\.org, expected 127\.0\.0\.1"):
        open_tiles(f"wmts+{server.url}/wmts#key=x-api-key:TILES_KEY")


def test_a_plain_address_elsewhere_is_refused(server: WebServer) -> None:
    server.route("/wmts", Reply(document([layer_xml()], [PM])))
    with pytest.raises(ImageryError, match="expected an https address"):
        open_tiles(f"wmts+{server.url}/wmts")


def test_a_service_that_is_down_is_an_error(server: WebServer) -> None:
    with pytest.raises(SourceError, match="answered 404"):
        open_tiles(f"wmts+{server.url}/absent")


@pytest.mark.parametrize(
    ("name", "layer", "first", "last", "corner"),
    [
        ("ign_geoportail_2015_trimmed.xml", "ORTHOIMAGERY.ORTHOPHOTOS", "0", "19", (-20037508.342789244,) * 2),
        ("ol_arcgis.xml", None, "0", "13", (-20037508.342789244,) * 2),
        ("ol_capabilities_wgs84.xml", "baselayer", "0", "12", (-180.0, -90.0)),
        ("owslib_sfs-wmts-cap-world.xml", "World", "0", "20", (-180.0, -90.0)),
    ],
)
def test_recorded_capabilities(
    shared_data: Path, name: str, layer: str | None, first: str, last: str, corner: tuple[float, float]
) -> None:
    path = shared_data.parent / "fixtures" / FIXTURES / name
    if not path.is_file():
        pytest.skip(f"no recorded answers at {path}")
    content = path.read_bytes()
    try:
        parsed = parse(content, layer=layer)
    except ImageryError as error:
        # Several layers: the first that the message lists.
        parsed = parse(content, layer=str(error).rpartition("one of ")[2].split(",")[0])
    assert (parsed.matrices[0].identifier, parsed.matrices[-1].identifier) == (first, last)
    assert (parsed.matrices[0].left, -parsed.matrices[0].top) == pytest.approx(corner)
