"""Residual metrics equal their definitions, and their intervals those of a bootstrap drawn block by block."""

import numpy as np
import pytest

from canopy.evaluation.bootstrap import draw_blocks
from canopy.evaluation.residuals import residual_intervals, residual_metrics


def heights(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A map that is 2 m too low with noise, and its reference."""
    generator = np.random.default_rng(seed)
    reference_m = generator.gamma(2, 7, count)
    return reference_m - 2 + generator.normal(0, 3, count), reference_m


def test_metrics_equal_their_definitions() -> None:
    map_m, reference_m = heights()
    residual_m = map_m - reference_m
    metrics = residual_metrics(map_m, reference_m)
    assert metrics.mae_m == pytest.approx(np.mean(np.abs(residual_m)))
    assert metrics.rmse_m == pytest.approx(np.sqrt(np.mean(residual_m**2)))
    assert metrics.bias_m == pytest.approx(np.mean(residual_m))
    assert metrics.r2 == pytest.approx(1 - np.var(residual_m) / np.var(reference_m), abs=0.1)
    assert metrics.r2 == pytest.approx(1 - np.sum(residual_m**2) / np.sum((reference_m - reference_m.mean()) ** 2))


@pytest.mark.parametrize("reference_m", [np.full(5, 0.1), np.zeros(5), np.ones(1)])
def test_a_flat_reference_has_no_r2(reference_m: np.ndarray) -> None:
    metrics = residual_metrics(reference_m + 1, reference_m)
    assert (metrics.mae_m, metrics.bias_m, metrics.r2) == (pytest.approx(1), pytest.approx(1), None)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        residual_metrics(np.empty(0), np.empty(0))


def test_intervals_equal_a_bootstrap_drawn_block_by_block() -> None:
    map_m, reference_m = heights()
    block = np.arange(400) // 20
    intervals = residual_intervals(map_m, reference_m, block, replicates=50, seed=3)
    bias_m, r2 = [], []
    for counts in draw_blocks(20, 50, 3):
        members = np.concatenate([np.flatnonzero(block == k) for k in np.repeat(np.arange(20), counts.astype(int))])
        metrics = residual_metrics(map_m[members], reference_m[members])
        bias_m.append(metrics.bias_m)
        r2.append(metrics.r2)
    assert intervals.bias_m == pytest.approx(np.quantile(bias_m, [0.025, 0.975]))
    assert intervals.r2 == pytest.approx(np.quantile(np.array(r2, float), [0.025, 0.975]))
    assert intervals.bias_m is not None
    assert intervals.bias_m[0] < -2.0 + 0.6
    assert intervals.bias_m[1] > -2.0 - 0.6


def test_fewer_than_ten_blocks_have_no_interval() -> None:
    map_m, reference_m = heights(90)
    intervals = residual_intervals(map_m, reference_m, np.arange(90) // 10)
    assert (intervals.mae_m, intervals.rmse_m, intervals.bias_m, intervals.r2) == (None, None, None, None)
