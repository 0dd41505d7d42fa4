"""`canopy gedi read | validate | simulate`."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.terminal import say, show_progress

gedi = typer.Typer(no_args_is_help=True, help="Spaceborne lidar: shots, validation, simulation.")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]


@gedi.command()
def read(
    granules: Annotated[list[Path], typer.Argument(help="L2A and L2B granules, HDF5.")],
    out: Annotated[Path, typer.Option(help="GeoParquet to write.")],
    aoi: Annotated[Path | None, typer.Option(help="Keep shots inside this vector file.")] = None,
    start: Annotated[datetime | None, typer.Option(help="Keep shots from then on, UTC.")] = None,
    end: Annotated[datetime | None, typer.Option(help="Keep shots before, UTC.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of filter rules.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a rule: night=false.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read granules, filter shots and say how many each rule dropped."""
    from dataclasses import asdict

    from canopy.config import load_config, parse_overrides
    from canopy.gedi.filters import ShotFilter
    from canopy.gedi.shots import funnel_lines, read_granules, write_shots
    from tiles.aoi import read_aoi
    from tiles.files import require_new

    require_new(out, overwrite)
    chosen = tuple(set_ or ())
    rules = load_config(config, ShotFilter, chosen) if config else parse_overrides(ShotFilter, chosen)
    with show_progress() as report:
        made = read_granules(granules, rules, aoi=read_aoi(aoi) if aoi else None, start=start, end=end, report=report)
    write_shots(made, out, rules)
    for failure in made.failures:
        say(f"canopy: {failure}")
    if as_json:
        funnel = [asdict(step) for step in made.funnel]
        typer.echo(json.dumps({"path": str(out), "read": made.read, "shots": len(made.shots), "funnel": funnel}))
    else:
        for line in funnel_lines(made):
            say(line)
        typer.echo(out)
    if made.failures:
        raise typer.Exit(1)


@gedi.command()
def validate(
    pred: Annotated[Path, typer.Option(help="Height map.")],
    shots: Annotated[Path, typer.Option(help="Shots of canopy gedi read.")],
    radius: Annotated[float, typer.Option(min=1, help="Of the disc around a shot, metres.")] = 12.0,
    drop_edges: Annotated[bool, typer.Option("--drop-edges", help="Leave out discs with a tree edge.")] = False,
    shift_search: Annotated[bool, typer.Option("--shift-search", help="Look for each track's shift.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with figures.")] = None,
    as_json: Json = False,
) -> None:
    """Score a height map against shots."""
    from canopy.gedi.validation import print_validation, validate_map

    if report is not None:
        from canopy.evaluation.report import require_plots

        require_plots()
    with show_progress() as show:
        made = validate_map(
            pred, shots, radius_m=radius, keep_edges=not drop_edges, shift_search=shift_search, report=show
        )
    if as_json:
        typer.echo(json.dumps(made.result))
    else:
        print_validation(made)
    if report is not None:
        from canopy.gedi.page import write_page

        typer.echo(str(write_page(made, report)), err=as_json)


@gedi.command()
def simulate(
    chm: Annotated[Path, typer.Argument(help="Canopy height model, in a projected CRS in metres.")],
    out: Annotated[Path, typer.Option(help="HDF5 to write, in the layout of L2A V002.")],
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    passes: Annotated[int, typer.Option(min=1, help="Overflights.")] = 4,
    across_m: Annotated[float, typer.Option(min=1, help="Between tracks.")] = 600.0,
    along_m: Annotated[float, typer.Option(min=1, help="Between shots.")] = 60.0,
    error_m: Annotated[float, typer.Option(min=0, help="Geolocation error of a track.")] = 10.0,
    overwrite: Overwrite = False,
) -> None:
    """Take shots over a canopy height model, for tests and to learn what calibration can do."""
    from canopy.gedi import simulation
    from tiles.files import require_new

    require_new(out, overwrite)
    orbit = simulation.Orbit(passes=passes, across_m=across_m, along_m=along_m, track_error_m=error_m)
    say(f"{simulation.simulate(chm, out, orbit, seed):,} shots")
    typer.echo(out)
