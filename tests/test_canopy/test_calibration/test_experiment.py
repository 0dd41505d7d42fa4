"""The recipe's map has the faults that it names, and an interval that knows nothing of the truth."""

from types import ModuleType

import numpy as np
import pytest
from gedi_shots import woodland


@pytest.fixture(scope="module")
def truth_m() -> np.ndarray:
    heights = woodland(600, 3)
    heights[:20, :20] = np.nan
    return heights


@pytest.fixture(scope="module")
def bands_m(recipe: ModuleType, truth_m: np.ndarray) -> np.ndarray:
    return recipe.distorted(truth_m, 1)


def test_trees_are_too_low_and_patches_are_missed(truth_m: np.ndarray, bands_m: np.ndarray) -> None:
    height_m = bands_m[0]
    trees = truth_m > 5
    missed = trees & (height_m == 0)
    assert 0.05 < missed.sum() / trees.sum() < 0.15
    tall = trees & ~missed & (truth_m > 25)
    assert (height_m[tall] / truth_m[tall]).mean() == pytest.approx(0.95 * (1 - 0.3 * 27 / 40), abs=0.02)
    assert (height_m - 0.95 * truth_m * (1 - 0.3 * truth_m / 40))[tall].std() == pytest.approx(1.5, abs=0.2)
    np.testing.assert_array_equal(np.isnan(bands_m), np.broadcast_to(np.isnan(truth_m), bands_m.shape))


def test_the_interval_does_not_tell_meadows_from_missed_forest(
    recipe: ModuleType, truth_m: np.ndarray, bands_m: np.ndarray
) -> None:
    """Where the map is 0, p95 is a function of noise: it correlates with the truth by the patches alone."""
    height_m, low_m, high_m = bands_m
    with np.errstate(invalid="ignore"):
        assert ((low_m <= height_m) & (height_m <= high_m))[~np.isnan(truth_m)].all()
    missed = (truth_m > 5) & (height_m == 0)
    assert abs(np.corrcoef(truth_m[missed], high_m[missed])[0, 1]) < 0.2
    bare = (truth_m == 0) & (height_m == 0)
    shares = [(high_m[cells] > 10).mean() for cells in (missed, bare)]
    assert 0.3 < shares[0] < 0.7
    assert shares[1] > 0.02


def test_hills_are_as_steep_as_they_say(recipe: ModuleType) -> None:
    slope_deg = np.degrees(np.arctan(np.hypot(*np.gradient(recipe.hills((600, 600), 1.0, 1).astype(float)))))
    assert np.median(slope_deg) == pytest.approx(12, abs=0.1)
    assert 20 < np.quantile(slope_deg, 0.98) < 40


def test_a_map_is_a_function_of_its_seed(recipe: ModuleType, truth_m: np.ndarray, bands_m: np.ndarray) -> None:
    np.testing.assert_array_equal(recipe.distorted(truth_m, 1), bands_m)
    assert (np.nan_to_num(recipe.distorted(truth_m, 2)) != np.nan_to_num(bands_m)).any()
