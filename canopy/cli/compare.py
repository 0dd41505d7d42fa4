"""`canopy compare A B`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json
from canopy.cli.terminal import say, show_progress, table_console


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Height map.")],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="Height map whose grid and height classes are used: the coarser one.")
    ],
    mask: Annotated[
        Path | None, typer.Option(help="Raster that excludes cells where it is neither 0 nor nodata.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with a map of differences.")] = None,
    image: Annotated[Path | None, typer.Option(help="Imagery to show on that page.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two height maps as they are: dates, agreement by height, overlap of intervals, differences."""
    from canopy.evaluation import map_page
    from canopy.evaluation.map_pairs import compare_maps

    if report is not None:
        from canopy.evaluation.report import require_plots

        require_plots()
    with show_progress() as show:
        compared = compare_maps(first, second, mask=mask, draw=report is not None, report=show)
    for line in compared.remarks():
        say(line)
    if as_json:
        typer.echo(json.dumps(compared.to_json()))
    else:
        map_page.print_comparison(compared, table_console(width=140))
    if report is not None:
        typer.echo(str(map_page.write_page(compared, report, mask, image)), err=as_json)
