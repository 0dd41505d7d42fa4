"""A service that looks like Vantor's Vivid: tiles by WMTS with a filter, dates by WFS, a key in a header."""

import logging
import re
from typing import Any

import numpy as np
import pytest
from odc.geo.geom import Geometry
from servers.web import Call, Fault, Reply, WebServer
from tile_pyramids import TileRoute, grid, tile_at
from wmts_service import document, kvp, layer_xml, matrix_xml, set_xml

from canopy.errors import ImageryError, SourceError
from canopy.http import HttpClient, Retry
from canopy.imagery.calendar import day_number
from canopy.imagery.tiled import TiledImagery, open_tiles
from canopy.imagery.tiled.features import read_calendar
from canopy.imagery.tiled.matrices import TileKey, mercator_matrix

KEY = "a-vantor-key"
PRODUCT = "VIVID_STANDARD_30"
BLANK = b"\xff\xd8\xff" + bytes(1667)
WFS = "/streaming/v1/ogc/wfs"
WMTS = "/streaming/v1/ogc/gwc/service/wmts"
AREA = Geometry(grid().extent.geom, grid().crs)


def feature(name: str, day: str, west: float, east: float, swapped: bool = False) -> dict[str, Any]:
    """A part of the mosaic, which spans the latitudes of `grid()`."""
    ring = [(west, 45.1), (east, 45.1), (east, 45.2), (west, 45.2), (west, 45.1)]
    ring = [(y, x) for x, y in ring] if swapped else ring
    properties = {"featureId": name, "productName": PRODUCT, "acquisitionDate": f"{day}T11:08:56Z"}
    return {"type": "Feature", "id": name, "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": properties}  # fmt: skip


FEATURES = [
    feature("a", "2021-07-01", 2.99, 3.0007),
    feature("b", "2023-05-04", 3.0007, 3.02),
    feature("b", "2023-05-04", 3.0007, 3.02),
]


class Vivid:
    """The service, with the traps of the real one."""

    def __init__(self, tiles: dict[TileKey, bytes]) -> None:
        self.features = FEATURES
        self.tiles = TileRoute(tiles)
        sets = [set_xml("EPSG:3857", [matrix_xml(zoom, "EPSG:3857:{}") for zoom in range(21)], "EPSG:3857")]
        self.capabilities = lambda url: document([layer_xml("Maxar:Imagery", ["EPSG:3857"])], sets, f"{url}{WMTS}?")

    def wmts(self, url: str):
        answer = kvp(self.tiles, self.capabilities(url))

        def reply(call: Call) -> Reply:
            if call.headers.get("maxar-api-key") != KEY:
                return Reply.text("Unauthorized", 401)
            if call.query.get("request") == "GetTile":
                # A wrong product or a misspelt property is answered with a blank tile and status 200.
                if call.query.get("cql_filter") != f"productName='{PRODUCT}'":
                    return Reply(BLANK, headers={"Content-Type": "image/jpeg"})
                found = answer(call)
                return found if found.status == 200 else Reply(BLANK, headers={"Content-Type": "image/jpeg"})
            return answer(call)

        return reply

    def wfs(self, call: Call) -> Reply:
        if call.headers.get("maxar-api-key") != KEY:
            return Reply.text("Unauthorized", 401)
        if "bbox" in call.query:
            return Reply.text("broken", 500)
        box = re.search(r"BBOX\(\w+,([\d.-]+),([\d.-]+),([\d.-]+),([\d.-]+)\)", call.query["cql_filter"])
        assert box is not None and call.query["typeNames"] == "Maxar:FinishedFeature"
        south, west, north, east = map(float, box.groups())
        # Longitude first finds nothing, in silence.
        hit = self.features if 45 < south < north < 45.2 and 2.9 < west < east < 3.1 else []
        start = int(call.query["startIndex"])
        return Reply.json({"type": "FeatureCollection", "features": hit[start : start + int(call.query["count"])]})


@pytest.fixture
def vivid(server: WebServer, tiles: dict[TileKey, bytes], monkeypatch: pytest.MonkeyPatch) -> Vivid:
    service = Vivid(tiles)
    server.route(WMTS, service.wmts(server.url))
    server.route(WFS, service.wfs)
    monkeypatch.setenv("VANTOR_API_KEY", KEY)
    return service


def opened(server: WebServer, product: str = PRODUCT, options: str = "", **arguments: Any) -> TiledImagery:
    address = f"wmts+{server.url}{WMTS}#layer=Maxar:Imagery&set=EPSG:3857&key=maxar-api-key:VANTOR_API_KEY"
    uri = f"{address}&product={product}{options}"
    return open_tiles(uri, area=AREA, retry=Retry(2, 0.0), **arguments)


def test_the_mosaic_gives_the_bits_of_a_folder_and_its_dates(
    server: WebServer, vivid: Vivid, expected: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(server)
    np.testing.assert_array_equal(source.read(grid()).values, expected)
    assert source.datetime == "2021-07-01/2023-05-04"
    days = source.dates(grid())
    assert days.dtype == np.uint16
    assert set(np.unique(days)) == {day_number("2021-07-01"), day_number("2023-05-04")}
    # West of 3.0007 degrees lies the older part.
    assert days[10, 5] == day_number("2021-07-01") and days[10, -5] == day_number("2023-05-04")
    # Zooms beyond 18 are upsampled, and billed.
    assert "zoom 0 to 18" in source.describe()
    assert not any(KEY in text for text in (caplog.text, source.describe(), *source.uris))
    assert not any(KEY in str(call.query) for call in server.calls)


def test_a_blank_tile_of_status_200_is_unknown(server: WebServer, vivid: Vivid) -> None:
    del vivid.tiles.tiles[tile_at(mercator_matrix(17), 60, 40)]
    assert 0.1 < np.isnan(opened(server).read(grid()).values[0]).mean() < 0.9
    assert np.isnan(opened(server, "VIVID_STANDRAD_30").read(grid()).values).all()


def test_xml_of_status_200_is_an_error(server: WebServer, vivid: Vivid) -> None:
    xml = Reply.text("<ServiceException>Unknown TILEMATRIX 99</ServiceException>", kind="application/xml")
    vivid.tiles.replies[tile_at(mercator_matrix(17), 60, 40)] = xml
    with pytest.raises(SourceError, match="Unknown TILEMATRIX 99"):
        opened(server).read(grid())


def test_a_wrong_key_is_an_error(server: WebServer, vivid: Vivid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VANTOR_API_KEY", "an-old-key")
    with pytest.raises(SourceError, match="answered 401") as error:
        opened(server)
    assert "an-old-key" not in str(error.value)


def test_a_map_goes_on_without_dates(
    server: WebServer, vivid: Vivid, caplog: pytest.LogCaptureFixture, expected: np.ndarray
) -> None:
    report = Fault(status=200, body=b"<ows:ExceptionReport>Illegal property name</ows:ExceptionReport>")
    server.fail(report, path=WFS)
    with caplog.at_level(logging.WARNING):
        source = opened(server)
    assert source.datetime is None
    assert "acquisition dates unknown" in caplog.text and "Illegal property name" in caplog.text
    assert (source.dates(grid()) == 0).all()
    vivid.features = []
    with caplog.at_level(logging.WARNING):
        assert opened(server).datetime is None
    assert "has no features of VIVID_STANDARD_30 there" in caplog.text
    assert opened(server, options="&dates=none", datetime="2020-01-01").datetime == "2020-01-01"


def test_features_come_in_pages_and_in_either_order_of_axes(
    server: WebServer, vivid: Vivid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canopy.imagery.tiled.features._PAGE", 2)
    vivid.features = [feature(str(n), f"2020-01-{n + 1:02}", 2.99, 3.02, swapped=n % 2 == 1) for n in range(5)]
    with HttpClient(headers={"maxar-api-key": KEY}) as client:
        calendar = read_calendar(client, f"{server.url}{WFS}", PRODUCT, (3.0, 45.12, 3.01, 45.16))
    assert calendar.span == "2020-01-01/2020-01-05"
    assert server.count(WFS) == 3
    assert all(outline.bounds == pytest.approx((2.99, 45.1, 3.02, 45.2)) for outline in calendar.footprints)
    # The newest is on top.
    assert (calendar.on(grid()) == day_number("2020-01-05")).all()


def test_faults_are_one_line(server: WebServer, vivid: Vivid) -> None:
    with pytest.raises(SourceError, match="letters, digits"):
        opened(server, "A'%20OR%201=1")
    with pytest.raises(ImageryError, match="expected an address of the host that has the key"):
        opened(server, options="&dates=https://elsewhere.example.org/wfs")
    vivid.features = [{"type": "Feature", "properties": {}, "geometry": None}]
    with (
        HttpClient(headers={"maxar-api-key": KEY}) as client,
        pytest.raises(SourceError, match="a feature without geometry"),
    ):
        read_calendar(client, f"{server.url}{WFS}", PRODUCT, (3.0, 45.12, 3.01, 45.16))
