"""Linear and nearest-neighbour regression on frozen features, scored on blocks of ground that were held out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Blocks = NDArray[np.int64]
Regression = Callable[[Array, Array, Array, Blocks], Array]
"""From training features (n, D), targets (n,), new features (m, D) and training blocks (n,) to predictions (m,)."""

FOLDS = 5
INNER_FOLDS = 4
INNER_SEED = 1
NEIGHBOURS = 20
RIDGES = tuple(10.0**power for power in range(-1, 6))
TINY = 1e-9


def held_out(regress: Regression, features: Array, truth: Array, block: Blocks, seed: int) -> Array:
    """Predict every cell by a regression that was fitted without the cell's block.

    Args:
        regress: Linear or nearest-neighbour regression.
        features: (n, D) features.
        truth: (n,) targets.
        block: (n,) spatial blocks.
        seed: Seed of the folds.

    Returns:
        (n,) predictions.
    """
    fold = folds(block, FOLDS, seed)
    predictions = np.empty(len(truth))
    for number in range(FOLDS):
        test = fold == number
        # standardised by the training side alone: the test side must not leak
        scale = features[~test].std(axis=0) + TINY
        x = (features - features[~test].mean(axis=0)) / scale
        predictions[test] = regress(x[~test], truth[~test], x[test], block[~test])
    return predictions


def ridge(x: Array, y: Array, x_new: Array, block: Blocks) -> Array:
    """Predict by ridge regression, its penalty chosen by an inner split into blocks.

    Args:
        x: (n, D) standardised features.
        y: (n,) targets.
        x_new: (m, D) features to predict from.
        block: (n,) spatial blocks.
    """
    inner = folds(block, INNER_FOLDS, INNER_SEED)
    errors = np.zeros(len(RIDGES))
    for number in range(INNER_FOLDS):
        test = inner == number
        errors += np.square(_ridge_path(x[~test], y[~test], x[test]) - y[test]).sum(axis=1)
    return np.asarray(_ridge_path(x, y, x_new)[int(errors.argmin())])


def _ridge_path(x: Array, y: Array, x_new: Array) -> Array:
    """Return predictions (penalties, m) for every penalty, all from one eigendecomposition."""
    centre, mean = x.mean(axis=0), y.mean()
    values, vectors = np.linalg.eigh((x - centre).T @ (x - centre))
    along = vectors.T @ ((x - centre).T @ (y - mean))
    return np.stack([(x_new - centre) @ (vectors @ (along / (values.clip(0) + penalty))) + mean for penalty in RIDGES])


def nearest(x: Array, y: Array, x_new: Array, block: Blocks) -> Array:
    """Predict by the mean of the 20 most similar cells by cosine, weighted by exp(similarity / 0.07).

    Args:
        x: (n, D) standardised features.
        y: (n,) targets.
        x_new: (m, D) features to predict from.
        block: (n,) spatial blocks, not used.
    """
    unit, new = (v / (np.linalg.norm(v, axis=1, keepdims=True) + TINY) for v in (x, x_new))
    similarity = new @ unit.T
    count = min(NEIGHBOURS, len(x))
    neighbours = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    # the temperature of DINO's k-NN evaluation (Wu et al. 2018, section 3.4)
    weight = np.exp(np.take_along_axis(similarity, neighbours, axis=1) / 0.07)
    return np.asarray((weight * y[neighbours]).sum(axis=1) / weight.sum(axis=1))


def folds(block: Blocks, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold (n,) of every cell; blocks are never split."""
    numbers, index = np.unique(block, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(numbers))[index] % count)
