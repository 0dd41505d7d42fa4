"""The benchmark of folds: which ground a fold leaves out, what is computed once, and how seeds stand in a cell."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
import yaml
from height_maps import height_raster
from recipe_modules import load
from towns import build_town
from training import tiny_config, trained

from canopy.config import load_config
from canopy.dataset.config import DatasetConfig
from canopy.dataset.store import ChipStore
from canopy.models.bundle import read_bundle


@pytest.fixture(scope="module")
def folds() -> ModuleType:
    return load("folds", "benchmarks")


@pytest.fixture(scope="module")
def work(folds: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("folds")
    store = build_town(folder)
    data = load_config(store / "config.yaml", DatasetConfig, (f"root={folder / 'data'}",))
    return folds.Work(tiny_config(), data, ChipStore.open(store), folder / "out", 1)


def test_a_fold_leaves_out_its_sites_and_the_blocks_of_the_store(folds, work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "FOLDS", {"1": ("a",), "2": ()})
    assert [scene.name for scene in work.scenes("b", "2")] == ["b-b_1"]
    assert [scene.name for scene in work.scenes("a", "2")] == []
    assert [scene.name for scene in work.scenes("a", "1")] == ["a-a_1"]


def test_a_city_gives_as_many_places_as_are_asked_for(work) -> None:
    assert [scene.name for scene in work.images("stems")] == ["t"]


def test_a_constant_is_a_map_of_one_height(folds, work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "FOLDS", {"1": ()})
    document = folds.against_lidar(work, None, 3.5, "b", "1")
    truth = next((work.out / "scenes").glob("b-b_1-chm.tif"))
    with rasterio.open(truth) as opened:
        heights = opened.read(1)
    expected = np.abs(3.5 - heights[np.isfinite(heights)]).mean()
    assert document["mae_m"] == pytest.approx(expected, abs=0.01)


def test_tops_match_tree_points_one_by_one(folds, tmp_path: Path) -> None:
    rows, cols = np.mgrid[0:80, 0:80]
    maps, images, lines = [], [], ["image,col,row"]
    for name, crowns in (("one", [(20, 20), (20, 60)]), ("other", [(50, 30), (50, 34)])):
        heights = np.max([np.maximum(0, 10 - 2 * np.hypot(rows - row, cols - col)) for row, col in crowns], axis=0)
        maps.append(height_raster(tmp_path / f"{name}-map.tif", heights.astype(np.float32), resolution=0.5))
        images.append(height_raster(tmp_path / f"{name}.tif", heights.astype(np.float32), resolution=0.5))
    # One tree has two points, two have none, and one point lies where no tree is.
    lines += ["one,21,21", "one,19.5,20", "other,30,51", "other,70,10"]
    (tmp_path / "trees.csv").write_text("\n".join(lines) + "\n")
    scores = folds.trees_one_by_one(maps, images, tmp_path / "trees.csv")
    assert scores == {"tree_recall": 2 / 4, "tree_precision": 2 / 4, "tree_f1": 0.5}


def test_scores_are_computed_once_and_averaged_over_seeds(folds, work) -> None:
    for seed, value in ((0, 2.0), (1, 3.0)):
        folds.score_once(work, f"recipe, seed {seed}", "1", "ground", lambda value=value: {"mae_m": value})
    folds.score_once(work, "recipe, seed 0", "1", "ground", lambda: pytest.fail("scored twice"))
    documents = folds.read(work, "recipe, seed", "ground", "12")
    assert folds.cell(documents, "mae_m", ".1f") == "2.5 (2.0 to 3.0)"
    assert folds.cell(documents, "skill", ".1f") == ""
    assert json.loads((work.out / "scores" / "recipe, seed 1" / "1-ground.json").read_text()) == {"mae_m": 3.0}


def test_rows_of_another_recipe_have_their_own_name_and_no_start(
    folds, work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings, scored = [], []
    monkeypatch.setattr(
        folds, "train", lambda config, run, *, resume: trainings.append((config, run)) or run.mkdir(parents=True)
    )
    monkeypatch.setattr(folds, "load_model", lambda path: path)
    monkeypatch.setattr(folds, "score", lambda work, row, fold, model, median_m: scored.append((row, fold)))
    monkeypatch.setattr(folds, "FOLDS", {"1": ("b",), "2": ()})
    other = replace(work, out=tmp_path, row="U-Net")
    for _ in range(2):
        folds.run(other, ("1", "2"), (3,))
    expected = [("training median", "1"), ("training median", "2"), ("U-Net, seed 3", "1"), ("U-Net, seed 3", "2")]
    assert scored == 2 * expected
    assert [run.name for _, run in trainings] == ["U-Net-fold1-seed3", "U-Net-fold2-seed3"], "each is trained once"
    config = trainings[0][0]
    assert (config.store.held_out_sites, config.loop.seed) == (("b",), 3)
    monkeypatch.undo()
    for seed, mae_m in ((0, 1.5), (1, 2.5)):
        folds.score_once(
            other, f"U-Net, seed {seed}", "2", "farmland, France", lambda m=mae_m: {"mae_m": m, "skill": 0.1}
        )
    folds.print_tables(other)
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| recipe, seed | U-Net, seed |")
    (row,) = (line for line in table if line.startswith("| farmland, France"))
    assert row.endswith("|  | 2.00 (1.50 to 2.50); 0.10 (0.10 to 0.10) |")


def test_one_command_trains_averages_maps_and_scores(
    folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_town(tmp_path)
    start = trained(tiny_config(store={"path": str(store)}, chip_px=64), tmp_path / "start") / "last.safetensors"
    for name, rate in (("short", 1e-3), ("long", 1e-2)):
        loop = {"steps": 2, "warmup_steps": 1, "amp": False, "lr": rate}
        config = tiny_config(chip_px=64, loop=loop, start=str(start), fix_statistics=True, weak_batch=2)
        values = config.model_dump(mode="json", exclude_unset=True)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    for name, value in (("FOLDS", {"1": ("u",)}), ("GROUNDS", {"forest": ("b", "1")}), ("CITIES", {"1": ("u",)}),
                        ("STEMS", {"1": ("stems",)})):  # fmt: skip
        monkeypatch.setattr(folds, name, value)
    means = ["--mean-with", "long.yaml", "--mean-with", "short.yaml"]
    arguments = ["long.yaml", *means, "--seeds", "0", "--folds", "1", "--out", "out"]
    data = ["--data", str(store / "config.yaml"), "--root", "data", "--store", str(store), "--set", f"start={start}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["folds.py", *arguments, *data])
    folds.main()
    printed = capsys.readouterr()
    forest, city, stems = (
        next(line for line in printed.out.splitlines() if line.startswith(beginning))
        for beginning in ("| forest |", "| u | recipe, seed |", "| stems | recipe, seed |")
    )
    assert forest.count(";") == 4, "a score of each row"
    assert city.count("%") == 4 and "|  |" not in stems
    runs = {run.name: read_bundle(run / "last.safetensors") for run in (tmp_path / "out" / "runs").iterdir()}
    assert sorted(runs) == ["fold1-seed0", *(f"fold1-seed0-part{part}" for part in range(3))]
    mean, *parts = (runs[name] for name in sorted(runs))
    assert [part.card.training["seed"] for part in parts] == [0, folds.SEED_STEP, 0]
    name = next(name for name, array in mean.weights.items() if np.issubdtype(array.dtype, np.floating))
    expected = sum(part.weights[name].astype(np.float32) for part in parts) / 3
    np.testing.assert_allclose(mean.weights[name].astype(np.float32), expected, atol=2e-3)
    monkeypatch.setattr(folds, "train", lambda *_, **__: pytest.fail("trained twice"))
    monkeypatch.setattr(folds.canopy, "predict", lambda *_, **__: pytest.fail("mapped twice"))
    folds.main()
    assert capsys.readouterr().out == printed.out
