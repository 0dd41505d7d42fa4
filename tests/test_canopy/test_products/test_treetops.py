"""Smoothing, strict order and windows that widen with height."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canopy.errors import ProductError
from canopy.products.treetops import (
    WINDOWS,
    WindowLine,
    climb_windows,
    reach_px,
    smooth,
    steepest,
    window_px,
)


def test_presets_are_those_of_the_paper_within_limits() -> None:
    mixed = WINDOWS["mixed"].width_m(np.array([0.0, 10.0, 20.0, 60.0]))
    np.testing.assert_allclose(mixed, [2.51503, 3.41603, 6.11903, 12.0])
    assert WINDOWS["conifer"].width_m(np.array([7.2]))[0] == pytest.approx(3.1044, abs=1e-3)
    assert window_px(WINDOWS["mixed"], 0.5) == 12


@pytest.mark.parametrize("values", [(np.nan, 0, 0, 5), (1, 0, np.inf, 5), (1, 0, 0, 1), (1, 0, 0, 1e9)])
def test_a_line_without_width_is_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(ProductError, match=r"finite numbers and a widest window of 1\.5 to 60 m expected"):
        WindowLine(*values)


def test_unknown_cells_have_no_weight_and_stay_unknown() -> None:
    heights = np.full((9, 9), 7, np.float32)
    heights[:, :4] = np.nan
    blurred = smooth(heights, 1.0)
    assert np.isnan(blurred[:, :4]).all()
    np.testing.assert_allclose(blurred[:, 4:], 7, rtol=1e-6)
    assert smooth(heights, 0) is heights


def test_smoothed_bits_depend_on_the_reach_alone() -> None:
    heights = np.random.default_rng(0).uniform(0, 30, (40, 50)).astype(np.float32)
    holed = heights.copy()
    holed[0, 0] = np.nan  # so that one array is known everywhere and the other is not
    far = reach_px(0.8) + 1
    np.testing.assert_array_equal(smooth(heights, 0.8)[far:, far:], smooth(holed, 0.8)[far:, far:])
    part = smooth(holed[10:35, 5:45], 0.8)
    np.testing.assert_array_equal(part[far:-far, far:-far], smooth(holed, 0.8)[10:35, 5:45][far:-far, far:-far])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 9))
def test_the_highest_neighbour_by_brute_force(seed: int, rows: int, cols: int) -> None:
    surface = np.random.default_rng(seed).integers(0, 4, (rows, cols)).astype(np.float32)  # with many ties
    expected = np.empty((rows, cols), int)
    for row, col in np.ndindex(rows, cols):
        near = [
            (surface[r, c], r, c)
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, col - 1), min(cols, col + 2))
        ]
        _, r, c = max(near)
        expected[row, col] = r * cols + c
    np.testing.assert_array_equal(steepest(surface), expected)


def test_a_top_is_the_highest_of_a_circle() -> None:
    surface = np.zeros((21, 21), np.float32)
    surface[10, 10], surface[10, 14], surface[14, 14], surface[2, 2] = 20, 19, 18, 5
    peaks = np.flatnonzero(surface.ravel() > 0).astype(np.int32)
    line = WindowLine(
        8, 0, 0, max_m=8
    )  # a radius of 4 m: the corner at 4, 4 is outside of the circle around the highest
    climbed = climb_windows(surface, peaks, line, 1.0)
    top, second, corner = 10 * 21 + 10, 10 * 21 + 14, 14 * 21 + 14
    assert dict(zip(peaks.tolist(), climbed.tolist(), strict=True)) == {
        2 * 21 + 2: 2 * 21 + 2,
        top: top,
        second: top,
        corner: second,
    }


def test_flat_ground_has_one_top_a_window() -> None:
    surface = np.full((30, 30), 6, np.float32)
    climbed = climb_windows(surface, np.array([29 * 30 + 29], np.int32), WindowLine(6, 0, 0), 1.0)
    assert climbed.tolist() == [29 * 30 + 29]  # the last in the order of cells
