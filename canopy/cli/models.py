"""`canopy models`: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from canopy.cli.options import Json, Overwrite, parse_numbers
from canopy.cli.terminal import say, show_progress

if TYPE_CHECKING:
    from canopy.models.public.registry import Checkpoint, ModelRow

models = typer.Typer(no_args_is_help=True, help="List, describe, download, convert and calibrate height models.")


@models.command("list")
def list_(as_json: Json = False) -> None:
    """List bundled and public models: family, size, GSD, licence, and whether they were fetched."""
    from canopy.models.public.registry import list_models

    rows = list_models()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    for line in _table(rows):
        typer.echo(line)


def _table(rows: "Sequence[ModelRow]") -> list[str]:
    """Return models in aligned columns, and the notes below them."""
    notes = list(dict.fromkeys((row.accuracy_test, row.accuracy_source) for row in rows if row.accuracy_source))
    table = [("name", "family", "size", "gsd_m", "licence", "state", "accuracy", "s/km2", "source")]
    for row in rows:
        key = (row.accuracy_test, row.accuracy_source)
        accuracy = f"{row.accuracy} [{notes.index(key) + 1}]" if key in notes else row.accuracy
        mark = "~" if row.timed == "estimated" else ""
        seconds = "not timed" if row.seconds_km2 is None else f"{mark}{float(f'{row.seconds_km2:.2g}'):g}"
        facts = (row.name, row.family, row.size, f"{row.gsd_m:g}", row.licence, row.state)
        table.append((*facts, accuracy, seconds, row.source))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in table]
    for number, (test, source) in enumerate(notes, 1):
        lines.append(f"[{number}] {f'tested by the publisher on {test}: ' if test else ''}{source}")
    legend = "s/km2: seconds of a square kilometre on this machine, by the last long map or canopy predict --dry-run"
    return [*lines, f"{legend}; ~ is estimated from the model's arithmetic"]


@models.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a public or bundled model, or path of a bundle.")],
    as_json: Json = False,
) -> None:
    """Describe a model: the source of a public one, or the card of a bundle."""
    import yaml

    from canopy.models.public.registry import describe_model

    text = json.dumps(describe_model(name), indent=2)
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=100).rstrip())


@models.command("fetch")
def fetch(
    name: Annotated[str | None, typer.Argument(help="Name of a public model (default: the recommended one).")] = None,
    imagery: Annotated[
        Literal["aerial", "satellite"], typer.Option(help="Imagery that the recommended model is for.")
    ] = "aerial",
    out: Annotated[Path | None, typer.Option(help="Folder of models (default: where predict looks).")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights.")
    ] = False,
    default: Annotated[
        bool, typer.Option("--default", help="Write the model into your configuration: predict then uses it.")
    ] = False,
) -> None:
    """Download a public model from its publisher and convert it; after an interruption, run the same command again."""
    from canopy.imagery.settings import write_user_model
    from canopy.models.public import fetching
    from canopy.models.public.registry import find_checkpoint

    if default and out is not None:
        raise typer.BadParameter("--default and --out: predict looks in one folder, which CANOPY_MODELS names")
    checkpoint = find_checkpoint(name) if name is not None else _recommended(imagery)
    with show_progress() as report:
        bundle = fetching.fetch(checkpoint, out, accept=_licence_question(accept_licence), report=report)
    if default:
        say(f"model: {checkpoint.name} is written to {write_user_model(checkpoint.name)}: predict uses it from now on")
    elif out is None:
        say(f"map with it: --model {checkpoint.name}; for all maps: canopy models fetch {checkpoint.name} --default")
    typer.echo(bundle)


def _recommended(imagery: Literal["aerial", "satellite"]) -> "Checkpoint":
    """Return the recommended model, and say why it is."""
    from canopy.models.public.recommended import machine_memory_gb, recommend

    choice = recommend(imagery, gpu=imagery == "satellite" and _has_gpu(), memory_gb=machine_memory_gb())
    other = "satellite" if imagery == "aerial" else "aerial"
    say(f"recommended for {imagery} imagery: {choice.checkpoint.name}: {choice.reason}")
    say(f"for {other} imagery: --imagery {other}; where time forbids it: canopy models fetch chmv1-large")
    return choice.checkpoint


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _licence_question(accepted: bool) -> "Callable[[Checkpoint], bool]":
    """Return the question whether a licence is accepted; off a terminal, the flag alone answers it."""

    def accept(checkpoint: "Checkpoint") -> bool:
        say(f"{checkpoint.name}: licence {checkpoint.licence}, {checkpoint.licence_url}")
        asks = sys.stdin.isatty() and not accepted
        return typer.confirm("Do you accept it?", err=True) if asks else accepted

    return accept


@models.command("convert")
def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="Publisher's file or folder with config.json; or a bundle, or a fetched model's name.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write (.safetensors).")],
    gsd: Annotated[
        float | None, typer.Option(help="Metres per pixel of the images to feed it (default: its family's).")
    ] = None,
    colour_matching: Annotated[
        Path | None, typer.Option(help="CHMv1's network for aerial imagery (.ckpt), to become part of the bundle.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="DINOv3's file (.pth), where the checkpoint is the file of CHMv2's head.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Convert a publisher's checkpoint, recognised by its keys, or another bundle into a bundle."""
    from canopy.models.public import conversion

    conversion.convert(
        checkpoint, out, gsd_m=gsd, colour_matching=colour_matching, backbone=backbone, overwrite=overwrite
    )
    typer.echo(out)


@models.command("calibrate")
def calibrate(
    name: Annotated[str, typer.Argument(help="Name of a model, or path of a bundle or checkpoint.")],
    imagery: Annotated[list[str], typer.Option(help="Imagery over the lidar; repeatable: the first valid pixel wins.")],
    truth: Annotated[Path, typer.Option(help="Canopy height model from lidar, metres (canopy chm writes one).")],
    out: Annotated[Path, typer.Option(help="Bundle to write (.safetensors).")],
    device: Annotated[str, typer.Option(help="Device of the model: auto, cpu, cuda or mps.")] = "auto",
    backend: Annotated[str, typer.Option(help="Library that runs the model: see canopy predict --help.")] = "auto",
    bands: Annotated[str | None, typer.Option(help="Numbers of the red, green and blue band, from 1: 3,2,1.")] = None,
    scale: Annotated[str | None, typer.Option(help="Pixel values that mean 0 and 1: 0,2047.")] = None,
    force: Annotated[bool, typer.Option(help="Accept imagery coarser than twice the model's GSD.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a model's 90 % interval on your lidar, into a bundle that maps with --uncertainty."""
    from canopy.prediction.interval_fitting import fit_model_intervals

    with show_progress() as report:
        fitted = fit_model_intervals(
            name, imagery, truth, out, device=device, backend=backend, overwrite=overwrite, report=report, force=force,
            bands=parse_numbers("--bands", bands, int), scale=parse_numbers("--scale", scale, float),
        )  # fmt: skip
    coverage = fitted.coverage
    share = f"{100 * coverage.coverage:.0f} % of {fitted.n_px:,} cells"
    say(f"by offsets fitted on other ground, {share} lie in an interval of {coverage.width_m:.1f} m on average")
    typer.echo(json.dumps({"path": str(out), "coverage": asdict(fitted.coverage)}) if as_json else str(out))
