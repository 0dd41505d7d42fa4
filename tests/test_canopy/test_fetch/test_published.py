"""Published maps of an area: unknown where nothing was imaged, dated, in metres; tiles as large as the real ones."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from servers import meta
from servers.meta import SIDE, corner, degrees
from servers.web import WebServer

from canopy.errors import ConfigError, CoverageError, OutputError, SourceError
from canopy.fetch import meta_maps
from canopy.fetch.options import Years
from canopy.fetch.products import open_publication
from canopy.fetch.published import MapRequest, fetch_map
from canopy.fetch.summary import Summary
from canopy.http import HttpClient, Retry
from tiles.aoi import read_aoi
from tiles.validation import validate

COL, ROW = 7 * 32_768 + 2048, 400 * 32_768 + 4096
"""A corner of blocks within a tile of version 2, in pixels of the lattice."""


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Heights of 96 x 96 px: 0 on the left third, a gradient, and 255 in a corner."""
    heights = np.tile(np.arange(96) // 2, (96, 1)).astype(np.uint8)
    heights[:, :32] = 0
    heights[:8, -8:] = 255
    return heights


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("meta")
    for name, zoom in (("v2", 10), ("v1", 9)):
        key = meta.key(zoom, COL, ROW)
        meta.write_tile(folder / name / "chm" / f"{key}.tif", zoom, values, COL, ROW)
        # Imaged in 2017 but for the upper rows, once more in 2019 on the right.
        meta.write_footprints(
            folder / name / "metadata" / f"{key}.geojson",
            meta.outline(COL + 48, ROW + 16, COL + 96, ROW + 96, acq_date="2019-10-25"),
            meta.outline(COL, ROW + 16, COL + 96, ROW + 96, acq_date="2017-01-17"),
        )
    mask = folder / "v1" / "msk" / f"{meta.key(9, COL, ROW)}.tif.msk"
    meta.write_tile(mask, 9, (values > 40).astype(np.uint8), COL, ROW, nbits=1)
    with WebServer() as server:
        server.files("/", folder)
        yield server


@pytest.fixture
def fetch(server: WebServer, tmp_path: Path) -> Callable[..., Summary]:
    server.forget()

    def run(product: str = "meta-v2", box=(0, 0, 96, 96), years: str | None = None, **options: object) -> Summary:
        client = HttpClient(retry=Retry(attempts=2, pause_s=0))
        source = open_publication(product, f"{server.url}/{product[-2:]}", None, Years(), client)
        west, south, east, north = degrees(COL + box[0], ROW + box[1], COL + box[2], ROW + box[3])
        request = MapRequest(read_aoi(f"{west:.9f},{south:.9f},{east:.9f},{north:.9f}"), Years.parse(years))
        return fetch_map(tmp_path / "map.tif", source, request, **options)

    return run


def read(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Band 1 of a map, and its first row and column from the test's corner."""
    with rasterio.open(path) as raster:
        x, y = corner(COL, ROW)
        offset = round((y - raster.transform.f) / SIDE), round((raster.transform.c - x) / SIDE)
        return raster.read(1), offset


def test_unimaged_ground_is_unknown_and_bare_ground_is_0(fetch, values, tmp_path: Path) -> None:
    summary = fetch()
    heights, (row, col) = read(summary.path)
    assert (row, col) == (0, 0) and heights.shape == (96, 96)
    expected = values.astype(np.float32)
    expected[:16] = np.nan
    expected[values == 255] = np.nan
    np.testing.assert_array_equal(heights, expected)
    assert (heights[16:, :32] == 0).all()
    assert not validate(summary.path)
    days, _ = read(tmp_path / "map_dates.tif")
    assert set(np.unique(days)) == {0, 17_183, 18_194}
    assert (np.datetime64("1970-01-01") + days[50, 10], np.datetime64("1970-01-01") + days[50, 90]) == (
        np.datetime64("2017-01-17"), np.datetime64("2019-10-25"),
    )  # fmt: skip
    assert ((days > 0) == ~np.isnan(heights)).all()
    item = json.loads((tmp_path / "map.json").read_text())
    assert item["properties"]["canopy:acquisition_datetime"] == "2017-01-17/2019-10-25"
    dates = item["assets"]["dates"]
    assert dates["href"] == "./map_dates.tif" and dates["bands"][0]["unit"] == "days since 1970-01-01"
    assert dates["file:size"] == (tmp_path / "map_dates.tif").stat().st_size
    assert "CC-BY-4.0" in (tmp_path / "map_CITATION.txt").read_text()
    # 1.194 mercator metres are fewer on the ground.
    latitude = degrees(COL, ROW, COL + 96, ROW + 96)[1]
    assert summary.facts["gsd_m"] == pytest.approx(SIDE * np.cos(np.radians(latitude)), rel=1e-3)
    assert summary.facts["gsd_m"] < 1.19
    assert not (tmp_path / ".map.tif.fetch").exists()


def test_version_1_has_its_mask_as_a_layer(fetch, values, tmp_path: Path) -> None:
    heights, _ = read(fetch("meta-v1").path)
    np.testing.assert_array_equal(heights[16:], np.where(values == 255, np.nan, values)[16:])
    mask, _ = read(tmp_path / "map_mask.tif")
    np.testing.assert_array_equal(mask, values > 40)


def test_windows_are_read_and_not_tiles(fetch, server) -> None:
    fetch()
    assert all(call.range or call.method == "HEAD" for call in server.asked("/v2/chm"))
    assert sum(1 for call in server.asked("/v2/chm") if call.range) <= 8


def test_years_leave_the_rest_unknown(fetch, tmp_path: Path) -> None:
    heights, _ = read(fetch(years="2018-2020").path)
    assert np.isnan(heights[:, :48]).all() and not np.isnan(heights[20:, 48:]).any()
    with pytest.raises(CoverageError, match="no imaged ground within the area in 2012"):
        fetch(years="2012", overwrite=True)
    assert not np.isnan(read(tmp_path / "map.tif")[0][20:, 48:]).any(), "the map before is still there"
    assert not list(tmp_path.glob(".*"))


def test_blocks_of_a_killed_run_are_taken(fetch, server, monkeypatch, tmp_path: Path) -> None:
    from canopy.fetch import published

    monkeypatch.setattr(published, "BLOCK_PX", 64)
    whole, _ = read(fetch().path)
    (tmp_path / "map.tif").unlink()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(published, "publish_map", killed)
        fetch()
    server.forget()
    heights, _ = read(fetch().path)
    np.testing.assert_array_equal(heights, whole)
    assert not [call for call in server.asked("/v2/chm") if call.range], "no block is read again"


def test_without_footprints_a_0_is_unknown(fetch, server, values, monkeypatch) -> None:
    monkeypatch.setattr(meta_maps.MetaMap, "_read_footprints", lambda self, key: None)
    summary = fetch()
    heights, _ = read(summary.path)
    assert np.isnan(heights[values == 0]).all() and (heights[(values > 0) & (values < 255)] > 0).all()
    assert "without published footprints" in " ".join(summary.remarks)


def test_a_dry_run_says_sizes_and_writes_nothing(fetch, tmp_path: Path) -> None:
    summary = fetch(dry_run=True)
    assert summary.sizes[0].files == 1 and summary.sizes[0].bytes > 1000
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_had_is_one_line(fetch, server, tmp_path: Path) -> None:
    with pytest.raises(CoverageError, match="no file over the area"):
        fetch(box=(200_000, 0, 200_100, 100))
    with pytest.raises(CoverageError, match="in parts"):
        fetch(box=(0, 0, 2**24, 2**23))
    with pytest.raises(ConfigError, match="meta-v1, meta-v2, open-canopy"):
        open_publication("meta-v3", None, None, Years())
    with pytest.raises(ConfigError, match="leave --unit out"):
        open_publication("meta-v2", None, "dm", Years())
    (tmp_path / "map.tif").touch()
    with pytest.raises(OutputError, match="exists"):
        fetch()


@pytest.mark.parametrize("content", [b"{}", b"<html>", b'{"features": [{"geometry": {"type": "Nothing"}}]}'])
def test_footprints_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match="no collection of polygons"):
        meta_maps.parse_footprints(content, "a.geojson")


def test_footprints_may_be_in_web_mercator() -> None:
    ring = [[5e6, 5e6], [5e6 + 10, 5e6], [5e6, 5e6 + 10], [5e6, 5e6]]
    feature = {"properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    footprints = meta_maps.parse_footprints(json.dumps({"features": [feature]}).encode(), "a")
    assert footprints.outlines[0].bounds == (5e6, 5e6, 5e6 + 10, 5e6 + 10)
    assert footprints.days.tolist() == [0]
