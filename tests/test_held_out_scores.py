"""The benchmark that scores held-out ground through the commands: what it joins, writes, and does not do twice."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
from odc.geo.geom import box
from recipe_modules import load
from tiny_models import save_tiny_model
from training import SMALL_STORE

import canopy
from canopy.dataset.store import ChipStore
from canopy.evaluation.comparison import evaluate


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load("held_out", "benchmarks")


@pytest.fixture(scope="module")
def store() -> ChipStore:
    return ChipStore.open(SMALL_STORE)


def test_chips_are_joined_where_they_lie(benchmark: ModuleType, store: ChipStore) -> None:
    (scene,) = benchmark.read_scenes(store)
    assert (scene.name, scene.source, scene.crs, scene.x, scene.y) == ("b-b_1", "b", "EPSG:32611", 330_000, 4_100_000)
    assert scene.image.shape == (3, 64, 64)
    assert scene.height_m.shape == (32, 32)
    assert scene.imaged.all()
    south_east = next(int(row) for row in store.rows("test") if store[int(row)].record.chip.endswith("32_32"))
    np.testing.assert_array_equal(scene.image[:, 32:, 32:], store[south_east].image)
    np.testing.assert_array_equal(scene.height_m[16:, 16:], store[south_east].height_m)


def test_ground_without_a_chip_is_unknown_in_imagery_and_heights(
    benchmark: ModuleType, store: ChipStore, tmp_path: Path
) -> None:
    rows = [int(row) for row in store.rows("test") if not store[int(row)].record.chip.endswith("32_32")]
    scene = benchmark.join_chips(store, "b-b_1", rows)
    assert np.isnan(scene.height_m[16:, 16:]).all()
    imagery, truth = benchmark.write_scene(scene, tmp_path)
    with rasterio.open(imagery) as opened:
        assert (opened.transform.c, opened.transform.f, opened.res) == (330_000, 4_100_000, (0.5, 0.5))
        np.testing.assert_array_equal(opened.dataset_mask() > 0, scene.imaged)
        np.testing.assert_array_equal(opened.read(), scene.image)
    with rasterio.open(truth) as opened:
        np.testing.assert_array_equal(opened.read(1), scene.height_m)


def run(benchmark: ModuleType, bundle: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the benchmark as the command does, and return the row of its table."""
    with pytest.MonkeyPatch.context() as patch:
        command = ["held_out.py", "--store", SMALL_STORE, "--model", bundle, "--out", out, "--backend", "eager"]
        patch.setattr(sys, "argv", [str(part) for part in command])
        benchmark.main()
    return capsys.readouterr().out.splitlines()[-1]


def test_scores_are_those_of_the_commands_and_work_that_is_done_is_not_done_again(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = save_tiny_model(tmp_path / "tiny.safetensors")
    row = run(benchmark, bundle, tmp_path / "out", capsys)
    (pred,), (truth,) = tmp_path.glob("out/tiny-*/b-b_1.tif"), tmp_path.glob("out/scenes-*/*-chm.tif")
    (record,), (whole,) = tmp_path.glob("out/tiny-*/*-scores.json"), tmp_path.glob("out/tiny-*/all.json")
    with rasterio.open(truth) as opened:
        area = box(*opened.bounds, str(opened.crs))
    canopy.predict(
        area, imagery=truth.with_name("b-b_1-rgb.tif"), model=str(bundle), backend="eager", out=tmp_path / "own.tif"
    )
    with rasterio.open(tmp_path / "own.tif") as own, rasterio.open(pred) as first:
        np.testing.assert_array_equal(own.read(), first.read())
    expected = evaluate([pred], truth).to_json()
    scores = record.read_bytes()
    assert json.loads(scores) == json.loads(json.dumps(expected))
    pooled = json.loads(whole.read_text())["all"]
    for name in ("mae_m", "bias_m", "rmse_m", "n_px"):
        assert pooled[name] == pytest.approx(expected[name])
    assert f"| {expected['mae_m']:.2f} (" in row

    monkeypatch.setattr(canopy, "predict", lambda *_, **__: pytest.fail("the map is there"))
    record.unlink()
    assert run(benchmark, bundle, tmp_path / "out", capsys) == row
    assert record.read_bytes() == scores
