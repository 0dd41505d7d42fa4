"""Command line: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import logging
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from canopy.cli.gedi import gedi
from canopy.cli.models import models
from canopy.cli.terminal import LogHandler, say, show_progress
from canopy.errors import CanopyError, one_line
from canopy.version import __version__

app = typer.Typer(no_args_is_help=True)
dataset = typer.Typer(no_args_is_help=True, help="Training chips from imagery and lidar.")
app.add_typer(dataset, name="dataset")
app.add_typer(gedi, name="gedi")
app.add_typer(models, name="models")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Canopy height maps at sub-metre resolution from RGB imagery."""


@app.command()
def predict(
    aoi: Annotated[Path, typer.Option(help="Area of interest: any vector file GDAL reads.")],
    imagery: Annotated[
        list[str] | None, typer.Option(help="Raster, folder or glob; repeat it, the first valid pixel wins.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name (canopy models list), bundle or checkpoint.")] = "canopy-small",
    out: Annotated[Path | None, typer.Option(help="Output GeoTIFF (default: <aoi>_canopy_height.tif).")] = None,
    crs: Annotated[str, typer.Option(help="auto (the AOI's UTM zone) or any CRS.")] = "auto",
    resolution: Annotated[
        float | None, typer.Option(help="Cell size in units of the CRS (default: the model's GSD).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, eager, compile, openvino or bf16.")] = "auto",
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Add the 5th and 95th percentile.")] = False,
    calibration: Annotated[Path | None, typer.Option(help="Calibration (JSON of canopy calibrate).")] = None,
    bands: Annotated[str | None, typer.Option(help="Red, green, blue bands, from 1: 3,2,1.")] = None,
    scale: Annotated[str | None, typer.Option(help="Values that mean 0 and 1: 0,2047.")] = None,
    imagery_datetime: Annotated[str | None, typer.Option(help="Acquisition date, or start/end.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output and drop work of another plan.")] = False,
    force: Annotated[bool, typer.Option(help="Map imagery coarser than twice the model's GSD.")] = False,
    as_json: Json = False,
) -> None:
    """Map canopy height over an area."""
    from canopy import prediction

    with show_progress() as report:
        made = prediction.predict(
            aoi, imagery, model, out, crs=crs,
            resolution=resolution, device=device, backend=backend, uncertainty=uncertainty, calibration=calibration,
            bands=_numbers("--bands", bands, int),
            scale=_numbers("--scale", scale, float), imagery_datetime=imagery_datetime, overwrite=overwrite,
            force=force, report=report,
        )  # fmt: skip
    result = {
        "path": str(made.path),
        "model": made.model,
        "imagery": made.imagery,
        "acquisition": made.acquisition,
    }
    typer.echo(json.dumps(result) if as_json else str(made.path))


@app.command()
def chm(
    clouds: Annotated[list[Path], typer.Argument(help="LAS, LAZ or COPC files in one CRS.")],
    out: Annotated[Path, typer.Option(help="Output GeoTIFF.")],
    resolution: Annotated[float, typer.Option(help="Cell size, metres.")] = 1.0,
    crs: Annotated[str | None, typer.Option(help="CRS of clouds that carry none, and of the output.")] = None,
    ground: Annotated[str, typer.Option(help="auto, classified or smrf.")] = "auto",
    ground_out: Annotated[Path | None, typer.Option(help="Also write the terrain model.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="Also write <out>_quality.tif.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace existing outputs.")] = False,
    as_json: Json = False,
) -> None:
    """Make a canopy height model of airborne lidar."""
    from dataclasses import asdict

    from canopy.lidar import build_chm

    with show_progress() as report:
        made = build_chm(
            clouds, out, resolution_m=resolution, crs=crs, ground=ground, ground_out=ground_out, quality=quality,
            overwrite=overwrite, report=report,
        )  # fmt: skip
    typer.echo(json.dumps(asdict(made), default=str) if as_json else str(made.path))


@app.command()
def validate(paths: Annotated[list[Path], typer.Argument(help="Height maps.")]) -> None:
    """Read every block of height maps and check layout, tags and checksum."""
    from tiles.cog import validate as check

    faults = {path: check(path) for path in paths}
    for path, problems in faults.items():
        for problem in problems:
            say(f"{path}: {problem}")
        if not problems:
            typer.echo(f"{path}: valid")
    if any(faults.values()):
        raise typer.Exit(1)


@app.command()
def info(
    target: Annotated[str, typer.Argument(help="Bundle, bundled model's name, height map or imagery.")],
    as_json: Json = False,
) -> None:
    """Describe a model bundle, a height map or imagery."""
    import yaml

    from canopy.cli.description import describe

    text = json.dumps(describe(target), indent=2)
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=100).rstrip())


@app.command()
def evaluate(
    pred: Annotated[list[Path], typer.Option(help="Height map; repeat it to compare several.")],
    truth: Annotated[Path, typer.Option(help="Canopy height model to score against.")],
    mask: Annotated[Path | None, typer.Option(help="Raster, nonzero where nothing is scored.")] = None,
    truth_unit: Annotated[str | None, typer.Option(help="Unit of the truth: m, cm or ft (default: its own).")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a page with figures.")] = None,
    image: Annotated[Path | None, typer.Option(help="Imagery to show in the report.")] = None,
    as_json: Json = False,
) -> None:
    """Score height maps against a lidar canopy height model."""
    from canopy.evaluation import comparison
    from canopy.evaluation.table import print_table

    if report is not None:
        from canopy.evaluation.report import require_plots, write_report

        require_plots()
    with show_progress() as show:
        made = comparison.evaluate(
            pred, truth, mask=mask, truth_unit=truth_unit, draw=report is not None, report=show
        )  # fmt: skip
    page = write_report(made, report, truth=truth, mask=mask, image=image) if report is not None else None
    if as_json:
        typer.echo(json.dumps(made.results if len(pred) > 1 else made.results[str(pred[0])]))
    else:
        print_table(made)
    if page is not None:
        typer.echo(str(page), err=as_json)


@app.command()
def calibrate(
    pred: Annotated[Path, typer.Option(help="Height map.")],
    out: Annotated[Path, typer.Option(help="Calibration to write (JSON); with --apply, the calibrated map.")],
    shots: Annotated[Path | None, typer.Option(help="Shots of canopy gedi read.")] = None,
    apply: Annotated[Path | None, typer.Option(help="Apply this calibration to the map instead of fitting.")] = None,
    block_m: Annotated[float | None, typer.Option(min=1, help="Side of the blocks held out together.")] = None,
    imagery: Annotated[list[str] | None, typer.Option(help="Also try a gain foretold from its features.")] = None,
    model: Annotated[str | None, typer.Option(help="The map's model, for --imagery.")] = None,
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

        assert shots is not None
        made = command.calibrate(
            pred, shots, out, block_m=block_m, imagery=imagery, model=model, overwrite=overwrite, report=report
        )
    if not as_json:
        command.print_table(made)
    typer.echo(made.calibration.model_dump_json() if as_json else str(made.path))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<config stem>).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a height model from pairs of image and lidar."""
    from canopy.config import load_config
    from canopy.training.config import TrainConfig
    from canopy.training.decoder import train as run

    settings = load_config(config, TrainConfig, tuple(set_ or ()))
    with show_progress() as report:
        bundle = run(settings, out or Path("runs") / config.stem, resume=resume, report=report)
    typer.echo(bundle)


@dataset.command()
def build(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the store (default: datasets/<config stem>).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that read scenes.")] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace a store of another configuration.")] = False,
) -> None:
    """Build a chip store; the same command goes on after an interruption."""
    from canopy.config import load_config
    from canopy.dataset import build as chips
    from canopy.dataset.config import DatasetConfig

    settings = load_config(config, DatasetConfig, tuple(set_ or ()))
    with show_progress() as report:
        made = chips.build(
            settings, out or Path("datasets") / config.stem, jobs=jobs, overwrite=overwrite, report=report
        )
    for scene in made.damaged:
        say(f"canopy: dropped {scene}")
    say(f"{made.kept} chips kept, {made.dropped} dropped: canopy dataset info {made.folder}")
    typer.echo(made.folder)
    if made.damaged:
        raise typer.Exit(1)


@dataset.command("info")
def dataset_info(
    folder: Annotated[Path, typer.Argument(help="Chip store.")],
    as_json: Json = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw chips of every source into this PNG.")] = None,
) -> None:
    """Describe a chip store: counts, area, heights, splits, licences, what was dropped and why."""
    import yaml

    from canopy.dataset.report import contact_sheet, describe_dataset

    text = json.dumps(describe_dataset(folder), indent=2)
    if sheet:
        contact_sheet(folder, sheet)
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=160).rstrip())


def mount(onto: typer.Typer) -> None:
    """Add the commands that other packages offer in the entry-point group `canopy.commands`."""
    for offered in sorted(entry_points(group="canopy.commands"), key=lambda point: point.name):
        onto.command(offered.name)(offered.load())


def main() -> None:
    """Entry point: a CanopyError is one line and exit 1, an interrupt is exit 130."""
    logging.basicConfig(format="%(message)s", handlers=[LogHandler()], force=True)
    for package in ("canopy", "pretrain"):
        logging.getLogger(package).setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        mount(app)
        app()
    except CanopyError as error:
        say(f"canopy: {one_line(error)}")
        sys.exit(1)
    except _InterruptedError:
        say("canopy: interrupted; the same command goes on from here")
        sys.exit(130)


class _InterruptedError(BaseException):
    """Ctrl-C or SIGTERM; not a KeyboardInterrupt, which the command parser would turn into exit 1."""


def _interrupt(number: int, frame: object) -> None:
    raise _InterruptedError


def _numbers(flag: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{flag} {text!r}: numbers with commas between them expected") from error
