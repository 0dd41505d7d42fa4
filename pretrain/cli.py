"""Commands of the self-supervised stage; `canopy` finds them through the entry points `canopy.commands`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import ConfigFile, DryRun, Json, Resume, RunFolder, Settings
from canopy.cli.runs import train_or_price
from canopy.cli.terminal import say, show_progress
from canopy.errors import ConfigError
from canopy.http import redacted


def pretrain(
    config: ConfigFile,
    out: RunFolder = None,
    set_: Settings = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Pretrain an encoder on unlabelled imagery."""
    from canopy.config import load_config
    from pretrain.config import PretrainConfig
    from pretrain.training import pretrain as run
    from pretrain.training import price

    settings, folder = load_config(config, PretrainConfig, tuple(set_ or ())), out or Path("runs") / config.stem
    train_or_price(run, price, settings, folder, resume=resume, dry_run=dry_run)


def distill(
    config: ConfigFile,
    out: RunFolder = None,
    set_: Settings = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Distil a small encoder from the run of a large one."""
    from canopy.config import load_config
    from pretrain.config import DistillConfig
    from pretrain.distill import distill as run
    from pretrain.distill import price

    settings, folder = load_config(config, DistillConfig, tuple(set_ or ())), out or Path("runs") / config.stem
    train_or_price(run, price, settings, folder, resume=resume, dry_run=dry_run)


def curate(config: ConfigFile, out: RunFolder = None, set_: Settings = None) -> None:
    """Choose a balanced share of a large pool of tiles."""
    from canopy.config import load_config
    from pretrain.config import CurateConfig
    from pretrain.curate import curate as run

    settings = load_config(config, CurateConfig, tuple(set_ or ()))
    typer.echo(run(settings, out or Path("runs") / config.stem))


def pack(
    config: ConfigFile,
    out: Annotated[str, typer.Option(help="Folder of the shards, or s3://bucket/folder, gs://, az://.")],
    set_: Settings = None,
    tiles_a_shard: Annotated[int, typer.Option(min=1, help="Tiles of a shard.")] = 512,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Quality of lossy WebP (default: without loss).")
    ] = None,
) -> None:
    """Pack the tiles of a pretraining configuration into shards that many machines read."""
    from canopy.config import load_config
    from pretrain.config import PretrainConfig
    from pretrain.pack import pack as run

    settings = load_config(config, PretrainConfig, tuple(set_ or ()))
    with show_progress() as report:
        count = run(settings.tiles, out, shard_tiles=tiles_a_shard, quality=quality, report=report)
    other = "tiles.store=null" if settings.tiles.store else "tiles.sources=[]"
    say(f"{count:,} tiles: canopy pretrain {config} --set {other} --set tiles.shards={redacted(out)}")
    typer.echo(redacted(out))


def probe(
    encoder: Annotated[
        Path, typer.Argument(help="Bundle of an encoder or a height model, a bundled one's name, or timm:NAME.")
    ],
    pairs: Annotated[
        Path | None, typer.Option(help="Folder of scenes, each a folder with rgb.tif and chm_cm.tif.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to write: patch features as colours.")] = None,
    scene: Annotated[
        Path | None, typer.Option(help="Image of the picture (default: the middle of the largest scene).")
    ] = None,
    match: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two images; the picture joins their patches that are each other's nearest."),
    ] = None,
    enlarge: Annotated[int, typer.Option(help="Factor by which encoders see images enlarged: 1, 2 or 4.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the untrained encoder, the folds and the bootstrap.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(help="Network that the encoder learnt from: a name of timm's, or a bundle."),
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option(help="File of the teacher's weights.")] = None,
    record: Annotated[bool, typer.Option(help="Store the result in the bundle's card.")] = False,
    as_json: Json = False,
) -> None:
    """Regress canopy height and cover on frozen features, against an untrained encoder and colour."""
    from pretrain.probe import format_table, picture_matches, picture_scene, record_probe
    from pretrain.probe import probe as run

    if match and (scene or not picture):
        raise ConfigError("--match A B draws the two images of --picture FILE: give both, and no --scene")
    if match and picture:
        typer.echo(f"{picture_matches(encoder, picture, match)} patches joined\n{picture}")
    elif picture:
        picture_scene(encoder, picture, scene, pairs)
    elif scene:
        raise ConfigError("--scene names the image of --picture FILE: give both")
    if pairs is None:
        if picture:
            return
        raise ConfigError("nothing to do: give --pairs DIR to regress heights, or --picture FILE and --scene IMAGE")
    result = run(encoder, pairs, enlarge=enlarge, seed=seed, teacher=teacher, teacher_weights=teacher_weights)
    if record:
        record_probe(encoder, result)
    typer.echo(json.dumps(result.to_json()) if as_json else format_table(result))
