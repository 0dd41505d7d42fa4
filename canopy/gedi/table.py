"""A validation as tables on the terminal."""

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table

from canopy.evaluation.prediction_intervals import IntervalScores
from canopy.evaluation.residuals import Interval
from canopy.evaluation.table import INTERVAL_COLUMNS
from canopy.gedi.validation import FEWEST_OF_TRACK, ClassScore, ShiftSearch, Validation

METRICS = {"mae_m": "MAE m", "rmse_m": "RMSE m", "bias_m": "bias m", "r2": "R²"}
"""Names of the metrics for a person."""


def print_validation(validation: Validation) -> None:
    """Print metrics and tables to standard output."""
    console = Console(width=110)
    console.print(_head(validation))
    for name in ("by_height", "by_cover", "by_beam", "by_sensitivity", "by_site"):
        if scores := getattr(validation, name):
            console.print(_class_table(name, scores))
    if validation.shift_search:
        console.print(_shift_line(validation.shift_search))


def figures(validation: Validation) -> Iterator[tuple[str, str]]:
    """Yield each metric and its interval as text, empty where there is no interval."""
    for name in METRICS:
        value: float | None = getattr(validation.residuals, name)
        interval: Interval | None = getattr(validation.intervals, name)
        ends = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval and value is not None else ""
        yield "–" if value is None else f"{value:.2f}", ends


def _head(validation: Validation) -> Table:
    title = f"{validation.n:,} shots; 95 % intervals, {validation.blocks} blocks of {validation.block_m:.0f} m"
    table = Table(title=title)
    for name in METRICS.values():
        table.add_column(name, justify="right")
    interval = interval_cells(validation.interval)
    for name in INTERVAL_COLUMNS.values() if interval else ():
        table.add_column(name, justify="right")
    table.add_row(*("\n".join(filter(None, pair)) for pair in figures(validation)), *interval)
    return table


def _class_table(name: str, scores: Mapping[str, ClassScore]) -> Table:
    table = Table(title=name.replace("_", " "))
    with_interval = any(score.interval for score in scores.values())
    for column in (name[3:], "shots", "MAE m", "bias m", *(INTERVAL_COLUMNS.values() if with_interval else ())):
        table.add_column(column, justify="right")
    for label, score in scores.items():
        residuals = f"{score.residuals.mae_m:.2f}", f"{score.residuals.bias_m:+.2f}"
        table.add_row(label, f"{score.n:,}", *residuals, *interval_cells(score.interval))
    return table


def interval_cells(interval: IntervalScores | None) -> tuple[str, ...]:
    """Return the figures of an interval as text; none without an interval."""
    if interval is None:
        return ()
    return tuple(f"{getattr(interval, name):.2f}" for name in INTERVAL_COLUMNS)


def _shift_line(search: ShiftSearch) -> str:
    if search.mae_before_m is None:
        return f"no track has {FEWEST_OF_TRACK} shots or more: no shift was searched"
    return (
        f"shifts of {len(search.tracks)} tracks: MAE {search.mae_before_m:.2f} m to {search.mae_after_m:.2f} m on "
        "shots that did not choose them"
    )
