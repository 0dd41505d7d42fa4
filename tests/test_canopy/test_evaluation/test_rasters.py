"""Rasters on any grid keep their heights, and masks exclude what they say."""

from pathlib import Path

import numpy as np
import pytest
from height_maps import height_raster
from rasterio import Affine

from canopy.errors import EvaluationError
from canopy.evaluation.rasters import RegriddedHeights, mask_on, overlap, require_mask, require_north_up, truth_grid
from tiles.heights import open_heights, open_raster
from tiles.windows import PixelWindow

WHOLE = PixelWindow(0, 0, 40, 40)


def regridded(prediction: Path, truth: Path) -> np.ndarray:
    with open_heights(prediction) as source, open_heights(truth) as target:
        return RegriddedHeights(source, target.dataset).read(target.whole)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return height_raster(tmp_path / "truth.tif", np.ones((40, 40), np.float32))


def test_finer_cells_are_averaged(tmp_path: Path, truth: Path) -> None:
    fine = np.random.default_rng(0).uniform(0, 30, (80, 80)).astype(np.float32)
    heights = regridded(height_raster(tmp_path / "p.tif", fine, resolution=0.5), truth)
    np.testing.assert_allclose(heights, fine.reshape(40, 2, 40, 2).mean(axis=(1, 3)), rtol=1e-5)


def test_less_than_half_of_a_cell_is_unknown(tmp_path: Path, truth: Path) -> None:
    fine = np.ones((80, 80), np.float32)
    fine[0, 0] = fine[2:4, 2] = fine[4:6, 4] = fine[4, 5] = np.nan
    heights = regridded(height_raster(tmp_path / "p.tif", fine, resolution=0.5), truth)
    assert np.argwhere(np.isnan(heights)).tolist() == [[2, 2]]


def test_cells_beyond_a_prediction_are_unknown(tmp_path: Path, truth: Path) -> None:
    small = height_raster(tmp_path / "p.tif", np.ones((10, 10), np.float32), origin=(500_300.3, 5_000_000.0))
    assert np.isnan(regridded(small, truth)).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_mask_excludes_any_value_but_0_at_the_centre_of_a_cell(tmp_path: Path, truth: Path, dtype: str) -> None:
    values = np.zeros((8, 8))
    values[2, 3] = 2
    path = height_raster(tmp_path / "m.tif", values, dtype=dtype, resolution=5.0, nodata=None)
    with open_raster(path) as mask, open_raster(truth) as target:
        excluded = mask_on(path, mask, target, WHOLE)
        assert not mask_on(path, mask, target, PixelWindow(500, 500, 3, 3)).any()
    expected = np.zeros((40, 40), bool)
    expected[10:15, 15:20] = True
    np.testing.assert_array_equal(excluded, expected)


def test_the_overlap_is_what_every_raster_reaches(tmp_path: Path, truth: Path) -> None:
    east = height_raster(tmp_path / "e.tif", np.ones((40, 40), np.float32), origin=(500_017.0, 5_000_011.0))
    south = height_raster(tmp_path / "s.tif", np.ones((9, 99), np.float32), origin=(500_000.0, 4_999_991.0))
    far = height_raster(tmp_path / "f.tif", np.ones((9, 9), np.float32), origin=(600_000.0, 5_000_000.0))
    with open_raster(truth) as target, open_raster(east) as a, open_raster(south) as b, open_raster(far) as c:
        assert overlap(target, [a, b]) == PixelWindow(20, 10, 9, 30)
        assert overlap(target, [a, c, b]) is None


@pytest.mark.parametrize(("crs", "cell_m"), [("EPSG:32631", (1.0, 1.0)), ("EPSG:3857", (0.7, 0.7))])
def test_cells_are_measured_in_true_metres(tmp_path: Path, crs: str, cell_m: tuple[float, float]) -> None:
    """Web mercator stretches the ground by about 1 / cos(45 degrees)."""
    y = 5_621_521.0 if crs == "EPSG:3857" else 5_000_000.0
    path = height_raster(tmp_path / "t.tif", np.ones((40, 40), np.float32), crs=crs, origin=(500_000.0, y))
    with open_raster(path) as dataset:
        assert truth_grid(dataset, WHOLE).cell_m == pytest.approx(cell_m, abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crs": None}, "no CRS"),
        ({"transform": Affine(1, 0.2, 0, 0, -1, 0)}, "rotated"),
        ({"transform": Affine(1, 0, 0, 0, 1, 0)}, "south-up"),
    ],
)
def test_rasters_without_a_north_up_grid_are_refused(tmp_path: Path, options: dict, words: str) -> None:
    path = height_raster(tmp_path / "t.tif", np.ones((4, 4), np.float32), **options)
    with open_raster(path) as dataset, pytest.raises(EvaluationError, match=words):
        require_north_up(path, dataset)


def test_masks_of_several_bands_are_refused(tmp_path: Path) -> None:
    path = height_raster(tmp_path / "m.tif", np.ones((2, 4, 4), np.float32))
    with open_raster(path) as dataset, pytest.raises(EvaluationError, match="2 bands"):
        require_mask(path, dataset)
