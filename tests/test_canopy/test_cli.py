"""The command as users run it: one line and exit 1 for every fault, and no output left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasters import make_raster

from canopy import prediction
from tiles.cog import validate

WEST, EAST, SOUTH, NORTH = 3.0005, 3.00175, 44.2539, 44.2548
SQUARE = {
    "type": "Polygon",
    "coordinates": [[[WEST, SOUTH], [EAST, SOUTH], [EAST, NORTH], [WEST, NORTH], [WEST, SOUTH]]],
}


@pytest.fixture
def aoi(tmp_path: Path) -> Path:
    path = tmp_path / "wald_größe.geojson"
    path.write_text(json.dumps(SQUARE), encoding="utf-8")
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(tmp_path / "scene.tif", origin=(500000, 4900200), shape=(500, 500), pattern="noise")


def test_sample_region_needs_nothing_else(canopy, tmp_path, monkeypatch) -> None:
    region = Path(__file__).parents[2] / "samples" / "region.geojson"
    monkeypatch.chdir(tmp_path)
    code, out, err = canopy("predict", "--aoi", region)
    assert code == 0, err
    assert out.splitlines()[-1] == "region_canopy_height.tif"
    assert validate(tmp_path / "region_canopy_height.tif") == ()
    with rasterio.open(tmp_path / "region_canopy_height.tif") as made:
        heights = made.read(1)
        assert made.crs.to_epsg() == 32612
    assert 0.5 < np.isfinite(heights).mean() < 0.9
    assert canopy("validate", tmp_path / "region_canopy_height.tif")[0] == 0


def test_json_is_one_document(canopy, aoi, scene, tmp_path) -> None:
    code, out, err = canopy("predict", "--aoi", aoi, "--imagery", scene, "--out", tmp_path / "o.tif", "--json")
    assert code == 0, err
    assert json.loads(out)["path"] == str(tmp_path / "o.tif")
    assert "unknown" in err


def test_stated_acquisition_reaches_tags_and_item(canopy, aoi, scene, tmp_path) -> None:
    code, _, err = canopy("predict", "--aoi", aoi, "--imagery", scene, "--out", tmp_path / "o.tif",
                          "--imagery-datetime", "2024-07-15")  # fmt: skip
    assert code == 0, err
    assert "unknown" not in err
    with rasterio.open(tmp_path / "o.tif") as made:
        assert made.tags()["CANOPY_ACQUISITION_DATETIME"].startswith("2024-07-15")
    assert json.loads((tmp_path / "o.json").read_text())["properties"]["datetime"].startswith("2024-07-15")


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


FAULTS = {
    "no aoi": ("--aoi", "none.geojson", "none.geojson"),
    "aoi not a vector": ("--aoi", "scene.tif", "scene.tif"),
    "aoi elsewhere": ("--aoi", "far.geojson", "no imagery over the AOI"),
    "aoi of points": ("--aoi", "points.geojson", "polygon"),
    "no imagery": ("--imagery", "none.tif", "none.tif"),
    "empty folder": ("--imagery", "folder", "folder"),
    "truncated": ("--imagery", "truncated.tif", "truncated.tif"),
    "no bytes": ("--imagery", "empty.tif", "empty.tif"),
    "no crs": ("--imagery", "nocrs.tif", "nocrs.tif"),
    "four bands": ("--imagery", "four.tif", "--bands"),
    "too coarse": ("--imagery", "coarse.tif", "too coarse"),
    "no model": ("--model", "canopy-huge", "canopy-huge"),
    "foreign model": ("--model", "scene.tif", "not a model bundle"),
    "bad crs": ("--crs", "EPSG:99999999", "99999999"),
    "bad resolution": ("--resolution", "-1", "resolution"),
    "bad date": ("--imagery-datetime", "yesterday", "yesterday"),
    "no folder": ("--out", "nowhere/o.tif", "nowhere"),
    "not a tif": ("--out", "o.png", "o.png"),
    "no device": ("--device", "abacus", "abacus"),
}


@pytest.fixture
def faults(tmp_path: Path, scene: Path, aoi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = {"origin": (500000, 4900200), "shape": (500, 500), "pattern": "noise"}
    truncate(make_raster(Path("truncated.tif"), **place))
    empty(Path("empty.tif"))
    make_raster(Path("nocrs.tif"), crs=None, **place)
    make_raster(Path("four.tif"), bands=4, colorinterp=["undefined"] * 4, **place)
    make_raster(Path("coarse.tif"), **{**place, "shape": (50, 50)}, resolution=10)
    Path("folder").mkdir()
    far = {**SQUARE, "coordinates": [[[x + 1, y] for x, y in SQUARE["coordinates"][0]]]}
    Path("far.geojson").write_text(json.dumps(far))
    Path("points.geojson").write_text(json.dumps({"type": "Point", "coordinates": [3.001, 44.254]}))


@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_and_loses_nothing(canopy, aoi, fault) -> None:
    chosen = {"--aoi": aoi, "--imagery": "scene.tif", "--out": "o.tif"}
    flag, value, reason = FAULTS[fault]
    before = sorted(path.name for path in Path.cwd().iterdir())
    code, out, err = canopy("predict", *(part for item in {**chosen, flag: value}.items() for part in item))
    assert code == 1, err
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("canopy: ")] == err.splitlines()[-1:]
    assert reason in err.splitlines()[-1]
    assert "Traceback" not in err
    left = {path.name for path in Path.cwd().iterdir()} - set(before)
    assert left <= {"o.tif.partial"}


def test_validate_gives_the_reason(canopy, scene) -> None:
    code, _, err = canopy("validate", scene)
    assert code == 1
    assert "canopy_height" in err


def test_version_and_plain_info(canopy) -> None:
    assert canopy("--version")[1].strip() == "0.1.0"
    code, out, _ = canopy("info", "canopy-small")
    assert code == 0
    assert yaml.safe_load(out)["name"] == "canopy-small"


def test_info_prints_cards_maps_and_imagery(canopy, scene, aoi, tmp_path) -> None:
    code, out, _ = canopy("info", "canopy-small", "--json")
    assert code == 0
    assert json.loads(out)["provisional"] is True
    code, out, _ = canopy("info", scene, "--json")
    assert code == 0
    assert json.loads(out)["gsd_m"] == pytest.approx(0.5, rel=1e-2)
    assert canopy("predict", "--aoi", aoi, "--imagery", scene, "--out", tmp_path / "o.tif")[0] == 0
    code, out, _ = canopy("info", tmp_path / "o.tif", "--json")
    assert code == 0
    assert json.loads(out)["tags"]["CANOPY_MODEL"] == "canopy-small"
    assert json.loads(out)["problems"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killed_command_goes_on_to_the_same_bytes(
    tmp_path: Path, aoi: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its first committed tile, the same command finishes with the bytes of an undisturbed run."""
    make_raster(tmp_path / "scene.tif", origin=(500000, 4900200), shape=(500, 500), pattern="noise")
    code = "import canopy.prediction as p; p.TILE_PX = 40; from canopy.cli import main; main()"

    def command(out: str) -> list[str]:
        return [sys.executable, "-c", code, "predict", "--aoi", str(aoi), "--imagery", "scene.tif", "--out", out]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(prediction, "TILE_PX", 40)
    prediction.predict(aoi, tmp_path / "scene.tif", out=tmp_path / "whole.tif")
    running = subprocess.Popen(command("cut.tif"), cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut.tif.partial").glob("*.tif.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(number)
    ended = running.wait(timeout=60)
    assert ended == (-9 if number == signal.SIGKILL else 130)
    assert not (tmp_path / "cut.tif").exists()
    subprocess.run(command("cut.tif"), cwd=tmp_path, env=env, check=True, capture_output=True)
    assert (tmp_path / "cut.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not (tmp_path / "cut.tif.partial").exists()


def test_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path, aoi: Path) -> None:
    """No file may pass 20 KB, as on a disk that fills; afterwards the same command ends well."""
    make_raster(tmp_path / "scene.tif", origin=(500000, 4900200), shape=(500, 500), pattern="noise")
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from canopy.cli import main
main()
"""

    def run(limit: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, str(limit), "predict", "--aoi", str(aoi), "--imagery", "scene.tif"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, "--out", "o.tif"], cwd=tmp_path, env=env, capture_output=True, text=True)

    full = run(20_000)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("canopy: ")
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "o.tif").exists()
    assert run(-1).returncode == 0
    assert validate(tmp_path / "o.tif") == ()
