"""Intervals of the metrics cover what they say."""

from dataclasses import asdict

import numpy as np
from height_maps import METRICS, soft_crowns

from canopy.evaluation.intervals import confidence_intervals
from canopy.evaluation.metrics import array_totals


def test_intervals_cover_what_they_say() -> None:
    """Of many forests of one kind, each with its interval, about 95 % include the mean of all."""
    generator = np.random.default_rng(5)
    truth = np.zeros((48, 48), np.float32)  # cells of 10 m: blocks of 3 x 3, clusters of 12 x 12
    truth[::2] = 10
    covered = 0
    for number in range(100):
        level = np.kron(generator.normal(1, 2, (16, 16)), np.ones((3, 3))).astype(np.float32)
        totals = array_totals(truth + level, truth, 10.0)
        low, high = confidence_intervals(totals, seed=number, replicates=200).bias_m or (0, 0)
        covered += low <= 1 <= high
    assert 82 <= covered <= 99


def test_intervals_surround_their_figures_and_follow_the_seed() -> None:
    totals = array_totals(*soft_crowns((500, 500)), 1.0)
    intervals, scores = confidence_intervals(totals), totals.scores()
    assert intervals == confidence_intervals(totals)
    assert intervals != confidence_intervals(totals, seed=1)
    assert asdict(intervals).keys() == METRICS
    for name, interval in asdict(intervals).items():
        assert interval is not None
        assert interval[0] < getattr(scores, name) < interval[1]


def test_few_clusters_give_no_interval() -> None:
    assert set(asdict(confidence_intervals(array_totals(*soft_crowns((100, 100)), 1.0))).values()) == {None}
