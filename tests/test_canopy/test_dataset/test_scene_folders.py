"""Scenes read from folders of GeoTIFFs."""

from pathlib import Path

import numpy as np
import pytest
from chip_stores import forest
from forest import write_pair
from rasters import make_raster

from canopy.dataset.scene_folders import read_scenes
from canopy.errors import TrainingError

GROUND = (40, 1, (320_000, 4_100_000))


def write_mask(folder: Path, mask: np.ndarray) -> None:
    make_raster(folder / "exclude_mask.tif", values=mask[None], dtype="uint8", origin=GROUND[2], resolution=1.0)


def test_a_scene_is_its_image_and_its_heights_less_what_the_mask_excludes(tmp_path: Path) -> None:
    truth = forest(*GROUND)
    for name in ("b", "a"):
        write_pair(truth, tmp_path / name)
    mask = np.zeros((40, 40))
    mask[:10], mask[10:20] = 1, 2
    write_mask(tmp_path / "b", mask)
    plain, masked = read_scenes(tmp_path)
    assert (plain.name, plain.group, plain.cell_m, masked.name) == ("a", "a", 1.0, "b")
    np.testing.assert_array_equal(plain.image, truth.rgb)
    np.testing.assert_allclose(plain.height_m, truth.chm_m, atol=0.005)
    assert (masked.height_m[:10] == 0).all()
    assert np.isnan(masked.height_m[10:20]).all()
    np.testing.assert_array_equal(masked.height_m[20:], plain.height_m[20:])


@pytest.mark.parametrize("nodata", [65535, None])
def test_unknown_heights_are_nan(tmp_path: Path, nodata: int | None) -> None:
    folder = write_pair(forest(*GROUND), tmp_path / "a")
    values = np.full((1, 40, 40), 65535)
    values[0, 0, 0] = 1234
    make_raster(folder / "chm_cm.tif", values=values, dtype="uint16", nodata=nodata, origin=GROUND[2], resolution=1.0)
    height_m = read_scenes(tmp_path)[0].height_m
    assert height_m[0, 0] == pytest.approx(12.34)
    assert np.isnan(height_m).sum() == 40 * 40 - 1


@pytest.mark.parametrize("root", ["", "nothing"])
def test_a_folder_without_scenes_is_an_error(tmp_path: Path, root: str) -> None:
    with pytest.raises(TrainingError, match=r"no scenes under .*rgb\.tif and chm_cm\.tif expected"):
        read_scenes(tmp_path / root)


@pytest.mark.parametrize("name", ["chm_cm.tif", "rgb.tif"])
@pytest.mark.parametrize("length", [3, 300])
def test_a_damaged_scene_is_one_line(tmp_path: Path, name: str, length: int) -> None:
    folder = write_pair(forest(*GROUND), tmp_path / "a")
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    with pytest.raises(TrainingError, match=r"scene .*a: ") as caught:
        read_scenes(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_shape_is_one_line(tmp_path: Path) -> None:
    write_mask(write_pair(forest(*GROUND), tmp_path / "a"), np.zeros((30, 40)))
    with pytest.raises(TrainingError, match=r"scene .*a: "):
        read_scenes(tmp_path)


def test_an_image_of_another_grid_is_refused(tmp_path: Path) -> None:
    folder = write_pair(forest(*GROUND), tmp_path / "a")
    make_raster(folder / "rgb.tif", shape=(40, 40))
    with pytest.raises(TrainingError, match="twice the heights' rows and columns expected"):
        read_scenes(tmp_path)
