"""After a calibration nine of ten held-out shots still lie within the interval."""

import numpy as np
import pytest
from matched import matched

from canopy.calibration.curves import Calibration
from canopy.calibration.interval_ends import calibrated_ends, fit_ends, held_out_ends, inside


def spread_out(count: int = 3000, half_m: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return calibrated heights, their interval of a fixed width, and RH98 that errs the more the taller."""
    generator = np.random.default_rng(seed)
    height_m = generator.gamma(3, 5, count)
    lidar_m = np.maximum(height_m + generator.normal(0, 0.2 * height_m), 0)
    return height_m, np.stack([np.maximum(height_m - half_m, 0), height_m + half_m]), lidar_m


def test_ends_move_until_nine_of_ten_shots_lie_between() -> None:
    height_m, ends_m, lidar_m = spread_out()
    assert inside(ends_m, lidar_m).mean() < 0.5
    ends = fit_ends(height_m, ends_m, lidar_m)
    moved_m = np.stack(ends.widened(height_m, *ends_m))
    assert 0.9 <= inside(moved_m, lidar_m).mean() < 0.92
    assert ends.upper_m[-1] > ends.upper_m[0], "tall trees err more"


def test_ends_hold_on_ground_that_they_never_saw() -> None:
    height_m, ends_m, lidar_m = spread_out()
    fold = np.arange(3000) // 10 % 5
    moved_m = held_out_ends(height_m, ends_m, lidar_m, fold)
    assert inside(moved_m, lidar_m).mean() == pytest.approx(0.9, abs=0.02)
    train = fold != 0
    other = fit_ends(height_m[train], ends_m[:, train], lidar_m[train])
    np.testing.assert_allclose(moved_m[:, fold == 0], np.stack(other.widened(height_m, *ends_m))[:, fold == 0])


def test_wide_ends_do_not_move() -> None:
    """An interval of cells is wider than that of a footprint's tallest: shots give no reason to narrow it."""
    height_m, ends_m, lidar_m = spread_out(half_m=40)
    ends = fit_ends(height_m, ends_m, lidar_m)
    assert set(ends.lower_m) == set(ends.upper_m) == {0.0}


def test_heights_below_the_floor_count_as_inside() -> None:
    ends_m = np.array([[0.0, 0, 4], [0.2, 0.2, 9]])
    np.testing.assert_array_equal(inside(ends_m, np.array([2.9, 3.1, 2.0])), [True, False, False])


def test_few_shots_make_one_class() -> None:
    height_m, ends_m, lidar_m = spread_out(40)
    assert len(fit_ends(height_m, ends_m, lidar_m).height_m) == 1


def test_ends_at_shots_surround_the_height() -> None:
    shots = matched(lower_m=matched().map_m * 1.2, upper_m=matched().map_m * 1.1)
    calibration = Calibration(kind="quantile", knots_m=((0, 0), (10, 15)))
    height_m = calibration.apply(shots.map_m).astype(float)
    low_m, high_m = calibrated_ends(calibration, shots, height_m)
    np.testing.assert_allclose(low_m, height_m, rtol=1e-6)
    np.testing.assert_allclose(high_m, height_m * 1.1, rtol=1e-6)
