"""Of a file much finer than the grid an overview is read: less of the file, the same map from wherever it comes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import X, Y, grid
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasters import make_raster
from servers.web import WebServer

from canopy.http import HttpClient
from canopy.imagery import open_imagery, remote
from canopy.imagery.resample import Resampler, locate
from canopy.imagery.source import RasterImagery

_PX = np.arange(800)
WAVES = 125 + 50 * np.stack([np.sin(k * _PX / 50)[:, None] + np.cos(_PX / 70 / k) for k in (1, 2, 3)])
"""Light that changes within metres, never black."""
FINE = {"resolution": 0.1, "shape": (800, 800), "origin": (X, Y), "values": WAVES}
GRID = grid((66, 66), resolution=1.0)
"""Ten pixels of the file under each: overviews of 2 and 4 are coarser, 8 is too coarse."""


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def cog(path: Path, **options: Any) -> Path:
    """A COG of 0.1 m with overviews of 2, 4 and 8."""
    plain = make_raster(path.with_name(f"plain_{path.name}"), **FINE | options)
    copy(plain, path, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=128, OVERVIEW_RESAMPLING="AVERAGE")
    plain.unlink()
    return path


def without_overviews(path: Path) -> Path:
    """The same pixels in a file that has none."""
    plain = path.with_name(f"bare_{path.name}")
    copy(path, plain, driver="GTiff", COPY_SRC_OVERVIEWS="NO", TILED="YES", BLOCKXSIZE=128, BLOCKYSIZE=128)
    return plain


def read(path: Any, geobox: Any = GRID) -> np.ndarray:
    return open_imagery(path).read(geobox).values


def chosen(path: Path, resolution: float) -> int | None:
    source = open_imagery(path)
    assert isinstance(source, RasterImagery)
    number = Resampler(source.scenes[0], locate(grid((64, 64), resolution=resolution))[0]).overview
    return None if number is None else source.scenes[0].overviews[number]


def test_the_coarsest_with_two_pixels_under_each_of_the_grid_is_chosen(tmp_path: Path) -> None:
    path = cog(tmp_path / "a.tif")
    assert [chosen(path, size) for size in (0.1, 0.3, 0.4, 0.79, 0.8, 1.5, 1.6, 3.0)] == [
        None, None, 2, 2, 4, 4, 8, 8
    ]  # fmt: skip


def test_an_overview_shows_what_the_file_shows_and_less_of_it_is_read(
    tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cog(tmp_path / "waves.tif")
    # Averages of averages: what remains is rounding of 8 bits twice.
    assert np.abs(read(path) - read(without_overviews(path))).max() < 1.5 / 255
    # Pixels that cannot be compressed.
    path = cog(tmp_path / "a.tif", values=None, pattern="noise")
    without_overviews(path)
    client = HttpClient()
    monkeypatch.setattr(remote, "client", lambda: client)
    server.files("/data", tmp_path)
    bytes_read = {}
    for name in (path.name, f"bare_{path.name}"):
        source = open_imagery(f"{server.url}/data/{name}")
        source.read(grid((8, 8), resolution=0.1))  # looks for frames, in the file's own pixels
        server.forget()
        image = source.read(grid((40, 40), resolution=1.0, origin=(X + 20, Y - 20))).values
        ranges = [call.range for call in server.calls if call.range]
        bytes_read[name] = sum((last or first) - first for first, last in ranges)
        np.testing.assert_array_equal(image, read(tmp_path / name)[:, 20:60, 20:60])
    assert 0 < bytes_read[path.name] * 4 < bytes_read[f"bare_{path.name}"]


def test_windows_do_not_matter(tmp_path: Path) -> None:
    source = open_imagery(cog(tmp_path / "a.tif"))
    whole = source.read(GRID).values
    for rows, cols in ((slice(3, 40), slice(30, 65)), (slice(60, 66), slice(0, 66)), (slice(50, 51), slice(7, 8))):
        np.testing.assert_array_equal(source.read(GRID[rows, cols]).values, whole[:, rows, cols])


def test_where_a_pixel_is_unknown_the_file_itself_decides(tmp_path: Path) -> None:
    mask = np.ones((800, 800), bool)
    mask[403:421, 507:533] = False
    mask[:, 600:] = False
    for options in ({"mask": mask}, {"mask": mask, "nodata": 0}):
        path = cog(tmp_path / "a.tif", **options)
        holed, full = read(path), read(without_overviews(path))
        np.testing.assert_array_equal(np.isnan(holed), np.isnan(full))
        assert np.isnan(holed[0, 40:42, 51:53]).all()
        assert np.nanmax(np.abs(holed - full)) < 1.5 / 255


def test_overviews_that_cannot_be_trusted_are_not_read(tmp_path: Path) -> None:
    # Their mask was left out.
    mask = np.ones((800, 800), bool)
    mask[:, :400] = False
    path = make_raster(tmp_path / "a.tif", mask=mask, **FINE)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    np.testing.assert_array_equal(np.isnan(read(path)), np.isnan(read(without_overviews(path))))
    # Undeclared fills were averaged with light.
    values = np.full((3, 800, 800), 500.0)
    assert chosen(cog(tmp_path / "b.tif", dtype="uint16", values=values), 1.0) is None
    # Those of a file of their own do not come with the file from a server.
    path = make_raster(tmp_path / "c.tif", **FINE)
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert (tmp_path / "c.tif.ovr").exists() and chosen(path, 1.0) is None


def test_black_frames_are_searched_in_the_file(tmp_path: Path) -> None:
    values = WAVES.copy()
    values[:, :, :333] = 0
    path = cog(tmp_path / "a.tif", values=values)
    holed, full = read(path), read(without_overviews(path))
    np.testing.assert_array_equal(holed, full)
    assert np.isnan(holed[0, :, :33]).all() and not np.isnan(holed[0, :, 34:]).any()
