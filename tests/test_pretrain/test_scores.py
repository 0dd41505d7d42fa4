"""Scores: R2 over blocks, intervals, gains, several networks, JSON."""

import numpy as np
import pytest

from canopy.evaluation.bootstrap import draw_blocks
from pretrain.cells import Cells
from pretrain.regression import Fold
from pretrain.scores import Comparison, GroundResult, Score, compare, compare_features, weighted_r2

RNG = np.random.default_rng(0)


def test_weighted_r2_is_the_r2_of_cells_repeated() -> None:
    truth, prediction, block = RNG.normal(8, 3, 60), RNG.normal(8, 3, 60), RNG.permutation(np.arange(60) % 7)
    weight = draw_blocks(7, 20)
    for counts, r2 in zip(weight, weighted_r2(truth, prediction, block, weight), strict=True):
        cells = np.repeat(np.arange(60), counts[block].astype(int))
        residual = np.square(truth[cells] - prediction[cells]).sum()
        expected = 1 - residual / np.square(truth[cells] - truth[cells].mean()).sum()
        assert r2 == pytest.approx(expected, rel=1e-9)


def test_scores_and_gains_have_intervals_over_blocks() -> None:
    truth = RNG.normal(size=2000)
    good, block = 0.5 * (truth + RNG.normal(size=2000)), np.arange(2000) // 100
    scores, gains = compare(truth, {"good": [good], "none": [np.full(2000, truth.mean())]}, block, 0)
    assert scores["good"].r2 == pytest.approx(0.5, abs=0.05)
    assert scores["none"].r2 == pytest.approx(0)
    low, high = scores["good"].interval or (0, 0)
    assert low < 0.5 < high < low + 0.15
    assert gains["none"].r2 == pytest.approx(scores["good"].r2)
    assert list(gains) == ["none"]
    assert scores["good"].networks == ()


def test_several_networks_score_their_mean_and_each() -> None:
    truth, block = RNG.normal(size=400), np.arange(400) // 20
    networks = [truth + RNG.normal(0, sigma, 400) for sigma in (0.5, 1.0)]
    scores, gains = compare(truth, {"good": [truth], "random": networks}, block, 0)
    each = [compare(truth, {"one": [p]}, block, 0)[0]["one"].r2 for p in networks]
    assert scores["random"].networks == pytest.approx(each)
    assert scores["random"].r2 == pytest.approx(np.mean(np.array(each, float)))
    assert gains["random"].r2 == pytest.approx(1 - np.mean(np.array(each, float)))


def test_a_truth_that_does_not_vary_has_no_score() -> None:
    scores, _ = compare(np.ones(40), {"a": [RNG.normal(size=40)]}, np.arange(40) // 2, 0)
    assert scores["a"] == Score(None, None)


def test_only_the_rows_of_the_folds_are_scored() -> None:
    height_m, half = RNG.normal(8, 2, 200), np.arange(200) < 100
    block, position = np.arange(200) // 10, np.zeros((200, 3))
    features = np.stack([height_m, RNG.normal(size=200)], axis=1)
    cells = Cells(features, height_m, (height_m > 8).astype(float), block, position, ("a",) * 200)
    result = compare_features({"encoder": [cells]}, [Fold(~half, half)], half, 0)
    assert (result.cells, result.blocks) == (100, 10)
    assert result.comparison("height_m", "linear").scores["encoder"].r2 == pytest.approx(1, abs=1e-3)
    assert [(c.target, c.method) for c in result.comparisons] == [
        ("height_m", "linear"), ("height_m", "knn"), ("cover", "linear"), ("cover", "knn"),
    ]  # fmt: skip


def test_json_lists_networks_only_where_there_are_several() -> None:
    scores = {"encoder": Score(0.5, (0.4, 0.6)), "random": Score(0.25, None, (0.2, 0.3))}
    comparison = Comparison("cover", "knn", scores, {"random": Score(0.25, None)})
    assert GroundResult(3, 2, (comparison,)).to_json() == {
        "cells": 3, "blocks": 2,
        "cover": {"knn": {
            "encoder": {"r2": 0.5, "interval": (0.4, 0.6)},
            "random": {"r2": 0.25, "interval": None, "networks": (0.2, 0.3)},
            "gain": {"random": {"r2": 0.25, "interval": None}},
        }},
    }  # fmt: skip
