"""The Processing algorithm for QGIS as a file of the user's; tests/gui runs it in QGIS."""

import ast
from pathlib import Path

import pytest

from canopy.errors import OutputError
from canopy.example.qgis_algorithm import ALGORITHM, write_qgis_algorithm


def test_the_algorithm_is_written_whole_and_never_over_another_file(tmp_path: Path) -> None:
    path = write_qgis_algorithm(tmp_path / "scripts")
    assert path == tmp_path / "scripts" / "canopy_height.py"
    assert path.read_bytes() == ALGORITHM.read_bytes()
    path.write_text("of the user")
    with pytest.raises(OutputError, match="exists"):
        write_qgis_algorithm(tmp_path / "scripts")
    assert write_qgis_algorithm(tmp_path / "scripts", overwrite=True).read_bytes() == ALGORITHM.read_bytes()


def test_the_algorithm_imports_what_every_qgis_has() -> None:
    imported = set()
    for node in ast.walk(ast.parse(ALGORITHM.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported == {"json", "os", "pathlib", "qgis", "queue", "re", "shutil", "subprocess", "tempfile", "threading"}


def test_the_command_writes_the_algorithm(canopy, tmp_path: Path) -> None:
    code, out, err = canopy("example", tmp_path / "tools", "--qgis")
    assert (code, out.strip()) == (0, str(tmp_path / "tools" / "canopy_height.py"))
    assert "Add script to toolbox" in err
    assert canopy("example", "--qgis", "--forest")[0] == 2
