"""The command serves what it is given, says where, and needs no torch."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest
import uvicorn
from map_server import X, Y, lonlat, make_map
from product_maps import write_polygons
from shapely import box

from tiles.errors import CanopyError
from tiles.server import cli

SQUARE = box(X + 5, Y - 9, X + 9, Y - 5)
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[uvicorn.Server]:
    """Servers that the command starts; they end at once."""
    servers: list[uvicorn.Server] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: servers.append(self))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return servers


def test_command_says_its_address(
    tmp_path: Path, served: list[uvicorn.Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", str(make_map(tmp_path / "a.tif")), "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (None, 0)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", capsys.readouterr().out)
    (server,) = served
    assert len(server.config.app.state.catalog) == 1


def test_further_layers_are_served_with_the_map(
    tmp_path: Path, served: list[uvicorn.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_map(tmp_path / "a.tif"), make_map(tmp_path / "b.tif"), write_polygons(tmp_path / "c.gpkg", [SQUARE])]
    monkeypatch.setattr(sys, "argv", ["serve", *map(str, paths), "--port", "0"])
    with pytest.raises(SystemExit):
        cli.main()
    catalog = served[0].config.app.state.catalog
    assert [layer.id for layer in catalog] == ["a", "b"]
    assert [(vector.id, vector.is_shown) for vector in catalog.vectors] == [("c", True)]


def test_bad_features_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trees.parquet"
    path.write_bytes(b"no Parquet")
    monkeypatch.setattr(sys, "argv", ["serve", str(make_map(tmp_path / "a.tif")), str(path), "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"canopy: {path}: cannot be read (")
    assert error.count("\n") == 1


class ClosedHandler(logging.Handler):
    """Handler that remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_handlers_of_the_process_stay_open(
    tmp_path: Path, served: list[uvicorn.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own configuration of logging would close all handlers, and some close the process's stderr."""
    handler = ClosedHandler()
    monkeypatch.setattr(sys, "argv", ["serve", str(make_map(tmp_path / "a.tif")), "--port", "0"])
    with pytest.raises(SystemExit):
        cli.main()
    assert len(served) == 1
    assert not handler.closed


def test_port_in_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [str(make_map(tmp_path / "a.tif")), "--port", str(taken.getsockname()[1])]
        monkeypatch.setattr(sys, "argv", ["serve", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("canopy: cannot listen on 127.0.0.1 port ")
    assert error.count("\n") == 1


def test_missing_map_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "none.tif"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("canopy: none.tif: no such file or folder")


def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(CanopyError, match=r"needs uvicorn, which is not installed: pip install titiler\.core uvicorn"):
        cli.serve(make_map(tmp_path / "a.tif"))


def docker_packages() -> list[str]:
    """Distributions that the image without torch installs."""
    stage = (REPOSITORY / "Dockerfile").read_text().split("AS serve", 1)[1]
    return re.findall(r"[\w.-]+", stage.split("/tmp/constraints.txt", 1)[1].split("\nCOPY", 1)[0])


@pytest.mark.slow
def test_image_without_torch_serves(tmp_path: Path) -> None:
    """Install what the Docker stage installs, and ask the server that its entry point starts."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run([*pip, *constraints, *docker_packages()], capture_output=True, text=True)
    if "No matching distribution" in installed.stderr or "NewConnectionError" in installed.stderr:
        pytest.skip(f"packages cannot be fetched: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([*pip, "--no-deps", *map(str, tmp_path.glob("*.whl"))], check=True)
    has_torch = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert subprocess.run([python, "-c", has_torch], capture_output=True, text=True).stdout.strip() == "None"

    path = make_map(tmp_path / "map.tif")
    server = subprocess.Popen(
        [python, "-m", "tiles.server", str(path), "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert read(f"{address}healthz") == {"status": "ok", "layers": 1}
        lon, lat = lonlat(10.1, 10.1)
        assert read(f"{address}layers/map/point?lon={lon}&lat={lat}")["values"]["canopy_height"] == 2.5
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(f"{address}layers/none")
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert server.stdout is not None
        server.stdout.close()


def read(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)
