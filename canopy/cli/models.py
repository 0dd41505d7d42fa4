"""`canopy models`: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json
from canopy.cli.terminal import say, show_progress

models = typer.Typer(no_args_is_help=True, help="Bundled and public height models.")


@models.command("list")
def list_(as_json: Json = False) -> None:
    """List bundled and public models: family, size, GSD, licence, and whether they are here."""
    from canopy.models.public.registry import list_models

    rows = list_models()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = [tuple(rows[0]), *(tuple(str(value) for value in row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@models.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A public model's name, or any model's name or bundle.")],
    as_json: Json = False,
) -> None:
    """Describe a model: where a public one comes from, or the card of one that is here."""
    import yaml

    from canopy.models.public.registry import describe_model

    text = json.dumps(describe_model(name), indent=2)
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=100).rstrip())


@models.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A public model's name.")],
    out: Annotated[Path | None, typer.Option(help="Folder of models (default: where predict looks).")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights.")
    ] = False,
) -> None:
    """Download a public model from its publisher and convert it; the same command goes on after an interruption."""
    from canopy.models.public import fetching
    from canopy.models.public.registry import Checkpoint, find_checkpoint

    def accept(checkpoint: Checkpoint) -> bool:
        say(f"{checkpoint.name}: licence {checkpoint.licence}, {checkpoint.licence_url}")
        asks = sys.stdin.isatty() and not accept_licence
        return typer.confirm("Do you accept it?", err=True) if asks else accept_licence

    with show_progress() as report:
        bundle = fetching.fetch(find_checkpoint(name), out, accept=accept, report=report)
    typer.echo(bundle)


@models.command("convert")
def convert(
    checkpoint: Annotated[str, typer.Argument(help="Publisher's file, folder with config.json, or a fetched model.")],
    out: Annotated[Path, typer.Option(help="Bundle (.safetensors).")],
    gsd: Annotated[float | None, typer.Option(help="Metres per pixel to feed it at (default: its family's).")] = None,
    colour_matching: Annotated[
        Path | None, typer.Option(help="CHMv1's network for aerial imagery (.ckpt), to be part of the bundle.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Convert a publisher's checkpoint, recognised by its keys, into a bundle; or a bundle into another."""
    from canopy.models.public import conversion

    conversion.convert(checkpoint, out, gsd_m=gsd, colour_matching=colour_matching, overwrite=overwrite)
    typer.echo(out)
