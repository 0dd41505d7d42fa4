"""Items in the spellings of their publishers."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely

from canopy.imagery.stac.api import links_of, search_link
from canopy.imagery.stac.items import choose_asset, parse_item, parse_time

BASE = "https://example.org/events/Flood/ard/31/0313/2022-10-03/10.json"


def document(**options: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "id": "a", "geometry": {"type": "Point", "coordinates": [0, 0]}, "bbox": [0, 0, 1, 1],
        "properties": {}, "assets": {"visual": {"href": "./10-visual.tif"}}, "links": [],
    } | {"geometry": None} | options  # fmt: skip


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2022-10-03 16:02:35Z", datetime(2022, 10, 3, 16, 2, 35, tzinfo=UTC)),
        ("2022-10-03T16:02:35", datetime(2022, 10, 3, 16, 2, 35, tzinfo=UTC)),
        ("2022-10-03T18:02:35+02:00", datetime(2022, 10, 3, 16, 2, 35, tzinfo=UTC)),
        ("2022-10-03", datetime(2022, 10, 3, tzinfo=UTC)),
        ("soon", None),
        (None, None),
        (2022, None),
    ],
)
def test_times(text: object, moment: datetime | None) -> None:
    assert parse_time(text) == moment


def test_an_interval_stands_for_a_null_date() -> None:
    properties = {"datetime": None, "start_datetime": "2020-01-01T00:00:00Z", "end_datetime": "2020-12-31T00:00:00Z"}
    item = parse_item(document(properties=properties), BASE)
    assert item.acquired == ("2020-01-01T00:00:00Z", "2020-12-31T00:00:00Z")
    assert parse_item(document(), BASE).acquired is None


@pytest.mark.parametrize(
    ("asset", "href"),
    [
        ({"href": "./10-visual.tif"}, "https://example.org/events/Flood/ard/31/0313/2022-10-03/10-visual.tif"),
        ({"href": "../b.tif"}, "https://example.org/events/Flood/ard/31/0313/b.tif"),
        ({"href": "s3://bucket/a.tif"}, "s3://bucket/a.tif"),
        (
            {"href": "s3://bucket/a.tif", "alternate": {"public": {"href": "https://bucket.s3.amazonaws.com/a.tif"}}},
            "https://bucket.s3.amazonaws.com/a.tif",
        ),
    ],
)
def test_addresses_become_absolute(asset: dict[str, Any], href: str) -> None:
    assert parse_item(document(assets={"visual": asset}), BASE).assets[0].href == href


def test_places_come_from_a_box_where_there_is_no_outline() -> None:
    assert parse_item(document(bbox=[0, 0, -5, 1, 1, 9]), BASE).geometry.equals(shapely.box(0, 0, 1, 1))
    across = parse_item(document(bbox=[179, 0, -179, 1]), BASE).geometry
    assert across.area == pytest.approx(2) and across.bounds == (-180, 0, 180, 1)
    outline = {"type": "Polygon", "coordinates": [[[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 0, 5]]]}
    assert not parse_item(document(geometry=outline), BASE).geometry.has_z


@pytest.mark.parametrize(
    "broken",
    [
        {"assets": None}, {"assets": {}}, {"assets": {"visual": {"type": "image/tiff"}}}, {"id": None},
        {"bbox": None}, {"bbox": [0, 0, 0, 0]},
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_item(document(**broken), BASE)
    with pytest.raises(ValueError):
        parse_item("text", BASE)


def colours(*names: str) -> dict[str, Any]:
    return {"eo:bands": [{"name": name, "common_name": name} for name in names]}


@pytest.mark.parametrize(
    ("assets", "names", "chosen"),
    [
        ({"ms": {"href": "a.tif"} | colours("red", "green", "blue", "nir08"), "pan": {"href": "b.tif"} | colours("p")},
         (), "ms"),
        ({"visual": {"href": "a.tif", "roles": ["thumbnail"]}, "preview": {"href": "b.tif", "roles": ["overview"]}},
         (), "visual"),
        ({"B04": {"href": "a.tif"} | colours("red"), "B03": {"href": "b.tif"} | colours("green")}, (), None),
        ({"a_2.tif": {"href": "a_2.tif", "eo:gsd": 2.0}, "a_0.1.tif": {"href": "a_0.1.tif", "eo:gsd": 0.1}},
         (), "a_0.1.tif"),
        ({"data": {"href": "a?x=1", "type": "image/tiff; application=geotiff"}, "mask": {"href": "m.gpkg"}},
         (), "data"),
        ({"x": {"href": "a.tif"}, "y": {"href": "b.tif"}}, ("z", "y"), "y"),
        ({"x": {"href": "a.tif"}}, ("z",), None),
        ({"thumbnail": {"href": "a.jpg", "type": "image/jpeg"}}, (), None),
    ],
)  # fmt: skip
def test_the_picture_in_colours_is_chosen(assets: dict[str, Any], names: tuple[str, ...], chosen: str | None) -> None:
    asset = choose_asset(parse_item(document(assets=assets), BASE), names)
    assert (asset and asset.key) == chosen


# What services really sent.


def recorded(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))["response"]["body"]


def test_recorded_pages_of_planetary_computer(shared_fixtures: Path) -> None:
    body = recorded(shared_fixtures, "01-stac-api/pc_naip_search_page1.json")
    items = [parse_item(feature, "https://planetarycomputer.microsoft.com/api/stac/v1/search") for feature in
             body["features"]]  # fmt: skip
    assert len(items) == 10
    assert {choose_asset(item).key for item in items} == {"image"}
    assert all(item.acquired and item.geometry.area > 0 for item in items)
    assert {round(item.gsd_m, 1) for item in items} <= {0.3, 0.6, 1.0}
    (following,) = [link for link in links_of(body) if link["rel"] == "next"]
    assert following["body"]["token"].startswith("next:naip:")
    landing = recorded(shared_fixtures, "01-stac-api/pc_landing.json")
    page = search_link(landing, "https://planetarycomputer.microsoft.com/api/stac/v1/")
    assert page is not None and page.method == "POST" and page.url.endswith("/v1/search")


def test_recorded_items_of_maxar_open_data(shared_fixtures: Path) -> None:
    lines = (shared_fixtures / "02-maxar-open-data" / "items_LosAngeles_2025.ndjson").read_text().splitlines()
    items = [parse_item(json.loads(line), BASE) for line in lines]
    chosen = [choose_asset(item) for item in items]
    assert all(asset is not None and asset.key == "visual" for asset in chosen)
    assert all(asset.href.startswith("https://maxar-opendata.s3.amazonaws.com/") for asset in chosen)
    assert all(item.cloud is not None and item.off_nadir is not None and item.sun is not None for item in items)


def test_recorded_page_of_earth_search_is_judged_when_it_is_opened(shared_fixtures: Path) -> None:
    body = recorded(shared_fixtures, "01-stac-api/es_search_page1.json")
    items = [parse_item(feature, "https://earth-search.aws.element84.com/v1/search") for feature in body["features"]]
    assert len(items) == len(body["features"])
    assert not any(asset.colours for item in items if (asset := choose_asset(item)) is not None)
