"""Scores of features: R2 of regressions on them, with intervals over blocks of ground."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.bootstrap import draw_blocks, percentile_interval
from canopy.evaluation.residuals import r2_from_sums
from pretrain.cells import Array, Cells
from pretrain.regression import Fold, Regression, held_out, nearest, ridge

TARGETS = ("height_m", "cover")
METHODS: dict[str, Regression] = {"linear": ridge, "knn": nearest}


@dataclass(frozen=True)
class Score:
    """R2 on ground that was held out, or a difference of two."""

    r2: float | None
    """R2; of several networks, their mean; None where the truth does not vary."""
    interval: tuple[float, float] | None
    """95 % interval over blocks; None with too few blocks."""
    networks: tuple[float, ...] = ()
    """R2 of each network, where there are several."""

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON has it."""
        return {"r2": self.r2, "interval": self.interval} | ({"networks": self.networks} if self.networks else {})


@dataclass(frozen=True)
class Comparison:
    """Scores of one regression of one target on several kinds of features."""

    target: str
    """`height_m` or `cover`."""
    method: str
    """`linear` or `knn`."""
    scores: dict[str, Score]
    """R2 by features."""
    gains: dict[str, Score]
    """R2 of the first features less that of the others, by the others."""


@dataclass(frozen=True)
class GroundResult:
    """Comparisons on some ground."""

    cells: int
    """Number of cells."""
    blocks: int
    """Number of spatial blocks."""
    comparisons: tuple[Comparison, ...]
    """One for every target and method."""

    def comparison(self, target: str, method: str) -> Comparison:
        """Return the comparison of a target and a method."""
        return next(c for c in self.comparisons if (c.target, c.method) == (target, method))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it: by target, method and features."""
        tree: dict[str, Any] = {"cells": self.cells, "blocks": self.blocks}
        for c in self.comparisons:
            scores, gains = ({name: s.to_json() for name, s in table.items()} for table in (c.scores, c.gains))
            tree.setdefault(c.target, {})[c.method] = {**scores, "gain": gains}
        return tree


def compare_features(
    cells: Mapping[str, Sequence[Cells]], split: Sequence[Fold], rows: NDArray[np.bool_], seed: int
) -> GroundResult:
    """Compare the features of cells by all targets and methods.

    Args:
        cells: Cells of each network, by features.
        split: Folds that predict every row to score.
        rows: (n,) which cells are scored.
        seed: Seed of the bootstrap.
    """
    first = next(iter(cells.values()))[0]
    block = np.unique(first.block[rows], return_inverse=True)[1]
    comparisons = []
    for target in TARGETS:
        truth: Array = getattr(first, target)
        for method, regress in METHODS.items():
            predictions = {
                name: [held_out(regress, c.features, truth, c.block, split)[rows] for c in networks]
                for name, networks in cells.items()
            }
            comparisons.append(Comparison(target, method, *compare(truth[rows], predictions, block, seed)))
    return GroundResult(int(rows.sum()), int(block.max()) + 1, tuple(comparisons))


def compare(
    truth: Array, predictions: Mapping[str, Sequence[Array]], block: NDArray[np.int64], seed: int
) -> tuple[dict[str, Score], dict[str, Score]]:
    """Score predictions, and the gain of the first over the others, with 95 % intervals over blocks.

    All predictions are scored on the same draws of blocks, so that what all find hard cancels in a gain.

    Args:
        truth: (n,) targets.
        predictions: (n,) predictions of one network or several, by features.
        block: (n,) spatial blocks, from 0, none left out.
        seed: Seed of the bootstrap.

    Returns:
        Scores by features, and gains by all features but the first.
    """
    blocks = int(block.max()) + 1
    # the first row counts every block once: the score itself
    weight = np.concatenate([np.ones((1, blocks)), draw_blocks(blocks, seed=seed)])
    samples = {
        name: np.stack([weighted_r2(truth, p, block, weight) for p in networks])
        for name, networks in predictions.items()
    }
    first, *others = samples
    scores = {name: _score(r2, blocks) for name, r2 in samples.items()}
    lead = samples[first].mean(axis=0)
    gains = {name: _score((lead - samples[name].mean(axis=0))[None], blocks) for name in others}
    return scores, gains


def weighted_r2(truth: Array, prediction: Array, block: NDArray[np.int64], weight: Array) -> Array:
    """Return R2 with every block counted as often as its weight says.

    Args:
        truth: (n,) targets.
        prediction: (n,) predictions.
        block: (n,) spatial blocks, from 0, none left out.
        weight: (samples, blocks) weight of each block.

    Returns:
        (samples,) R2, NaN where the truth does not vary.
    """
    centred = truth - truth.mean()  # sums of squares of large numbers would cancel
    columns = (np.square(truth - prediction), np.ones_like(truth), centred, np.square(centred))
    square, count, total, total2 = (weight @ np.bincount(block, column) for column in columns)
    return r2_from_sums(square, count, total, total2)


def _score(samples: Array, blocks: int) -> Score:
    """Summarise (networks, 1 + replicates) samples of R2, the first of which is the score."""
    mean = samples.mean(axis=0)
    if not np.isfinite(mean[0]):
        return Score(None, None)
    networks = tuple(float(r2) for r2 in samples[:, 0]) if len(samples) > 1 else ()
    return Score(float(mean[0]), percentile_interval(mean[1:], blocks), networks)
