"""Static catalogues, in the layout of Maxar Open Data, are walked once."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import shapely.geometry
from imagery_reading import grid
from odc.geo.geom import Geometry
from servers.web import Fault, Reply, WebServer
from stac_service import outline_of

from canopy.errors import CoverageError, SourceError
from canopy.imagery import open_imagery


def event(server: WebServer, images: Path) -> str:
    """A catalogue of two events, one of them far away; addresses are relative."""
    outline = outline_of(images / "new.tif")
    here = list(outline.bounds)

    def collection(name: str, boxes: list[list[float]], links: list[dict[str, str]]) -> Reply:
        extent = {"spatial": {"bbox": boxes}, "temporal": {"interval": [["2022-10-03T16:02:35Z", None]]}}
        return Reply.json({"type": "Collection", "id": name, "extent": extent, "links": links})

    def item(name: str, date: str, **properties: Any) -> Reply:
        return Reply.json({
            "type": "Feature", "id": f"31/{name}", "collection": "Flood", "bbox": here,
            "geometry": shapely.geometry.mapping(outline),
            "properties": {"datetime": date, "tile:clouds_percent": 4, "view:off_nadir": 20.0, **properties},
            "assets": {
                "visual": {"href": f"./{name}-visual.tif", "type": "image/tiff", "roles": ["visual"]},
                "data-mask": {"href": f"./{name}-data-mask.gpkg", "roles": ["data-mask"]},
                "ms_analytic": {"href": f"./{name}-ms.tif", "type": "image/tiff", "roles": ["data"]},
            },
            "links": [],
        })  # fmt: skip

    root = {"type": "Catalog", "id": "events", "links": [
        {"rel": "self", "href": f"{server.url}/events/catalog.json"},
        {"rel": "child", "href": "./Flood/collection.json"}, {"rel": "child", "href": "./Fire/collection.json"},
        {"rel": "child", "href": "./Gone/collection.json"},
    ]}  # fmt: skip
    server.route("/events/catalog.json", Reply.json(root))
    server.route("/events/Flood/collection.json", collection("Flood", [here, [170, 0, 171, 1], here], [
        {"rel": "child", "href": "./ard/acquisition_collections/10_collection.json"},
        {"rel": "child", "href": "./ard/acquisition_collections/11_collection.json"},
    ]))  # fmt: skip
    server.route("/events/Fire/collection.json", collection("Fire", [[100, 10, 101, 11]], [
        {"rel": "child", "href": "./ard/acquisition_collections/20_collection.json"},
    ]))  # fmt: skip
    acquisitions = "/events/Flood/ard/acquisition_collections"
    tile = "/events/Flood/ard/31/031311013310/2022-10-03"
    server.route(f"{acquisitions}/10_collection.json", collection("10", [here], [
        {"rel": "item", "href": "../31/031311013310/2022-10-03/10.json"},
        {"rel": "item", "href": "../31/031311013310/2022-10-03/missing.json"},
    ]))  # fmt: skip
    server.route(f"{acquisitions}/11_collection.json", collection("11", [[100, 10, 101, 11]], [
        {"rel": "item", "href": "../31/031311013310/2022-10-03/far.json"},
    ]))  # fmt: skip
    server.route(f"{tile}/10.json", item("10", "2022-10-03 16:02:35Z"))
    server.route(f"{tile}/10-visual.tif", Reply((images / "new.tif").read_bytes()))
    server.files(f"{tile}/10-visual.tif", images)
    server.route(f"{tile}/10-visual.tif", lambda call: ranged(call, images / "new.tif"))
    return f"stac+{server.url}/events/catalog.json"


def ranged(call: Any, path: Path) -> Reply:
    from servers.web import file_reply

    return file_reply(call, path.read_bytes())


def test_a_walk_enters_what_lies_over_the_area_and_is_not_repeated(
    server: WebServer, images: Path, area: Geometry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = event(server, images)
    source = open_imagery(uri, area=area)
    np.testing.assert_array_equal(source.read(grid()).values, open_imagery(images / "new.tif").read(grid()).values)
    assert source.datetime == "2022-10-03T16:02:35Z"
    paths = [call.path for call in server.calls]
    assert not any("20_collection" in path or "far.json" in path for path in paths)
    assert "Gone/collection.json is listed in its catalogue and cannot be read (404)" in caplog.text
    assert "1 of 2 items of" in caplog.text
    server.forget()
    open_imagery(uri, area=area)
    assert {call.path for call in server.calls if call.path.endswith(".json")} == {
        "/events/catalog.json", "/events/Gone/collection.json"
    }  # fmt: skip
    (table,) = (tmp_path / "cache" / "stac").rglob("items.parquet")
    frame = gpd.read_parquet(table)
    assert list(frame["id"]) == ["31/10"] and frame.crs.to_epsg() == 4326


def test_an_interrupted_walk_goes_on_where_it_stopped(
    server: WebServer, images: Path, area: Geometry, tmp_path: Path
) -> None:
    uri = event(server, images)
    server.fail(*[Fault(status=500)] * 3, path="/events/Flood/ard/31/031311013310/2022-10-03/10.json")
    with pytest.raises(SourceError, match="500"):
        open_imagery(uri, area=area)
    (journal,) = (tmp_path / "cache" / "stac").rglob("journal.jsonl")
    with journal.open("a") as file:  # killed in the middle of a line
        file.write('{"branch": {"addr')
    server.forget()
    open_imagery(uri, area=area)
    asked = [call.path for call in server.calls if call.path.endswith("collection.json")]
    assert asked == ["/events/Gone/collection.json"]


def test_limits_apply(server: WebServer, images: Path, area: Geometry) -> None:
    uri = event(server, images)
    with pytest.raises(CoverageError, match="left out 1 too cloudy"):
        open_imagery(f"{uri}?cloud=3", area=area)


def test_what_is_no_catalogue_is_refused(server: WebServer, area: Geometry) -> None:
    server.route("/a.json", Reply.json({"type": "FeatureCollection"}))
    with pytest.raises(SourceError, match="no catalogue of STAC"):
        open_imagery(f"stac+{server.url}/a.json", area=area)
    server.route("/a.json", Reply.json([1]))
    with pytest.raises(SourceError, match="no catalogue of STAC"):
        open_imagery(f"stac+{server.url}/a.json", area=area)
