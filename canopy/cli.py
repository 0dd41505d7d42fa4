"""Command line: each command parses, makes one call, prints one result. Heavy imports happen inside commands."""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canopy import __version__
from canopy.errors import CanopyError

if TYPE_CHECKING:
    from canopy import prediction

app = typer.Typer(no_args_is_help=True)
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
    model: Annotated[str, typer.Option(help="Bundled model's name, or a bundle file.")] = "canopy-small",
    out: Annotated[Path | None, typer.Option(help="Output GeoTIFF (default: <aoi>_canopy_height.tif).")] = None,
    crs: Annotated[str, typer.Option(help="auto (the AOI's UTM zone) or any CRS.")] = "auto",
    resolution: Annotated[
        float | None, typer.Option(help="Cell size in units of the CRS (default: the model's GSD).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    bands: Annotated[str | None, typer.Option(help="Red, green, blue bands, from 1: 3,2,1.")] = None,
    scale: Annotated[str | None, typer.Option(help="Values that mean 0 and 1: 0,2047.")] = None,
    imagery_datetime: Annotated[str | None, typer.Option(help="Acquisition date, or start/end.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output and drop work of another plan.")] = False,
    force: Annotated[bool, typer.Option(help="Map imagery coarser than twice the model's GSD.")] = False,
    as_json: Json = False,
) -> None:
    """Map canopy height over an area."""
    from canopy import prediction

    with _progress() as report:
        made = prediction.predict(
            aoi, imagery, model, out, crs=crs,
            resolution=resolution, device=device, bands=_numbers("--bands", bands, int),
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
def validate(paths: Annotated[list[Path], typer.Argument(help="Height maps.")]) -> None:
    """Read every block of height maps and check layout, tags and checksum."""
    from tiles.cog import validate as check

    faults = {path: check(path) for path in paths}
    for path, problems in faults.items():
        for problem in problems:
            _say(f"{path}: {problem}")
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

    from canopy.description import describe

    text = json.dumps(describe(target), indent=2)
    typer.echo(text if as_json else yaml.safe_dump(json.loads(text), sort_keys=False, width=100).rstrip())


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<config stem>).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a height model from pairs of image and lidar."""
    from canopy.config import TrainConfig, load_config
    from canopy.training import train as run

    settings = load_config(config, TrainConfig, tuple(set_ or ()))
    typer.echo(run(settings, out or Path("runs") / config.stem, resume=resume))


def mount(onto: typer.Typer) -> None:
    """Add the commands that other packages offer in the entry-point group `canopy.commands`."""
    for offered in sorted(entry_points(group="canopy.commands"), key=lambda point: point.name):
        onto.command(offered.name)(offered.load())


def main() -> None:
    """Entry point: a CanopyError is one line and exit 1, an interrupt is exit 130."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("canopy").setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        mount(app)
        app()
    except CanopyError as error:
        _say(f"canopy: {' '.join(str(error).split())}")
        sys.exit(1)
    except _InterruptedError:
        _say("canopy: interrupted; the same command goes on from here")
        sys.exit(130)


class _InterruptedError(BaseException):
    """Ctrl-C or SIGTERM; not a KeyboardInterrupt, which the command parser would turn into exit 1."""


def _interrupt(number: int, frame: object) -> None:
    raise _InterruptedError


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _numbers(flag: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{flag} {text!r}: numbers with commas between them expected") from error


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, a line a tile elsewhere, with useful pixels per second and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.fields[state]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("tiles", total=None, state="starting")
        meter = _Meter()

        def report(now: "prediction.Progress") -> None:
            rate = meter.rate(now)
            state = f"tile {now.tiles_done}/{now.tiles}  {rate / 1e6:.2f} Mpx/s"
            bar.update(task, total=now.pixels, completed=now.pixels_done, state=state)
            if not console.is_terminal:
                _say(f"{state}  {(now.pixels - now.pixels_done) / rate / 60:.0f} min left")

        yield report


class _Meter:
    """Useful pixels per second since the first tile of this run began."""

    def __init__(self) -> None:
        import time

        self._clock, self._began, self._resumed = time.monotonic, time.monotonic(), -1

    def rate(self, now: "prediction.Progress") -> float:
        if self._resumed < 0:
            self._resumed = now.pixels_done - now.pixels_done // now.tiles_done
        return (now.pixels_done - self._resumed) / max(1e-6, self._clock() - self._began)


if __name__ == "__main__":
    main()
