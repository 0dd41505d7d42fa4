import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imagery_reading import SHAPE, X, Y, grid, point_in, read, stored, truncated
from rasterio import Affine
from rasters import LEVELS, UTM, make_raster

from canopy.imagery import open_imagery


def test_a_scene_on_the_grid_is_copied_exactly(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    image = open_imagery(path).read(grid())
    np.testing.assert_array_equal(image.values, stored(path) * np.float32(1 / 255))
    assert image.dims == ("band", "y", "x")
    assert image.dtype == np.float32
    assert list(image.band.values) == ["red", "green", "blue"]
    assert image.x.values[0] == X + 0.25
    assert image.y.values[0] == Y - 0.25


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rioxarray multiplies affines with *
def test_the_array_carries_its_georeference(tmp_path: Path) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    image = open_imagery(make_raster(tmp_path / "a.tif")).read(grid())
    assert rioxarray and image.rio.crs.to_epsg() == 32631
    assert image.rio.transform() == Affine(0.5, 0, X, 0, -0.5, Y)


def test_outside_the_file_is_unknown_in_all_bands(tmp_path: Path) -> None:
    image = read(make_raster(tmp_path / "a.tif"), grid(origin=(X - 10, Y + 5)))
    assert np.isnan(image[:, :10]).all()
    assert np.isnan(image[:, :, :20]).all()
    assert np.isfinite(image[:, 10:, 20:]).all()
    assert np.isnan(read(tmp_path / "a.tif", grid(origin=(X + 50_000, Y)))).all()


def test_gsd_of_several_files_is_the_coarsest(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", resolution=0.5)
    make_raster(tmp_path / "d" / "b.tif", resolution=1.0)
    assert open_imagery(tmp_path / "d").gsd_m == pytest.approx(0.9996, rel=1e-3)


def test_the_first_valid_scene_wins(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    hole = np.full((3, *SHAPE), 50)
    hole[:, 20:40] = 255
    make_raster(folder / "a.tif", values=hole, nodata=255)
    make_raster(folder / "sub" / "b.tif", values=np.full((3, *SHAPE), 100), origin=(X, Y))
    (folder / "a.tif.aux.xml").write_text("<PAMDataset/>")
    (folder / "notes.txt").write_text("not a raster")
    image = read(folder) * 255
    np.testing.assert_allclose(image[:, :20], 50, rtol=1e-6)
    np.testing.assert_allclose(image[:, 20:40], 100, rtol=1e-6)
    turned = read([folder / "sub" / "b.tif", folder / "a.tif"]) * 255
    np.testing.assert_allclose(turned, 100, rtol=1e-6)
    assert len(open_imagery(str(folder / "**" / "*.tif")).uris) == 2


def test_abutting_scenes_leave_no_seam(tmp_path: Path) -> None:
    for i in range(2):
        make_raster(tmp_path / "d" / f"{i}.tif", origin=(X + 64 * i, Y), pattern="constant")
    assert np.isfinite(read(tmp_path / "d", grid((80, 200), origin=(X + 5.2, Y - 2.2)))).all()
    assert np.isfinite(read(tmp_path / "d", grid((30, 60), resolution=1.5, origin=(X + 5.2, Y - 2.2)))).all()


def test_scenes_of_different_crs(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", pattern="constant")
    x, y = point_in("EPSG:3857", X + 60, Y)
    make_raster(tmp_path / "d" / "b.tif", crs="EPSG:3857", origin=(x, y), resolution=0.7, pattern="constant")
    image = read(tmp_path / "d", grid((80, 200), origin=(X + 5, Y - 5)))
    np.testing.assert_allclose(image, np.broadcast_to(np.array(LEVELS)[:, None, None] / 255, image.shape), rtol=3e-7)


def test_more_files_than_handles(tmp_path: Path) -> None:
    for i in range(20):
        values = np.full((3, 8, 8), 10 + i)
        make_raster(tmp_path / "d" / f"{i:02}.tif", origin=(X + 4 * i, Y), values=values)
    image = read(tmp_path / "d", grid((8, 160))) * 255
    np.testing.assert_allclose(image[0, 0], 10 + np.arange(160) // 8, rtol=1e-6)


def test_describe_is_one_line(tmp_path: Path) -> None:
    text = open_imagery(make_raster(tmp_path / "a.tif")).describe()
    assert text == (
        "1 file, 128 x 96 px, GSD 0.5 m, EPSG:32631, bands 1,2,3 (colour interpretation), values 0..255 -> 0..1 (8-bit)"
    )


def test_a_source_travels_to_another_process(tmp_path: Path) -> None:
    source = open_imagery(make_raster(tmp_path / "a.tif", gcps=True))
    image = source.read(grid())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(grid()), image)


def test_nothing_is_printed(tmp_path: Path) -> None:
    path = truncated(tmp_path)
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from canopy.errors import ImageryError
from canopy.imagery import open_imagery
from odc.geo.geobox import GeoBox
from rasterio import Affine
source = open_imagery({str(path)!r})
geobox = GeoBox((1200, 1200), Affine(.5, 0, {X}, 0, -.5, {Y}), {UTM!r})
with ThreadPoolExecutor(2) as pool:
    for future in [pool.submit(source.read, geobox) for _ in range(2)]:
        assert isinstance(future.exception(), ImageryError), future.exception()
import sys
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)
