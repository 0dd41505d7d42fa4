"""Retrieval: cells that find themselves under another light, and ground of their own height."""

from typing import Any

import numpy as np
import pytest

from pretrain.cells import Cells, colour_statistics, of_image
from pretrain.regression import Fold
from pretrain.retrieval import nearest, recolour, retrieve, under_another_light

RNG = np.random.default_rng(0)


def make_cells(features: np.ndarray, height_m: np.ndarray) -> Cells:
    count = len(features)
    block = np.arange(count)
    return Cells(features, height_m, np.zeros(count), block, np.zeros((count, 3)), ("a",) * count)


def halves(count: int) -> list[Fold]:
    test = np.arange(count) % 2 == 0
    return [Fold(~test, test), Fold(test, ~test)]


def test_cells_find_themselves_and_their_height_class() -> None:
    height_m = np.repeat([1.0, 3.0, 7.0, 15.0, 25.0], 40)
    code = np.eye(5)[np.repeat(np.arange(5), 40)] * 10
    features = np.concatenate([code, RNG.normal(size=(200, 8))], axis=1)
    cells = make_cells(features, height_m)
    changed = make_cells(features + RNG.normal(0, 0.01, features.shape), height_m)
    result = retrieve("x", cells, changed, halves(200))
    assert result.instance == 1
    assert result.height_class > 0.9
    assert result.to_json() == {"instance": 1.0, "height_class": result.height_class, "cells": 200}
    noise = make_cells(RNG.normal(size=(200, 8)), height_m)
    blind = retrieve("x", noise, make_cells(RNG.normal(size=(200, 8)), height_m), halves(200))
    assert blind.instance < 0.05
    assert blind.height_class == pytest.approx(0.2, abs=0.05)


def test_each_height_class_counts_once() -> None:
    height_m = np.array([1.0] * 96 + [25.0] * 4)
    cells = make_cells(np.concatenate([RNG.normal(5, 0.1, (96, 2)), RNG.normal(5, 0.1, (4, 2))]), height_m)
    assert retrieve("x", cells, cells, halves(100)).height_class == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_nearest_are_those_of_the_whole_matrix(chunk: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("pretrain.retrieval.CHUNK", chunk)
    pool, queries = RNG.normal(size=(9, 4)), RNG.normal(size=(7, 4))
    mean, std = pool.mean(axis=0), pool.std(axis=0)
    unit = [(x - mean) / std for x in (queries, pool)]
    cosine = (unit[0] @ unit[1].T) / np.outer(*(np.linalg.norm(x, axis=1) for x in unit))
    expected = np.argsort(-cosine, axis=1)[:, :2]
    assert np.array_equal(np.sort(nearest(queries, pool, 2)), np.sort(expected))
    assert nearest(queries, pool, 99).shape == (7, 9)


def test_another_light_turns_the_image_and_gives_the_cells_back_in_place() -> None:
    image = RNG.integers(0, 255, (3, 64, 96)).astype(np.uint8)
    changed = under_another_light(of_image(colour_statistics))(image, 0.5)
    np.testing.assert_allclose(changed, colour_statistics(recolour(image)))
    assert np.abs(changed - colour_statistics(image)).max() > 0.02
