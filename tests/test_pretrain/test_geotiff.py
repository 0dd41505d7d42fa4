"""Tiles cut from GeoTIFFs, with their true GSD in any CRS."""

from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from rasters import make_raster

from canopy.errors import TrainingError
from pretrain.config import TilesConfig, TileSourceConfig
from pretrain.data import read_tiles
from pretrain.geotiff import cut_file, list_files

NORTH = (10.0, 60.0)
"""Longitude and latitude at which Mercator doubles distances."""


def tiles_config(**values: object) -> TilesConfig:
    return TilesConfig.model_validate({"tile_px": 32, **values})


def test_images_are_cut_mirrored_and_filtered(tmp_path: Path) -> None:
    valid = np.ones((70, 40), bool)
    valid[:40] = False
    make_raster(tmp_path / "a.tif", shape=(70, 40), pattern="noise", mask=valid)
    make_raster(tmp_path / "b.tif", shape=(20, 32), pattern="noise", resolution=0.6)
    tiles = read_tiles(tiles_config(sources=[{"path": tmp_path}], empty=0.3))
    # rows from 0 are unknown, from 32 a quarter, from 38 a sixteenth; columns from 0 and 8
    assert [round(tiles.gsd_m(i), 3) for i in range(len(tiles))] == [0.5] * 4 + [0.6]
    assert {tiles[i].shape for i in range(5)} == {(3, 32, 32)}
    np.testing.assert_array_equal(tiles[0][:, :, 8:], tiles[1][:, :, :24])
    np.testing.assert_array_equal(tiles[0][:, 6:], tiles[2][:, :26])
    np.testing.assert_array_equal(tiles[4][:, 20:], tiles[4][:, 8:20][:, ::-1])


def gsd_m(path: Path) -> float:
    """Return the GSD of the first tile of an image."""
    first = cut_file(path, None, tiles_config(sources=[{"path": path}]))[0]
    return first.gsd_m


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3395", "ESRI:54004"])
def test_the_gsd_of_a_mercator_image_is_measured_on_the_ground(tmp_path: Path, crs: str) -> None:
    origin = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(*NORTH)
    path = make_raster(tmp_path / "a.tif", crs=crs, origin=origin, resolution=1.0, shape=(32, 32))
    assert gsd_m(path) == pytest.approx(0.5, rel=0.01)


def test_the_gsd_of_an_image_in_degrees_is_measured_on_the_ground(tmp_path: Path) -> None:
    # at 60 degrees north a degree is 111.4 km along the meridian and 55.8 km along the parallel: the longer side counts
    path = make_raster(tmp_path / "a.tif", crs="EPSG:4326", origin=NORTH, resolution=5e-6, shape=(32, 32))
    assert gsd_m(path) == pytest.approx(0.557, abs=0.001)


def test_the_gsd_of_an_image_in_feet_is_in_metres(tmp_path: Path) -> None:
    origin = Transformer.from_crs("OGC:CRS84", "EPSG:2277", always_xy=True).transform(-98.0, 31.0)
    path = make_raster(tmp_path / "a.tif", crs="EPSG:2277", origin=origin, resolution=1.0, shape=(32, 32))
    assert gsd_m(path) == pytest.approx(0.3048, rel=1e-3)


def test_a_source_may_state_its_gsd(tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif", crs=None)
    tiles = read_tiles(tiles_config(sources=[{"path": tmp_path / "a.tif", "gsd_m": 0.8}]))
    assert tiles.gsd_m(0) == 0.8


def test_files_are_chosen_by_pattern_and_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, level in (("b/rgb.tif", 20), ("a/rgb.tif", 10), ("a/chm.tif", 30)):
        make_raster(tmp_path / name, values=np.full((3, 32, 32), level))
    source = TileSourceConfig(path=tmp_path, pattern="**/rgb.tif")
    cuts = [cut for path in list_files(source) for cut in cut_file(path, None, tiles_config(sources=[source]))]
    assert [int(cut.image[0, 0, 0]) for cut in cuts] == [10, 20]


def test_a_source_without_files_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no imagery at"):
        read_tiles(tiles_config(sources=[{"path": tmp_path}]))


def write_bad_files(folder: Path) -> None:
    """Write a file of each kind that cannot be used."""
    make_raster(folder / "deep.tif", dtype="uint16")
    make_raster(folder / "two.tif", bands=2)
    make_raster(folder / "unplaced.tif", crs=None)
    make_raster(folder / "beyond.tif", crs="EPSG:3857", origin=(0.0, 1e12))
    whole = make_raster(folder / "torn.tif", shape=(300, 300), pattern="noise").read_bytes()
    (folder / "torn.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "page.tif").write_text("<html>not found</html>")
    (folder / "empty.tif").write_bytes(b"")


def test_files_that_cannot_be_used_are_skipped_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bad_files(tmp_path)
    make_raster(tmp_path / "good.tif", shape=(32, 64), pattern="noise")
    source = TileSourceConfig(path=tmp_path)
    bad = {}
    for path in list_files(source):
        try:
            cut_file(path, None, tiles_config(sources=[source]))
        except TrainingError as error:
            bad[path.name] = str(error)
    assert bad.keys() == {"beyond.tif", "deep.tif", "empty.tif", "page.tif", "torn.tif", "two.tif", "unplaced.tif"}
    assert bad["deep.tif"] == "3 bands of uint16; RGB uint8 expected"
    assert bad["two.tif"] == "2 bands of uint8; RGB uint8 expected"
    assert "give gsd_m" in bad["unplaced.tif"]
    assert "give gsd_m" in bad["beyond.tif"]
    assert not any("\n" in reason for reason in bad.values())
    tiles = read_tiles(tiles_config(sources=[source]))
    assert len(tiles) == 2
    assert sum(message.startswith("skipped ") for message in caplog.messages) == 7
    assert any(str(tmp_path / "page.tif") in message for message in caplog.messages)
    assert caplog.messages[-1] == "7 files skipped of up to 10 (tiles.max_bad)"


def test_more_bad_files_than_allowed_are_an_error(tmp_path: Path) -> None:
    write_bad_files(tmp_path)
    make_raster(tmp_path / "a_good.tif", pattern="noise")
    with pytest.raises(TrainingError, match=r"3 files cannot be used, the last .*empty\.tif.*up to tiles\.max_bad, 2"):
        read_tiles(tiles_config(sources=[{"path": tmp_path}], max_bad=2))


def test_nothing_but_bad_files_names_the_first(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "deep.tif", dtype="uint16")
    with pytest.raises(TrainingError, match=r"no tile of .* the first is .*deep\.tif: 3 bands of uint16"):
        read_tiles(tiles_config(sources=[{"path": path}]))


def test_imagery_without_a_valid_tile_is_an_error(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "blank.tif", mask=np.zeros((96, 128), bool))
    with pytest.raises(TrainingError, match="is less than 20% empty"):
        read_tiles(tiles_config(sources=[{"path": path}]))
