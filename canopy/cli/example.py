"""`canopy example`: data to try Canopy with, in a folder of the user's."""

from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.terminal import say


def example(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to write to (default: canopy-example, or canopy-forest).")
    ] = None,
    forest: Annotated[
        bool, typer.Option("--forest", help="Generate a forest with lidar instead, to train a model on.")
    ] = False,
    qgis: Annotated[
        bool, typer.Option("--qgis", help="Write the algorithm that maps canopy height from within QGIS instead.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same names.")] = False,
) -> None:
    """Write the sample scene, its area, configurations and recipes to a folder; or a forest, or a tool for QGIS."""
    from canopy.example import write_forest, write_sample
    from canopy.example.qgis_algorithm import write_qgis_algorithm

    if forest and qgis:
        raise typer.BadParameter("give --forest or --qgis, not both")
    if qgis:
        path = write_qgis_algorithm(folder or Path("canopy-qgis"), overwrite=overwrite)
        say("next: in QGIS, Processing toolbox, Python menu, Add script to toolbox; then choose Canopy")
        typer.echo(path)
        return
    if forest:
        written = write_forest(folder or Path("canopy-forest"), overwrite=overwrite)
        for line in _forest_steps(written.folder):
            say(line)
    else:
        written = write_sample(folder or Path("canopy-example"), overwrite=overwrite)
        say(f"next: canopy predict --aoi {written.folder}/region.geojson --imagery {written.folder}/scenes")
    typer.echo(written.folder)


def _forest_steps(folder: Path) -> tuple[str, ...]:
    """Return the commands that lead from the generated clouds to a map."""
    return (
        f"next: canopy dataset build {folder}/dataset.yaml --out {folder}/store",
        f"      canopy train {folder}/train.yaml --out {folder}/run",
        f"      canopy predict --aoi {folder}/area.geojson --imagery {folder}/south_0"
        f" --model {folder}/run/best.safetensors",
    )
