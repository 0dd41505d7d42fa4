"""`canopy gedi read | validate | simulate`."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json, Overwrite
from canopy.cli.terminal import say, show_progress

gedi = typer.Typer(no_args_is_help=True, help="Read, simulate and compare with shots of spaceborne lidar (GEDI).")


@gedi.command()
def read(
    granules: Annotated[list[Path], typer.Argument(help="L2A and L2B granules, HDF5.")],
    out: Annotated[Path, typer.Option(help="Output GeoParquet.")],
    aoi: Annotated[Path | None, typer.Option(help="Vector file of the area whose shots are read.")] = None,
    start: Annotated[datetime | None, typer.Option(help="First moment whose shots are read, UTC.")] = None,
    end: Annotated[datetime | None, typer.Option(help="Moment before which shots are read, UTC.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of filter rules.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Rule that overrides the configuration: night=false; repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read granules, filter their shots and list how many each rule drops."""
    from dataclasses import asdict

    from canopy.config import load_config, parse_overrides
    from canopy.gedi.filters import ShotFilter
    from canopy.gedi.shots import funnel_lines, read_granules, write_shots
    from tiles.aoi import read_aoi
    from tiles.files import require_new

    require_new(out, overwrite)
    settings = tuple(set_ or ())
    rules = load_config(config, ShotFilter, settings) if config else parse_overrides(ShotFilter, settings)
    with show_progress() as report:
        area = read_aoi(aoi) if aoi else None
        reading = read_granules(granules, rules, aoi=area, start=start, end=end, report=report)
    write_shots(reading, out, rules)
    for failure in reading.failures:
        say(f"canopy: {failure}")
    if as_json:
        funnel = [asdict(step) for step in reading.funnel]
        result = {"path": str(out), "read": reading.read, "shots": len(reading.shots), "funnel": funnel}
        typer.echo(json.dumps(result))
    else:
        for line in funnel_lines(reading):
            say(line)
        typer.echo(out)
    if reading.failures:
        raise typer.Exit(1)


@gedi.command()
def validate(
    pred: Annotated[Path, typer.Option(help="Height map.")],
    shots: Annotated[Path, typer.Option(help="Shots of canopy gedi read.")],
    radius: Annotated[float, typer.Option(min=1, help="Radius of the disc around a shot, metres.")] = 12.0,
    drop_edges: Annotated[bool, typer.Option("--drop-edges", help="Leave out discs with a tree edge.")] = False,
    shift_search: Annotated[bool, typer.Option("--shift-search", help="Search the shift of each track.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with figures.")] = None,
    as_json: Json = False,
) -> None:
    """Score a height map against shots."""
    from canopy.gedi.table import print_validation
    from canopy.gedi.validation import validate_map

    if report is not None:
        from canopy.evaluation.report import require_plots

        require_plots()
    with show_progress() as show:
        validation = validate_map(
            pred, shots, radius_m=radius, keep_edges=not drop_edges, shift_search=shift_search, report=show
        )
    if as_json:
        typer.echo(json.dumps(validation.to_json()))
    else:
        print_validation(validation)
    if report is not None:
        from canopy.gedi.page import write_page

        typer.echo(str(write_page(validation, report)), err=as_json)


@gedi.command()
def simulate(
    chm: Annotated[Path, typer.Argument(help="Canopy height model, in a projected CRS in metres.")],
    out: Annotated[Path, typer.Option(help="Output HDF5, in the layout of L2A V002.")],
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    passes: Annotated[int, typer.Option(min=1, help="Number of overflights.")] = 4,
    across_m: Annotated[float, typer.Option(min=1, help="Distance between tracks, metres.")] = 600.0,
    along_m: Annotated[float, typer.Option(min=1, help="Distance between shots of a track, metres.")] = 60.0,
    error_m: Annotated[float, typer.Option(min=0, help="Geolocation error of a track, metres.")] = 10.0,
    overwrite: Overwrite = False,
) -> None:
    """Take shots over a canopy height model, for tests and to learn what calibration can do."""
    from canopy.gedi import simulation
    from tiles.files import require_new

    require_new(out, overwrite)
    orbit = simulation.Orbit(passes=passes, across_m=across_m, along_m=along_m, track_error_m=error_m)
    say(f"{simulation.simulate(chm, out, orbit, seed):,} shots")
    typer.echo(out)
