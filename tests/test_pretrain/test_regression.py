"""Regression on features: right answers, and nothing learnt from a held-out block."""

import numpy as np
import pytest

from canopy.evaluation.residuals import residual_metrics
from pretrain.regression import folds, held_out, nearest, ridge

RNG = np.random.default_rng(0)


def test_ridge_equals_the_normal_equations_and_shrinks_noise() -> None:
    x, weights = RNG.normal(size=(400, 5)), np.array([1.0, -2, 0.5, 0, 3])
    y = x @ weights + 7
    new = RNG.normal(size=(10, 5))
    np.testing.assert_allclose(ridge(x, y, new, np.arange(400) // 20), new @ weights + 7, rtol=1e-2)
    noise = RNG.normal(size=(400, 100))
    predicted = ridge(noise, RNG.normal(size=400), RNG.normal(size=(50, 100)), np.arange(400) // 20)
    assert predicted.std() < 0.1


def test_ridge_takes_more_features_than_cells() -> None:
    x = RNG.normal(size=(30, 80))
    predicted = ridge(x, x[:, 0], x, np.arange(30) // 3)
    assert np.isfinite(predicted).all()


def test_nearest_neighbours_recover_a_smooth_function() -> None:
    angle = RNG.uniform(0, 2 * np.pi, 3000)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    predicted = nearest(x[100:], np.sin(3 * angle[100:]), x[:100], np.zeros(2900, np.int64))
    assert np.abs(predicted - np.sin(3 * angle[:100])).max() < 0.1


def test_nearest_neighbours_are_weighted_by_similarity() -> None:
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([10.0, 20.0])
    weight = np.exp(np.array([1.0, 0.0]) / 0.07)
    expected = (weight * y).sum() / weight.sum()
    assert nearest(x, y, np.array([[3.0, 0.0]]), np.zeros(2, np.int64))[0] == pytest.approx(expected)


def test_a_block_is_never_on_both_sides() -> None:
    block = RNG.integers(0, 23, 500)
    fold = folds(block, 5, 0)
    assert all(len(set(fold[block == b])) == 1 for b in range(23))
    assert set(fold) == set(range(5))
    assert not np.array_equal(fold, folds(block, 5, 1))


def test_features_that_only_name_their_block_do_not_score() -> None:
    block = np.repeat(np.arange(20), 20)
    height_m = RNG.normal(size=20)[block] + 0.01 * RNG.normal(size=400)
    r2 = residual_metrics(held_out(ridge, np.eye(20)[block], height_m, block, 0), height_m).r2
    assert r2 is not None and r2 < 0.05


def test_held_out_r2_is_that_of_the_signal() -> None:
    x = RNG.normal(size=(2000, 4))
    height_m = x[:, 0] + RNG.normal(size=2000)
    predictions = held_out(ridge, x, height_m, np.arange(2000) // 100, 0)
    assert residual_metrics(predictions, height_m).r2 == pytest.approx(0.5, abs=0.05)
