"""The probe: scores with intervals, its table, its record, its picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rasters import make_raster

from canopy.errors import ConfigError, TrainingError
from canopy.evaluation.bootstrap import draw_blocks
from canopy.models.bundle import Architecture, Card, read_card
from pretrain.encoder import from_card, load_encoder, save_encoder
from pretrain.probe import (
    Comparison,
    ProbeResult,
    Score,
    compare,
    format_table,
    picture_scene,
    probe,
    record_probe,
    weighted_r2,
)

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder, untrained."""
    torch.manual_seed(1)
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    card = Card(
        name="small", family="encoder", architecture=Architecture(encoder_args=args), gsd_m=0.5, chip_px=32,
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), canopy_version="0", licence="CC0-1.0", provisional=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("bundle") / "small.safetensors"
    save_encoder(path, card, from_card(card).vit.state_dict())
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes whose height is a tenth of their brightness, in squares of 16 m."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        level = np.repeat(np.repeat(RNG.integers(0, 240, (4, 9)) * RNG.integers(0, 2, (4, 9)), 32, axis=0), 32, axis=1)
        make_raster(root / f"scene_{number}" / "rgb.tif", values=np.broadcast_to(level, (3, *level.shape)))
        low = level[None, ::2, ::2]
        make_raster(root / f"scene_{number}" / "chm_cm.tif", values=low * 10, bands=1, dtype="uint16", resolution=1.0)
    return root


@pytest.fixture(scope="module")
def result(bundle: Path, pairs: Path) -> ProbeResult:
    return probe(bundle, pairs)


def test_weighted_r2_is_the_r2_of_cells_repeated() -> None:
    truth, prediction, block = RNG.normal(8, 3, 60), RNG.normal(8, 3, 60), RNG.permutation(np.arange(60) % 7)
    weight = draw_blocks(7, 20)
    for counts, r2 in zip(weight, weighted_r2(truth, prediction, block, weight), strict=True):
        cells = np.repeat(np.arange(60), counts[block].astype(int))
        residual = np.square(truth[cells] - prediction[cells]).sum()
        expected = 1 - residual / np.square(truth[cells] - truth[cells].mean()).sum()
        assert r2 == pytest.approx(expected, rel=1e-9)


def test_scores_and_gains_have_intervals_over_blocks() -> None:
    truth = RNG.normal(size=2000)
    good, block = truth + RNG.normal(size=2000), np.arange(2000) // 100
    scores, gains = compare(truth, {"good": good * 0.5, "none": np.full(2000, truth.mean())}, block, 0)
    assert scores["good"].r2 == pytest.approx(0.5, abs=0.05)
    assert scores["none"].r2 == pytest.approx(0)
    low, high = scores["good"].interval or (0, 0)
    assert low < 0.5 < high < low + 0.15
    assert gains["none"].r2 == pytest.approx(scores["good"].r2)
    assert list(gains) == ["none"]


def test_a_truth_that_does_not_vary_has_no_score() -> None:
    scores, _ = compare(np.ones(40), {"a": RNG.normal(size=40)}, np.arange(40) // 2, 0)
    assert scores["a"] == Score(None, None)


def test_the_probe_scores_encoder_random_and_colour(result: ProbeResult) -> None:
    assert (result.name, result.cells, result.blocks) == ("small", 6 * 36, 12)
    comparison = result.comparison("height_m", "linear")
    assert list(comparison.scores) == ["encoder", "random", "colour"]
    assert list(comparison.gains) == ["random", "colour"]
    scores = {name: score.r2 or 0 for name, score in comparison.scores.items()}
    assert scores["colour"] > 0.99 > scores["encoder"]
    assert comparison.gains["colour"].r2 == pytest.approx(scores["encoder"] - scores["colour"])
    assert scores["random"] != scores["encoder"]


def test_the_result_keeps_its_keys_in_json(result: ProbeResult) -> None:
    tree = json.loads(json.dumps(result.to_json()))
    assert tree.keys() == {"name", "cells", "blocks", "height_m", "cover"}
    assert tree["cover"].keys() == {"linear", "knn"}
    assert tree["height_m"]["knn"].keys() == {"encoder", "random", "colour", "gain"}
    assert tree["height_m"]["knn"]["gain"].keys() == {"random", "colour"}
    assert tree["height_m"]["knn"]["encoder"].keys() == {"r2", "interval"}
    assert len(tree["height_m"]["knn"]["encoder"]["interval"]) == 2


def test_the_table_has_a_row_for_every_score_and_gain() -> None:
    comparison = Comparison(
        "cover", "knn", {"encoder": Score(0.5, (0.4, 0.6)), "colour": Score(0.25, None)}, {"colour": Score(0.25, None)}
    )
    assert format_table(ProbeResult("a", 3, 2, (comparison,))).splitlines()[2:] == [
        "| encoder | cover | knn | 0.500 | 0.400 to 0.600 |",
        "| colour | cover | knn | 0.250 |  |",
        "| encoder - colour | cover | knn | 0.250 |  |",
    ]


def test_a_result_is_recorded_in_the_card(bundle: Path, result: ProbeResult, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(bundle.read_bytes())
    record_probe(copy, result)
    tree = json.loads(json.dumps(result.to_json()))
    del tree["name"]
    assert read_card(copy).metrics["probe"] == tree
    assert load_encoder(copy)[0].architecture == read_card(bundle).architecture


def test_folders_without_scenes_and_odd_factors_are_clear_errors(bundle: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no scenes"):
        probe(bundle, tmp_path)
    with pytest.raises(ConfigError, match="enlarged 3 times: 1, 2 or 4"):
        probe(bundle, pairs, enlarge=3)


def test_the_picture_shows_the_middle_of_any_image_or_of_the_largest_scene(
    bundle: Path, pairs: Path, tmp_path: Path
) -> None:
    path = make_raster(tmp_path / "a.tif", shape=(30, 400), pattern="noise")
    picture_scene(bundle, tmp_path / "a.png", path, None)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * (2 * 384 - 3), 2 * 30 - 3)
    picture_scene(bundle, tmp_path / "b.png", None, pairs)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (2 * (2 * 288 - 3), 2 * 128 - 3)
    with pytest.raises(ConfigError, match="--scene IMAGE or --pairs"):
        picture_scene(bundle, tmp_path / "c.png", None, None)
