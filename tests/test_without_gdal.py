"""Training and pretraining run on chip stores where rasterio, geopandas and pyproj are not installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pretraining
import pytest
from training import SMALL_STORE, tiny_config

SCRIPT = """
import json, sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Blocked(MetaPathFinder):
    '''Raises what an absent package raises.'''

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"rasterio", "geopandas", "pyproj"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for name in ("rasterio", "geopandas", "pyproj"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not blocked")

from canopy.errors import CanopyError
from canopy.training.config import TrainConfig
from canopy.training.decoder import train
from pretrain.config import PretrainConfig
from pretrain.training import pretrain

folder, (training, pretraining) = Path(sys.argv[1]), json.loads(sys.argv[2])
results = {}

def attempt(name, stage, config):
    try:
        results[name] = str(stage(config, folder / name))
    except CanopyError as error:
        results[name] = f"{type(error).__name__}: {error}"

attempt("train", train, TrainConfig.model_validate(training))
attempt("pretrain", pretrain, PretrainConfig.model_validate(pretraining))
made = {**training["store"], "made": str(folder), "shares": {"a": 1.0}}
attempt("synthetic", train, TrainConfig.model_validate({**training, "store": made}))
tiles = {"sources": [{"path": str(folder), "pattern": "*.tif"}], "tile_px": 32}
attempt("geotiff", pretrain, PretrainConfig.model_validate({**pretraining, "tiles": tiles}))
results["loaded"] = sorted({name.partition(".")[0] for name in sys.modules} & {"rasterio", "geopandas", "pyproj"})
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two runs on the small store, and two on GeoTIFFs, end in: one process, for the imports are the cost."""
    folder = tmp_path_factory.mktemp("without_gdal")
    (folder / "scene.tif").touch()
    on_store = pretraining.tiny_config(tiles={"sources": [], "store": str(SMALL_STORE)}, loop={"steps": 2})
    configs = [tiny_config().model_dump(mode="json", by_alias=True), on_store.model_dump(mode="json")]
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(configs)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    outcomes: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return outcomes


def test_training_runs_on_a_store(results: dict[str, Any]) -> None:
    assert Path(results["train"]).name == "best.safetensors"
    assert Path(results["train"]).is_file()


def test_pretraining_runs_on_a_store(results: dict[str, Any]) -> None:
    assert Path(results["pretrain"]).name == "last.safetensors"
    assert Path(results["pretrain"]).is_file()


@pytest.mark.parametrize("source", ["synthetic", "geotiff"])
def test_geotiffs_are_one_line_that_names_gdal(results: dict[str, Any], source: str) -> None:
    message = results[source]
    assert message.startswith("TrainingError: ")
    assert "GeoTIFF" in message
    assert "GDAL" in message
    assert "rasterio" in message
    assert "\n" not in message


def test_none_of_the_three_is_loaded(results: dict[str, Any]) -> None:
    assert results["loaded"] == []
