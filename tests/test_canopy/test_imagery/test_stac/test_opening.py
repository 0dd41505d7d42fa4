"""Catalogues give the pixels of their files, in the order that is asked for; each oddity of a service is a test."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from imagery_reading import grid
from odc.geo.geom import Geometry
from servers.web import Call, Fault, Reply, WebServer
from stac_service import StacApi, item_of, outline_of, signed

from canopy.errors import CoverageError, ImageryError, SourceError
from canopy.imagery import open_imagery, signing
from canopy.imagery.search import Search
from canopy.imagery.stac import find_items, parse_uri


def api(server: WebServer, images: Path, *items: tuple[str, str], **options: Any) -> StacApi:
    """A catalogue of images: name and date of each."""
    server.files("/data", images)
    documents = [item_of(images / name, f"{server.url}/data/{name}", date) for name, date in items]
    return StacApi(server, documents, **options)


def values(uri: str, area: Geometry, **options: Any) -> np.ndarray:
    return open_imagery(uri, area=area, **options).read(grid()).values


def local(*paths: Path) -> np.ndarray:
    return open_imagery([*paths]).read(grid()).values


OLD_NEW = (("old.tif", "2016-07-01T16:00:00Z"), ("new.tif", "2022-07-01T16:00:00Z"))


def test_pixels_are_those_of_the_local_file_and_the_newest_lies_on_top(
    server: WebServer, images: Path, area: Geometry
) -> None:
    uri = f"{api(server, images, *OLD_NEW).uri}?collection=naip"
    source = open_imagery(uri, area=area)
    np.testing.assert_array_equal(source.read(grid()).values, local(images / "new.tif"))
    assert source.datetime == "2022-07-01T16:00:00Z"
    assert [Path(one).name for one in source.uris] == ["new.tif"]


def test_dates_are_asked_with_times_and_checked(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW)
    uri = f"{service.uri}?collection=naip"
    np.testing.assert_array_equal(values(f"{uri}&date=2015/2018", area), local(images / "old.tif"))
    assert service.questions[-1]["datetime"] == "2015-01-01T00:00:00Z/2018-12-31T23:59:59Z"
    np.testing.assert_array_equal(values(uri, area, search=Search.read(date="2016-07-01")), local(images / "old.tif"))
    with pytest.raises(CoverageError, match=r"no imagery over the AOI in naip of .*--date"):
        values(f"{uri}&date=2018/2020", area)


@pytest.mark.parametrize("options", [{"page": 1}, {"page": 1, "merge": True}, {"page": 1, "post": False}])
def test_all_pages_are_read(server: WebServer, images: Path, area: Geometry, options: dict[str, Any]) -> None:
    """The next page is a POST with the whole question, one with a token alone, or an address."""
    service = api(server, images, *OLD_NEW, **options)
    sifted = find_items(parse_uri(f"{service.uri}?collection=naip"), area, Search())
    assert [item.id for item in sifted.items] == ["new", "old"]
    assert len(service.questions) == 2
    assert service.questions[1]["collections"] in (["naip"], "naip")


def test_a_service_that_ignores_the_question_is_checked(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW, deaf=True)
    for number, document in enumerate(service.items):
        document["properties"]["eo:cloud_cover"] = [10.0, 56.8][number]
    service.items.append(item_of(images / "new.tif", "x.tif", id="other", collection="sentinel-1-grd"))
    service.items.append(item_of(images / "new.tif", "y.tif", id="far", geometry=shapely.box(10, 10, 11, 11)))
    sifted = find_items(parse_uri(f"{service.uri}?collection=naip&cloud=40"), area, Search())
    assert [item.id for item in sifted.items] == ["old"]
    assert sifted.reasons == {"too cloudy": 1, "of another collection": 1, "elsewhere": 1}


def test_a_limit_that_no_image_states_is_said_and_not_applied(
    server: WebServer, images: Path, area: Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    service = api(server, images, *OLD_NEW)
    sifted = find_items(parse_uri(f"{service.uri}?collection=naip&cloud=40"), area, Search())
    assert len(sifted.items) == 2
    assert "does not say the cloud of its images, so --cloud is not applied" in caplog.text


def test_pages_without_end_are_an_error(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW)
    again = [{"rel": "next", "href": f"{service.uri.removeprefix('stac+')}/search", "method": "POST"}]
    page = {"type": "FeatureCollection", "features": service.items, "links": again}
    server.route("/api/search", Reply.json(page))
    with pytest.raises(SourceError, match="does not end after 1 pages"):
        values(f"{service.uri}?collection=naip", area)


def test_throttling_passes(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW)
    # Retry-After of 0 s, and Earth Search's way of saying it.
    server.fail(Fault(429, b'{"detail": "Too Many Requests"}', {"Retry-After": "0"}), path="/api/search")
    server.fail(Fault(403, b'{"message":"Forbidden"}'), path="/api/search")
    np.testing.assert_array_equal(values(f"{service.uri}?collection=naip", area), local(images / "new.tif"))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply.text("The request exceeded the maximum allowed time, please try again.", 504), "504.*maximum allowed"),
        (Reply.text("Database is down", 200), "expected JSON, got text/plain: Database is down"),
        (Reply.json({"code": "NotFoundError", "description": "no"}, 404), "404"),
        (Reply.json({"type": "FeatureCollection"}), "no list of items"),
    ],
)
def test_failures_are_one_line(server: WebServer, images: Path, area: Geometry, reply: Reply, reason: str) -> None:
    service = api(server, images, *OLD_NEW)
    server.route("/api/search", reply)
    with pytest.raises(SourceError, match=reason) as caught:
        values(f"{service.uri}?collection=naip", area)
    assert "\n" not in str(caught.value)


def test_a_collection_must_be_named(server: WebServer, images: Path, area: Geometry) -> None:
    with pytest.raises(ImageryError, match=r"no collection named, expected \?collection=NAME, such as naip"):
        values(api(server, images, *OLD_NEW).uri, area)


def test_an_area_must_be_named(server: WebServer, images: Path) -> None:
    with pytest.raises(ImageryError, match="searched for an area and none is named"):
        open_imagery(f"{api(server, images, *OLD_NEW).uri}?collection=naip")


def test_mixed_dates_are_said(
    server: WebServer, images: Path, area: Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    service = api(server, images, ("half.tif", "2023-05-01 10:00:00Z"), *OLD_NEW)
    source = open_imagery(f"{service.uri}?collection=naip", area=area)
    assert source.datetime == "2022-07-01T16:00:00Z/2023-05-01T10:00:00Z"
    assert "mixed dates, 2022-07-01 to 2023-05-01; narrow them with --date" in caplog.text
    np.testing.assert_array_equal(source.read(grid()).values, local(images / "half.tif", images / "new.tif"))


def test_order_by_angle_and_cloud(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW)
    service.items[0]["properties"] |= {"view:off_nadir": 3.0, "tile:clouds_percent": 0}
    service.items[1]["properties"] |= {"view:off_nadir": 43.0, "tile:clouds_percent": 12}
    for order in ("least-off-nadir", "least-cloud"):
        uri = f"{service.uri}?collection=naip&order={order}"
        np.testing.assert_array_equal(values(uri, area), local(images / "old.tif"))
    uri = f"{service.uri}?collection=naip"
    np.testing.assert_array_equal(values(f"{uri}&off-nadir=30", area), local(images / "old.tif"))
    search = Search.read(cloud=5)
    np.testing.assert_array_equal(values(uri, area, search=search), local(images / "old.tif"))


def test_a_grey_image_and_one_that_is_gone_leave_room_for_the_next(
    server: WebServer, images: Path, area: Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    """WorldView-1's picture is one grey band; catalogues list files that are not there."""
    service = api(server, images, ("grey.tif", "2024-01-01T00:00:00Z"), *OLD_NEW)
    service.items.append(item_of(images / "new.tif", f"{server.url}/data/gone.tif", "2025-01-01T00:00:00Z", id="gone"))
    source = open_imagery(f"{service.uri}?collection=naip", area=area)
    assert [Path(one).name for one in source.uris] == ["new.tif"]
    assert {one.reason for one in source.skipped} == {
        "one band, expected red, green and blue", "listed in the catalogue and not there"
    }  # fmt: skip
    assert "left out" in caplog.text


def test_an_image_that_fails_is_an_error_and_not_left_out(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, *OLD_NEW)
    server.fail(*[Fault(status=503)] * 3, path="/data/new.tif")
    with pytest.raises(SourceError, match="503"):
        values(f"{service.uri}?collection=naip", area)


def test_a_preview_next_to_the_image_is_not_taken(server: WebServer, images: Path, area: Geometry) -> None:
    """swisstopo's assets are named like files; a preview of 2 m lies next to the image of 0.1 m."""
    service = api(server, images, ("new.tif", "2020-01-01T00:00:00Z"))
    (document,) = service.items
    base = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "proj:epsg": "2056"}
    document["assets"] = {
        "swissimage-dop10_2020_2600-1199_2_2056.tif": {**base, "href": f"{server.url}/data/old.tif", "eo:gsd": 2},
        "swissimage-dop10_2020_2600-1199_0.1_2056.tif": {**base, "href": f"{server.url}/data/new.tif", "eo:gsd": 0.1},
    }
    np.testing.assert_array_equal(values(f"{service.uri}?collection=naip", area), local(images / "new.tif"))
    uri = f"{service.uri}?collection=naip&asset=*_2_2056.tif"
    np.testing.assert_array_equal(values(uri, area), local(images / "old.tif"))


def test_infrared_that_is_tagged_alpha_is_colour(server: WebServer, images: Path, area: Geometry) -> None:
    service = api(server, images, ("infrared.tif", "2020-01-01T00:00:00Z"))
    np.testing.assert_array_equal(values(f"{service.uri}?collection=naip", area), local(images / "infrared.tif"))


# Planetary Computer's signatures.


class Tokens:
    """Signatures 1, 2, 3...; the store accepts those that the test names."""

    def __init__(self, server: WebServer, images: Path, life: timedelta = timedelta(hours=1), zone: str = "Z") -> None:
        self.given_out, self.accepted = 0, {"1"}
        self.life, self.zone = life, zone
        server.route("/sas/token", self.token)
        signed(server, images, lambda signature: signature in self.accepted)

    def token(self, call: Call) -> Reply:
        assert call.path == "/sas/token/account/naip"
        self.given_out += 1
        expiry = f"{datetime.now(UTC) + self.life:%Y-%m-%dT%H:%M:%S}{self.zone}"
        return Reply.json({"msft:expiry": expiry, "token": f"sig={self.given_out}&sip=1.2.3.4"})


def pc(server: WebServer, images: Path, names: tuple[str, ...] = ("new.tif",)) -> str:
    documents = [item_of(images / name, f"{server.url}/account/naip/{name}") for name in names]
    return f"{StacApi(server, documents).uri}?collection=naip&signing={server.url}/sas/token"


@pytest.mark.parametrize("zone", ["Z", ""])
def test_one_signature_serves_all_reads(server: WebServer, images: Path, area: Geometry, zone: str) -> None:
    tokens = Tokens(server, images, zone=zone)
    np.testing.assert_array_equal(values(pc(server, images), area), local(images / "new.tif"))
    assert tokens.given_out == 1


def test_an_expired_signature_is_renewed_during_the_run(server: WebServer, images: Path, area: Geometry) -> None:
    tokens = Tokens(server, images)
    source = open_imagery(pc(server, images), area=area)
    before = source.fingerprint()
    tokens.accepted = {"2"}
    # The head is remembered; a fresh process asks again.
    signing_source = open_imagery(pc(server, images), area=area)
    np.testing.assert_array_equal(signing_source.read(grid()).values, local(images / "new.tif"))
    assert tokens.given_out == 2
    assert signing_source.fingerprint() == before


def test_a_signature_is_replaced_before_it_expires(
    server: WebServer, images: Path, area: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(server, images)
    tokens.accepted = {"1", "2"}
    open_imagery(pc(server, images), area=area)
    later = datetime.now(UTC) + timedelta(minutes=56)
    monkeypatch.setattr(signing, "now", lambda: later)
    open_imagery(pc(server, images), area=area)
    assert tokens.given_out == 2


def test_a_refused_signature_is_an_error_that_shows_none(server: WebServer, images: Path, area: Geometry) -> None:
    tokens = Tokens(server, images)
    tokens.accepted = set()
    with pytest.raises(SourceError, match=r"account/naip/new\.tif: .*403") as caught:
        open_imagery(pc(server, images), area=area)
    assert "sig=" not in str(caught.value) and tokens.given_out == 2


def test_the_service_of_signatures_may_throttle(server: WebServer, images: Path, area: Geometry) -> None:
    Tokens(server, images)
    server.fail(Fault(429, b"{}", {"Retry-After": "0"}), path="/sas/token")
    np.testing.assert_array_equal(values(pc(server, images), area), local(images / "new.tif"))
    server.route("/sas/token", Reply.json({"message": "no"}))
    signing.forget_tokens()
    with pytest.raises(SourceError, match="no token in the answer"):
        values(pc(server, images), area)


# OpenAerialMap.


def oam_result(server: WebServer, images: Path, name: str, **options: Any) -> dict[str, Any]:
    outline = outline_of(images / name)
    return {
        "uuid": f"{server.url}/data/{name}", "gsd": 0.5, "footprint": outline.wkt, "bbox": list(outline.bounds),
        "acquisition_start": "2017-05-31T22:00:00.000Z", "acquisition_end": "2017-06-01T17:01:26.728Z",
        "provider": "Aeracoop", "properties": {"license": "CC-BY 4.0"},
    } | options  # fmt: skip


def test_openaerialmap_is_read(server: WebServer, images: Path, area: Geometry) -> None:
    server.files("/data", images)
    results = [oam_result(server, images, "new.tif")]
    server.route("/meta", Reply.json({"meta": {"found": 1}, "results": results}))
    source = open_imagery(f"oam+{server.url}/meta", area=area)
    np.testing.assert_array_equal(source.read(grid()).values, local(images / "new.tif"))
    assert source.datetime == "2017-05-31T22:00:00Z/2017-06-01T17:01:26Z"
    assert source.licence is not None and source.licence.name == "CC-BY 4.0" and source.licence.derive
    assert "Aeracoop" in source.licence.attribution
    (call,) = server.asked("/meta")
    assert set(call.query) == {"bbox", "limit", "page"}


def test_openaerialmap_without_a_licence_is_said(
    server: WebServer, images: Path, area: Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    server.files("/data", images)
    result = oam_result(server, images, "new.tif", properties={}, footprint="POLYGON((", gsd=5e-6)
    server.route("/meta", Reply.json({"results": [result, {"uuid": None}, {"uuid": "http://x/a.tif"}]}))
    with caplog.at_level(logging.WARNING):
        source = open_imagery(f"oam+{server.url}/meta", area=area)
    assert "1 image(s) without a licence" in caplog.text
    assert source.licence is not None and not source.licence.derive
    sifted = find_items(parse_uri(f"oam+{server.url}/meta"), area, Search())
    assert sifted.items[0].gsd_m == pytest.approx(0.557, abs=0.01)


def test_openaerialmap_says_errors_with_status_200(server: WebServer, area: Geometry) -> None:
    server.route("/meta", Reply.text("Internal error"))
    with pytest.raises(SourceError, match="expected JSON, got text/plain: Internal error"):
        open_imagery(f"oam+{server.url}/meta", area=area)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("stac+http://example.org/api?collection=a", r"not encrypted, expected stac\+https"),
        ("stac+https://example.org/api?colection=a", "unknown option colection, expected collection"),
        ("stac+https://example.org/api?cloud=much", "cloud=much: a number expected"),
        ("stac+https://example.org/api?cloud=120", "--cloud 120: expected 0 to 100"),
        ("stac+https://example.org/api?order=best", "--order best: expected newest"),
        ("stac+https://example.org/api?layers=0", "layers=0, expected 1 to 10"),
        ("stac+https://example.org/api?date=May", "--date May: expected a year"),
        ("stac+https://example.org/api?date=2021/2019", "ends before it starts"),
    ],
)
def test_a_wrong_uri_is_said_before_anything_is_asked(uri: str, reason: str, area: Geometry) -> None:
    with pytest.raises(ImageryError, match=reason):
        open_imagery(uri, area=area)
