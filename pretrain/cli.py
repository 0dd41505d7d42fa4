"""Commands of the self-supervised stage; `canopy` finds them through the entry points `canopy.commands`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.terminal import show_progress
from canopy.errors import ConfigError

ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.")]
RunFolder = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<config stem>).")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


def pretrain(config: ConfigFile, out: RunFolder = None, set_: Settings = None, resume: Resume = False) -> None:
    """Pretrain an encoder on unlabelled imagery."""
    from canopy.config import load_config
    from pretrain.config import PretrainConfig
    from pretrain.training import pretrain as run

    settings = load_config(config, PretrainConfig, tuple(set_ or ()))
    with show_progress() as report:
        bundle = run(settings, out or Path("runs") / config.stem, resume=resume, report=report)
    typer.echo(bundle)


def distill(config: ConfigFile, out: RunFolder = None, set_: Settings = None, resume: Resume = False) -> None:
    """Distil a small encoder from the run of a large one."""
    from canopy.config import load_config
    from pretrain.config import DistillConfig
    from pretrain.distill import distill as run

    settings = load_config(config, DistillConfig, tuple(set_ or ()))
    with show_progress() as report:
        bundle = run(settings, out or Path("runs") / config.stem, resume=resume, report=report)
    typer.echo(bundle)


def curate(config: ConfigFile, out: RunFolder = None, set_: Settings = None) -> None:
    """Choose a balanced share of a large pool of tiles."""
    from canopy.config import load_config
    from pretrain.config import CurateConfig
    from pretrain.curate import curate as run

    settings = load_config(config, CurateConfig, tuple(set_ or ()))
    typer.echo(run(settings, out or Path("runs") / config.stem))


def probe(
    encoder: Annotated[
        Path, typer.Argument(help="Bundle of an encoder or a height model, a bundled one's name, or timm:NAME.")
    ],
    pairs: Annotated[
        Path | None, typer.Option(help="Folder of scenes: rgb.tif and chm_cm.tif in a folder each.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of patch features as colours.")] = None,
    scene: Annotated[
        Path | None, typer.Option(help="Image of the picture; the middle of the largest pair if left out.")
    ] = None,
    enlarge: Annotated[int, typer.Option(help="Times that images are enlarged for the regression: 1, 2 or 4.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the untrained encoder and of the resampling.")] = 0,
    record: Annotated[bool, typer.Option(help="Keep the result in the bundle's card.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Regress canopy height and cover on frozen features, against an untrained encoder and colour."""
    from pretrain.probe import format_table, picture_scene, record_probe
    from pretrain.probe import probe as run

    if picture:
        picture_scene(encoder, picture, scene, pairs)
    elif scene:
        raise ConfigError("--scene says what --picture FILE shows: give both")
    if pairs is None:
        if picture:
            return
        raise ConfigError("nothing to do: give --pairs DIR to regress heights, or --picture FILE and --scene IMAGE")
    made = run(encoder, pairs, enlarge=enlarge, seed=seed)
    if record:
        record_probe(encoder, made)
    typer.echo(json.dumps(made) if as_json else format_table(made))
