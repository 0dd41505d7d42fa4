"""Options that several commands share, so that a flag reads the same wherever it stands."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

Number = TypeVar("Number", int, float)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.")]
RunFolder = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<config stem>).")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Setting that overrides the configuration: a.b=value; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the job will cost, and write nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
AreaLayer = Annotated[
    str | None, typer.Option("--layer", help="Layer of the file of --aoi, where several layers have areas.")
]


def parse_numbers(flag: str, text: str | None, kind: type[Number]) -> tuple[Number, ...] | None:
    """Parse numbers with commas between them."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{flag} {text!r}: numbers with commas between them expected") from error


def parse_nodata(text: str | None) -> float | Literal["none"] | None:
    """Parse a pixel value, or ``none``."""
    if text is None:
        return None
    if text == "none":
        return "none"
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"--nodata {text!r}: a number or none expected") from error
