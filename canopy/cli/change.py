"""`canopy change A B`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json, Overwrite
from canopy.cli.terminal import say, show_progress

OWN = "own"


def change(
    first: Annotated[Path, typer.Argument(metavar="A", help="Earlier height map.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Later height map.")],
    out: Annotated[Path, typer.Option(help="GeoTIFF to write: -1 loss, 0 no detectable change, 1 gain, else unknown.")],
    dates: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Acquisition of A and of B, such as 2018-07-01 2023; own: what its tags say."),
    ] = None,
    error_m: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Standard error of a cell of A and of B, metres; own: the map's intervals."),
    ] = None,
    min_area: Annotated[float, typer.Option(help="Smallest area of a change, square metres.")] = 15.0,
    tolerance: Annotated[int, typer.Option(help="Cells by which the maps may lie off each other.")] = 1,
    search: Annotated[float, typer.Option(help="Largest shift between the maps to look for, metres; 0: none.")] = 6.0,
    max_growth: Annotated[float, typer.Option(help="Height that no forest gains in a year, metres.")] = 3.0,
    unchanged: Annotated[
        Path | None, typer.Option(help="Polygons of ground that did not change, to count false alarms on.")
    ] = None,
    polygons: Annotated[Path | None, typer.Option(help="Stands of which --stands is written.")] = None,
    stands: Annotated[Path | None, typer.Option(help="Table of the stands' change (.gpkg, .parquet, .csv).")] = None,
    field: Annotated[str | None, typer.Option(help="Field of --polygons that names the stands.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Map loss and gain between two dates, only where the intervals of the heights are apart."""
    from canopy.products.change import ChangeOptions, detect_change

    options = ChangeOptions(min_area, tolerance, search, max_growth)
    days = tuple(None if day == OWN else day for day in dates or (OWN, OWN))
    errors = tuple(_error_m(text) for text in error_m or (OWN, OWN))
    with show_progress() as report:
        summary = detect_change(
            first, second, out, options, dates=(days[0], days[1]), error_m=(errors[0], errors[1]),
            unchanged=unchanged, polygons=polygons, stands=stands, field=field, overwrite=overwrite, report=report,
        )  # fmt: skip
    for line in summary.remarks():
        say(line)
    typer.echo(json.dumps(summary.to_json()) if as_json else str(summary.path))


def _error_m(text: str) -> float | None:
    if text == OWN:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"--error-m {text!r}: a length in metres or {OWN!r} expected") from error
