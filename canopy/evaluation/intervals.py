"""Confidence intervals: a bootstrap that draws clusters of ground, because neighbouring cells are not independent."""

import numpy as np

from canopy.evaluation.metrics import Floats, Totals, scores

REPLICATES = 1000
LEVEL = 0.95
FEWEST_CLUSTERS = 10
_AT_ONCE = 50

Intervals = dict[str, tuple[float, float] | None]


def confidence_intervals(totals: Totals, seed: int = 0, replicates: int = REPLICATES) -> Intervals:
    """95 % percentile intervals of the metrics by a spatial block bootstrap (Lahiri 2003, Resampling Methods).

    Each replicate draws as many clusters as there are, with replacement, and scores their cells. The constant behind
    the skill is chosen anew in each replicate, among the steps of the ladder.

    Args:
        totals: Sums by cluster.
        seed: Of the draws.
        replicates: How many.

    Returns:
        Metric -> (low, high), None where fewer than 10 clusters or an undefined metric leave nothing to draw from.
    """
    draws = [scores(sums, constant) for sums, constant in _replicates(totals, seed, replicates)]
    return {
        name: _percentiles(np.concatenate([draw[name] for draw in draws]), len(totals.clusters)) for name in draws[0]
    }


def _replicates(totals: Totals, seed: int, replicates: int) -> list[tuple[Floats, Floats]]:
    generator = np.random.default_rng(seed)
    count = len(totals.clusters)
    by_constant = totals.cluster_deviations()
    # The ladder is coarser than a centimetre: scaled so that the replicates surround the figure they qualify.
    coarse = by_constant.sum(axis=0).min()
    scale = totals.constant_error() / coarse if coarse > 0 else 1.0
    made = []
    for start in range(0, replicates, _AT_ONCE):
        drawn = generator.multinomial(count, np.full(count, 1 / count), min(_AT_ONCE, replicates - start)).astype(float)
        made.append((drawn @ totals.clusters, scale * (drawn @ by_constant).min(axis=-1)))
    return made


def _percentiles(values: Floats, clusters: int) -> tuple[float, float] | None:
    finite = values[np.isfinite(values)]
    if clusters < FEWEST_CLUSTERS or len(finite) < len(values) / 2:
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
