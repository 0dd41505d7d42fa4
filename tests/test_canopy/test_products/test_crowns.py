"""Crowns by climbing: what they are, and that they follow from the halo alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from canopy.products.crowns import NO_TREE, Cut, find_crowns, halo_px
from canopy.products.treetops import WindowLine, smooth

LINE = WindowLine(2.5, 0, 0.01, max_m=4)
CUT = Cut(lowest_m=2, share=0.3, radius_px=4)


def cone(shape: tuple[int, int], row: float, col: float, top_m: float, slope: float) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return np.maximum(top_m - slope * np.hypot(rows - row, cols - col), 0).astype(np.float32)


def test_two_cones_meet_at_the_valley() -> None:
    surface = np.maximum(cone((30, 40), 15, 12, 20, 2), cone((30, 40), 15, 26, 20, 2))
    crowns = find_crowns(surface, LINE, Cut(2, 0.0, 20), 1.0)
    assert crowns.tops.tolist() == [15 * 40 + 12, 15 * 40 + 26]
    assert (crowns.owner[15, :19] <= 0).all()
    assert (crowns.owner[15, 20:] != 0).all()
    assert ((crowns.owner == NO_TREE) == (surface < 2)).all()


@pytest.mark.parametrize(("cut", "radius"), [(Cut(2, 0.5, 20), 5), (Cut(2, 0.0, 3), 3), (Cut(8, 0.0, 20), 6)])
def test_crowns_end_at_the_share_the_radius_and_the_lowest_canopy(cut: Cut, radius: int) -> None:
    crowns = find_crowns(cone((31, 31), 15, 15, 20, 2), LINE, cut, 1.0)
    cells = np.argwhere(crowns.owner == 0) - 15
    assert np.hypot(*cells.T).max() == pytest.approx(radius)


def test_a_bump_within_the_window_is_no_tree_and_joins_the_one_that_rules() -> None:
    surface = cone((31, 31), 15, 15, 20, 1.5)
    surface[15, 17] += 1.6  # higher than its neighbours, lower than the top
    crowns = find_crowns(surface, WindowLine(4, 0, 0), Cut(2, 0.3, 10), 1.0)
    assert crowns.tops.tolist() == [15 * 31 + 15]
    assert crowns.owner[15, 17] == 0


def test_unknown_cells_belong_to_no_tree() -> None:
    surface = cone((31, 31), 15, 15, 20, 1.5)
    surface[:, 17] = np.nan
    crowns = find_crowns(surface, LINE, Cut(2, 0.3, 10), 1.0)
    assert (crowns.owner[:, 17] == NO_TREE).all()
    assert crowns.owner[15, 16] == 0


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    step_m=st.sampled_from([0.0, 1.0]),
    holes=st.booleans(),
    row=st.integers(0, 40),
    col=st.integers(0, 40),
)
def test_crowns_of_a_tile_follow_from_its_halo(seed: int, step_m: float, holes: bool, row: int, col: int) -> None:
    """The proof of `halo_px` by trial: rough canopy, whole metres with their ties, and unknown cells."""
    rng = np.random.default_rng(seed)
    heights = (12 + 6 * ndimage.zoom(rng.normal(size=(24, 24)), 4, order=1)).astype(np.float32)
    heights = np.round(heights / step_m) * np.float32(step_m) if step_m else heights
    heights[rng.random(heights.shape) < (0.02 if holes else 0)] = np.nan
    halo, tile, sigma = halo_px(CUT, LINE, 0.7, 1.0), 20, 0.7
    framed = np.pad(heights, halo, constant_values=np.nan)
    whole = find_crowns(smooth(framed, sigma), LINE, CUT, 1.0)
    part = framed[row : row + tile + 2 * halo, col : col + tile + 2 * halo]
    crowns = find_crowns(smooth(part, sigma), LINE, CUT, 1.0)
    for number, top in enumerate(whole.tops.tolist()):
        top_row, top_col = divmod(top, framed.shape[1])
        if not (row + halo <= top_row < row + halo + tile and col + halo <= top_col < col + halo + tile):
            continue
        here = np.flatnonzero(crowns.tops == (top_row - row) * part.shape[1] + top_col - col)
        assert here.size == 1
        expected = (whole.owner == number)[row : row + part.shape[0], col : col + part.shape[1]]
        np.testing.assert_array_equal(crowns.owner == here[0], expected)
        assert expected.sum() == (whole.owner == number).sum()
    inside = np.array([divmod(top, part.shape[1]) for top in crowns.tops.tolist()]).reshape(-1, 2) - halo
    count = ((inside >= 0) & (inside < tile)).all(axis=1).sum()
    tops = np.array([divmod(top, framed.shape[1]) for top in whole.tops.tolist()]).reshape(-1, 2) - halo - (row, col)
    assert count == ((tops >= 0) & (tops < tile)).all(axis=1).sum()
