"""Linear and nearest-neighbour regression on frozen features, scored on blocks of ground that were held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from canopy.errors import TrainingError

Array = NDArray[np.float64]
Blocks = NDArray[np.int64]
Regression = Callable[[Array, Array, Array, Blocks], Array]
"""From training features (n, D), targets (n,), new features (m, D) and training blocks (n,) to predictions (m,)."""

BUFFER_M = 64.0
FOLDS = 5
INNER_FOLDS = 4
INNER_SEED = 1
NEIGHBOURS = 20
RIDGES = tuple(10.0**power for power in range(-1, 6))
TINY = 1e-9


@dataclass(frozen=True)
class Fold:
    """A share of the cells to predict, and the cells to learn from."""

    train: NDArray[np.bool_]
    """(n,) cells that the regression is fitted to."""
    test: NDArray[np.bool_]
    """(n,) cells that it predicts."""


def block_folds(block: Blocks, position: Array, seed: int) -> list[Fold]:
    """Hold out a fifth of the blocks after the other, with a buffer around them.

    Neighbouring cells share crowns, shadows and the light of one flight: what lies within 64 m of a cell to predict is
    not learnt from (Roberts et al. 2017, Ecography 40:913).

    Args:
        block: (n,) spatial blocks.
        position: (n, 3) centres of the cells, metres.
        seed: Seed of the folds.

    Raises:
        TrainingError: Too little ground is left to learn from.
    """
    fold = folds(block, FOLDS, seed)
    tests = [fold == number for number in range(FOLDS)]
    result = [Fold(_beyond(position, test), test) for test in tests if test.any()]
    if any(len(np.unique(block[f.train])) < INNER_FOLDS for f in result):
        raise TrainingError(
            f"{len(np.unique(block))} blocks of ground with a buffer of {BUFFER_M:g} m leave fewer than {INNER_FOLDS} "
            "to learn from: more scenes, or larger ones, expected"
        )
    return result


def _beyond(position: Array, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which cells (n,) lie beyond the buffer around the cells to predict."""
    distance_m, _ = KDTree(position[test]).query(position, distance_upper_bound=BUFFER_M)
    return np.asarray(~np.isfinite(distance_m))


def site_folds(site: Sequence[str], block: Blocks) -> dict[str, Fold]:
    """Hold out one site after the other, where the other sites have blocks enough to learn from.

    Args:
        site: (n,) name of each cell's site.
        block: (n,) spatial blocks.

    Returns:
        Fold by the name of the site; empty if all cells are of one site.
    """
    sites = np.array(site)
    result = {str(name): Fold(sites != name, sites == name) for name in np.unique(sites)}
    return {name: f for name, f in result.items() if len(np.unique(block[f.train])) >= INNER_FOLDS}


def held_out(regress: Regression, features: Array, truth: Array, block: Blocks, split: Sequence[Fold]) -> Array:
    """Predict the cells of every fold by a regression that is fitted to the fold's training cells.

    Args:
        regress: Linear or nearest-neighbour regression.
        features: (n, D) features.
        truth: (n,) targets.
        block: (n,) spatial blocks.
        split: Folds.

    Returns:
        (n,) predictions, NaN for cells of no fold.
    """
    predictions = np.full(len(truth), np.nan)
    for fold in split:
        train, test = fold.train, fold.test
        # standardised by the training side alone: the test side must not leak
        scale = features[train].std(axis=0) + TINY
        x = (features - features[train].mean(axis=0)) / scale
        predictions[test] = regress(x[train], truth[train], x[test], block[train])
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
    # w = V (S + penalty)^-1 V^T X^T y, with X^T X = V S V^T, features and targets centred
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
