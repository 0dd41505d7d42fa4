"""Confidence intervals of the metrics: clusters of ground are drawn, because neighbouring cells are not independent."""

from dataclasses import dataclass

import numpy as np

from canopy.evaluation.bootstrap import REPLICATES, draw_batches, percentile_interval
from canopy.evaluation.metrics import METRICS, Totals, score_arrays
from canopy.evaluation.residuals import Interval


@dataclass(frozen=True)
class ScoreIntervals:
    """95 % interval of each metric of `Scores`; None where too few clusters or an undefined metric leave none."""

    mae_m: Interval | None
    """Interval of the mean absolute error, metres."""
    rmse_m: Interval | None
    """Interval of the root mean square error, metres."""
    bias_m: Interval | None
    """Interval of the bias, metres."""
    r2: Interval | None
    """Interval of R² of cells."""
    block_r2: Interval | None
    """Interval of R² of blocks."""
    edge_error: Interval | None
    """Interval of the edge error."""
    skill: Interval | None
    """Interval of the skill."""


def confidence_intervals(totals: Totals, seed: int = 0, replicates: int = REPLICATES) -> ScoreIntervals:
    """Return 95 % percentile intervals of the metrics by the block bootstrap.

    Each replicate draws as many clusters as there are, with replacement, and scores their cells. The constant behind
    the skill is chosen again in each replicate, among the steps of the ladder.

    Args:
        totals: Sums by cluster.
        seed: Seed of the draws.
        replicates: Number of replicates.
    """
    by_constant = totals.cluster_deviations()
    # The ladder is coarser than a centimetre: scaled so that the replicates surround the figure they qualify.
    coarse = by_constant.sum(axis=0).min()
    scale = totals.constant_error() / coarse if coarse > 0 else 1.0
    # Sums add up, so a replicate is a product: how often each cluster was drawn times the clusters' sums.
    arrays = [
        score_arrays(draws @ totals.clusters, scale * (draws @ by_constant).min(axis=-1))
        for draws in draw_batches(len(totals.clusters), replicates, seed)
    ]
    values = {name: np.concatenate([getattr(batch, name) for batch in arrays]) for name in METRICS}
    return ScoreIntervals(**{name: percentile_interval(values[name], len(totals.clusters)) for name in METRICS})
