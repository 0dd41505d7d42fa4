"""Where no imagery is named, the public source that covers the area best is taken, and said."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from odc.geo.crs import CRS
from odc.geo.geom import box
from rasters import ORIGIN, UTM, make_raster
from servers.web import Reply, WebServer
from stac_service import StacApi, item_of, outline_of

from canopy.errors import ConfigError, CoverageError, ImageryError
from canopy.http import HttpClient, Retry
from canopy.imagery import open_imagery, remote
from canopy.imagery.automatic import Offer
from canopy.imagery.configured import configured_imagery
from canopy.imagery.registry import _SHIPPED, find_source, sources
from canopy.imagery.settings import SourceSettings
from canopy.imagery.stac import opening, parse_uri
from canopy.imagery.tiled import is_tiled
from tiles.aoi import to_crs

X, Y = ORIGIN
AREA = box(X + 4, Y - 44, X + 60, Y - 4, UTM)
FREE = {"name": "CC-BY-4.0", "derive": True, "attribution": "© Somebody"}


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch, server: WebServer, tmp_path: Path) -> None:
    server.forget()
    quick = HttpClient(retry=Retry(attempts=1))
    for module in (remote, opening):
        monkeypatch.setattr(module, "client", lambda: quick)
    monkeypatch.setenv("CANOPY_CONFIG", str(tmp_path / "config.yaml"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Write the list of sources."""

    def write(**entries: dict[str, Any]) -> None:
        base = {"title": "a source", "licence": FREE, "auto": True}
        path = tmp_path / "sources.yaml"
        path.write_text(yaml.safe_dump({"sources": {name: base | entry for name, entry in entries.items()}}))
        monkeypatch.setenv("CANOPY_SOURCES", str(path))

    return write


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_raster(folder / "whole.tif", pattern="world")
    make_raster(folder / "half.tif", shape=(96, 64))
    return folder


def service(server: WebServer, images: Path, name: str, image: str, **options: Any) -> str:
    """A catalogue with one image; returns its URI."""
    server.files("/data", images)
    properties = {"gsd": options.get("gsd", 0.6)}
    item = item_of(images / image, f"{server.url}/data/{image}", options.get("date", "2022-07-01T00:00:00Z"),
                   properties=properties)  # fmt: skip
    return f"{StacApi(server, [item], prefix=f'/{name}').uri}?collection=naip"


def test_the_one_that_covers_most_is_taken_and_said(
    server: WebServer, images: Path, registry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry(
        part={"uri": service(server, images, "part", "half.tif", gsd=0.1)},
        whole={"uri": service(server, images, "whole", "whole.tif")},
        dead={"uri": "stac+http://127.0.0.1:9/api?collection=a"},
        elsewhere={"uri": "stac+http://127.0.0.1:9/far?collection=a", "extent": [[100, 10, 101, 11]]},
        named_only={"uri": "stac+http://127.0.0.1:9/named?collection=a", "auto": False},
    )
    with caplog.at_level(logging.INFO):
        source = configured_imagery(AREA)
    assert [Path(uri).name for uri in source.uris] == ["whole.tif"]
    assert source.licence is not None and source.licence.attribution == "© Somebody"
    text = caplog.text
    assert "no source is named, so whole is taken: 100 % of the AOI at 0.6 m, newest 2022-07-01" in text
    assert "part: 50 % of the AOI at 0.1 m" in text or "part: 5" in text
    assert "dead: http://127.0.0.1:9/api" in text and "CC-BY-4.0; © Somebody" in text
    assert "elsewhere" not in text and "named_only" not in text


@pytest.mark.parametrize(
    ("shares", "sizes", "years", "best"),
    [
        ((0.5, 0.8), (0.1, 0.6), (2024, 2010), 1),
        ((1.0, 0.9995), (0.6, 0.3), (2024, 2010), 1),
        ((1.0, 1.0), (0.3, 0.3), (2020, 2022), 1),
        ((1.0, 1.0), (None, 0.3), (2022, 2020), 1),
        ((1.0, 1.0), (0.3, 0.3), (2020, None), 0),
    ],
)
def test_offers_are_ranked_by_coverage_then_gsd_then_date(shares: Any, sizes: Any, years: Any, best: int) -> None:
    settings = SourceSettings.model_validate({"title": "a", "uri": "a", "licence": FREE})
    offers = [
        Offer(str(number), settings, share, size, year and datetime(year, 1, 1, tzinfo=UTC))
        for number, (share, size, year) in enumerate(zip(shares, sizes, years, strict=True))
    ]
    assert max(offers, key=lambda offer: offer.rank) is offers[best]


def test_a_file_that_cannot_be_read_gives_way_to_the_next_source(
    server: WebServer, images: Path, registry: Any
) -> None:
    gone = service(server, images, "gone", "whole.tif", gsd=0.1)
    registry(
        gone={"uri": gone}, whole={"uri": service(server, images, "whole", "whole.tif", date="2010-01-01T00:00:00Z")}
    )
    server.route("/gone/search", Reply.json({"type": "FeatureCollection", "features": [
        item_of(images / "whole.tif", f"{server.url}/data/none.tif", properties={"gsd": 0.1})
    ], "links": []}))  # fmt: skip
    assert [Path(uri).name for uri in configured_imagery(AREA).uris] == ["whole.tif"]


def test_offline_and_auto_false_ask_nobody(server: WebServer, images: Path, registry: Any, tmp_path: Path) -> None:
    registry(whole={"uri": service(server, images, "whole", "whole.tif")})
    with pytest.raises(CoverageError, match="--offline keeps from asking others; name imagery with --imagery"):
        configured_imagery(AREA, offline=True)
    (tmp_path / "config.yaml").write_text("auto: false\nimagery: [whole]\n")
    with pytest.raises(CoverageError, match=r"1 configured source\(s\) lie elsewhere, and --offline"):
        configured_imagery(AREA, offline=True)
    (tmp_path / "config.yaml").write_text("auto: false\n")
    with pytest.raises(CoverageError, match=r"'auto: false' in .*config\.yaml keeps from asking others"):
        configured_imagery(AREA)
    assert server.count() == 0


def test_none_that_covers_is_one_line_that_says_what_was_asked(server: WebServer, images: Path, registry: Any) -> None:
    empty = StacApi(server, [], prefix="/empty").uri
    registry(empty={"uri": f"{empty}?collection=naip"}, dead={"uri": "stac+http://127.0.0.1:9/api?collection=a"})
    with pytest.raises(CoverageError) as caught:
        configured_imagery(AREA)
    text = str(caught.value)
    assert "\n" not in text and "empty: nothing of this area" in text and "dead: http://127.0.0.1:9/api: " in text
    assert text.endswith("config.yaml")


def test_the_users_own_sources_come_first_and_may_be_names(
    server: WebServer, images: Path, registry: Any, tmp_path: Path
) -> None:
    registry(whole={"uri": service(server, images, "whole", "whole.tif")})
    own = {"title": "my own", "uri": str(images / "half.tif"), "licence": {"name": "mine", "derive": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"sources": {"own": own}, "imagery": ["own"]}))
    source = configured_imagery(AREA)
    assert source.uris == (str(images / "half.tif"),)
    assert source.licence is not None and source.licence.name == "mine"
    assert server.count() == 0


def test_options_reach_configured_imagery(tmp_path: Path) -> None:
    dark = make_raster(tmp_path / "dark.tif", dtype="uint16", pattern="constant", factor=10)
    (tmp_path / "config.yaml").write_text(f"imagery: [{dark}]\n")
    source = configured_imagery(AREA, scale=(0, 4095), bands=(3, 2, 1), nodata=500)
    assert (source.rescale.low, source.rescale.high) == (0, 4095)
    assert "bands 3,2,1" in source.describe()
    # The sample has no fourth band, and is not what the area shows.
    four = make_raster(tmp_path / "four.tif", bands=4, colorinterp=["undefined"] * 4)
    (tmp_path / "config.yaml").write_text(f"imagery: [{four}]\n")
    assert configured_imagery(AREA, bands=(4, 2, 1)).uris == (str(four),)


def test_a_licence_of_an_image_decides_whether_it_is_taken_unseen(
    server: WebServer, images: Path, registry: Any
) -> None:
    server.files("/data", images)
    outline = outline_of(images / "whole.tif")

    def result(licence: str | None) -> dict[str, Any]:
        return {"uuid": f"{server.url}/data/whole.tif", "footprint": outline.wkt, "provider": "A",
                "properties": {"license": licence}}  # fmt: skip

    registry(oam={"uri": f"oam+{server.url}/meta"})
    for licence in (None, "CC BY-NC 4.0"):
        server.route("/meta", Reply.json({"results": [result(licence)]}))
        with pytest.raises(CoverageError, match="oam: nothing of this area"):
            configured_imagery(AREA)
    server.route("/meta", Reply.json({"results": [result("CC BY 4.0")]}))
    assert configured_imagery(AREA).uris == (f"{server.url}/data/whole.tif",)


def test_a_bad_list_of_sources_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("sources: {own: {title: a, url: b}}\n")
    with pytest.raises(ConfigError, match=r"own\.url: unknown setting, did you mean uri"):
        open_imagery("own")


# The list that comes with the program.


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, SourceSettings]:
    monkeypatch.setenv("CANOPY_SOURCES", str(_SHIPPED))
    return dict(sources())


def test_the_shipped_sources_are_complete(shipped: dict[str, SourceSettings]) -> None:
    assert set(shipped) == {
        "naip", "maxar-open-data", "vivid", "openaerialmap", "swissimage", "ign-bdortho", "pdok"
    }  # fmt: skip
    assert {name for name, one in shipped.items() if not one.auto} == {"maxar-open-data", "vivid"}
    for name, one in shipped.items():
        assert one.licence.attribution and one.licence.url.startswith("https://"), name
        assert one.licence.derive or not one.auto
        address = one.uri.partition("?")[0]
        assert address.startswith(("stac+https://", "oam+https://", "wmts+https://"))
        assert is_tiled(one.uri) or parse_uri(one.uri).address
    assert shipped["maxar-open-data"].licence.acknowledgement and not shipped["maxar-open-data"].licence.redistribute
    assert parse_uri(shipped["naip"].uri).access.signing.endswith("/sas/v1/token")
    assert parse_uri(shipped["openaerialmap"].uri).layers == 3


def test_a_file_of_a_sources_name_is_the_file(
    shipped: dict[str, SourceSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_source("naip") is not None
    monkeypatch.chdir(tmp_path)
    make_raster(tmp_path / "naip" / "a.tif")
    assert find_source("naip") is None
    assert open_imagery("naip").uris == ("naip/a.tif",)


def test_forbidden_services_need_a_word(tmp_path: Path) -> None:
    uri = "xyz+https://mt1.google.com/vt/lyrs=s&x={x}&y={y}&z={z}#bounds=3,44,4,46"
    with pytest.raises(ImageryError, match="terms forbid"):
        open_imagery(uri)
    assert open_imagery(uri, have_right=True).uris


def test_geometry_of_the_area_may_be_in_any_crs(server: WebServer, images: Path, registry: Any) -> None:
    registry(whole={"uri": service(server, images, "whole", "whole.tif")})
    assert configured_imagery(to_crs(AREA, CRS("EPSG:4326"))).uris == (f"{server.url}/data/whole.tif",)
