"""`canopy derive`: products of height maps, one function for each."""

from pathlib import Path
from typing import Annotated

import typer

derive = typer.Typer(
    no_args_is_help=True, help="Derive stands, trees, gaps, cover and biomass from a height map, with their errors."
)

MapFile = Annotated[Path, typer.Option("--map", help="Height map, of any origin.")]
ErrorM = Annotated[
    float | None,
    typer.Option(
        "--error-m", min=0, help="Standard error of a cell of the map, metres, in place of the intervals of its bands."
    ),
]
