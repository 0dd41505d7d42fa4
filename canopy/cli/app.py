"""Command line: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import logging
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from canopy.cli.batch import batch
from canopy.cli.change import change
from canopy.cli.compare import compare
from canopy.cli.derive import derive
from canopy.cli.derive_trees import score, trees
from canopy.cli.doctor import doctor
from canopy.cli.evaluate import evaluate
from canopy.cli.example import example
from canopy.cli.fetch import fetch
from canopy.cli.gedi import gedi
from canopy.cli.models import models
from canopy.cli.options import ConfigFile, DryRun, Json, Resume, RunFolder, Settings, parse_nodata, parse_numbers
from canopy.cli.panels import arrange
from canopy.cli.predict import Bands, HaveRight, Nodata, Scale, predict
from canopy.cli.runs import train_or_price
from canopy.cli.signals import EXIT_CODE, MESSAGE, InterruptedWorkError, interrupt_on_signal
from canopy.cli.terminal import LogHandler, drop_undecodable_messages, say, show_progress, table_console
from canopy.errors import CanopyError, one_line
from canopy.version import __version__

app = typer.Typer(no_args_is_help=True)
dataset = typer.Typer(no_args_is_help=True, help="Build and describe training chips from imagery and lidar.")
app.add_typer(dataset, name="dataset")
app.add_typer(batch, name="batch")
app.add_typer(derive, name="derive")
derive.command()(trees)
derive.command()(score)
app.add_typer(gedi, name="gedi")
app.add_typer(fetch, name="fetch")
app.add_typer(models, name="models")
app.command()(change)
app.command()(compare)
app.command()(doctor)
app.command()(example)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Map canopy height at sub-metre resolution from RGB imagery."""


app.command()(predict)


@app.command()
def chm(
    clouds: Annotated[list[Path], typer.Argument(help="LAS, LAZ or COPC files in one CRS.")],
    out: Annotated[Path, typer.Option(help="Output GeoTIFF.")],
    resolution: Annotated[float, typer.Option(help="Cell size, metres.")] = 1.0,
    crs: Annotated[
        str | None, typer.Option(help="CRS of the output, and of clouds that record none, or none that can be right.")
    ] = None,
    cloud_crs: Annotated[str | None, typer.Option(help="CRS of the clouds, whatever they record.")] = None,
    z_unit: Annotated[
        str | None, typer.Option(help="Unit of elevation, whatever the clouds record: m, ft or us-ft.")
    ] = None,
    ground: Annotated[str, typer.Option(help="Source of the ground: auto, classified or smrf.")] = "auto",
    ground_out: Annotated[Path | None, typer.Option(help="Terrain model to write as well.")] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Write return density and distance to ground to <out>_quality.tif.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace existing outputs.")] = False,
    as_json: Json = False,
) -> None:
    """Compute a canopy height model from airborne lidar."""
    from canopy.lidar import build_chm

    with show_progress() as report:
        summary = build_chm(
            clouds, out, resolution_m=resolution, crs=crs, cloud_crs=cloud_crs, z_unit=z_unit, ground=ground,
            ground_out=ground_out, quality=quality, overwrite=overwrite, report=report,
        )  # fmt: skip
    typer.echo(json.dumps(summary.to_json()) if as_json else str(summary.path))


@app.command()
def validate(paths: Annotated[list[Path], typer.Argument(help="Height maps.")]) -> None:
    """Read every block of height maps and check layout, tags and checksum."""
    from tiles.validation import validate as check

    problems = {path: check(path) for path in paths}
    for path, lines in problems.items():
        for line in lines:
            say(f"{path}: {line}")
        if not lines:
            typer.echo(f"{path}: valid")
    if any(problems.values()):
        raise typer.Exit(1)


@app.command()
def info(
    target: Annotated[str, typer.Argument(help="Bundle, name of a bundled model, height map or imagery.")],
    as_json: Json = False,
) -> None:
    """Describe a model bundle, a height map or imagery."""
    from canopy.cli.description import describe

    _print_document(describe(target), as_json, width=100)


app.command()(evaluate)


@app.command()
def calibrate(
    pred: Annotated[Path, typer.Option(help="Height map to calibrate.")],
    out: Annotated[Path, typer.Option(help="Calibration to write (JSON); with --apply, the calibrated map.")],
    shots: Annotated[Path | None, typer.Option(help="Shots of canopy gedi read (GeoParquet).")] = None,
    apply: Annotated[Path | None, typer.Option(help="Calibration to apply to the map, instead of a fit.")] = None,
    block_m: Annotated[
        float | None, typer.Option(min=1, help="Side of the blocks that are held out together, metres.")
    ] = None,
    dem: Annotated[Path | None, typer.Option(help="Terrain model, from which the slope under shots is judged.")] = None,
    max_slope: Annotated[
        float, typer.Option(min=0, max=90, help="Steepest ground of which shots are used, degrees (with --dem).")
    ] = 20.0,
    imagery: Annotated[
        list[str] | None, typer.Option(help="Imagery whose features may predict a gain, which is then tried as well.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the map, for --imagery.")] = None,
    bands: Bands = None,
    scale: Scale = None,
    nodata: Nodata = None,
    have_right: HaveRight = False,
    force: Annotated[bool, typer.Option("--force", help="Accept shots that do not represent the map.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a calibration of a height map to lidar shots, or apply one."""
    if (shots is None) == (apply is None):
        raise typer.BadParameter("give --shots to fit a calibration, or --apply to use one")
    with show_progress() as report:
        if apply is not None:
            from canopy.calibration import calibrate_map, read_calibration

            typer.echo(calibrate_map(pred, read_calibration(apply), out, overwrite=overwrite, report=report))
            return
        from canopy.calibration import command
        from canopy.calibration.table import print_table

        assert shots is not None
        fitted = command.calibrate(
            pred, shots, out, block_m=block_m, dem=dem, max_slope_deg=max_slope, imagery=imagery, model=model,
            bands=parse_numbers("--bands", bands, int), scale=parse_numbers("--scale", scale, float),
            nodata=parse_nodata(nodata), have_right=have_right, force=force, overwrite=overwrite, report=report,
        )  # fmt: skip
    if not as_json:
        print_table(fitted, table_console(width=140, stderr=True))
    typer.echo(fitted.calibration.model_dump_json() if as_json else str(fitted.path))


@app.command()
def train(
    config: ConfigFile,
    out: RunFolder = None,
    set_: Settings = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a height model from pairs of imagery and lidar heights."""
    from canopy.config import load_config
    from canopy.training.config import TrainConfig
    from canopy.training.decoder import price
    from canopy.training.decoder import train as run

    settings, folder = load_config(config, TrainConfig, tuple(set_ or ())), out or Path("runs") / config.stem
    train_or_price(run, price, settings, folder, resume=resume, dry_run=dry_run)


@dataset.command()
def build(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option(help="Folder of the store (default: datasets/<config stem>).")] = None,
    set_: Settings = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that read scenes.")] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace a store of another configuration.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Build a chip store; the same command continues an interrupted build."""
    from canopy.config import load_config
    from canopy.dataset import build as chips
    from canopy.dataset.config import DatasetConfig

    settings, folder = load_config(config, DatasetConfig, tuple(set_ or ())), out or Path("datasets") / config.stem
    if dry_run:
        typer.echo(chips.price(settings, folder, jobs=jobs))
        return
    with show_progress() as report:
        summary = chips.build(settings, folder, jobs=jobs, overwrite=overwrite, report=report)
    for scene in summary.damaged:
        say(f"canopy: dropped {scene}")
    say(f"{summary.chips} chips kept, {summary.dropped} dropped: canopy dataset info {summary.folder}")
    typer.echo(summary.folder)
    if summary.damaged:
        raise typer.Exit(1)


@dataset.command("info")
def dataset_info(
    folder: Annotated[Path, typer.Argument(help="Chip store.")],
    as_json: Json = False,
    sheet: Annotated[Path | None, typer.Option(help="Picture (PNG) to write, of chips from every source.")] = None,
) -> None:
    """Describe a chip store: counts, area, heights, splits, licences, dropped chips and the reasons."""
    from canopy.dataset.report import contact_sheet, describe_dataset

    description = describe_dataset(folder).to_json()
    if sheet:
        contact_sheet(folder, sheet)
    _print_document(description, as_json, width=160)


@cache
def mount(target: typer.Typer) -> None:
    """Add the commands that other packages offer in the entry-point group `canopy.commands`, once."""
    for point in sorted(entry_points(group="canopy.commands"), key=lambda point: point.name):
        target.command(point.name)(point.load())
    arrange(target)


def main() -> None:
    """Run the command line: a `CanopyError` is one line and exit status 1, an interruption is exit status 130."""
    logging.basicConfig(format="%(message)s", handlers=[LogHandler()], force=True)
    for package in ("canopy", "pretrain"):
        logging.getLogger(package).setLevel(logging.INFO)
    interrupt_on_signal()
    drop_undecodable_messages()
    try:
        mount(app)
        app()
    except CanopyError as error:
        say(f"canopy: {one_line(error)}")
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # not about a file that someone named
            raise
        say(f"canopy: {str(error.filename)[:200]}: {error.strerror}")
        sys.exit(1)
    except InterruptedWorkError:
        say(MESSAGE)
        sys.exit(EXIT_CODE)


def _print_document(document: dict[str, Any], as_json: bool, width: int) -> None:
    """Print a description as JSON, or as YAML with lines of at most `width` characters."""
    import yaml

    text = json.dumps(document, indent=2)
    # Through JSON, so that YAML too gets nothing but plain values.
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=width).rstrip())
