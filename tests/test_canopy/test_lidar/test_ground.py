"""Ground among the lowest returns, and the membrane between its cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canopy.lidar.ground import distance_to, fill_gaps, find_ground, low_outliers, slopes


def test_gaps_in_a_slope_are_filled_with_the_slope() -> None:
    rows, cols = np.indices((60, 70))
    plane = 300 + 0.4 * rows - 0.2 * cols
    known = np.ones(plane.shape, bool)
    known[10:30, 15:40] = False
    filled = fill_gaps(np.where(known, plane, np.nan))
    np.testing.assert_array_equal(filled[known], plane[known])
    assert np.abs(filled - plane).max() < 0.5


@given(st.integers(0, 1000))
def test_filling_stays_between_the_known_extremes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(23, 17))
    values[rng.random(values.shape) < rng.random() * 0.95] = np.nan
    values[0, 0] = 0.0
    filled = fill_gaps(values)
    assert np.nanmin(values) - 1e-12 <= filled.min() and filled.max() <= np.nanmax(values) + 1e-12


def test_ground_under_objects_is_separated_from_them() -> None:
    cols = np.arange(80.0)[None].repeat(80, axis=0)
    terrain = 100 + 0.3 * cols
    lowest = terrain.copy()
    lowest[20:40, 20:50] += 8
    lowest[60, 60] = np.nan
    ground = find_ground(lowest, 1.0)
    expected = (lowest == terrain) & ~np.isnan(lowest)
    assert not ground[20:40, 20:50].any()
    assert ground[expected].mean() > 0.97


def test_low_noise_is_separated_from_ground_seen_through_a_gap() -> None:
    lowest = np.full((60, 60), 115.0)
    lowest[::9, ::9] = 100.0
    lowest[31, 31] = 80.0
    assert np.argwhere(low_outliers(lowest, 1.0)).tolist() == [[31, 31]]


@pytest.mark.parametrize("cell_m", [0.5, 1.0, 2.0])
def test_low_noise_is_found_at_borders_and_at_every_resolution(cell_m: float) -> None:
    """On a steep slope with a ditch, a third of the cells without returns."""
    rng, side = np.random.default_rng(2), round(120 / cell_m)
    rows, cols = np.indices((side, side)) * cell_m
    lowest = 300 + 0.8 * cols - 0.3 * rows
    lowest[np.abs(rows - cols - 30) < 3] -= 6
    lowest[rng.random(lowest.shape) < 0.3] = np.nan
    noise = np.zeros(lowest.shape, bool)
    at = np.array([[3, 3], [13, 4], [60, 70], [100, 20], [40, 118]])
    noise[tuple((at / cell_m).astype(int).T)] = True
    lowest[noise] = (300 + 0.8 * cols - 0.3 * rows)[noise] - 25
    np.testing.assert_array_equal(low_outliers(lowest, cell_m), noise)


def test_distance_is_metres_to_the_nearest_known_cell() -> None:
    known = np.zeros((5, 7), bool)
    assert np.isinf(distance_to(known, 0.5)).all()
    known[2, 1] = True
    distance_m = distance_to(known, 0.5)
    assert (distance_m[2, 1], distance_m[2, 5], distance_m[0, 1]) == (0, 2, 1)
    assert distance_m[0, 3] == pytest.approx(np.sqrt(2))


def test_a_raster_of_objects_has_no_ground() -> None:
    lowest = np.full((9, 9), np.nan)
    assert not find_ground(np.where(np.eye(9) > 0, 5.0, lowest), 1.0)[np.isnan(lowest) & (np.eye(9) == 0)].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_a_strip_of_one_cell_has_ground(shape: tuple[int, int]) -> None:
    elevation_m = np.arange(40.0)[: max(shape)].reshape(shape) * 0.1
    assert find_ground(elevation_m, 1.0).all()
    southward, eastward = slopes(elevation_m, 1.0)
    assert southward == pytest.approx(0.1 if shape[0] > 1 else 0)
    assert eastward == pytest.approx(0.1 if shape[1] > 1 else 0)
