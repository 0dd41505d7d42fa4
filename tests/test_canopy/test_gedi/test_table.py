"""A validation on the terminal."""

from dataclasses import replace
from pathlib import Path

import pytest

from canopy.evaluation.residuals import ResidualIntervals
from canopy.gedi.table import figures, print_validation
from canopy.gedi.validation import ShiftSearch, TrackShift, Validation, validate_map


@pytest.fixture(scope="module")
def validation(chm: Path, shots: Path) -> Validation:
    return validate_map(chm, shots)


def test_every_class_has_a_row(validation: Validation, capsys: pytest.CaptureFixture[str]) -> None:
    print_validation(validation)
    text = capsys.readouterr().out
    assert f"{validation.n:,} shots" in text
    for label, score in validation.by_beam.items():
        row = next(line for line in text.splitlines() if label in line)
        assert f"{score.n:,}" in row and f"{score.residuals.mae_m:.2f}" in row


def test_figures_have_intervals_where_there_are_some(validation: Validation) -> None:
    assert [interval for _, interval in figures(validation)] == [""] * 4
    wide = replace(validation, intervals=ResidualIntervals((1.0, 2.0), (2.0, 3.0), (-1.0, 1.0), None))
    residuals = replace(validation.residuals, r2=None)
    pairs = list(figures(replace(wide, residuals=residuals)))
    assert pairs[0] == (f"{validation.residuals.mae_m:.2f}", "1.00 to 2.00")
    assert pairs[3] == ("–", "")


@pytest.mark.parametrize(
    ("search", "text"),
    [
        (ShiftSearch({}, None, None), "no track has 20 shots"),
        (ShiftSearch({"1 BEAM0101": TrackShift(8, 0, 30)}, 3.0, 2.5), "shifts of 1 tracks: MAE 3.00 m to 2.50 m"),
    ],
)
def test_a_search_of_shifts_is_one_line(
    validation: Validation, search: ShiftSearch, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_validation(replace(validation, shift_search=search))
    assert text in capsys.readouterr().out
