"""What users install: the wheel's content, and that light imports stay light."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = {"canopy", "pretrain", "tiles"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel as users get it."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY))
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def run(*arguments: str) -> str:
    """Standard output of this Python, run in a process of its own from the repository."""
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_exactly_the_three_packages(wheel: zipfile.ZipFile) -> None:
    roots = {name.split("/")[0] for name in wheel.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == PACKAGES
    assert [root.split("-")[0] for root in roots - PACKAGES] == ["canopy_chm"]


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(REPOSITORY).as_posix() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")
    }
    assert {name for name in wheel.namelist() if name.endswith(".py")} == sources


def test_wheel_holds_the_pages_of_the_reports(wheel: zipfile.ZipFile) -> None:
    for page in ("canopy/evaluation/page.html", "canopy/gedi/page.html"):
        assert b"<html" in wheel.read(page)
    assert b"body {" in wheel.read("canopy/evaluation/style.css")


def test_wheel_holds_the_sample_scene(wheel: zipfile.ZipFile) -> None:
    scene = REPOSITORY / "canopy" / "data" / "yellowstone.tif"
    assert wheel.read("canopy/data/yellowstone.tif") == scene.read_bytes()


def test_wheel_holds_the_weights(wheel: zipfile.ZipFile) -> None:
    weights = {path.name for path in (REPOSITORY / "canopy" / "weights").glob("*.safetensors")}
    packed = {Path(name).name for name in wheel.namelist() if name.startswith("canopy/weights/")}
    assert weights
    assert weights <= packed


def test_wheel_names_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    texts = {name.split("/", 1)[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"canopy = canopy.cli:main" in wheel.read(texts["entry_points.txt"])
    assert b"License-Expression: Apache-2.0" in wheel.read(texts["METADATA"])
    assert "licenses/LICENSE" in texts


def test_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    version = run("-c", "import canopy; print(canopy.__version__)").strip()
    assert f"canopy_chm-{version}.dist-info/METADATA" in wheel.namelist()


def test_sample_scene_is_a_link_to_the_packaged_one() -> None:
    link = REPOSITORY / "samples" / "yellowstone.tif"
    assert link.readlink() == Path("../canopy/data/yellowstone.tif")


def test_tiles_and_all_its_modules_leave_torch_alone() -> None:
    code = """
import importlib, pkgutil, sys, tiles
names = [module.name for module in pkgutil.walk_packages(tiles.__path__, "tiles.")]
for name in names:
    importlib.import_module(name)
print(len(names), "torch" in sys.modules)
"""
    count, torch = run("-c", code).split()
    assert int(count) > 0
    assert torch == "False"


def test_canopy_itself_leaves_torch_alone() -> None:
    assert run("-c", "import sys, canopy; print('torch' in sys.modules)").strip() == "False"


def test_help_leaves_torch_alone() -> None:
    code = """
import sys
from canopy.cli import main
sys.argv = ["canopy", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""
    assert run("-c", code).split()[-1] == "False"


def test_imports_point_one_way() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    assert "0 broken" in run("-c", code)


def requirement_names(lines: list[str]) -> set[str]:
    """Names of distributions, without versions and extras."""
    return {re.split(r"[\s\[<>=]", line.strip())[0].lower() for line in lines if line.strip()}


def test_conda_environment_has_every_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    needed = requirement_names(project["dependencies"]) - {"torch"} | {"pytorch"}
    assert needed - requirement_names([line for line in environment if isinstance(line, str)]) == set()


def test_serving_image_installs_what_tiles_imports() -> None:
    text = (REPOSITORY / "Dockerfile").read_text().split("AS serve", 1)[1]
    installed = set(re.findall(r"[\w.-]+", text.split("constraints.txt", 1)[1].split("\nCOPY", 1)[0].lower()))
    names = {"odc": "odc-geo", "rio_cogeo": "rio-cogeo"}
    imported = set()
    for path in (REPOSITORY / "tiles").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what functions import is optional
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {module.split(".")[0] for module in modules}
    foreign = {names.get(name, name) for name in imported - sys.stdlib_module_names - {"tiles", ""}}
    assert foreign - installed == set()


def test_targets_that_ci_and_pages_name_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in (".ci/run", ".github/workflows/ci.yml", "CONTRIBUTING.md", "README.md"):
        named = set(re.findall(r"(?:^|[`\s])make ((?!sure)[a-z][\w-]*)", (REPOSITORY / page).read_text(), re.MULTILINE))
        assert named, page
        assert named <= targets, page


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == run("-c", "import canopy; print(canopy.__version__)").strip()
    assert citation["authors"] == [{"name": "The Canopy contributors"}]


def test_module_runs_as_the_command() -> None:
    assert run("-m", "canopy", "--version") == run("-c", "import canopy; print(canopy.__version__)")
