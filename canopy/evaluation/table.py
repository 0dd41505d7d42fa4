"""The result as tables on a console."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from canopy.evaluation.comparison import Result
from canopy.evaluation.metrics import ClassScores
from canopy.evaluation.pairs import Evaluation
from canopy.evaluation.prediction_intervals import IntervalResult, IntervalScores
from canopy.evaluation.residuals import Interval

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


INTERVAL_COLUMNS = {"coverage": "coverage", "width_m": "width m", "interval_score_m": "interval score m"}
"""Title of each figure of `IntervalScores`."""
SITE_COLUMNS = ("cells", "MAE m", "bias m", "R²", "skill", *INTERVAL_COLUMNS.values())


def print_table(evaluation: Evaluation, console: "Console") -> None:
    """Print metrics with their intervals, a prediction a row, errors by height class, map intervals and sites."""
    results = evaluation.results
    first = next(iter(results.values()))
    title = f"{first.scores.n_px:,} cells known in all; 95 % intervals, {first.clusters} clusters"
    title += f" of {first.cluster_m:g} m"
    _print(console, title, COLUMNS.values(), _score_rows(results))
    classes = [f"{name} m" for name in first.scores.by_height or {}]
    _print(console, "MAE (bias) by height of the truth, metres", classes, _class_rows(results))
    intervals = {path: result.interval for path, result in results.items() if result.interval is not None}
    if intervals:
        rows = [
            [path, *("\n".join(interval_cell(each, name)) for name in INTERVAL_COLUMNS)]
            for path, each in intervals.items()
        ]
        _print(console, "The map's own 90 % interval", INTERVAL_COLUMNS.values(), rows)
        rows = [[path, *map(interval_class_cell, each.by_height.values())] for path, each in intervals.items()]
        _print(console, "Its coverage by height of the truth", classes, rows)
    for path, result in results.items():
        if result.sites:
            rows = [[name, *site_cells(site)] for name, site in result.sites.items()]
            _print(console, f"{path} by site", SITE_COLUMNS, rows, first="site")


def cell(result: Result, metric: str) -> tuple[str, str]:
    """Return a metric and its interval as text; the interval is empty where there is none."""
    return _with_interval(getattr(result.scores, metric), getattr(result.intervals, metric, None))


def interval_cell(interval: IntervalResult, name: str) -> tuple[str, str]:
    """Return a figure of a map's interval and its confidence as text."""
    return _with_interval(getattr(interval.scores, name), getattr(interval.confidence, name))


def interval_class_cell(row: IntervalScores) -> str:
    """Return the coverage of a height class as text."""
    return "–" if row.coverage is None else f"{row.coverage:.2f}"


def site_cells(site: Result) -> tuple[str, ...]:
    """Return the figures of a site as text, in the order of SITE_COLUMNS."""
    scores = site.scores
    interval = site.interval.scores if site.interval is not None else None
    values = [scores.mae_m, scores.bias_m, scores.r2, scores.skill]
    values += [None if interval is None else getattr(interval, name) for name in INTERVAL_COLUMNS]
    return (f"{scores.n_px:,}", *(_with_interval(value, None)[0] for value in values))


def _with_interval(value: float | None, interval: Interval | None) -> tuple[str, str]:
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


def _print(
    console: "Console", title: str, columns: Iterable[str], rows: list[list[str]], first: str = "prediction"
) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
