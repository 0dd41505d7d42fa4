"""`canopy models`: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json
from canopy.cli.terminal import say, show_progress

models = typer.Typer(no_args_is_help=True, help="List, describe, download and convert height models.")


@models.command("list")
def list_(as_json: Json = False) -> None:
    """List bundled and public models: family, size, GSD, licence, and whether they were fetched."""
    from canopy.models.public.registry import list_models

    rows = [asdict(row) for row in list_models()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = [tuple(rows[0]), *(tuple(str(value) for value in row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


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
    name: Annotated[str, typer.Argument(help="Name of a public model.")],
    out: Annotated[Path | None, typer.Option(help="Folder of models (default: where predict looks).")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights.")
    ] = False,
) -> None:
    """Download a public model from its publisher and convert it; after an interruption, run the same command again."""
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
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Convert a publisher's checkpoint, recognised by its keys, or another bundle into a bundle."""
    from canopy.models.public import conversion

    conversion.convert(checkpoint, out, gsd_m=gsd, colour_matching=colour_matching, overwrite=overwrite)
    typer.echo(out)
