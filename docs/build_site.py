"""Put the pages of the documentation site together in build/docs: docs/, notebooks, and a reference from the code.

Notebooks that `make test-notebooks` has run (build/notebooks/) bring their pictures; others are shown without.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import nbformat
import typer
from nbconvert import MarkdownExporter
from traitlets.config import Config

from canopy.cli.app import app, mount

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "build" / "docs"
EXECUTED = REPOSITORY / "build" / "notebooks"

ABOUT = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "samples/README.md": "sample.md"}
"""Pages of the repository outside docs/, and their names below about/."""

API = {
    "Maps": ("canopy.prediction.entry.predict", "canopy.prediction.request.Prediction"),
    "Images in memory": ("canopy.prediction.array.predict_array", "canopy.xarray.CanopyAccessor"),
    "Models": ("canopy.models.model.load_model", "canopy.models.model.CanopyModel"),
    "Areas": ("tiles.aoi.read_aoi",),
    "Imagery": ("canopy.imagery.opening.open_imagery", "canopy.imagery.source.ImagerySource"),
    "Lidar": ("canopy.lidar.chm.build_chm",),
    "Scores": ("canopy.evaluation.comparison.evaluate", "canopy.gedi.validation.validate_map"),
    "GEDI and calibration": (
        "canopy.gedi.shots.read_granules",
        "canopy.calibration.command.calibrate",
        "canopy.calibration.application.calibrate_map",
    ),
    "Training": (
        "canopy.dataset.build.build",
        "canopy.dataset.store.ChipStore",
        "canopy.training.decoder.train",
        "pretrain.training.pretrain",
    ),
    "Configurations": (
        "canopy.dataset.config.DatasetConfig",
        "canopy.dataset.config.SourceConfig",
        "canopy.training.config.TrainConfig",
        "canopy.training.config.LoopConfig",
        "pretrain.config.PretrainConfig",
    ),
    "Examples": ("canopy.example.files.write_sample", "canopy.example.files.write_forest"),
    "Errors": ("canopy.errors",),
}
"""Names of the reference, by heading."""


def main() -> None:
    """Write build/docs anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", OUT, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (OUT / "about").mkdir()
    for source, name in ABOUT.items():
        shutil.copyfile(REPOSITORY / source, OUT / "about" / name)
    for page in OUT.rglob("*.md"):
        page.write_text(rewrite_links(page.read_text(encoding="utf-8")), encoding="utf-8")
    for notebook in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        executed = EXECUTED / notebook.stem / notebook.name
        write_notebook(executed if executed.is_file() else notebook, OUT / "tutorials")
    (OUT / "reference").mkdir()
    (OUT / "reference" / "commands.md").write_text("\n".join(command_pages()), encoding="utf-8")
    (OUT / "reference" / "api.md").write_text("\n".join(api_page()), encoding="utf-8")


def rewrite_links(markdown: str) -> str:
    """Return a page whose links to files outside docs/ lead to their places in the site."""
    markdown = re.sub(r"\]\(\.\./notebooks/([\w-]+)\.ipynb\)", r"](tutorials/\1.md)", markdown)
    return re.sub(r"\]\((?:\.\./)*README\.md(#[\w-]*)?\)", "](index.md)", markdown)


def write_notebook(path: Path, folder: Path) -> None:
    """Write a notebook as a page, its pictures next to it."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:  # remarks of libraries on the notebook's widgets are no results
            cell.outputs = [output for output in cell.outputs if "IProgress not found" not in output.get("text", "")]
    settings = Config({"NbConvertBase": {"display_data_priority": ["text/html", "image/png", "text/plain"]}})
    exporter = MarkdownExporter(config=settings)
    text, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    )
    folder.mkdir(exist_ok=True)
    for name, picture in resources["outputs"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture)
    text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\(([\w-]+)\.ipynb\)", r"](\1.md)", text)
    (folder / f"{path.stem}.md").write_text(text, encoding="utf-8")


def command_pages() -> Iterator[str]:
    """Yield the lines of the reference of commands."""
    mount(app)
    yield "# Commands\n\nEvery command, as `canopy COMMAND --help` prints it.\n"
    group = typer.main.get_command(app)
    yield from _commands(group, "canopy")


def _commands(command: click.Command, name: str) -> Iterator[str]:
    """Yield the lines of a command and of those below it."""
    if children := getattr(command, "commands", {}):
        for child in children.values():
            yield from _commands(child, f"{name} {child.name}")
        return
    context = click.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"## {name}\n\n{(command.help or '').strip()}\n\n```text\n{usage}\n```\n"
    rows = [row for parameter in command.params if (row := _row(parameter))]
    if rows:
        yield "| | |\n|---|---|"
        yield from rows
        yield ""


def _row(parameter: click.Parameter) -> str:
    """Return the row of an option or an argument; empty for a hidden one."""
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return ""
    names = ", ".join((*parameter.opts, *parameter.secondary_opts)) if parameter.param_type_name == "option" else ""
    names = names or (parameter.metavar or parameter.name or "").upper()
    text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
    required = " Required." if parameter.required else ""
    return f"| `{names}` | {text}{required} |"


def api_page() -> Iterator[str]:
    """Yield the lines of the reference of the API, which mkdocstrings fills from the docstrings."""
    yield "# Python\n\n`predict`, `predict_array`, `load_model`, `CanopyModel`, `Prediction`, `CanopyError` are names"
    yield "of `canopy` itself; the others are imported from the modules that are shown.\n"
    for heading, names in API.items():
        yield f"## {heading}\n"
        for name in names:
            yield f"::: {name}\n    options:\n      show_root_full_path: true\n"


if __name__ == "__main__":
    main()
