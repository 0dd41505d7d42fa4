"""From every remote source the heights are those of the same bytes in a local file, to the bit."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box
from rasterio.shutil import copy
from rasters import ORIGIN, UTM, make_raster
from servers.web import Fault, WebServer
from stac_service import StacApi, item_of, signed

from canopy.errors import CoverageError, ImageryError, SourceError
from canopy.http import HttpClient, Retry
from canopy.imagery import Search, remote
from canopy.imagery.signing import forget_tokens
from canopy.imagery.stac import opening
from canopy.prediction import predict
from tiles.aoi import to_crs

X, Y = ORIGIN
AREA = box(X + 4, Y - 44, X + 60, Y - 4, UTM)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COG in JPEG, and one of the same place of another year."""
    folder = tmp_path_factory.mktemp("images")
    for name, pattern in (("new.tif", "world"), ("old.tif", "noise")):
        copy(make_raster(folder / "plain" / name, pattern=pattern), folder / name, driver="COG", COMPRESS="JPEG")
    return folder


@pytest.fixture(scope="module")
def server(images: Path) -> Iterator[WebServer]:
    with WebServer() as server:
        server.files("/data", images)
        signed(server, images, lambda signature: signature == "good")
        yield server


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch, server: WebServer, tmp_path: Path) -> None:
    server.forget()
    forget_tokens()
    quick = HttpClient(retry=Retry(attempts=2, pause_s=0))
    for module in (remote, opening):
        monkeypatch.setattr(module, "client", lambda: quick)
    monkeypatch.setenv("CANOPY_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("CANOPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def local(images: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Heights of the newer image, from its file."""
    path = tmp_path_factory.mktemp("local") / "map.tif"
    predict(AREA, images / "new.tif", tiny_model, path, backend="eager")
    with rasterio.open(path) as dataset:
        heights_m = dataset.read()
    assert np.isfinite(heights_m).any()
    return heights_m


@pytest.fixture
def heights(tiny_model: Path, tmp_path: Path):
    """Map the area and return the heights."""

    def run(imagery: Any = None, aoi: Geometry = AREA, **options: Any) -> np.ndarray:
        path = tmp_path / "map.tif"
        predict(aoi, imagery, tiny_model, path, backend="eager", overwrite=True, **options)
        with rasterio.open(path) as dataset:
            return dataset.read()

    return run


@pytest.fixture
def catalogue(server: WebServer, images: Path) -> StacApi:
    dates = {"old.tif": "2016-07-01T16:00:00Z", "new.tif": "2022-07-01T16:00:00Z"}
    items = [item_of(images / name, f"{server.url}/data/{name}", date) for name, date in dates.items()]
    return StacApi(server, items)


def test_servers_catalogues_and_signed_stores(
    heights: Any, local: np.ndarray, server: WebServer, images: Path, catalogue: StacApi
) -> None:
    np.testing.assert_array_equal(heights(f"{server.url}/data/new.tif"), local)
    uri = f"{catalogue.uri}?collection=naip"
    np.testing.assert_array_equal(heights(uri, search=Search.read(date="2022")), local)
    from servers.web import Reply

    server.route("/sas", Reply.json({"token": "sig=good", "msft:expiry": "2999-01-01T00:00:00"}))
    items = [item_of(images / "new.tif", f"{server.url}/account/naip/new.tif")]
    azure = StacApi(server, items, prefix="/pc").uri
    np.testing.assert_array_equal(heights(f"{azure}?collection=naip&signing={server.url}/sas"), local)


def test_object_stores(heights: Any, local: np.ndarray, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from moto.server import ThreadedMotoServer
    from obstore.store import S3Store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    store_server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store_server.start()
    try:
        endpoint = "http://{}:{}".format(*store_server.get_host_and_port())
        settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "SECRETKEY", "AWS_REGION": "us-east-1"}
        for name, value in {**settings, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        HttpClient().request("PUT", f"{endpoint}/scenes")
        obstore.put(S3Store("scenes", endpoint=endpoint, client_options={"allow_http": True}), "new.tif",
                    (images / "new.tif").read_bytes())  # fmt: skip
        np.testing.assert_array_equal(heights("s3://scenes/new.tif"), local)
    finally:
        store_server.stop()


def test_a_failing_server_is_an_error_and_the_run_goes_on_later(
    heights: Any, server: WebServer, images: Path, tmp_path: Path, tiny_model: Path
) -> None:
    copy(make_raster(tmp_path / "large.tif", shape=(400, 400), pattern="noise"), images / "large.tif", driver="COG",
         COMPRESS="DEFLATE", BLOCKSIZE=128)  # fmt: skip
    address = f"{server.url}/data/large.tif"
    area = box(X + 20, Y - 160, X + 160, Y - 20, UTM)
    out = tmp_path / "large_map.tif"
    # The head comes, and what follows fails.
    inner = server.answer

    def answer(call: Any) -> Any:
        if call.range == (0, 2**16) or not call.path.startswith("/data"):
            return inner(call)
        return inner(call)[0], Fault(truncate=True)

    server.answer = answer
    try:
        with pytest.raises(SourceError, match=r"large\.tif"):
            predict(area, address, tiny_model, out, backend="eager")
    finally:
        del server.answer
    assert not out.exists()
    predict(area, address, tiny_model, out, backend="eager")
    with rasterio.open(out) as dataset:
        far = dataset.read()
    predict(area, images / "large.tif", tiny_model, out, backend="eager", overwrite=True)
    with rasterio.open(out) as dataset:
        np.testing.assert_array_equal(far, dataset.read())


def registry(path: Path, monkeypatch: pytest.MonkeyPatch, **uris: str) -> None:
    licence = {"name": "CC-BY-4.0", "derive": True, "attribution": "© Survey of Somewhere"}
    sources = {name: {"title": name, "uri": uri, "licence": licence, "auto": True} for name, uri in uris.items()}
    path.write_text(yaml.safe_dump({"sources": sources}))
    monkeypatch.setenv("CANOPY_SOURCES", str(path))


def test_the_map_names_licence_and_attribution(
    heights: Any, catalogue: StacApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(tmp_path / "sources.yaml", monkeypatch, survey=f"{catalogue.uri}?collection=naip")
    heights("survey")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        tags = dataset.tags()
    assert tags["CANOPY_IMAGERY_LICENCE"] == "CC-BY-4.0"
    assert tags["CANOPY_IMAGERY_ATTRIBUTION"] == "© Survey of Somewhere"
    assert tags["CANOPY_IMAGERY"] == "new.tif" and tags["CANOPY_ACQUISITION_DATETIME"] == "2022-07-01T16:00:00Z"
    properties = json.loads((tmp_path / "map.json").read_text())["properties"]
    assert properties["canopy:imagery_licence"] == "CC-BY-4.0"
    assert properties["canopy:imagery_attribution"] == "© Survey of Somewhere"


def test_an_area_alone_is_mapped_from_the_best_public_source(
    canopy: Any, catalogue: StacApi, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(tmp_path / "sources.yaml", monkeypatch, survey=f"{catalogue.uri}?collection=naip")
    west, south, east, north = to_crs(AREA, CRS("EPSG:4326")).boundingbox.bbox
    arguments = ["predict", "--aoi", f"{west},{south},{east},{north}", "--model", tiny_model, "--backend", "eager",
                 "--out", "o.tif", "--overwrite", "--json"]  # fmt: skip
    code, out, err = canopy(*arguments)
    assert code == 0, err
    assert json.loads(out)["acquisition"] == "2022-07-01T16:00:00Z"
    assert "no source is named, so survey is taken: 100 % of the AOI" in err and "© Survey of Somewhere" in err
    code, out, err = canopy(*arguments, "--date", "2016", "--cloud", "50")
    assert code == 0 and json.loads(out)["acquisition"] == "2016-07-01T16:00:00Z"
    assert "--cloud is not applied" in err
    code, _, err = canopy(*arguments, "--offline")
    assert code == 1 and "--offline keeps from asking others" in err
    code, _, err = canopy(*arguments, "--order", "best")
    assert code == 1 and "--order best: expected newest" in err
    code, _, err = canopy(*arguments, "--imagery", "xyz+https://mt1.google.com/vt/{z}/{x}/{y}")
    assert code == 1 and "--i-have-the-right" in err


def test_nothing_written_or_said_shows_a_signature(
    canopy: Any, server: WebServer, images: Path, tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    west, south, east, north = to_crs(AREA, CRS("EPSG:4326")).boundingbox.bbox
    code, out, err = canopy(
        "predict", "--aoi", f"{west},{south},{east},{north}", "--model", tiny_model, "--backend", "eager", "--out",
        "o.tif", "--imagery", f"{server.url.replace('//', '//user:HIDDENWORD@')}/data/new.tif?sig=HIDDENWORD", "--json",
    )  # fmt: skip
    assert code == 0, err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"HIDDENWORD" not in written + out.encode() + err.encode()
    assert "HIDDENWORD" not in caplog.text
    assert any("sig" in call.query for call in server.calls)


def test_faults_of_options_are_said_by_name(heights: Any, catalogue: StacApi) -> None:
    with pytest.raises(CoverageError, match=r"no imagery over the AOI in naip of .*: (left out|no item there)"):
        heights(f"{catalogue.uri}?collection=naip", aoi=box(X + 9000, Y, X + 9010, Y + 10, UTM))
    with pytest.raises(ImageryError, match="--bands 1,2"):
        heights(f"{catalogue.uri}?collection=naip", bands=(1, 2))
