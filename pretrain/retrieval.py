"""Retrieval by frozen features: does a cell find itself under another light, and ground of its own height elsewhere?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.cells import Array, Cells, Features, Image
from pretrain.regression import TINY, Fold

HEIGHT_EDGES_M = (2.0, 5.0, 10.0, 20.0)
"""Heights between classes: open ground, shrubs, low, middle and tall trees."""
NEIGHBOURS = 10
GAMMA = 1.15
GAINS = (0.9, 1.0, 1.05)
"""Another light: exponent of all channels, then the gain of each."""
CHUNK = 2048
"""Rows of a matrix of similarities that are in memory at once."""


@dataclass(frozen=True)
class Retrieval:
    """What is retrieved by features."""

    features: str
    """Name of the features."""
    instance: float
    """Share of the cells that are their own nearest among all cells when they are turned and recoloured."""
    height_class: float
    """Share of the ten nearest cells beyond block and buffer that are of a cell's own height class, the mean over
    classes."""
    cells: int
    """Number of cells."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {"instance": self.instance, "height_class": self.height_class, "cells": self.cells}


def under_another_light(features: Features) -> Features:
    """Return features of the same cells, from an image that is turned by half a turn and recoloured."""

    def changed(image: Image, gsd_m: float) -> Array:
        return features(recolour(image[:, ::-1, ::-1]), gsd_m)[::-1, ::-1]

    return changed


def recolour(image: Image) -> Image:
    """Return an image (3, H, W) under another light."""
    gains = np.array(GAINS)[:, None, None]
    return np.asarray(np.clip((image / 255) ** GAMMA * gains * 255, 0, 255).round().astype(np.uint8))


def retrieve(name: str, cells: Cells, changed: Cells, split: Sequence[Fold]) -> Retrieval:
    """Score features by what they retrieve.

    Args:
        name: Name of the features.
        cells: Cells with their features.
        changed: The same cells, with the features of `under_another_light`.
        split: Folds; a fold's cells are looked up among those that lie beyond its buffer.
    """
    return Retrieval(
        name,
        float((nearest(changed.features, cells.features, 1)[:, 0] == np.arange(len(cells.features))).mean()),
        _class_precision(cells, split),
        len(cells.features),
    )


def _class_precision(cells: Cells, split: Sequence[Fold]) -> float:
    """Return the share of neighbours of a cell's own height class, the mean over classes."""
    classes = np.digitize(cells.height_m, HEIGHT_EDGES_M)
    precision = np.full(len(classes), np.nan)
    for fold in split:
        rows = nearest(cells.features[fold.test], cells.features[fold.train], NEIGHBOURS)
        precision[fold.test] = (classes[fold.train][rows] == classes[fold.test][:, None]).mean(axis=1)
    # each class counts once: most ground is of one height
    by_class = [np.nanmean(precision[classes == c]) for c in np.unique(classes[np.isfinite(precision)])]
    return float(np.mean(by_class))


def nearest(queries: Array, pool: Array, count: int) -> NDArray[np.int64]:
    """Return the rows (n, count) of the pool that are most similar to each query by cosine, in no order.

    Args:
        queries: (n, D) features.
        pool: (m, D) features, by whose mean and deviation both are standardised.
        count: Number of rows for each query, at most m.
    """
    scale = pool.std(axis=0) + TINY
    units = [(x - pool.mean(axis=0)) / scale for x in (queries, pool)]
    own, others = (x / (np.linalg.norm(x, axis=1, keepdims=True) + TINY) for x in units)
    count = min(count, len(pool))
    parts = [
        np.argpartition(-(own[first : first + CHUNK] @ others.T), count - 1, axis=1)[:, :count]
        for first in range(0, len(own), CHUNK)
    ]
    return np.concatenate(parts)
