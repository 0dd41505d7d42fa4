"""From a site's name to scenes, a chip store and a model, against a server that plays NEON."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geom import Geometry
from servers import neon as fake
from servers.web import Fault

from canopy.config import load_config
from canopy.dataset.config import DatasetConfig
from canopy.dataset.scene_files import list_scenes
from canopy.errors import ConfigError, OutputError, SourceError
from canopy.fetch.neon import NeonRequest, fetch_neon
from canopy.fetch.options import Years
from canopy.fetch.summary import Summary
from canopy.http import HttpClient, Retry
from tiles.aoi import read_aoi


@pytest.fixture
def server(neon_server: fake.NeonServer, monkeypatch: pytest.MonkeyPatch) -> fake.NeonServer:
    monkeypatch.setenv("NEON_TOKEN", fake.TOKEN)
    for web in (neon_server.web, neon_server.store):
        web.forget()
    neon_server.wrong_crc.clear()
    neon_server.expired.clear()
    return neon_server


def area(server: fake.NeonServer) -> Geometry:
    return read_aoi(server.aoi)


def fetched(server: fake.NeonServer, out: Path, dry_run: bool = False, **request: object) -> Summary:
    client = HttpClient(retry=Retry(attempts=3, pause_s=0))
    values = {"site": "TEAK", "aoi": area(server), "clouds": False, "years": Years((2018,)), **request}
    return fetch_neon(out, NeonRequest(**values), address=server.api, client=client, dry_run=dry_run)


def test_a_site_becomes_scenes_with_the_pixels_of_the_mosaic(server: fake.NeonServer, tmp_path: Path) -> None:
    summary = fetched(server, tmp_path, clouds=True)
    assert not summary.failures
    assert summary.facts["visit"] == fake.VISIT
    config = load_config(summary.path, DatasetConfig)
    scenes = sorted(path.parent.name for path in config.root.glob(config.sources["neon_teak"].images))
    assert scenes == [f"{fake.VISIT}_{x}_{y}" for x, y in fake.TILES]
    for x, y in fake.TILES:
        with rasterio.open(tmp_path / f"{fake.VISIT}_{x}_{y}" / "rgb.tif") as window:
            image, bounds = window.read(), window.bounds
        # Each is the part of its tile in the area, in whole metres; together they are the forest's own pixels.
        col, row = int((bounds.left - fake.FOREST_CORNER[0]) * 2), int((fake.FOREST_CORNER[1] - bounds.top) * 2)
        inside = image[:, max(0, -row) :, max(0, -col) :]
        rows, cols = slice(max(0, row), 256), slice(max(0, col), 256)
        expected = server.forest.rgb[:, rows, cols][:, : inside.shape[1], : inside.shape[2]]
        np.testing.assert_array_equal(inside[:, : expected.shape[1], : expected.shape[2]], expected)
        assert 100 < image.shape[1] <= 264
    manifest = json.loads((tmp_path / "fetch.json").read_text())
    entry = manifest["files"][f"{scenes[0]}/rgb.tif"]
    assert entry["checked"] == "size, entity tag and every block"
    assert manifest["files"][f"{scenes[0]}/cloud.laz"]["checked"] == "CRC-32C"
    assert "CC-BY-4.0" in (tmp_path / "CITATION.txt").read_text()
    assert not (tmp_path / ".fetch").exists()


def test_only_the_needed_part_of_a_mosaic_is_read(server: fake.NeonServer, tmp_path: Path) -> None:
    fetched(server, tmp_path)
    calls = [call for call in server.store.asked() if call.path.endswith("_image.tif")]
    assert all(call.range for call in calls)
    assert len(calls) <= 8


def test_the_second_run_asks_for_no_file_again(server: fake.NeonServer, tmp_path: Path) -> None:
    first = fetched(server, tmp_path)
    server.store.forget()
    (tmp_path / f"{fake.VISIT}_319000_4099000" / "chm.tif").write_bytes(b"damaged")
    second = fetched(server, tmp_path)
    assert first.collected is not None and second.collected is not None
    assert (first.collected.fetched, second.collected.fetched) == (4, 1)
    assert {call.path.rpartition("/")[2] for call in server.store.asked() if not call.range} == {
        fake.file_name("chm", fake.TILES[0], fake.VISIT)
    }


def test_a_wrong_checksum_leaves_the_scene_out_and_is_said(server: fake.NeonServer, tmp_path: Path) -> None:
    name = fake.file_name("chm", fake.TILES[0], fake.VISIT)
    server.wrong_crc.add(name)
    summary = fetched(server, tmp_path)
    assert len(summary.failures) == 1 and "CRC-32C" in summary.failures[0]
    assert [path.parent.name for path in tmp_path.glob("*/rgb.tif")] == [f"{fake.VISIT}_320000_4099000"]
    assert summary.path.name == "dataset.yaml"
    server.wrong_crc.clear()
    assert not fetched(server, tmp_path).failures
    assert len(list(tmp_path.glob("*/rgb.tif"))) == 2


def test_expired_addresses_are_asked_for_again(server: fake.NeonServer, tmp_path: Path) -> None:
    server.expired.update(f"sig{server.listings + number}" for number in (1, 2))
    assert not fetched(server, tmp_path).failures
    assert server.listings > 2


def test_rate_limits_are_waited_for(server: fake.NeonServer, tmp_path: Path) -> None:
    limited = Fault(status=429, body=b'{"message": "API rate limit exceeded"}', headers={"RetryAfter": "0"})
    server.web.fail(limited, limited)
    assert not fetched(server, tmp_path).failures


def test_visits_are_whole_or_passed_over(server: fake.NeonServer, tmp_path: Path, caplog) -> None:
    newest = fetched(server, tmp_path, dry_run=True, aoi=None, years=Years())
    assert newest.facts["visit"] == fake.BARE_VISIT
    assert "some files are PROVISIONAL: NEON may still change them" in newest.remarks
    whole = fetched(server, tmp_path, dry_run=True, aoi=None, clouds=True, years=Years())
    assert whole.facts["visit"] == fake.VISIT
    assert "2021_TEAK_5 has no clouds (DP1.30003.001): 2018_TEAK_3 is taken" in caplog.text
    older = fetched(server, tmp_path, dry_run=True, aoi=None, clouds=True, years=Years.parse("2016-2017"))
    assert older.facts["visit"] == fake.OLD_VISIT
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    with pytest.raises(SourceError, match=r"no flights in 2019; months with data: 2017-06, 2018-06, 2021-07"):
        fetched(server, tmp_path, years=Years((2019,)))


def test_sizes_of_a_dry_run_are_those_of_the_listing(server: fake.NeonServer, tmp_path: Path) -> None:
    summary = fetched(server, tmp_path, dry_run=True, aoi=None, clouds=True, years=Years((2018,)))
    expected = sum(path.stat().st_size for path in (server.folder / "neon-aop-products/2018").rglob("*.tif"))
    expected += sum(path.stat().st_size for path in (server.folder / "neon-aop-products/2018").rglob("*.laz"))
    assert sum(size.bytes for size in summary.sizes) == expected
    assert all(size.exact for size in summary.sizes)


def test_an_area_finds_its_site_and_shared_flights_are_known(server: fake.NeonServer, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, site=None, dry_run=True).facts["site"] == "TEAK"
    shared = fetched(server, tmp_path, site="tecr", dry_run=True)
    assert shared.facts["site"] == "TEAK"
    assert "TECR is covered by the flights of TEAK" in shared.remarks
    with pytest.raises(SourceError, match="no NEON site within 60 km"):
        fetched(server, tmp_path, site=None, aoi=read_aoi("10,50,10.1,50.1"))
    with pytest.raises(SourceError, match="visit 2018_TEAK_3 has no tile in the area"):
        fetched(server, tmp_path, aoi=read_aoi("-119.5,37,-119.4,37.1"))


def test_whole_tiles_are_downloaded_without_an_area(server: fake.NeonServer, tmp_path: Path) -> None:
    summary = fetched(server, tmp_path, aoi=None, years=Years((2018,)), tiles=1)
    assert summary.facts["tiles"] == 1
    (image,) = tmp_path.glob("*/rgb.tif")
    original = next((server.folder / "neon-aop-products").rglob(f"{image.parent.name}_image.tif"))
    assert image.read_bytes() == original.read_bytes()


def test_labels_may_come_from_the_clouds(server: fake.NeonServer, tmp_path: Path) -> None:
    summary = fetched(server, tmp_path, clouds=True, labels="clouds")
    config = load_config(summary.path, DatasetConfig)
    source = config.sources["neon_teak"]
    assert (source.heights, source.floor_m) == (None, 0.0)
    scenes = list_scenes("neon_teak", source, config.root)
    assert [len(scene.clouds) for scene in scenes] == [1, 1]
    with pytest.raises(ConfigError, match="leave --no-clouds out"):
        NeonRequest("TEAK", clouds=False, labels="clouds")


def test_what_cannot_be_answered_is_one_line(server: fake.NeonServer, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="no area"):
        NeonRequest()
    with pytest.raises(SourceError, match="four letters"):
        fetched(server, tmp_path, site="TEAKS")
    with pytest.raises(SourceError, match="Site not found: ABBY"):
        fetched(server, tmp_path, site="ABBY")
    fetched(server, tmp_path / "a")
    with pytest.raises(OutputError, match=r"another request \(years: \[2018\]\)"):
        fetched(server, tmp_path / "a", years=Years((2017,)))
    monkeypatch.setenv("NEON_TOKEN", "wrong-token-of-a-user")
    with pytest.raises(SourceError, match=r"refuses the token \(status 401\)") as refused:
        fetched(server, tmp_path / "b")
    assert "wrong-token" not in str(refused.value)
    monkeypatch.setenv("NEON_TOKEN", "")
    with pytest.raises(ConfigError, match="no NEON_TOKEN"):
        fetched(server, tmp_path / "b")
