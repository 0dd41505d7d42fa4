"""Matched shots are taken, ordered and identified as one."""

import numpy as np
from matched import matched

from canopy.calibration.matched_shots import Cells, canopy_share, number_blocks


def test_all_columns_of_a_shot_are_taken_together() -> None:
    shots = matched(10)
    cells = Cells(np.arange(20.0).reshape(10, 2), np.arange(20.0, 40).reshape(10, 2))
    shots = matched(10, cells=cells, cover=np.linspace(0, 1, 10), upper_m=shots.map_m + 5)
    rows = np.array([7, 2])
    part = shots.take(rows)
    assert len(part) == 2
    np.testing.assert_array_equal(part.lidar_m, shots.lidar_m[rows])
    np.testing.assert_array_equal(part.cover, shots.cover[rows])
    np.testing.assert_array_equal(part.cells.height_m, [[14, 15], [4, 5]])
    np.testing.assert_array_equal(part.cells.upper_m, [[34, 35], [24, 25]])
    assert part.lower_m is None


def test_the_order_of_a_file_is_of_no_account() -> None:
    shots = matched(50)
    shuffled = shots.take(np.random.default_rng(1).permutation(50))
    assert shuffled.digest() == shots.digest() != matched(50, seed=1).digest()
    np.testing.assert_array_equal(shuffled.ordered().map_m, shots.ordered().map_m)
    np.testing.assert_array_equal(shuffled.ordered().block, shots.ordered().block)


def test_what_the_curve_reads_moves_toward_p95_beyond_doubt() -> None:
    shots = matched(3, map_m=np.array([0.0, 0, 10]), upper_m=np.array([8.0, 20, 20]))
    np.testing.assert_allclose(shots.read_m(0.5, 12.0), [0, 4, 14])
    np.testing.assert_allclose(matched(3, map_m=np.array([0.0, 5, 10])).read_m(0.5, 2.0), [0, 5, 10])


def test_bare_shots_are_those_that_the_pulse_hides() -> None:
    np.testing.assert_array_equal(matched(3, lidar_m=np.array([2.9, 3.0, 30])).bare, [True, False, False])


def test_blocks_are_squares_numbered_from_0() -> None:
    x, y = np.array([0.0, 99, 100, 250]), np.array([0.0, 99, 0, -1])
    number = number_blocks(x, y, 100)
    assert number[0] == number[1]
    assert sorted(set(number.tolist())) == [0, 1, 2]


def test_canopy_begins_at_two_metres() -> None:
    share = canopy_share(np.array([[0, 1.99, 2, 30], [np.nan, np.nan, 5, 0], [np.nan] * 4]))
    np.testing.assert_allclose(share, [0.5, 0.5, np.nan])
