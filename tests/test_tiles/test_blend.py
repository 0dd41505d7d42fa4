"""Blending: exact partition of unity, constants kept, the same bits through any window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiles.blend import Blender, ChipLattice
from tiles.windows import PixelWindow


@st.composite
def lattices(draw: st.DrawFn) -> ChipLattice:
    chip_px = draw(st.integers(1, 40))
    return ChipLattice(chip_px, draw(st.integers(0, chip_px // 2)))


windows = st.builds(PixelWindow, st.integers(-200, 200), st.integers(-200, 200), st.integers(1, 60), st.integers(1, 60))


def chip_heights(row, col, chip_px, bands=1):
    """Give each chip its own reproducible heights."""
    rng = np.random.default_rng([row + 1000, col + 1000])
    return rng.uniform(0, 60, (bands, chip_px, chip_px)).astype(np.float32)


def blend(lattice, window, heights, bands=1):
    blender = Blender(lattice, window, bands)
    for row, col in lattice.covering(window):
        blender.add(row, col, heights(row, col))
    return blender.result()


@pytest.mark.parametrize(("chip_px", "overlap_px"), [(8, 5), (8, -1), (0, 0), (7, 4)])
def test_lattice_refuses_overlaps_beyond_half_a_chip(chip_px, overlap_px):
    with pytest.raises(ValueError, match="expected 0 <= overlap_px <= chip_px / 2"):
        ChipLattice(chip_px, overlap_px)


def test_chip_is_anchored_to_the_crs_origin():
    assert ChipLattice(256, 64).chip(-1, 3) == PixelWindow(-192, 576, 256, 256)


def test_covering_lists_in_raster_order_what_meets_the_window():
    lattice = ChipLattice(8, 2)  # chips span [6k, 6k + 8)
    assert lattice.covering(PixelWindow(0, 8, 1, 4)) == [(-1, 1), (0, 1)]
    assert lattice.covering(PixelWindow(2, 5, 4, 2)) == [(0, 0), (0, 1)]


@given(lattices(), windows)
def test_covering_is_every_chip_that_meets_the_window(lattice, window):
    found = lattice.covering(window)
    reach = range(-260 // lattice.stride_px - 1, 260 // lattice.stride_px + 2)
    rows = [r for r in reach if r * lattice.stride_px < window.row1 and lattice.chip(r, 0).row1 > window.row0]
    cols = [c for c in reach if c * lattice.stride_px < window.col1 and lattice.chip(0, c).col1 > window.col0]
    assert found == [(row, col) for row in rows for col in cols]


@given(lattices(), windows)
def test_weights_sum_to_exactly_one(lattice, window):
    total = np.zeros(window.shape, np.float32)
    for row, col in lattice.covering(window):
        part = lattice.chip(row, col).intersect(window)
        total[part.slices_in(window)] += lattice.weights[part.slices_in(lattice.chip(row, col))]
    assert (total == np.float32(1.0)).all()


@pytest.mark.parametrize(("chip_px", "overlap_px"), [(256, 128), (224, 111), (512, 0), (1024, 512)])
def test_weights_are_positive_quantised_symmetric_and_read_only(chip_px, overlap_px):
    weights = ChipLattice(chip_px, overlap_px).weights
    assert weights.dtype == np.float32
    assert weights.shape == (chip_px, chip_px)
    assert weights.min() > 0
    assert weights.max() <= 1
    steps = weights.astype(np.float64) * 2**24
    assert (steps == np.round(steps)).all()
    assert (weights == weights[::-1]).all()
    assert (weights == weights.T).all()
    assert (np.diff(weights[chip_px // 2, : chip_px // 2]) >= 0).all()
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 0


def test_ramp_is_a_raised_cosine():
    ramp = ChipLattice(64, 16).weights[32, :16]
    expected = 0.5 - 0.5 * np.cos(np.pi * (np.arange(16) + 0.5) / 16)
    assert np.abs(ramp - expected).max() <= 2**-13


def test_weights_are_computed_once():
    lattice = ChipLattice(16, 4)
    assert lattice.weights is lattice.weights


@given(lattices(), windows, st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_a_constant_stays_exactly_that_constant(lattice, window, constant):
    chip = np.full((1, lattice.chip_px, lattice.chip_px), constant, np.float32)
    assert (blend(lattice, window, lambda row, col: chip) == np.float32(constant)).all()


@given(lattices(), windows)
def test_a_lattice_field_stays_within_its_neighbours(lattice, window):
    """Chips that agree in a pixel give that pixel back."""

    def field(row, col):
        chip = lattice.chip(row, col)
        rows, cols = np.arange(chip.row0, chip.row1), np.arange(chip.col0, chip.col1)
        return (rows[:, None] * 0.37 + cols * 0.11).astype(np.float32)[None]

    rows, cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
    expected = (rows[:, None] * 0.37 + cols * 0.11).astype(np.float32)
    assert (blend(lattice, window, field)[0] == expected).all()


@given(lattices(), windows, st.data())
@settings(max_examples=50, deadline=None)
def test_one_window_or_four_give_the_same_bits(lattice, window, data):
    def heights(row, col):
        return chip_heights(row, col, lattice.chip_px, bands=2)

    whole = blend(lattice, window, heights, bands=2)
    row = data.draw(st.integers(0, window.height))
    col = data.draw(st.integers(0, window.width))
    for rows in (slice(0, row), slice(row, window.height)):
        for cols in (slice(0, col), slice(col, window.width)):
            size = rows.stop - rows.start, cols.stop - cols.start
            if min(size) > 0:
                part = PixelWindow(window.row0 + rows.start, window.col0 + cols.start, *size)
                assert blend(lattice, part, heights, bands=2).tobytes() == whole[:, rows, cols].tobytes()


def test_two_chips_are_averaged_by_their_weights():
    lattice, window = ChipLattice(4, 2), PixelWindow(2, 2, 1, 1)  # one pixel under four chips
    values = {(0, 0): 0.0, (0, 1): 8.0, (1, 0): 0.0, (1, 1): 8.0}
    result = blend(lattice, window, lambda r, c: np.full((1, 4, 4), values[r, c], np.float32))
    rise = round(4096 * (0.5 - 0.5 * np.cos(np.pi / 4))) / 4096
    assert result[0, 0, 0] == np.float32(8 * rise)


def test_incomplete_cover_is_unknown():
    lattice, window = ChipLattice(8, 2), PixelWindow(0, 0, 8, 14)
    blender = Blender(lattice, window, 1)
    assert np.isnan(blender.result()).all()
    for row, col in [(-1, -1), (-1, 0), (0, -1), (0, 0)]:
        blender.add(row, col, np.full((1, 8, 8), 5, np.float32))
    expected = np.zeros((8, 14), bool)
    expected[:6, :6] = True  # beyond, neighbours (0, 1) and (1, 0) are missing
    assert (np.isfinite(blender.result()[0]) == expected).all()
    assert (blender.result()[0][expected] == 5).all()


def test_a_nan_stays_in_its_pixel():
    lattice, window = ChipLattice(8, 4), PixelWindow(0, 0, 8, 8)

    def heights(row, col):
        chip = np.full((1, 8, 8), 3, np.float32)
        if (row, col) == (0, 0):
            chip[0, 2, 5] = np.nan
        return chip

    result = blend(lattice, window, heights)[0]
    assert np.argwhere(np.isnan(result)).tolist() == [[2, 5]]
    assert (result[~np.isnan(result)] == 3).all()


@pytest.mark.parametrize("second", [(0, 0), (0, -1), (-1, 5)])
def test_chips_out_of_raster_order_are_refused(second):
    blender = Blender(ChipLattice(8, 2), PixelWindow(0, 0, 16, 16), 1)
    blender.add(0, 0, np.zeros((1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="expected raster order"):
        blender.add(*second, np.zeros((1, 8, 8), np.float32))


def test_a_chip_outside_the_window_is_ignored():
    blender = Blender(ChipLattice(8, 2), PixelWindow(0, 0, 6, 6), 1)
    blender.add(50, 50, np.ones((1, 8, 8), np.float32))
    assert np.isnan(blender.result()).all()


@pytest.mark.parametrize(
    "heights", [np.zeros((8, 8), np.float32), np.zeros((2, 8, 8), np.float32), np.zeros((1, 8, 8))]
)
def test_a_chip_of_another_shape_or_type_is_refused(heights):
    blender = Blender(ChipLattice(8, 2), PixelWindow(0, 0, 6, 6), 1)
    with pytest.raises(ValueError, match=r"expected \(1, 8, 8\) float32"):
        blender.add(0, 0, heights)
