from pathlib import Path

import pytest
from rasters import make_raster
from tile_pyramids import picture, write_tiles

from canopy.errors import ImageryError
from canopy.imagery.tiled import is_tiled, open_tiles
from canopy.imagery.tiled.folder import FolderTiles, recognise
from canopy.imagery.tiled.matrices import TileKey

KEYS = [TileKey(5, 9, 20), TileKey(5, 10, 20), TileKey(6, 18, 40)]


def write(folder: Path, layout: str, suffix: str = ".png") -> Path:
    import numpy as np

    content = picture(np.random.default_rng(0).integers(0, 255, (3, 256, 256)))
    return write_tiles(folder, dict.fromkeys(KEYS, content), layout, suffix)


@pytest.mark.parametrize("layout", ["xyz", "quadkey"])
def test_layouts_are_recognised(layout: str, tmp_path: Path) -> None:
    assert recognise(write(tmp_path, layout)) == layout
    assert is_tiled(tmp_path)


def test_tms_is_recognised_by_its_file(tmp_path: Path) -> None:
    write(tmp_path, "tms")
    (tmp_path / "tilemapresource.xml").write_text("<TileMap/>")
    assert recognise(tmp_path) == "tms"
    assert set(FolderTiles(tmp_path, "tms").tiles) == set(KEYS)


def test_quadkeys_may_lie_in_folders(tmp_path: Path) -> None:
    write(tmp_path / "02" / "12", "quadkey", ".JPG")
    assert set(FolderTiles(tmp_path, "quadkey").tiles) == set(KEYS)


def test_a_folder_of_rasters_is_none_of_tiles(tmp_path: Path) -> None:
    make_raster(tmp_path / "0123.tif")
    make_raster(tmp_path / "2023" / "a.tif")
    (tmp_path / "17" / "8").mkdir(parents=True)
    assert recognise(tmp_path) is None
    assert not is_tiled(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0123.png").write_bytes(b"")
    (tmp_path / "b" / "0123.pgw").write_text("1")
    assert recognise(tmp_path / "b") is None


def test_what_is_no_tile_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "xyz")
    for name in ("5/9/readme.png", "5/9/20.txt", "5/notes/1.png", "99/1/1.png", "index.html"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    tiles = FolderTiles(tmp_path, "xyz")
    assert set(tiles.tiles) == set(KEYS)
    assert tiles.zooms() == [5, 6]
    assert tiles.extent(5) == (9, 20, 10, 20)


def test_tiles_outside_their_zoom_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "3" / "9").mkdir(parents=True)
    (tmp_path / "3" / "9" / "1.png").write_bytes(b"x")
    with pytest.raises(ImageryError, match=r"zoom 3 has 8 columns and rows.*tms\+file:"):
        FolderTiles(tmp_path, "xyz")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("xyz+file:{folder}/absent", "no such folder"),
        ("xyz+file:{folder}", "no tiles, expected files <zoom>/<column>/<row>.jpg"),
        ("quadkey+file:{folder}", "no tiles, expected files <quadkey>.jpg"),
    ],
)
def test_folders_without_tiles_are_an_error(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match=message):
        open_tiles(uri.format(folder=tmp_path))


def test_a_first_tile_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "xyz")
    (tmp_path / "6" / "18" / "40.png").write_bytes(b"no picture")
    with pytest.raises(ImageryError, match="no picture, expected a tile"):
        open_tiles(tmp_path)
