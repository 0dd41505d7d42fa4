"""The documentation site: what is put together, and notebooks as they are committed."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml
from pages import REPOSITORY, read_blocks
from recipe_modules import load

from canopy.dataset.config import DatasetConfig
from canopy.example.files import DATASET

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return load("build_site", "docs")


def test_there_are_notebooks_for_the_first_day() -> None:
    assert [path.stem[0] for path in NOTEBOOKS][:4] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith(f"# {path.stem[0]}. ")
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


def test_links_of_notebooks_lead_to_notebooks() -> None:
    for path in NOTEBOOKS:
        for link in re.findall(r"\]\(([\w-]+\.ipynb)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"


def test_the_menu_names_pages_that_exist() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"[\w/.-]+\.md", text[text.index("nav:") :])
    generated = ("reference/", "tutorials/", "about/")
    assert [
        page for page in pages if not page.startswith(generated) and not (REPOSITORY / "docs" / page).is_file()
    ] == []
    notebooks = {page.removeprefix("tutorials/")[:-3] for page in pages if page.startswith("tutorials/")}
    assert notebooks == {path.stem for path in NOTEBOOKS}


def test_links_out_of_the_documentation_lead_into_the_site(site: ModuleType) -> None:
    page = "[a](../notebooks/1_map.ipynb), [b](../README.md#install), [c](faq.md), [d](https://example.org/README.md)"
    assert site.rewrite_links(page) == (
        "[a](tutorials/1_map.md), [b](index.md), [c](faq.md), [d](https://example.org/README.md)"
    )


def test_a_notebook_becomes_a_page_with_its_pictures(site: ModuleType, tmp_path: Path) -> None:
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 1. A map\n\nNext: [two](2_two.ipynb)."),
            nbformat.v4.new_code_cell(
                "draw()", outputs=[nbformat.v4.new_output("display_data", {"image/png": picture})]
            ),
        ]
    )
    nbformat.write(notebook, tmp_path / "1_one.ipynb")
    site.write_notebook(tmp_path / "1_one.ipynb", tmp_path / "pages")
    text = (tmp_path / "pages" / "1_one.md").read_text()
    assert "[two](2_two.md)" in text
    (name,) = re.findall(r"!\[png\]\((.*)\)", text)
    assert (tmp_path / "pages" / name).read_bytes().startswith(b"\x89PNG")


def test_every_command_and_option_is_in_the_reference(site: ModuleType) -> None:
    text = "\n".join(site.command_pages())
    for heading in (
        "canopy predict",
        "canopy dataset build",
        "canopy gedi validate",
        "canopy pretrain",
        "canopy doctor",
    ):
        assert f"## {heading}\n" in text
    assert "| `--dry-run` | Say what the job will cost, and write nothing. |" in text
    assert "| `--aoi` | Area of interest: vector file, or west,south,east,north in degrees. Required. |" in text


def test_the_data_set_of_twelve_lines_is_valid() -> None:
    (block,) = [
        block
        for block in read_blocks((REPOSITORY / "docs" / "how-to.md").read_text(encoding="utf-8"))
        if block.language == "yaml"
    ]
    assert len(block.text.splitlines()) <= 12
    shown = DatasetConfig.model_validate(yaml.safe_load(block.text))
    written = DatasetConfig.model_validate(yaml.safe_load(DATASET.format(root="data")))
    assert (shown.sources.keys(), shown.splits) == (written.sources.keys(), written.splits)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    import subprocess
    import sys

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("docs", "notebooks", "samples"):
        shutil.copytree(REPOSITORY / name, copy / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("canopy", "pretrain", "tiles"):
        (copy / name).symlink_to(REPOSITORY / name)
    for command in (["docs/build_site.py"], ["-m", "mkdocs", "build", "--strict", "--quiet"]):
        done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((copy / "build" / "site" / "search" / "search_index.json").read_text())["docs"]
    assert "predict_array" in (copy / "build" / "site" / "reference" / "api.html").read_text()
