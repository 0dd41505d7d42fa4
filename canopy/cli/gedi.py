"""`canopy gedi read | validate | simulate`."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canopy.cli.options import AreaLayer, Json, Overwrite
from canopy.cli.terminal import say, show_progress

if TYPE_CHECKING:
    from canopy.gedi.shots import Reading

gedi = typer.Typer(no_args_is_help=True, help="Read, simulate and compare with shots of spaceborne lidar (GEDI).")


@gedi.command()
def read(
    granules: Annotated[list[Path], typer.Argument(help="L2A and L2B granules, HDF5, or patterns of their names.")],
    out: Annotated[Path, typer.Option(help="Output: GeoParquet (.parquet) or GeoPackage (.gpkg).")],
    aoi: Annotated[
        str | None, typer.Option(help="Area whose shots are read: vector file, or west,south,east,north in degrees.")
    ] = None,
    layer: AreaLayer = None,
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
    from canopy.config import load_config, parse_overrides
    from canopy.gedi.filters import ShotFilter
    from canopy.gedi.shots import read_granules
    from canopy.gedi.storage import require_shots_format, write_shots
    from tiles.aoi import read_aoi
    from tiles.files import require_new

    require_shots_format(out)
    require_new(out, overwrite, [*granules, *(path for path in (aoi, config) if path)])
    settings = tuple(set_ or ())
    rules = load_config(config, ShotFilter, settings) if config else parse_overrides(ShotFilter, settings)
    with show_progress() as report:
        area = read_aoi(aoi, layer) if aoi else None
        reading = read_granules(granules, rules, aoi=area, start=start, end=end, report=report)
    if len(reading.shots):
        write_shots(reading, out, rules)
    _print_reading(reading, out, as_json)
    if reading.failures or not len(reading.shots):
        raise typer.Exit(1)


def _print_reading(reading: "Reading", out: Path, as_json: bool) -> None:
    """Print what was read, and the path of the shots if any are left."""
    from dataclasses import asdict

    from canopy.gedi.shots import funnel_lines

    path = str(out) if len(reading.shots) else None
    for failure in reading.failures:
        say(f"canopy: {failure}")
    if as_json:
        funnel = [asdict(step) for step in reading.funnel]
        typer.echo(json.dumps({"path": path, "read": reading.read, "shots": len(reading.shots), "funnel": funnel}))
    else:
        for line in funnel_lines(reading):
            say(line)
    if path is None:
        say(f"canopy: none of {reading.read:,} shots is left, so nothing was written: relax a rule or the area")
    elif not as_json:
        typer.echo(path)


@gedi.command()
def validate(
    pred: Annotated[list[Path], typer.Option(help="Height map; repeatable: each is a site, with shots of its own.")],
    shots: Annotated[list[Path], typer.Option(help="Shots of canopy gedi read; repeatable: one a map.")],
    radius: Annotated[float, typer.Option(min=1, help="Radius of the disc around a shot, metres.")] = 12.0,
    drop_edges: Annotated[bool, typer.Option("--drop-edges", help="Leave out discs with a tree edge.")] = False,
    shift_search: Annotated[bool, typer.Option("--shift-search", help="Search the shift of each track.")] = False,
    sites: Annotated[Path | None, typer.Option(help="Polygons of sites to score one by one, with --by.")] = None,
    by: Annotated[str | None, typer.Option(help="Field of --sites that names the site.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with figures.")] = None,
    as_json: Json = False,
) -> None:
    """Score height maps, and their intervals, against shots."""
    from canopy.gedi.table import print_validation
    from canopy.gedi.validation import validate_map

    if report is not None:
        from canopy.evaluation.report import require_plots

        require_plots()
    with show_progress() as show:
        validation = validate_map(
            pred,
            shots,
            radius_m=radius,
            keep_edges=not drop_edges,
            shift_search=shift_search,
            sites=sites,
            by=by,
            report=show,
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
    dem: Annotated[Path | None, typer.Option(help="Terrain on the grid of the CHM (default: flat ground).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Take shots over a canopy height model, for tests and to learn what calibration can do."""
    from canopy.gedi import simulation
    from tiles.files import require_new

    require_new(out, overwrite, [chm, *filter(None, (dem,))])
    orbit = simulation.Orbit(passes=passes, across_m=across_m, along_m=along_m, track_error_m=error_m)
    say(f"{simulation.simulate(chm, out, orbit, seed, dem):,} shots")
    typer.echo(out)
