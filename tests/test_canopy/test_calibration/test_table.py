"""The table states each method, why one was ruled out, and what was done about slopes."""

import io
from pathlib import Path

from rich.console import Console

from canopy.calibration.command import Calibrated
from canopy.calibration.curves import IDENTITY
from canopy.calibration.fitting import MethodRow
from canopy.calibration.representation import Representation
from canopy.calibration.shots import Slopes
from canopy.calibration.table import COLUMNS, print_table, row_cells, slope_line

ROWS = (
    MethodRow("identity", 5.1, -4.48, 6, (0, 0, 0), {}, True, 0.7, None, 0.85),
    MethodRow("quantile", 3.26, -0.3, 4, (1.84, 1.5, 2.2), {}, False, 1.0, 0.125, None, "cover"),
)


def result(slopes: Slopes | None) -> Calibrated:
    return Calibrated(Path("c.json"), IDENTITY, ROWS, 1231, 3, 200.0, slopes, Representation(1.0, 1.0, 0.8, (0.0, 0.0)))


def test_a_row_has_a_cell_a_column() -> None:
    assert len(row_cells(ROWS[0])) == len(COLUMNS)
    assert row_cells(ROWS[0])[-4:] == ("0.70", "–", "0.85", "chosen")
    assert row_cells(ROWS[1]) == (
        "quantile", "3.26", "-0.30", "4.00", "+1.84", "+1.50 to +2.20", "1.00", "0.12", "–", "cover",
    )  # fmt: skip


def test_slopes_are_judged_or_said_not_to_be() -> None:
    assert slope_line(result(None)).startswith("slope: not judged")
    line = slope_line(result(Slopes(Path("/data/dem.tif"), 20.0, 12, 3, 0.41)))
    assert "12 shots steeper than 20 degrees and 3 off dem.tif; took 0.41 m off" in line


def test_the_table_says_what_is_proven() -> None:
    output = io.StringIO()
    print_table(result(None), Console(file=output, width=140))
    text = output.getvalue()
    assert "1231 shots, blocks of 200 m held out; proven: agreement with held-out shots" in text
    assert "slope: not judged" in text
