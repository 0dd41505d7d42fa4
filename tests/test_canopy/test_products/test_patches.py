"""Patches judged across tiles are those of the whole, whatever the tiles."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from canopy.products.patches import CLEAR_SHARE, PatchTable, judge_tile, label_tile


def by_tiles(code: np.ndarray, side: int, min_cells: float) -> tuple[np.ndarray, int]:
    table, patches = PatchTable(), {}
    corners = [(row, col) for row in range(0, code.shape[0], side) for col in range(0, code.shape[1], side)]
    for row, col in corners:
        patches[row, col] = label_tile(code[row : row + side, col : col + side])
        table.add(row, col, patches[row, col])
    result, totals = np.zeros_like(code), table.totals()
    for row, col in corners:
        part = judge_tile(patches[row, col], table.nodes(row, col, patches[row, col]), totals, min_cells)
        result[row : row + side, col : col + side] = part
    return result, table.joined


def by_brute_force(code: np.ndarray, min_cells: float) -> np.ndarray:
    result = np.zeros_like(code)
    for sign in (-1, 1):
        labels, count = ndimage.label(code * sign > 0, np.ones((3, 3)))
        for number in range(1, count + 1):
            patch = labels == number
            clear = (np.abs(code[patch]) == 2).sum()
            if patch.sum() >= min_cells and clear >= max(1, CLEAR_SHARE * patch.sum()):
                result[patch] = sign
    return result


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.sampled_from([1, 4, 9]), st.floats(0.2, 0.7))
def test_tiles_judge_whole_patches(seed: int, side: int, min_cells: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    code = np.where(rng.random((15, 17)) < density, rng.choice([-2, -1, 1, 2], (15, 17)), 0).astype(np.int8)
    result, _ = by_tiles(code, side, min_cells)
    np.testing.assert_array_equal(result, by_brute_force(code, min_cells))


def test_a_spiral_over_many_tiles_is_one_patch() -> None:
    code = np.zeros((12, 12), np.int8)
    code[0], code[:, 11], code[11], code[2:, 0], code[2, :10], code[2:10, 9] = -1, -1, -1, -1, -1, -1
    code[9, 4:10] = -2
    result, joined = by_tiles(code, 4, 40)
    assert joined == 1
    assert not result.any()  # too few of its cells are clear
    code[0] = -2
    np.testing.assert_array_equal(by_tiles(code, 4, 40)[0], np.sign(code))
    assert not by_tiles(code, 4, (code != 0).sum() + 1)[0].any()


def test_loss_and_gain_side_by_side_are_two_patches() -> None:
    code = np.array([[-2, -2, 2, 2]], np.int8)
    assert by_tiles(code, 2, 2)[0].tolist() == [[-1, -1, 1, 1]]
    assert not by_tiles(code, 2, 3)[0].any()
