"""The page as it is committed: small, whole, of this host alone, with the colours that maps have elsewhere."""

import gzip
import json
import re
from pathlib import Path

import pytest

from tiles.style import HEIGHT_RAMP, WIDTH_RAMP

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STATIC, SOURCE = REPOSITORY / "tiles" / "web" / "static", REPOSITORY / "web"
FILES = sorted(path for path in STATIC.iterdir() if path.is_file())


def test_page_is_small_enough_to_commit_and_to_load() -> None:
    contents = [path.read_bytes() for path in FILES]
    assert sum(map(len, contents)) < 2.5e6
    assert sum(len(gzip.compress(content)) for content in contents) < 700e3


def test_every_file_that_the_page_names_is_there() -> None:
    names = {path.name for path in FILES}
    assert {"index.html", "app.mjs", "map-worker.mjs", "map.css", "style.css", "icon.svg", "LICENCES.txt"} <= names
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) <= names
    imported = re.compile(r"""(?:from|import)\s*\(?["']\./([\w.-]+\.mjs)["']""")
    for path in FILES:
        if path.suffix == ".mjs":
            assert set(imported.findall(path.read_text(encoding="utf-8"))) <= names, path.name


def test_page_runs_under_a_policy_without_inline_code_and_other_hosts() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=", page)
    for path in (STATIC / "index.html", STATIC / "app.mjs", STATIC / "style.css"):
        addresses = set(re.findall(r"https?://[\w./-]+", path.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize(("name", "ramp"), [("height", HEIGHT_RAMP), ("width", WIDTH_RAMP)])
def test_ramps_are_those_of_qgis_and_of_previews(name: str, ramp: tuple[tuple[float, str], ...]) -> None:
    stops = json.loads((SOURCE / "src" / "ramps.json").read_text(encoding="utf-8"))[name]["stops"]
    assert [colour for _, colour in stops] == [colour for _, colour in ramp]
    assert [share * ramp[-1][0] for share, _ in stops] == pytest.approx([value for value, _ in ramp])


def test_packages_have_exact_versions_no_lock_file_and_their_licences() -> None:
    about = json.loads((SOURCE / "package.json").read_text(encoding="utf-8"))
    versions = about["dependencies"] | about["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())
    licences = (STATIC / "LICENCES.txt").read_text(encoding="utf-8")
    assert all(f"{name} {version} (" in licences for name, version in about["dependencies"].items())
    assert "GPL" not in licences
    assert "package-lock.json" in (SOURCE / ".gitignore").read_text(encoding="utf-8").splitlines()
