"""Lidar heights of France: flights listed by VRTs, in a unit that is stated, judged or asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from servers.web import WebServer

from canopy.errors import ConfigError, SourceError
from canopy.fetch.open_canopy import OpenCanopyMap
from canopy.fetch.options import Years
from canopy.fetch.published import MapRequest, fetch_map
from canopy.http import HttpClient, Retry
from tiles.aoi import read_aoi

X, Y, CELL_M = 700_000.0, 6_600_000.0, 1.5
FLIGHTS = {"compressed_lidar_20220419366095.tif": (0.0, 15.0), "compressed_lidar_20220514370671.tif": (60.4, 25.0)}
"""First column in the VRT (fractional, as in the real ones), and height in metres, of each flight."""
_RECT = '<DstRect xOff="{x}" yOff="0" xSize="100" ySize="64"/>'
_SOURCE = '<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>{rect}</SimpleSource>'


def vrt(names: dict[str, float]) -> str:
    sources = "".join(_SOURCE.format(name=f"lidar/{name}", rect=_RECT.format(x=x)) for name, x in names.items())
    return (
        f'<VRTDataset rasterXSize="200" rasterYSize="64"><SRS>EPSG:2154</SRS><GeoTransform>{X}, {CELL_M}, 0, {Y}, 0, '
        f'-{CELL_M}</GeoTransform><VRTRasterBand band="1">{sources}</VRTRasterBand></VRTDataset>'
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("open-canopy")
    (folder / "2022" / "lidar").mkdir(parents=True)
    for name, (x, height_m) in FLIGHTS.items():
        values = np.full((64, 100), round(height_m * 10), np.uint16)
        values[:4] = 65_535
        values[-12:] = 0
        profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "width": 100, "height": 64, "crs": "EPSG:2154",
                   "transform": Affine(CELL_M, 0, X + x * CELL_M, 0, -CELL_M, Y), "nodata": 65_535}  # fmt: skip
        with rasterio.open(folder / "2022" / "lidar" / name, "w", **profile) as raster:
            raster.write(values, 1)
            raster.build_overviews([2])
    (folder / "2022" / "lidar.vrt").write_text(vrt({name: x for name, (x, _) in FLIGHTS.items()}))
    with WebServer() as server:
        server.files("/", folder)
        yield server


@pytest.fixture
def heights(server: WebServer, tmp_path: Path) -> Callable[..., tuple[np.ndarray, Path]]:
    def run(unit: str | None = None) -> tuple[np.ndarray, Path]:
        source = OpenCanopyMap(HttpClient(retry=Retry(attempts=2, pause_s=0)), server.url, unit, Years())
        move = Transformer.from_crs("EPSG:2154", "OGC:CRS84", always_xy=True)
        west, south, east, north = move.transform_bounds(X + 6, Y - 93, X + 234, Y - 3)
        request = MapRequest(read_aoi(f"{west:.9f},{south:.9f},{east:.9f},{north:.9f}"))
        summary = fetch_map(tmp_path / "map.tif", source, request, overwrite=True)
        with rasterio.open(summary.path) as raster:
            col, row = (round(offset) for offset in ~raster.transform * (X, Y))
            return raster.read(1)[max(0, row) :, max(0, col) :], summary.path

    return run


def test_flights_are_joined_in_metres_with_their_days(heights) -> None:
    values, path = heights()
    middle = values[30]
    assert (middle[10], middle[70], middle[140]) == (15.0, 25.0, 25.0), "the newer flight lies over the older one"
    assert np.isnan(values[0]).all()
    assert values[55, 80] == 0, "bare ground is 0"
    with rasterio.open(path.with_name("map_dates.tif")) as raster:
        days = raster.read(1)[40]
    assert np.datetime64("1970-01-01") + int(days[10]) == np.datetime64("2022-04-19")
    assert np.datetime64("1970-01-01") + int(days[140]) == np.datetime64("2022-05-14")
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() == 2154


def test_a_unit_that_is_named_is_believed(heights) -> None:
    assert heights("cm")[0][30, 10] == pytest.approx(1.5)
    with pytest.raises(ConfigError, match="m, dm, cm expected"):
        heights("ft")


def test_small_numbers_say_nothing_of_their_unit(heights, monkeypatch) -> None:
    from canopy.fetch import open_canopy

    monkeypatch.setattr(open_canopy, "TALLEST_M", 1000.0)
    with pytest.raises(SourceError, match="give --unit m, dm or cm"):
        heights()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<html>", "no VRT"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><VRTDataset/>', "a document type"),
        (vrt({}).replace("</VRTDataset>", _SOURCE.format(name="../../a.tif", rect=_RECT.format(x=0)) + "</VRTDataset>"),
         "another folder"),
    ],
)  # fmt: skip
def test_lists_that_are_none_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "2021").mkdir()
    (tmp_path / "2021" / "lidar.vrt").write_text(text)
    with WebServer() as server:
        server.files("/", tmp_path)
        with pytest.raises(SourceError, match=reason):
            OpenCanopyMap(HttpClient(), server.url, None, Years((2021,)))
        with pytest.raises(SourceError, match="no heights of 2022"):
            OpenCanopyMap(HttpClient(), server.url, None, Years((2022,)))
