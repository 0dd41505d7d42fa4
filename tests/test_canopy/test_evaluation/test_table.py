"""The table states each metric with its interval, and the errors by height."""

import io
from pathlib import Path

import pytest
from height_maps import METRICS
from rich.console import Console

from canopy.evaluation.metrics import ClassScores
from canopy.evaluation.pairs import Evaluation, evaluate_pairs
from canopy.evaluation.prediction_intervals import IntervalScores
from canopy.evaluation.table import (
    COLUMNS,
    INTERVAL_COLUMNS,
    SITE_COLUMNS,
    cell,
    class_cell,
    interval_class_cell,
    print_table,
    site_cells,
)


@pytest.fixture(scope="module")
def evaluation(pair: tuple[Path, Path]) -> Evaluation:
    return evaluate_pairs([pair[0]], [pair[1]])


def printed(evaluation: Evaluation) -> str:
    output = io.StringIO()
    print_table(evaluation, Console(file=output, width=200))
    return output.getvalue()


def test_there_is_a_column_for_each_metric() -> None:
    assert COLUMNS.keys() == METRICS


def test_the_table_states_metrics_and_classes(evaluation: Evaluation) -> None:
    (result,) = evaluation.results.values()
    text = printed(evaluation)
    assert f"{result.scores.n_px:,} cells known in all" in text
    assert f"{result.scores.skill:.2f}" in text
    assert class_cell((result.scores.by_height or {})["5-10"]) in text
    assert "interval score" not in text


def test_the_table_states_intervals_and_sites(evaluation: Evaluation, interval_pair: tuple[Path, Path]) -> None:
    both = evaluate_pairs([interval_pair[0]] * 2, [interval_pair[1], interval_pair[1].with_name("other.tif")])
    text = printed(both)
    (result,) = both.results.values()
    assert "all sites by site" in text
    assert "The map's own 90 % interval" in text
    assert result.interval is not None
    assert f"{result.interval.scores.coverage:.2f}" in text
    assert len(site_cells(result)) == len(SITE_COLUMNS)
    assert site_cells(evaluation.results[next(iter(evaluation.results))])[-len(INTERVAL_COLUMNS) :] == ("–",) * 3
    assert interval_class_cell(IntervalScores(0, None, None, None)) == "–"


def test_cells_without_a_value_are_dashes(evaluation: Evaluation) -> None:
    (result,) = evaluation.results.values()
    assert cell(result, "mae_m") == (f"{result.scores.mae_m:.2f}", "")
    assert class_cell(ClassScores(0, None, None)) == "–"
    assert class_cell(ClassScores(3, 1.234, -0.5)) == "1.23 (-0.50)"
