"""The table states each metric with its interval, and the errors by height."""

import io
from pathlib import Path

import pytest
from height_maps import METRICS
from rich.console import Console

from canopy.evaluation.comparison import Comparison, evaluate
from canopy.evaluation.metrics import ClassScores
from canopy.evaluation.table import COLUMNS, cell, class_cell, print_table


@pytest.fixture(scope="module")
def comparison(pair: tuple[Path, Path]) -> Comparison:
    return evaluate([pair[0]], pair[1])


def test_there_is_a_column_for_each_metric() -> None:
    assert COLUMNS.keys() == METRICS


def test_the_table_states_metrics_and_classes(comparison: Comparison) -> None:
    (result,) = comparison.results.values()
    output = io.StringIO()
    print_table(comparison, Console(file=output, width=200))
    text = output.getvalue()
    assert f"{result.scores.n_px:,} cells known in all" in text
    assert f"{result.scores.skill:.2f}" in text
    assert class_cell((result.scores.by_height or {})["5-10"]) in text


def test_cells_without_a_value_are_dashes(comparison: Comparison) -> None:
    (result,) = comparison.results.values()
    assert cell(result, "mae_m") == (f"{result.scores.mae_m:.2f}", "")
    assert class_cell(ClassScores(0, None, None)) == "–"
    assert class_cell(ClassScores(3, 1.234, -0.5)) == "1.23 (-0.50)"
