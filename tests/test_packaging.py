"""What users install: the wheel's content, and that light imports stay light."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

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
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert {name for name in packed if not name.startswith("canopy/data/recipes/")} == sources


def test_wheel_holds_the_pages_of_the_reports(wheel: zipfile.ZipFile) -> None:
    for page in ("canopy/evaluation/page.html", "canopy/gedi/page.html"):
        assert b"<html" in wheel.read(page)
    assert b"body {" in wheel.read("canopy/evaluation/style.css")


def test_wheel_holds_the_sample_scene_and_its_area(wheel: zipfile.ZipFile) -> None:
    for name in ("canopy/data/yellowstone.tif", "canopy/data/region.geojson"):
        assert wheel.read(name) == (REPOSITORY / name).read_bytes()


@pytest.mark.parametrize("folder", ["configs", "recipes"])
def test_wheel_holds_configurations_and_recipes(wheel: zipfile.ZipFile, folder: str) -> None:
    paths = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in paths}
    packed = [name for name in wheel.namelist() if name.startswith(f"canopy/data/{folder}/")]
    assert {name.removeprefix("canopy/data/"): wheel.read(name) for name in packed} == files


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


@pytest.mark.parametrize("name", ["yellowstone.tif", "region.geojson"])
def test_samples_are_links_to_the_packaged_ones(name: str) -> None:
    assert (REPOSITORY / "samples" / name).readlink() == Path("../canopy/data") / name


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


CONDA_NAMES = {"torch": "pytorch"}
"""Names of conda's packages that differ from those of Python's."""
ONLY_CONDA = {"python", "pip", "lazrs-python"}


def floors(lines: Iterable[str]) -> dict[str, str]:
    """Least versions by the names of distributions; empty where none is asked for."""
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): next((part.version for part in one.specifier if part.operator == ">="), "")
        for one in requirements
    }


def pins() -> dict[str, str]:
    """Exact versions of the environment in which everything was tested."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CORE = floors(PROJECT["dependencies"])
EXTRAS = floors(line for lines in PROJECT["optional-dependencies"].values() for line in lines)


def test_conda_environment_has_the_names_and_floors_of_the_project() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    conda = floors(line for line in environment if isinstance(line, str))
    python = conda["python"]
    assert {name: floor for name, floor in conda.items() if name not in ONLY_CONDA} == {
        CONDA_NAMES.get(name, name): floor for name, floor in CORE.items()
    }
    assert python == PROJECT["requires-python"].removeprefix(">=")


def test_images_install_what_the_project_names_under_its_pins() -> None:
    docker = (REPOSITORY / "Dockerfile").read_text()
    bases = re.findall(r"^FROM python:([\d.]+)", docker, re.MULTILINE)
    assert bases
    assert all(Version(base) in SpecifierSet(PROJECT["requires-python"]) for base in bases)
    installs = [" ".join(words) for words in re.findall(r"pip install (.*?)((?:\\\n.*?)*)$", docker, re.MULTILINE)]
    assert all("-c /tmp/constraints.txt" in line or "--no-deps" in line or "hatchling" in line for line in installs)


def test_pins_satisfy_the_floors() -> None:
    pinned = pins()
    assert set(CORE) <= set(pinned)
    for name, floor in (CORE | EXTRAS).items():
        assert name not in pinned or Version(pinned[name]) >= Version(floor or "0"), name


def test_each_requirement_is_imported_somewhere() -> None:
    modules = {
        node.module.split(".")[0] if isinstance(node, ast.ImportFrom) and node.module else alias.name.split(".")[0]
        for package in ("canopy", "pretrain", "tiles")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    distributions = packages_distributions()
    imported = {canonicalize_name(name) for module in modules for name in distributions.get(module, [])}
    assert set(CORE) - imported == set()


def test_serving_image_installs_what_tiles_imports() -> None:
    text = (REPOSITORY / "Dockerfile").read_text().split("AS serve", 1)[1]
    installed = set(re.findall(r"[\w.-]+", text.split("constraints.txt", 1)[1].split("\nCOPY", 1)[0].lower()))
    names = {
        "odc": "odc-geo",
        "PIL": "pillow",
        "rio_cogeo": "rio-cogeo",
        "rio_tiler": "rio-tiler",
        "titiler": "titiler.core",
    }
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


@pytest.mark.parametrize(("target", "used", "runs"), [
    ("accuracy", {"configs/train-detail.yaml", "configs/train-unet.yaml", "recipes/render_scenes.py"}, 4),
    ("encoders", {"configs/train-encoder.yaml", "configs/dataset-weak.yaml"}, 3),
])  # fmt: skip
def test_figures_are_one_command_of_files_that_exist(tmp_path: Path, target: str, used: set[str], runs: int) -> None:
    command = ["make", "-n", target, f"RUNS={tmp_path}"]
    refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert refused.returncode and "name the folder of the data" in refused.stderr
    planned = subprocess.run([*command, f"DATA={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    named = set(re.findall(r"(?:benchmarks|recipes|configs)/[\w-]+\.(?:py|yaml)", planned.stdout))
    assert {name for name in named if not (REPOSITORY / name).is_file()} == set()
    assert used <= named
    assert len(re.findall(r"folds\.py .*--folds [12] ", planned.stdout)) == runs


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == run("-c", "import canopy; print(canopy.__version__)").strip()
    assert citation["authors"] == [{"name": "The Canopy contributors"}]


def test_module_runs_as_the_command() -> None:
    assert run("-m", "canopy", "--version") == run("-c", "import canopy; print(canopy.__version__)")


@pytest.mark.slow
def test_the_source_distribution_has_what_the_wheel_is_built_of(tmp_path: Path) -> None:
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY))
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "environment.yml",
    ):
        assert name in names, name
    for name in (
        "canopy/data/yellowstone.tif",
        "canopy/data/region.geojson",
        "canopy/weights/canopy-small.safetensors",
    ):
        assert name in names, name
    for folder, pattern in (("configs", "*.yaml"), ("recipes", "*.py"), ("notebooks", "*.ipynb"), ("docs", "*.md")):
        files = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).glob(pattern)}
        assert files
        assert files <= names, folder
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "build/", "runs/"))]


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_works_without_the_checkout(
    wheel: zipfile.ZipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheel.filename))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("HOME", str(tmp_path))

    def canopy(*arguments: str) -> str:
        command = [sys.executable, "-m", "canopy", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"in {site / 'canopy'}" in canopy("doctor")
    assert canopy("example", "ex") == "ex\n"
    assert {path.name for path in (tmp_path / "ex").iterdir()} == {"configs", "recipes", "region.geojson", "scenes"}
    made = canopy("predict", "--aoi", "ex/region.geojson", "--imagery", "ex/scenes", "--out", "heights.tif")
    assert made == "heights.tif\n"
    assert canopy("validate", "heights.tif") == "heights.tif: valid\n"
    assert "dataset" in canopy("--help")
    assert "pretrain" in canopy("--help")
