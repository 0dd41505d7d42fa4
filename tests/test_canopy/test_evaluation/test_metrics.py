"""Metrics equal their definitions in plain numpy on whole arrays."""

import numpy as np
import pytest
from height_maps import METRICS, assert_scores, brute_force, soft_crowns

from canopy.evaluation import height_metrics, metrics
from canopy.evaluation.metrics import Scores, Totals, array_totals, class_bounds, class_name


def test_metrics_equal_their_definitions() -> None:
    pred, truth = soft_crowns()
    assert_scores(height_metrics([(pred, truth)], 1.0), brute_force(pred, truth))


def test_classes_equal_their_definitions() -> None:
    pred, truth = soft_crowns()
    table = height_metrics([(pred, truth)], 1.0).by_height
    assert table is not None
    t = np.maximum(truth, 0)
    for (low, high), row in zip(class_bounds(), table.values(), strict=True):
        error = (pred.astype(float) - t)[(t >= low) & (t < high) & np.isfinite(pred)]
        assert row.n_px == error.size
        if error.size:
            assert row.mae_m == pytest.approx(np.abs(error).mean())
            assert row.bias_m == pytest.approx(error.mean(), abs=1e-6)
        else:
            assert (row.mae_m, row.bias_m) == (None, None)
    assert list(table) == ["0-1", "1-5", "5-10", "10-15", "15-20", "20-30", "30+"]


@pytest.mark.parametrize(("bounds", "name"), [((0, 1), "0-1"), ((2.5, 5), "2.5-5"), ((30, np.inf), "30+")])
def test_classes_are_named_by_their_bounds(bounds: tuple[float, float], name: str) -> None:
    assert class_name(*bounds) == name


def test_a_perfect_map_scores_perfectly() -> None:
    truth = np.random.default_rng(0).uniform(0, 40, (64, 64)).astype(np.float32)
    scores = height_metrics([(truth, truth)], resolution_m=1.0)
    assert (scores.mae_m, scores.r2, scores.block_r2, scores.edge_error, scores.skill) == (0, 1, 1, 0, 1)


def test_flat_ground_has_no_r2_and_no_skill() -> None:
    scores = height_metrics([(np.ones((40, 40), np.float32), np.full((40, 40), 0.1, np.float32))], 1.0)
    assert (scores.r2, scores.block_r2, scores.skill, scores.edge_error) == (None, None, None, None)
    assert scores.mae_m == pytest.approx(0.9)


@pytest.mark.parametrize("pairs", [[], [(np.full((4, 4), np.nan, np.float32), np.ones((4, 4), np.float32))]])
def test_nothing_known_is_zero_cells(pairs: list) -> None:
    scores = height_metrics(pairs, 1.0)
    assert scores == Scores()
    assert scores.to_json() == {"n_px": 0}


def test_json_has_the_keys_of_cards_and_reports() -> None:
    document = height_metrics([soft_crowns()], 1.0).to_json()
    assert document.keys() == METRICS | {"n_px", "by_height"}
    assert document["by_height"]["1-5"].keys() == {"n_px", "mae_m", "bias_m"}
    assert set(metrics.METRICS) == METRICS


def test_rasters_pool_as_one_sample() -> None:
    parts = [soft_crowns((60, 60), seed) for seed in (1, 2)]
    scores = height_metrics(parts, 1.0)
    p, t = (np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1))
    error = (p.astype(float) - np.maximum(t, 0))[np.isfinite(p) & np.isfinite(t)]
    assert scores.rmse_m == pytest.approx(np.sqrt((error**2).mean()))
    assert scores == (array_totals(*parts[0], 1.0) + array_totals(*parts[1], 1.0)).scores()


def test_arrays_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        array_totals(np.ones((3, 4), np.float32), np.ones((4, 3), np.float32), 1.0)


def test_the_best_constant_is_the_median_to_a_centimetre() -> None:
    generator = np.random.default_rng(1)
    truth = generator.gamma(2, 6, (50, 50)).astype(np.float32)
    totals: Totals = array_totals(truth, truth, 1.0)
    expected = np.abs(truth - np.median(truth)).sum(dtype=np.float64)
    assert totals.constant_error() == pytest.approx(expected, rel=1e-4)
    ladder = totals.cluster_deviations().sum(axis=0)
    assert ladder.min() >= totals.constant_error() - 1e-6
