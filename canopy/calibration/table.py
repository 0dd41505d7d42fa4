"""The methods of a calibration on held-out ground, as a table on a console."""

from typing import TYPE_CHECKING

from canopy.calibration.command import NOT_JUDGED, PROVEN, Calibrated
from canopy.calibration.fitting import MethodRow

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("method", "MAE m", "bias m", "RMSE m", "gain m", "95 %", "spread", "cover error", "coverage", "")


def print_table(calibrated: Calibrated, console: "Console") -> None:
    """Print the methods on held-out ground, the chosen one marked, and what was proven and judged."""
    from rich.table import Table

    title = f"{calibrated.shots} shots, blocks of {calibrated.block_m:.0f} m held out; proven: {PROVEN}"
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("method", "") else "right", no_wrap=bool(column))
    for row in calibrated.table:
        table.add_row(*row_cells(row))
    console.print(table)
    console.print(slope_line(calibrated), markup=False, highlight=False)


def row_cells(row: MethodRow) -> tuple[str, ...]:
    """Return the cells of a method's row as text."""
    gain_m, low_m, high_m = row.gain_m
    return (
        row.name,
        f"{row.mae_m:.2f}",
        f"{row.bias_m:+.2f}",
        f"{row.rmse_m:.2f}",
        f"{gain_m:+.2f}",
        f"{low_m:+.2f} to {high_m:+.2f}",
        *("–" if value is None else f"{value:.2f}" for value in (row.spread, row.cover_error, row.coverage)),
        "chosen" if row.chosen else row.ruled_out,
    )


def slope_line(calibrated: Calibrated) -> str:
    """Return what was done about slopes, in a line."""
    slopes = calibrated.slopes
    if slopes is None:
        return f"slope: {NOT_JUDGED} (--dem); RH98 is too tall on slopes, and a calibration learns that"
    return (
        f"slope: dropped {slopes.steep} shots steeper than {slopes.max_deg:g} degrees and {slopes.unknown} off "
        f"{slopes.dem.name}; took {slopes.taken_off_m:.2f} m off RH98 of the others in the mean"
    )
