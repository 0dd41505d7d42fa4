"""Web map tiles: their ground, read from their path."""

from pathlib import Path

import pytest
from affine import Affine

from canopy.dataset.tile_trees import MapTile, from_quadkey, locate_tile

WORLD_M = 2 * 20_037_508.342789244


def test_a_quadkey_is_zoom_column_and_row() -> None:
    assert from_quadkey("213") == (3, 3, 5)  # the example of the tile system's own description


@pytest.mark.parametrize("name", ["a/1/1/0.png", "1/1/0.JPG", "/1/1/0.webp"])
def test_a_path_of_zoom_column_and_row_is_a_square_of_the_world(name: str) -> None:
    half = WORLD_M / 2
    assert locate_tile(Path(name)) == MapTile(Affine(half, 0, 0.0, 0, -half, half), "EPSG:3857")


def test_a_quadkey_and_its_path_are_one_tile() -> None:
    zoom, x, y = from_quadkey("023010")
    assert locate_tile(Path("any/023010.jpg")) == locate_tile(Path(f"{zoom}/{x}/{y}.jpg"))


@pytest.mark.parametrize(
    "name",
    [
        "photos/2019.png",  # a number that is no quadkey
        "02301.png",  # too short for one
        "a/3/9/0.png",  # no such column at this zoom
        "a/31/0/0.png",  # deeper than tiles go
        "1/1/0.tif",  # says itself where it lies
        "1/x/0.png",
        "1/²/0.png",  # a digit to Python, and to nobody else
        "0.png",
    ],
)
def test_other_paths_are_no_tiles(name: str) -> None:
    assert locate_tile(Path(name)) is None
