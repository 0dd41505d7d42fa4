"""A map of the sample for the tests that look at it as people do, and the programs that those tests need."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PICTURES = REPOSITORY / "build" / "gui"
"""Pictures of the last run, to be looked at."""
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = "make gui-packages installs it on Debian and Ubuntu"


@pytest.fixture(scope="session")
def pictures() -> Path:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return PICTURES


@pytest.fixture(scope="session")
def sample_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample region, mapped with its interval and its QGIS project."""
    from canopy.prediction import predict

    region = REPOSITORY / "canopy" / "data" / "region.geojson"
    out = tmp_path_factory.mktemp("maps") / "sample.tif"
    return predict(region, out=out, uncertainty=True, qgis=True).path


@pytest.fixture(scope="session")
def qgis_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of the system's Python with a profile of its own; skips where it has no QGIS."""
    folder = tmp_path_factory.mktemp("qgis")
    folder.chmod(0o700)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "GDAL"))
    }
    environment |= {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    try:
        probe = subprocess.run(
            [SYSTEM_PYTHON, "-c", "import qgis.core"], env=environment, capture_output=True, timeout=120
        )
    except OSError:
        pytest.skip(f"no {SYSTEM_PYTHON}")
    if probe.returncode:
        pytest.skip(f"the system's Python has no QGIS: {PACKAGES}")
    return environment


@pytest.fixture
def qgis(qgis_environment: dict[str, str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Open layers or a project in QGIS and return what it sees; see `qgis_session.py`."""

    def look(script: str = "qgis_session.py", **request: Any) -> dict[str, Any]:
        request.setdefault("picture", str(tmp_path / "picture.png"))
        document = tmp_path / "request.json"
        document.write_text(json.dumps(request))
        command = [SYSTEM_PYTHON, str(Path(__file__).with_name(script)), str(document)]
        result = subprocess.run(command, env=qgis_environment, capture_output=True, text=True, timeout=600)
        lines = result.stdout.splitlines()
        assert lines, result.stderr[-2000:]
        return json.loads(lines[-1])

    return look
