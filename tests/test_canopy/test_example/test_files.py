"""Examples in a folder of the user's."""

import json
from pathlib import Path

import laspy
import numpy as np
import pytest
import rasterio
from odc.geo.crs import CRS

from canopy.config import load_config
from canopy.dataset.config import DatasetConfig
from canopy.errors import OutputError
from canopy.example import write_forest, write_sample
from canopy.example.files import FOREST_SIDE_M, PACKAGE
from canopy.training.config import TrainConfig
from tiles.aoi import read_aoi, to_crs


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_forest(tmp_path_factory.mktemp("user") / "forest").folder


def test_the_sample_comes_with_area_configurations_and_recipes(tmp_path: Path) -> None:
    written = write_sample(tmp_path / "new" / "folder")
    assert all(path.is_file() for path in written.files)
    assert (written.folder / "scenes" / "yellowstone.tif").read_bytes() == (
        PACKAGE / "data" / "yellowstone.tif"
    ).read_bytes()
    assert json.loads((written.folder / "region.geojson").read_text())["type"] == "FeatureCollection"
    assert load_config(written.folder / "configs" / "dataset.yaml", DatasetConfig).name == "canopy-usa"
    assert {path.name for path in (written.folder / "recipes").iterdir()} >= {"render_scenes.py", "pseudo_labels.py"}


def test_files_of_the_user_are_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "region.geojson").write_text("mine")
    with pytest.raises(OutputError, match=r"region.geojson exists.*--overwrite"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["region.geojson"]
    write_sample(tmp_path, overwrite=True)
    assert (tmp_path / "region.geojson").read_text() != "mine"


def test_the_forest_has_imagery_and_lidar_of_one_ground(forest: Path) -> None:
    scenes = sorted(path.name for path in forest.iterdir() if path.is_dir())
    assert scenes == ["north_0", "north_1", "north_2", "south_0"]
    for scene in scenes:
        with rasterio.open(forest / scene / "image.tif") as image, laspy.open(forest / scene / "cloud.laz") as cloud:
            assert image.res == (0.5, 0.5)
            left, bottom, right, top = image.bounds
            assert right - left == top - bottom == FOREST_SIDE_M
            np.testing.assert_allclose([*cloud.header.mins[:2]], [left, bottom], atol=0.1)
            np.testing.assert_allclose([*cloud.header.maxs[:2]], [right, top], atol=0.1)


def test_the_forests_configurations_are_valid_and_name_its_folder(forest: Path) -> None:
    dataset = load_config(forest / "dataset.yaml", DatasetConfig)
    assert dataset.root == forest
    assert dataset.splits.test_sites == ("south",)
    assert load_config(forest / "train.yaml", TrainConfig).store.path == forest / "store"


def test_the_area_lies_on_the_scene_that_the_model_never_sees(forest: Path) -> None:
    area = read_aoi(forest / "area.geojson")
    with rasterio.open(forest / "south_0" / "image.tif") as image:
        projected = to_crs(area, CRS(image.crs.to_wkt()))
        left, bottom, right, top = projected.boundingbox
    assert image.bounds.left < left < right < image.bounds.right
    assert image.bounds.bottom < bottom < top < image.bounds.top
    assert right - left == pytest.approx(FOREST_SIDE_M - 20, abs=0.5)


def test_a_seed_makes_the_same_forest(forest: Path, tmp_path: Path) -> None:
    again = write_forest(tmp_path / "again").folder
    same, other = ((folder / "south_0" / "image.tif").read_bytes() for folder in (forest, again))
    assert same == other
