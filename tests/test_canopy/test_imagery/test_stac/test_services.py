"""Oddities of single services, each played as its recorded answers and documentation show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import shapely
import shapely.geometry
from imagery_reading import grid
from odc.geo.geom import Geometry, box
from servers.web import Call, Reply, WebServer, file_reply
from stac_service import StacApi, item_of, outline_of, signed

from canopy.imagery import open_imagery
from canopy.imagery.search import Search
from canopy.imagery.stac import find_items, openaerialmap, parse_uri
from canopy.imagery.stac.items import lonlat_box, parse_item, within_turn


def values(uri: str, area: Geometry, **options: Any) -> np.ndarray:
    return open_imagery(uri, area=area, **options).read(grid()).values


def local(*paths: Path) -> np.ndarray:
    return open_imagery([*paths]).read(grid()).values


class Swisstopo:
    """data.geo.admin.ch: the link to its search has no method, `conformsTo` does not name it, pages of 100 at most."""

    def __init__(self, server: WebServer, images: Path, version: str) -> None:
        self.server, self.prefix = server, f"/api/stac/{version}"
        self.stac_version = "0.9.0" if version == "v0.9" else "1.0.0"
        self.items = [self._item("old.tif", 2017, images), self._item("new.tif", 2020, images)]
        self.questions: list[dict[str, str]] = []
        url = f"{server.url}{self.prefix}"
        landing = {
            "id": "ch", "description": "Catalog of Swiss Geodata Downloads", "stac_version": self.stac_version,
            "conformsTo": ["http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core"],
            "links": [
                {"rel": "self", "href": f"{url}/", "type": "application/json"},
                {"rel": "data", "href": f"{url}/collections", "type": "application/json"},
                {"rel": "search", "href": f"{url}/search", "type": "application/json"},
            ],
        }  # fmt: skip
        server.route(self.prefix, Reply.json(landing))
        server.route(f"{self.prefix}/search", self.search)
        server.files("/data", images)

    def _item(self, name: str, year: int, images: Path) -> dict[str, Any]:
        """One of several years of a sheet; a preview of 2 m stands before the image of 0.1 m."""
        outline = outline_of(images / name)
        sheet = f"swissimage-dop10_{year}_2600-1199"
        common = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "checksum:multihash": "1220ab"}
        return {
            "type": "Feature", "stac_version": self.stac_version, "stac_extensions": [], "id": sheet, "links": [],
            "collection": "ch.swisstopo.swissimage-dop10", "geometry": shapely.geometry.mapping(outline),
            "bbox": list(outline.bounds),
            "properties": {"datetime": f"{year}-01-01T00:00:00Z", "created": "2021-02-10T11:05:39.000000Z"},
            "assets": {
                f"{sheet}_2_2056.tif": {"href": f"{self.server.url}/data/half.tif", "eo:gsd": 2.0, "proj:epsg": 2056}
                | common,
                f"{sheet}_0.1_2056.tif": {"href": f"{self.server.url}/data/{name}", "eo:gsd": 0.1, "proj:epsg": "2056"}
                | common,
            },
        }  # fmt: skip

    def search(self, call: Call) -> Reply:
        """Answer one item a page, whose next page is named by a cursor."""
        assert call.method == "GET"
        self.questions.append(dict(call.query))
        if int(call.query.get("limit", 100)) > 100:
            return Reply.json({"code": 400, "description": "limit query parameter too big"}, 400)
        start = int(call.query.get("cursor", 0))
        links = [{"rel": "self", "href": "x"}]
        if start + 1 < len(self.items):
            query = urlencode({**call.query, "cursor": start + 1})
            links.append({"rel": "next", "href": f"{self.server.url}{self.prefix}/search?{query}", "method": "GET"})
        return Reply.json({"type": "FeatureCollection", "features": self.items[start : start + 1], "links": links})


@pytest.mark.parametrize("version", ["v0.9", "v1"])
def test_swisstopo_is_searched_page_by_page(server: WebServer, images: Path, area: Geometry, version: str) -> None:
    service = Swisstopo(server, images, version)
    uri = f"stac+{server.url}{service.prefix}?collection=ch.swisstopo.swissimage-dop10"
    np.testing.assert_array_equal(values(uri, area), local(images / "new.tif"))
    assert [question.get("cursor") for question in service.questions] == [None, "1"]
    assert service.questions[0]["collections"] == "ch.swisstopo.swissimage-dop10"
    np.testing.assert_array_equal(values(uri, area, search=Search.read(date="2017")), local(images / "old.tif"))


def test_a_signature_in_a_catalogue_is_replaced_by_one_of_ones_own(
    server: WebServer, images: Path, area: Geometry
) -> None:
    """An address that a catalogue signed may be valid for one client alone (``sip=``)."""
    signed(server, images, lambda signature: signature == "ours")
    server.route("/sas", Reply.json({"token": "sig=ours", "msft:expiry": "2999-01-01T00:00:00Z"}))
    href = f"{server.url}/account/naip/new.tif?st=2020-01-01&sip=10.0.0.1&sig=theirs"
    uri = StacApi(server, [item_of(images / "new.tif", href)]).uri
    source = open_imagery(f"{uri}?collection=naip&signing={server.url}/sas", area=area)
    np.testing.assert_array_equal(source.read(grid()).values, local(images / "new.tif"))
    assert not any(secret in repr((source.uris, source.describe())) for secret in ("sig=", "sip="))


def vantor(server: WebServer, images: Path) -> str:
    """The newer bucket: strips without `proj:*` and `gsd`, a picture with the role of a thumbnail, repeated items."""
    outline = outline_of(images / "new.tif")
    item = {
        "type": "Feature", "id": "10300100EB15FF00", "collection": "Event-Feb-2026", "links": [],
        "geometry": shapely.geometry.mapping(outline), "bbox": list(outline.bounds),
        "properties": {"datetime": "2026-02-03 16:02:35Z", "view:off_nadir": 12.5, "eo:cloud_cover": 3},
        "assets": {"visual": {"href": "./10300100EB15FF00-visual.tif", "roles": ["thumbnail"], "type": "image/tiff"}},
    }  # fmt: skip
    extent = {"spatial": {"bbox": [list(outline.bounds)]}}
    root = {"type": "Catalog", "id": "events", "links": [{"rel": "child", "href": "./Event/collection.json"}]}
    server.route("/vantor/catalog.json", Reply.json(root))
    lists = [{"rel": "child", "href": f"./{name}.json"} for name in ("pre", "post")]
    event = {"type": "Collection", "id": "Event", "extent": extent, "links": lists}
    server.route("/vantor/Event/collection.json", Reply.json(event))
    for name in ("pre", "post"):
        link = {"rel": "item", "href": f"./{name}/10300100EB15FF00.json"}
        acquisitions = {"type": "Collection", "id": name, "extent": extent, "links": [link]}
        server.route(f"/vantor/Event/{name}.json", Reply.json(acquisitions))
        server.route(f"/vantor/Event/{name}/10300100EB15FF00.json", Reply.json(item))
        server.route(f"/vantor/Event/{name}/10300100EB15FF00-visual.tif", picture(images / "new.tif"))
    return f"stac+{server.url}/vantor/catalog.json?asset=visual"


def picture(path: Path) -> Callable[[Call], Reply]:
    return lambda call: file_reply(call, path.read_bytes())


def test_lists_before_and_after_an_event_may_repeat_an_image(server: WebServer, images: Path, area: Geometry) -> None:
    source = open_imagery(vantor(server, images), area=area)
    assert len(source.uris) == 1 and source.datetime == "2026-02-03T16:02:35Z"
    np.testing.assert_array_equal(source.read(grid()).values, local(images / "new.tif"))


def test_an_image_counts_where_its_outline_says_not_where_its_file_reaches(
    server: WebServer, images: Path, area: Geometry
) -> None:
    """The file of a tile is whole though only a sliver of it was imaged."""
    server.files("/data", images)
    west, south, east, north = outline_of(images / "new.tif").bounds
    sliver = shapely.box(west, south, west + 0.1 * (east - west), north)
    items = [
        item_of(images / "new.tif", f"{server.url}/data/new.tif", "2022-07-01T16:00:00Z", geometry=sliver),
        item_of(images / "old.tif", f"{server.url}/data/old.tif", "2016-07-01T16:00:00Z"),
    ]
    source = open_imagery(f"{StacApi(server, items).uri}?collection=naip", area=area)
    assert [Path(uri).name for uri in source.uris] == ["new.tif", "old.tif"]


# The antimeridian.


@pytest.mark.parametrize(
    ("west", "east", "bounds"),
    [(179.0, -179.0, [(-180, -179), (179, 180)]), (179.0, 181.0, [(-180, -179), (179, 180)]), (10.0, 11.0, [(10, 11)]),
     (-181.5, -179.5, [(-180, -179.5), (178.5, 180)])],
)  # fmt: skip
def test_boxes_across_the_antimeridian_have_two_parts(west: float, east: float, bounds: list[Any]) -> None:
    shape = lonlat_box(west, -17, east, -16)
    parts = sorted((part.bounds[0], part.bounds[2]) for part in getattr(shape, "geoms", [shape]))
    assert parts == bounds
    assert within_turn(shape).equals(shape)


def test_outlines_beyond_180_degrees_come_in_on_the_other_side() -> None:
    outline = shapely.geometry.mapping(shapely.box(179, -17, 181, -16))
    document = {"id": "a", "geometry": outline, "properties": {}, "assets": {"visual": {"href": "a.tif"}}}
    assert parse_item(document, "https://example.org/").geometry.contains(shapely.Point(-179.5, -16.5))


def test_a_walk_enters_what_crosses_the_antimeridian(server: WebServer) -> None:
    """The extent of a collection on both sides of 180 degrees has its west in the east."""

    def collection(name: str, extent: list[float]) -> Reply:
        links = [{"rel": "item", "href": f"./{name}.item.json"}]
        return Reply.json({"type": "Collection", "id": name, "extent": {"spatial": {"bbox": [extent]}}, "links": links})

    names = {"fiji": [179.0, -17.0, -179.0, -16.0], "samoa": [-173.0, -15.0, -171.0, -13.0]}
    root = {"type": "Catalog", "id": "c", "links": [{"rel": "child", "href": f"./{name}.json"} for name in names]}
    server.route("/both/catalog.json", Reply.json(root))
    for name, extent in names.items():
        server.route(f"/both/{name}.json", collection(name, extent))
        item = {"id": name, "type": "Feature", "bbox": extent, "geometry": None, "properties": {},
                "assets": {"visual": {"href": f"./{name}.tif"}}}  # fmt: skip
        server.route(f"/both/{name}.item.json", Reply.json(item))
    uri = parse_uri(f"stac+{server.url}/both/catalog.json")
    for lon in (179.5, -179.5):
        server.forget()
        sifted = find_items(uri, box(lon, -16.6, lon + 0.1, -16.5, "EPSG:4326"), Search())
        assert [item.id for item in sifted.items] == ["fiji"]
        assert not any("samoa.item" in call.path for call in server.calls)


def test_both_sides_of_the_antimeridian_are_asked_for(server: WebServer, images: Path) -> None:
    service = StacApi(server, [])
    sides = shapely.MultiPolygon([shapely.box(179.5, -17, 180, -16), shapely.box(-180, -17, -179.5, -16)])
    find_items(parse_uri(f"{service.uri}?collection=naip"), Geometry(sides, "EPSG:4326"), Search())
    assert [question["bbox"] for question in service.questions] == [[179.5, -17, 180, -16], [-180, -17, -179.5, -16]]


def test_openaerialmap_names_encrypted_addresses_as_plain() -> None:
    result = {"uuid": "http://oin-hotosm.s3.amazonaws.com/a/0/b.tif", "bbox": [3, 45, 3.1, 45.1], "properties": {}}
    item = openaerialmap._item(json.loads(json.dumps(result)))
    assert item is not None and item.assets[0].href == "https://oin-hotosm.s3.amazonaws.com/a/0/b.tif"
