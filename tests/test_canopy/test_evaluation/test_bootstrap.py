"""Blocks are drawn with replacement, reproducibly, and intervals are percentiles of what is defined."""

import numpy as np
import pytest

from canopy.evaluation.bootstrap import FEWEST_BLOCKS, draw_batches, draw_blocks, percentile_interval


def test_as_many_blocks_are_drawn_as_there_are() -> None:
    draws = draw_blocks(12, replicates=130, seed=1)
    assert draws.shape == (130, 12)
    assert (draws.sum(axis=1) == 12).all()
    assert draws.mean() == pytest.approx(1)
    assert draws.var() == pytest.approx(1 - 1 / 12, rel=0.1)


def test_draws_follow_the_seed_whatever_the_batch() -> None:
    generator = np.random.default_rng(4)
    whole = generator.multinomial(9, np.full(9, 1 / 9), 120)
    np.testing.assert_array_equal(draw_blocks(9, 120, seed=4), whole)
    np.testing.assert_array_equal(np.concatenate(list(draw_batches(9, 120, seed=4))), whole)
    assert (draw_blocks(9, 120, seed=5) != whole).any()


def test_an_interval_is_percentiles() -> None:
    assert percentile_interval(np.arange(1001.0), FEWEST_BLOCKS) == pytest.approx((25, 975))
    assert percentile_interval(np.arange(1001.0), FEWEST_BLOCKS, level=0.5) == pytest.approx((250, 750))


def test_undefined_replicates_are_left_out_until_they_are_most() -> None:
    values = np.append(np.arange(1001.0), np.full(1000, np.nan))
    assert percentile_interval(values, 10) == pytest.approx((25, 975))
    assert percentile_interval(np.append(values, [np.nan, np.nan]), 10) is None


def test_too_few_blocks_have_no_interval() -> None:
    assert percentile_interval(np.arange(1001.0), FEWEST_BLOCKS - 1) is None
