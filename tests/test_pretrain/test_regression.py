"""Regression on features: right answers, and nothing learnt from a held-out block."""

import numpy as np
import pytest

from canopy.errors import TrainingError
from canopy.evaluation.residuals import residual_metrics
from pretrain.regression import BUFFER_M, Fold, block_folds, folds, held_out, nearest, ridge, site_folds

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


def grid(side: int = 40, step_m: float = 16.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) of a square of cells, and their blocks of 128 m."""
    y, x = np.mgrid[:side, :side].reshape(2, -1) * step_m
    block = np.unique(np.stack([x // 128, y // 128], axis=1), axis=0, return_inverse=True)[1]
    return np.stack([x, y, np.zeros_like(x)], axis=1), block.reshape(-1)


def test_a_buffer_parts_what_is_learnt_from_what_is_predicted() -> None:
    position, block = grid()
    split = block_folds(block, position, 0)
    assert sum(fold.test.sum() for fold in split) == len(block)
    for fold in split:
        assert not (fold.train & fold.test).any()
        gap_m = np.linalg.norm(position[fold.train][:, None] - position[fold.test], axis=2).min(axis=1)
        assert gap_m.min() >= BUFFER_M
        left_out = ~fold.train & ~fold.test
        assert left_out.any()
        near_m = np.linalg.norm(position[left_out][:, None] - position[fold.test], axis=2).min(axis=1)
        assert near_m.max() < BUFFER_M, "nothing beyond the buffer is left out"


def test_too_little_ground_to_hold_some_out_is_a_clear_error() -> None:
    position, block = grid(side=12)
    with pytest.raises(TrainingError, match="4 blocks of ground with a buffer of 64 m"):
        block_folds(block, position, 0)


def test_sites_are_left_out_one_by_one_where_the_others_suffice() -> None:
    site = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    split = site_folds(site, np.arange(10))
    assert {name: int(fold.test.sum()) for name, fold in split.items()} == {"a": 5, "b": 3, "c": 2}
    assert all((fold.train == ~fold.test).all() for fold in split.values())
    assert list(site_folds(["a"] * 7 + ["b"] * 3, np.arange(10))) == ["b"], "three blocks are too few to learn from"
    assert site_folds(["a"] * 9, np.arange(9)) == {}


def r2(prediction: np.ndarray, truth: np.ndarray) -> float:
    score = residual_metrics(prediction, truth).r2
    assert score is not None
    return score


def test_features_that_only_name_their_block_do_not_score() -> None:
    position, block = grid()
    names = np.eye(block.max() + 1)[block]
    height_m = RNG.normal(size=block.max() + 1)[block] + 0.01 * RNG.normal(size=len(block))
    assert r2(held_out(ridge, names, height_m, block, block_folds(block, position, 0)), height_m) < 0.05


def test_features_that_only_say_where_a_cell_is_score_less_with_the_buffer() -> None:
    position, block = grid()
    # a smooth height, and features that a neighbour within 64 m shares
    height_m = np.sin(position[:, 0] / 60) + np.sin(position[:, 1] / 45)
    near = np.exp(-np.square(position[:, None, :2] - RNG.uniform(0, 640, (300, 2))).sum(-1) / (2 * 40**2))
    split = block_folds(block, position, 0)
    without = [Fold(~fold.test, fold.test) for fold in split]
    scores = [r2(held_out(nearest, near, height_m, block, folds_), height_m) for folds_ in (split, without)]
    assert scores[0] < scores[1] - 0.2


def test_held_out_r2_is_that_of_the_signal() -> None:
    position, block = grid()
    x = RNG.normal(size=(len(block), 4))
    height_m = x[:, 0] + RNG.normal(size=len(block))
    predictions = held_out(ridge, x, height_m, block, block_folds(block, position, 0))
    assert r2(predictions, height_m) == pytest.approx(0.5, abs=0.05)


def test_cells_of_no_fold_have_no_prediction() -> None:
    position, block = grid()
    fold = block_folds(block, position, 0)[0]
    predictions = held_out(ridge, RNG.normal(size=(len(block), 2)), block.astype(float), block, [fold])
    assert (np.isfinite(predictions) == fold.test).all()
