"""The result as a table on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from canopy.evaluation.comparison import Comparison

COLUMNS = {
    "mae_m": "MAE m",
    "rmse_m": "RMSE m",
    "bias_m": "bias m",
    "r2": "R²",
    "block_r2": "block R²",
    "edge_error": "edge error",
    "skill": "skill",
}


def print_table(comparison: Comparison) -> None:
    """Print metrics with their intervals, a prediction a row, and the errors by height class."""
    results = comparison.results
    first = next(iter(results.values()))
    console = Console(width=None if Console().is_terminal else 140)
    title = f"{first['n_px']:,} cells known in all; 95 % intervals, {first['ci_clusters']} clusters"
    console.print(_table(f"{title} of {first['ci_cluster_m']:g} m", COLUMNS.values(), _score_rows(results)))
    classes = [f"{name} m" for name in first["by_height"]]
    console.print(_table("MAE (bias) by height of the truth, metres", classes, _class_rows(results)))


def cell(result: dict[str, Any], name: str) -> tuple[str, str]:
    """A metric and its interval as text; the interval is empty where there is none."""
    value, interval = result[name], result["ci"][name]
    if value is None:
        return "–", ""
    return f"{value:.2f}", "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def class_cell(row: dict[str, Any]) -> str:
    """Mean absolute error and bias of a height class as text."""
    return f"{row['mae_m']:.2f} ({row['bias_m']:+.2f})" if row["n_px"] else "–"


def _score_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[path, *("\n".join(cell(result, name)) for name in COLUMNS)] for path, result in results.items()]


def _class_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[path, *map(class_cell, result["by_height"].values())] for path, result in results.items()]


def _table(title: str, columns: Any, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("prediction", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
