"""Blocks and clusters begin at the CRS origin and are few enough to be kept."""

import numpy as np
import pytest

from canopy.evaluation.truth_grid import MAX_CLUSTERS, ClusterNumbers, TruthGrid


def test_blocks_begin_at_the_origin_of_the_crs() -> None:
    grid = TruthGrid((100, 100), (1.0, 1.0), (-10.0, 25.0))
    np.testing.assert_array_equal(grid.blocks(0, 0, 12), [-1] * 10 + [0] * 2)
    np.testing.assert_array_equal(grid.blocks(1, 0, 7), [0] * 5 + [1] * 2)


@pytest.mark.parametrize(("side", "cluster_m"), [(500, 120), (12_000, 240), (40_000, 480)])
def test_clusters_double_until_they_are_few(side: int, cluster_m: float) -> None:
    grid = TruthGrid((side, side), (1.0, 1.0))
    assert grid.cluster_m == cluster_m
    assert ClusterNumbers.of(grid).count <= MAX_CLUSTERS


def test_every_block_has_the_number_of_its_cluster() -> None:
    grid = TruthGrid((600, 400), (1.0, 1.0), (35.0, -70.0))
    numbers = ClusterNumbers.of(grid)
    rows, cols = grid.blocks(0, 0, 600), grid.blocks(1, 0, 400)
    by_cell = numbers.at_blocks(rows, cols)
    assert by_cell.min() == 0
    assert by_cell.max() == numbers.count - 1
    # Two cells share a number where their blocks lie in the same square of four by four blocks.
    assert (by_cell[0] == by_cell[1]).all()
    changes = np.flatnonzero(np.diff(by_cell[0]))
    np.testing.assert_array_equal(changes, [69, 189, 309])
