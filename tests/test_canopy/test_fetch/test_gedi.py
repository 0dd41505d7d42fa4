"""Shots over an area, against a server that plays the catalogue, Harmony and the store; and a calibration of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from forest import make_forest
from gedi_granules import write_granule
from servers import earthdata as fake
from servers.web import Fault, WebServer

from canopy.errors import ConfigError, SourceError
from canopy.fetch import gedi as service
from canopy.fetch import harmony
from canopy.fetch.cmr import search
from canopy.fetch.gedi_shots import count_shots
from canopy.fetch.options import Years, lonlat_boxes
from canopy.fetch.summary import Summary
from canopy.gedi.granules import read_granule
from canopy.gedi.simulation import Orbit, simulate
from canopy.http import HttpClient, Retry
from tiles.aoi import read_aoi

AOI = "-122.1,43.9,-120.9,44.1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("granules")
    return {
        fake.PASSES[0]: write_granule(folder / "a_V003.h5", version="V003", count=6),
        fake.PASSES[1]: fake.write_empty(folder / "b.h5"),
        fake.PASSES[2]: write_granule(folder / "c_V002.h5", version="V002", count=4),
    }


@pytest.fixture
def server(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.EarthdataServer]:
    monkeypatch.setenv("EARTHDATA_TOKEN", fake.TOKEN)
    with WebServer() as web, WebServer() as store:
        yield fake.start(web, store, files)


@pytest.fixture
def fetch(server: fake.EarthdataServer, tmp_path: Path) -> Callable[..., Summary]:
    def run(dry_run: bool = False, **request: object) -> Summary:
        return service.fetch_gedi(
            tmp_path / "shots", service.GediRequest(read_aoi(AOI), **request), cmr=server.web.url,
            harmony=server.web.url, client=HttpClient(retry=Retry(attempts=3, pause_s=0)), wait=lambda seconds: None,
            dry_run=dry_run,
        )  # fmt: skip

    return run


def test_parts_of_granules_come_and_their_shots_are_counted(server, fetch, tmp_path: Path) -> None:
    summary = fetch()
    assert not summary.failures
    assert summary.facts["versions"] == {"V003": 2, "V002": 1}
    names = sorted(path.name for path in (tmp_path / "shots").glob("*.h5"))
    assert names == [
        f"GEDI02_A_{fake.PASSES[0]}_02_004_02_V003_subsetted.h5",
        f"GEDI02_A_{fake.PASSES[2]}_02_003_01_V002_subsetted.h5",
    ]
    assert (summary.facts["shots"], summary.facts["quality_shots"]) == (20, 20)
    assert "20 shots in 2 files; 1 files had none" in summary.remarks
    assert [len(read_granule(path).shots) for path in sorted((tmp_path / "shots").glob("*.h5"))] == [12, 8]
    assert server.resumed, "a paused job is resumed"
    assert "V003; 1 overpasses are in V002 only" in summary.remarks[0]
    manifest = json.loads((tmp_path / "shots" / "fetch-gedi-L2A.json").read_text())
    empty = next(entry for name, entry in manifest["files"].items() if fake.EMPTY_PASS in name)
    assert (empty["absent"], empty["shots"]) == (True, 0)


def test_an_order_asks_for_the_box_and_for_what_is_read(server, fetch) -> None:
    fetch()
    first = server.orders[0]
    assert first["subset"] == ["lat(43.90000:44.10000)", "lon(-122.10000:-120.90000)"]
    variables = first["variable"][0].split(",")
    assert {"/BEAM0000/rh", "/BEAM1011/l2a_quality_flag_rel3", "/BEAM0101/lat_lowestmode"} <= set(variables)
    retried = server.orders[-1]["variable"][0].split(",")
    assert not [name for name in retried if "rel3" in name], "what V002 lacks is left out, as the service says"
    assert len(first["granuleId"][0].split(",")) == 2


def test_the_token_stays_with_its_hosts(server, fetch) -> None:
    fetch()
    assert all("authorization" not in call.headers for call in server.store.asked())
    assert all("authorization" not in call.headers for call in server.web.asked("/search/"))


def test_a_later_run_takes_what_is_there_and_the_job_that_runs(server, fetch) -> None:
    fetch()
    orders, downloads = len(server.orders), server.store.count()
    assert fetch().collected.fetched == 0
    assert (len(server.orders), server.store.count()) == (orders, downloads)
    # A job of another user, or one that has expired, is ordered once more.
    server.looks.clear()
    server.orders.clear()
    assert not fetch().failures
    assert server.orders


def test_successful_without_links_is_said(server, fetch, monkeypatch) -> None:
    server.granules = {fake.EMPTY_PASS: server.granules[fake.EMPTY_PASS]}
    summary = fetch(version="V003")
    assert summary.failures == ("no shot in the area came: draw it larger, or ask for more years",)
    assert "1 of 2 granules cross the area's box without a shot in it" in summary.remarks


def test_pages_end_without_a_header_and_lost_granules_show(server) -> None:
    client, boxes = HttpClient(retry=Retry(attempts=2, pause_s=0)), lonlat_boxes(read_aoi(AOI))
    granules = search(client, fake.L2A["V002"], "V002", boxes, Years((2020, 2021)), server.web.url)
    assert [granule.overpass for granule in granules] == list(fake.PASSES)
    assert {granule.bytes for granule in granules} == {1_500_000_000}
    assert all(granule.url and granule.url.endswith(".h5") for granule in granules)
    assert server.web.asked("/search/")[0].query["temporal[]"] == "2020-01-01T00:00:00Z,2021-12-31T23:59:59Z"
    short = b'{"items": []}'
    server.web.fail(Fault(status=200, body=short, headers={"CMR-Hits": "9"}), path="/search/")
    with pytest.raises(SourceError, match="0 granules of 9 came"):
        search(client, fake.L2A["V002"], "V002", boxes, Years(), server.web.url)


def test_a_dry_run_needs_no_token_and_orders_nothing(server, fetch, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EARTHDATA_TOKEN")
    summary = fetch(dry_run=True)
    assert (summary.sizes[0].files, summary.sizes[0].bytes) == (3, 4_500_000_000)
    assert not server.orders
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="no EARTHDATA_TOKEN"):
        fetch()


def test_refusals_say_what_to_do(server, fetch, monkeypatch) -> None:
    page = "https://urs.earthdata.nasa.gov/accept_eula?eula_id=1"
    eula = json.dumps({"error": "User has not accepted EULA", "accept_eula_url": page})
    name = f"GEDI02_A_{fake.PASSES[0]}_02_004_02_V003_subsetted.h5"
    server.bodies[name] = eula
    with pytest.raises(SourceError, match=r"not accepted the licence .* open https://urs.*eula_id=1"):
        fetch()
    server.bodies[name] = fake.LOGIN
    with pytest.raises(SourceError, match="login page in place of data"):
        fetch()
    monkeypatch.setenv("EARTHDATA_TOKEN", "a-token-that-has-expired")
    with pytest.raises(SourceError, match=r"refuses the token \(invalid_token\)") as refused:
        fetch()
    assert "has-expired" not in str(refused.value)


def test_an_area_without_measurements_is_one_line(server, fetch) -> None:
    with pytest.raises(SourceError, match="no granule of GEDI L2A"):
        fetch(years=Years((2030,)))


@pytest.mark.parametrize(
    ("status", "description", "message"),
    [
        (422, "the requested combination of operations is unsupported", "fetch whole granules with --whole"),
        (404, "C3974616071-LPCLOUD must be a CMR collection identifier", "must be a CMR collection"),
        (400, 'Parameter "limit" is invalid.', "is invalid"),
    ],
)
def test_orders_that_are_refused(server, fetch, status: int, description: str, message: str) -> None:
    body = json.dumps({"code": "harmony", "description": f"Error: {description}"}).encode()
    server.web.fail(Fault(status=status, body=body), path=f"/{fake.L2A['V003']}/")
    with pytest.raises(SourceError, match=message):
        fetch()


def test_no_granules_at_submit_is_no_failure_of_the_others(server, fetch) -> None:
    body = b'{"code": "harmony.RequestValidationError", "description": "Error: No matching granules found."}'
    server.web.fail(Fault(status=400, body=body), path=f"/{fake.L2A['V003']}/")
    summary = fetch()
    assert (summary.failures, summary.facts["shots"]) == ((), 8)


def test_whole_granules_come_by_their_links(server, fetch, files, tmp_path: Path) -> None:
    failures = fetch(whole=True, version="V003").failures
    assert all("expected the 1500000000 that the service states" in failure for failure in failures)
    assert len(failures) == 2


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "a.h5", product="L2B", version="V003", count=5)
    assert (count_shots(path, "L2B").count, count_shots(path, "L2B").quality) == (10, 10)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match="damaged or not HDF5"):
        count_shots(path, "L2B")


def test_products_and_versions_are_checked() -> None:
    area = read_aoi(AOI)
    for request, message in [({"product": "L1B"}, "L2A, L2B, L4A expected"), ({"version": "V001"}, "auto, V003, V002")]:
        with pytest.raises(ConfigError, match=message):
            service.GediRequest(area, **request)


@pytest.mark.slow
def test_fetched_shots_calibrate_a_map(canopy, tmp_path: Path, monkeypatch) -> None:
    forest = make_forest(160, crs="EPSG:32612", origin=(528_000, 4_979_000), buildings=0)
    for name, factor in (("map.tif", 1.0), ("truth.tif", 1.25)):
        profile = {"driver": "GTiff", "crs": forest.crs, "transform": forest.transform, "height": 160, "width": 160,
                   "count": 1, "dtype": "float32", "nodata": np.nan}  # fmt: skip
        with rasterio.open(tmp_path / name, "w", **profile) as raster:
            raster.write(factor * forest.chm_m, 1)
            raster.descriptions = ("canopy_height",)
    simulate(tmp_path / "truth.tif", tmp_path / "granule.h5", Orbit(passes=4, across_m=25, along_m=12, track_error_m=2))
    with h5py.File(tmp_path / "granule.h5", "r+") as granule:
        for beam in (group for name, group in granule.items() if name.startswith("BEAM")):
            beam["delta_time"][...] += 500 * 86_400.0
    monkeypatch.setenv("EARTHDATA_TOKEN", fake.TOKEN)
    monkeypatch.setattr(harmony, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    with WebServer() as web, WebServer() as store:
        fake.start(web, store, {fake.PASSES[2]: tmp_path / "granule.h5"})
        for name in ("CANOPY_CMR", "CANOPY_HARMONY"):
            monkeypatch.setenv(name, web.url)
        code, out, err = canopy("fetch", "gedi", "--aoi", AOI, "--version", "V002", "--out", "shots")
    assert (code, out.strip()) == (0, "shots"), err
    code, _, err = canopy("gedi", "read", *Path("shots").glob("*.h5"), "--out", "shots.parquet")
    assert code == 0, err
    code, out, err = canopy(
        "calibrate", "--pred", "map.tif", "--shots", "shots.parquet", "--out", "c.json", "--block-m", "60"
    )
    assert (code, out.strip()) == (0, "c.json"), err
    assert json.loads(Path("c.json").read_text())["kind"]
