"""What the commands that train have in common: a run in a folder, or only its price."""

from pathlib import Path
from typing import Protocol, TypeVar

import typer

from canopy.cli.terminal import show_progress
from canopy.progress import Report

Recipe = TypeVar("Recipe", contravariant=True)


class Train(Protocol[Recipe]):
    """A training: settings and folder to the path of a bundle."""

    def __call__(self, config: Recipe, run: Path, /, *, resume: bool, report: Report) -> Path:
        """Train, and return the path of the bundle."""
        ...


class Price(Protocol[Recipe]):
    """What the same training would cost, printed as a line."""

    def __call__(self, config: Recipe, run: Path, /, *, resume: bool) -> object:
        """Return the cost."""
        ...


def train_or_price(
    train: Train[Recipe], price: Price[Recipe], settings: Recipe, run: Path, *, resume: bool, dry_run: bool
) -> None:
    """Train with progress and print the bundle, or print what it would cost.

    Args:
        train: The training.
        price: Its cost.
        settings: Settings of the training.
        run: Folder of the run.
        resume: Whether to go on from the last checkpoint.
        dry_run: Whether only the cost is asked for.
    """
    if dry_run:
        typer.echo(price(settings, run, resume=resume))
        return
    with show_progress() as report:
        bundle = train(settings, run, resume=resume, report=report)
    typer.echo(bundle)
