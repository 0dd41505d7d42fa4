"""Options that several commands share, so that a flag reads the same wherever it stands."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.")]
RunFolder = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<config stem>).")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Setting that overrides the configuration: a.b=value; repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
AreaLayer = Annotated[
    str | None, typer.Option("--layer", help="Layer of the file of --aoi, where several layers have areas.")
]
