"""The command as users run it: one line and exit 1 for every fault, and no output left behind."""

import json
import os
import signal
import time
from pathlib import Path

import commands
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from rasters import make_raster

from tiles.validation import validate

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
def mapped(canopy, aoi, scene, tiny_model, tmp_path, monkeypatch):
    """Run `canopy predict` on the small scene with the small model, to o.tif: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*more: object, **changes: object) -> tuple[int, str, str]:
        options = {"aoi": aoi, "imagery": scene.name, "out": "o.tif", "model": tiny_model, "backend": "eager"}
        named = {f"--{name}": value for name, value in {**options, **changes}.items()}
        return canopy("predict", *(part for item in named.items() for part in item), *more)

    return run


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(tmp_path / "scene.tif", origin=(500000, 4900200), shape=(500, 500), pattern="noise")


def test_an_area_in_the_sample_needs_nothing_else(canopy, tmp_path, monkeypatch) -> None:
    region = gpd.read_file(Path(__file__).parents[3] / "samples" / "region.geojson")
    part = region.to_crs(32612).centroid.buffer(25).to_crs(4326)
    part.to_file(tmp_path / "region.geojson")
    monkeypatch.chdir(tmp_path)
    code, out, err = canopy("predict", "--aoi", "region.geojson")
    assert code == 0, err
    assert out.splitlines()[-1] == "region_canopy_height.tif"
    assert validate(tmp_path / "region_canopy_height.tif") == ()
    with rasterio.open(tmp_path / "region_canopy_height.tif") as opened:
        heights = opened.read(1)
        assert opened.crs.to_epsg() == 32612
    assert 0.5 < np.isfinite(heights).mean() < 0.9
    assert canopy("validate", tmp_path / "region_canopy_height.tif")[0] == 0


def test_json_is_one_document(mapped) -> None:
    code, out, err = mapped("--json")
    assert code == 0, err
    assert json.loads(out) == {"path": "o.tif", "model": "tiny", "imagery": ["scene.tif"], "acquisition": None}
    assert "acquisition date of the imagery: unknown" in err


def test_stated_acquisition_reaches_tags_and_item(mapped, tmp_path) -> None:
    code, _, err = mapped("--imagery-datetime", "2024-07-15")
    assert code == 0, err
    assert "unknown" not in err
    with rasterio.open(tmp_path / "o.tif") as opened:
        assert opened.tags()["CANOPY_ACQUISITION_DATETIME"].startswith("2024-07-15")
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
    grid = {"origin": (500000, 4900200), "shape": (500, 500), "pattern": "noise"}
    truncate(make_raster(Path("truncated.tif"), **grid))
    empty(Path("empty.tif"))
    make_raster(Path("nocrs.tif"), crs=None, **grid)
    make_raster(Path("four.tif"), bands=4, colorinterp=["undefined"] * 4, **grid)
    make_raster(Path("coarse.tif"), **{**grid, "shape": (50, 50)}, resolution=10)
    Path("folder").mkdir()
    far = {**SQUARE, "coordinates": [[[x + 1, y] for x, y in SQUARE["coordinates"][0]]]}
    Path("far.geojson").write_text(json.dumps(far))
    Path("points.geojson").write_text(json.dumps({"type": "Point", "coordinates": [3.001, 44.254]}))


@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_and_loses_nothing(mapped, fault) -> None:
    flag, value, reason = FAULTS[fault]
    before = sorted(path.name for path in Path.cwd().iterdir())
    code, out, err = mapped(flag, value)
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


def test_info_prints_cards_maps_and_imagery(canopy, mapped, scene, tmp_path) -> None:
    code, out, _ = canopy("info", "canopy-small", "--json")
    assert code == 0
    assert json.loads(out)["provisional"] is True
    code, out, _ = canopy("info", scene, "--json")
    assert code == 0
    assert json.loads(out)["gsd_m"] == pytest.approx(0.5, rel=1e-2)
    assert mapped()[0] == 0
    code, out, _ = canopy("info", tmp_path / "o.tif", "--json")
    assert code == 0
    assert json.loads(out)["tags"]["CANOPY_MODEL"] == "tiny"
    assert json.loads(out)["problems"] == []


SMALL_TILES = "import canopy.prediction.run as run; run.TILE_PX = 40"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_killed_command_goes_on_to_the_same_bytes(
    tmp_path: Path, aoi: Path, scene: Path, tiny_model: Path, number: signal.Signals
) -> None:
    """Killed after its first committed tile, the same command finishes with the bytes of an undisturbed run."""

    def command(out: str) -> list[object]:
        return ["predict", "--aoi", aoi, "--imagery", scene, "--model", tiny_model, "--backend", "eager", "--out", out]

    whole = commands.start(*command("whole.tif"), folder=tmp_path, setup=SMALL_TILES).wait()
    assert whole.returncode == 0, whole.stderr
    running = commands.start(*command("cut.tif"), folder=tmp_path, setup=SMALL_TILES)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut.tif.partial").glob("*.tif.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(running.pid, number)
    assert running.wait().returncode == (-9 if number == signal.SIGKILL else 130)
    assert not (tmp_path / "cut.tif").exists()
    again = commands.run(*command("cut.tif"), folder=tmp_path, setup=SMALL_TILES)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "cut.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not (tmp_path / "cut.tif.partial").exists()


def test_full_disk_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, aoi: Path, scene: Path, tiny_model: Path
) -> None:
    """No file may pass 20 KB, as on a disk that fills; afterwards the same command ends well."""
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
"""
    command = (
        "predict",
        "--aoi",
        aoi,
        "--imagery",
        scene,
        "--model",
        tiny_model,
        "--backend",
        "eager",
        "--out",
        "o.tif",
    )
    full = commands.run(*command, folder=tmp_path, setup=limit)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("canopy: ")
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "o.tif").exists()
    assert commands.run(*command, folder=tmp_path).returncode == 0
    assert validate(tmp_path / "o.tif") == ()


LONG = "x" * 300
LONG_NAMES = {
    "aoi": ("predict", "--aoi", LONG),
    "out": ("predict", "--aoi", "{aoi}", "--imagery", "{scene}", "--out", f"{LONG}.tif"),
    "imagery": ("predict", "--aoi", "{aoi}", "--imagery", LONG),
    "model": ("predict", "--aoi", "{aoi}", "--imagery", "{scene}", "--model", LONG),
    "calibration": ("predict", "--aoi", "{aoi}", "--imagery", "{scene}", "--calibration", LONG),
    "info": ("info", LONG),
    "cloud": ("chm", f"{LONG}.laz", "--out", "o.tif"),
    "terrain": ("chm", "{scene}", "--out", f"{LONG}.tif"),
    "truth": ("evaluate", "--pred", "{scene}", "--truth", f"{LONG}.tif"),
    "shots": ("calibrate", "--pred", "{scene}", "--shots", LONG, "--out", "c.json"),
    "granule": ("gedi", "read", f"{LONG}.h5", "--out", "s.parquet"),
    "store": ("dataset", "info", LONG),
    "dataset": ("dataset", "build", LONG),
    "training": ("train", LONG),
    "pretraining": ("pretrain", LONG),
    "run folder": ("pretrain", "{config}", "--out", LONG),
}


@pytest.mark.parametrize("name", LONG_NAMES)
def test_a_name_too_long_for_a_file_is_one_line(canopy, aoi, scene, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[3] / "configs" / "pretrain-small.yaml"
    words = [word.format(aoi=aoi, scene=scene, config=config) for word in LONG_NAMES[name]]
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _, err = canopy(*words)
    assert code == 1, err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("canopy: ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
