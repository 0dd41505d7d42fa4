"""The result as tables on a console."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from canopy.evaluation.comparison import Comparison, Result
from canopy.evaluation.metrics import ClassScores

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = {
    "mae_m": "MAE m",
    "rmse_m": "RMSE m",
    "bias_m": "bias m",
    "r2": "R²",
    "block_r2": "block R²",
    "edge_error": "edge error",
    "skill": "skill",
}
"""Title of each metric of `Scores`."""


def print_table(comparison: Comparison, console: "Console") -> None:
    """Print metrics with their intervals, a prediction a row, and the errors by height class."""
    results = comparison.results
    first = next(iter(results.values()))
    title = f"{first.scores.n_px:,} cells known in all; 95 % intervals, {first.clusters} clusters"
    title += f" of {first.cluster_m:g} m"
    _print(console, title, COLUMNS.values(), _score_rows(results))
    classes = [f"{name} m" for name in first.scores.by_height or {}]
    _print(console, "MAE (bias) by height of the truth, metres", classes, _class_rows(results))


def cell(result: Result, metric: str) -> tuple[str, str]:
    """Return a metric and its interval as text; the interval is empty where there is none."""
    value, interval = getattr(result.scores, metric), getattr(result.intervals, metric)
    if value is None:
        return "–", ""
    return f"{value:.2f}", "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def class_cell(row: ClassScores) -> str:
    """Return mean absolute error and bias of a height class as text."""
    return f"{row.mae_m:.2f} ({row.bias_m:+.2f})" if row.n_px else "–"


def _score_rows(results: dict[str, Result]) -> list[list[str]]:
    return [[path, *("\n".join(cell(result, metric)) for metric in COLUMNS)] for path, result in results.items()]


def _class_rows(results: dict[str, Result]) -> list[list[str]]:
    return [[path, *map(class_cell, (result.scores.by_height or {}).values())] for path, result in results.items()]


def _print(console: "Console", title: str, columns: Iterable[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("prediction", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
