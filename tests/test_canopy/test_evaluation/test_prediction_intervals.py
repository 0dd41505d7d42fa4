"""Coverage, width and interval score equal their definitions, over all cells and by height."""

from pathlib import Path

import numpy as np
import pytest
from height_maps import height_raster, soft_crowns

from canopy.evaluation.comparison import Result, evaluate
from canopy.evaluation.metrics import class_bounds
from canopy.evaluation.prediction_intervals import IntervalScores, height_ranks, score_intervals


def definition(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return coverage, width and interval score, cell by cell."""
    scores = [
        (top - bottom) + (20 * (bottom - t) if t < bottom else 20 * (t - top) if t > top else 0)
        for bottom, top, t in zip(low, high, truth, strict=True)
    ]
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()), float(np.mean(scores))


@pytest.fixture(scope="module")
def result(interval_pair: tuple[Path, Path]) -> Result:
    (scored,) = evaluate([interval_pair[0]], interval_pair[1], window_px=90).results.values()
    return scored


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pred, truth = soft_crowns((400, 500))
    valid = np.isfinite(pred) & np.isfinite(truth)
    p = pred[valid].astype(float)
    return np.maximum(p - 3, 0), p + 4, np.maximum(truth[valid].astype(float), 0)


def test_figures_equal_their_definitions(result: Result, cells: tuple) -> None:
    assert result.interval is not None
    scores = result.interval.scores
    assert scores.n_px == result.scores.n_px == len(cells[0])
    figures = (scores.coverage, scores.width_m, scores.interval_score_m)
    assert figures == pytest.approx(definition(*cells), rel=1e-4)


def test_classes_are_those_of_the_truth(result: Result, cells: tuple) -> None:
    low, high, truth = cells
    assert result.interval is not None
    for (bottom, top), row in zip(class_bounds(), result.interval.by_height.values(), strict=True):
        members = (truth >= bottom) & (truth < top)
        assert row.n_px == members.sum()
        if row.n_px:
            expected = definition(low[members], high[members], truth[members])
            assert (row.coverage, row.width_m, row.interval_score_m) == pytest.approx(expected, rel=1e-4)


def test_confidence_surrounds_the_figures(result: Result) -> None:
    assert result.interval is not None
    for name in ("coverage", "width_m", "interval_score_m"):
        interval, value = getattr(result.interval.confidence, name), getattr(result.interval.scores, name)
        assert interval is not None
        assert interval[0] < value < interval[1]


def test_json_has_the_interval_only_where_the_map_has_one(result: Result, pair: tuple[Path, Path]) -> None:
    document = result.to_json()["interval"]
    assert document["level"] == 0.9
    assert document.keys() == {"level", "n_px", "coverage", "width_m", "interval_score_m", "by_height", "ci"}
    (plain,) = evaluate([pair[0]], pair[1]).results.values()
    assert "interval" not in plain.to_json()


def test_a_finer_map_is_brought_to_the_truths_grid(tmp_path: Path) -> None:
    truth = height_raster(tmp_path / "t.tif", np.full((40, 40), 10, np.float32))
    names = ("canopy_height", "canopy_height_p05", "canopy_height_p95")
    bands = np.stack([np.full((80, 80), height) for height in (9.0, 6.0, 13.0)])
    bands[1, ::2] += 1
    pred = height_raster(tmp_path / "p.tif", bands, resolution=0.5, descriptions=names)
    (scored,) = evaluate([pred], truth).results.values()
    assert scored.interval is not None
    assert scored.interval.scores == IntervalScores(1600, 1.0, pytest.approx(6.5), pytest.approx(6.5))


def test_the_better_of_two_intervals_has_the_smaller_score() -> None:
    truth = np.random.default_rng(0).normal(10, 2, 20_000)
    scores = [
        score_intervals(np.full(20_000, 10 - half), np.full(20_000, 10 + half), truth) for half in (1.5, 3.29, 8.0)
    ]
    assert scores[1].coverage == pytest.approx(0.9, abs=0.01)
    assert scores[1].interval_score_m < min(scores[0].interval_score_m, scores[2].interval_score_m)


def test_nothing_to_score_has_no_figures() -> None:
    assert score_intervals(np.empty(0), np.empty(0), np.empty(0)) == IntervalScores(0, None, None, None)


def test_heights_have_the_class_that_they_lie_in() -> None:
    np.testing.assert_array_equal(height_ranks(np.array([-1.0, 0, 0.99, 1, 29.9, 30, 80])), [0, 0, 0, 1, 5, 6, 6])
