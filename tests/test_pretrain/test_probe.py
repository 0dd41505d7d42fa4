"""The probe: scores with intervals, its table, its record, its picture."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pretraining import tiny_config
from rasters import make_raster

from canopy.dataset.scene_folders import read_scenes
from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import Architecture, Card, read_card
from pretrain import probe as probes
from pretrain.encoder import from_card, load_encoder, save_encoder
from pretrain.probe import (
    ProbeResult,
    format_table,
    group_sites,
    locate_scenes,
    picture_scene,
    probe,
    record_probe,
    teacher_features,
)
from pretrain.retrieval import Retrieval
from pretrain.scores import Comparison, GroundResult, Score
from pretrain.training import pretrain

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


def write_scene(folder: Path, level: np.ndarray, **georeference: Any) -> None:
    """Write a scene whose height is a tenth of its brightness."""
    make_raster(folder / "rgb.tif", values=np.broadcast_to(level, (3, *level.shape)), **georeference)
    low = level[None, ::2, ::2] * 10
    make_raster(folder / "chm_cm.tif", values=low, bands=1, dtype="uint16", resolution=1.0, **georeference)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 256 m by 128 m in squares of 16 m: four at one site, and two at another, 40 km to the east."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        level = RNG.integers(0, 240, (8, 16)) * RNG.integers(0, 2, (8, 16))
        level = np.repeat(np.repeat(level, 32, axis=0), 32, axis=1)
        east_m = 39_936 if number > 3 else 0
        write_scene(root / f"scene_{number}", level, origin=(499_968.0 + east_m, 4_999_936.0 + 128 * number))
    return root


@pytest.fixture(scope="module")
def result(bundle: Path, pairs: Path) -> ProbeResult:
    return probe(bundle, pairs, untrained=2)


def test_the_probe_scores_encoder_random_statistics_and_colour(result: ProbeResult) -> None:
    assert (result.name, result.ground.cells, result.ground.blocks) == ("small", 6 * 128, 12)
    comparison = result.ground.comparison("height_m", "linear")
    assert list(comparison.scores) == ["encoder", "random", "statistics", "colour"]
    assert list(comparison.gains) == ["random", "statistics", "colour"]
    scores = {name: score.r2 or 0 for name, score in comparison.scores.items()}
    assert scores["colour"] > 0.99 > scores["encoder"]
    assert comparison.gains["colour"].r2 == pytest.approx(scores["encoder"] - scores["colour"])
    networks = comparison.scores["random"].networks
    assert len(set(networks)) == 2
    assert scores["random"] == pytest.approx(np.mean(networks))


def test_at_least_five_untrained_encoders_are_the_default() -> None:
    assert inspect.signature(probe).parameters["untrained"].default >= 5


def test_features_retrieve_cells_of_their_height(result: ProbeResult) -> None:
    retrieved = {r.features: r for r in result.retrieval}
    assert all(r.cells == 6 * 128 for r in result.retrieval)
    assert all(0 < r.height_class <= 1 and 0 <= r.instance < 1 for r in result.retrieval), "flat squares are alike"
    # here height is a tenth of the brightness, which the histograms of colour contain
    assert retrieved["statistics"].height_class > 0.5


def test_each_site_is_predicted_without_it(result: ProbeResult) -> None:
    assert {name: ground.cells for name, ground in result.sites.items()} == {"scene_0": 4 * 128, "scene_4": 2 * 128}
    colour = result.sites["scene_4"].comparison("height_m", "linear").scores["colour"]
    assert colour.r2 is not None and colour.r2 > 0.99


def test_the_result_keeps_its_keys_in_json(result: ProbeResult) -> None:
    tree = json.loads(json.dumps(result.to_json()))
    assert tree.keys() == {"name", "cells", "blocks", "height_m", "cover", "sites", "retrieval"}
    assert list(tree["retrieval"]) == ["encoder", "random", "statistics", "colour"]
    assert tree["retrieval"]["encoder"].keys() == {"instance", "height_class", "cells"}
    assert tree["cover"].keys() == {"linear", "knn"}
    assert tree["height_m"]["knn"].keys() == {"encoder", "random", "statistics", "colour", "gain"}
    assert tree["height_m"]["knn"]["gain"].keys() == {"random", "statistics", "colour"}
    assert tree["height_m"]["knn"]["encoder"].keys() == {"r2", "interval"}
    assert len(tree["height_m"]["knn"]["encoder"]["interval"]) == 2
    assert tree["sites"]["scene_4"].keys() == {"cells", "blocks", "height_m", "cover"}


def test_the_tables_have_a_row_for_every_score_gain_and_site() -> None:
    scores = {"encoder": Score(0.5, (0.4, 0.6)), "colour": Score(0.25, None)}
    ground = GroundResult(3, 2, (Comparison("cover", "knn", scores, {"colour": Score(0.25, None)}),))
    lines = format_table(ProbeResult("a", ground, {"b": ground})).splitlines()
    assert lines[2:] == [
        "| encoder | cover | knn | 0.500 | 0.400 to 0.600 |",
        "| colour | cover | knn | 0.250 |  |",
        "| encoder - colour | cover | knn | 0.250 |  |",
        "",
        "| site left out | cells | target | probe | R2 encoder | R2 colour |",
        "|---|---|---|---|---|---|",
        "| b | 3 | cover | knn | 0.500 | 0.250 |",
    ]
    assert format_table(ProbeResult("a", ground, {})).splitlines() == lines[:5]
    retrieved = format_table(ProbeResult("a", ground, {}, (Retrieval("encoder", 0.5, 0.25, 3),))).splitlines()
    assert retrieved[5:] == [
        "",
        "| features | a cell finds itself | neighbours of its height class |",
        "|---|---|---|",
        "| encoder | 0.500 | 0.250 |",
    ]


def test_scenes_are_located_in_metres_of_their_crs(tmp_path: Path) -> None:
    level = np.zeros((64, 64))
    write_scene(tmp_path / "feet", level, crs="EPSG:2277", origin=(3_000_000.0, 10_000_000.0))
    write_scene(tmp_path / "metres", level, origin=(500_000.0, 5_000_000.0))
    write_scene(tmp_path / "nowhere", level, crs=None)
    feet, metres, nowhere = locate_scenes(tmp_path, read_scenes(tmp_path))
    foot_m = 1200 / 3937
    assert feet.cell_to_m @ (0, 0) == pytest.approx((3_000_000 * foot_m, 10_000_000 * foot_m))
    assert feet.cell_to_m @ (10, 0) == pytest.approx((3_000_010 * foot_m, 10_000_000 * foot_m))
    assert metres.cell_to_m @ (10, 20) == pytest.approx((500_010, 4_999_980))
    assert nowhere.cell_to_m @ (10, 20) == (10, 20)
    assert len({feet.lattice, metres.lattice, nowhere.lattice}) == 3
    assert [ground.site for ground in (feet, metres, nowhere)] == ["feet", "metres", "nowhere"]
    write_scene(tmp_path / "zz", level, crs="EPSG:4326", origin=(3.0, 45.0))
    with pytest.raises(TrainingError, match="a projected one"):
        locate_scenes(tmp_path, read_scenes(tmp_path))


def test_sites_chain_scenes_within_ten_kilometres() -> None:
    # a degree of latitude is 111.2 km; of longitude at 60 degrees north, half of that
    lonlat = np.array([[10.0, 60.0], [10.0, 60.08], [10.0, 60.16], [10.17, 60.0], [10.0, 61.0], [np.nan, np.nan]])
    assert group_sites(list("abcdef"), lonlat) == ["a", "a", "a", "a", "e", "f"]
    assert group_sites(list("ab"), np.array([[10.0, 60.0], [10.19, 60.0]])) == ["a", "b"]


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
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PICTURE_PX", 32)
    path = make_raster(tmp_path / "a.tif", shape=(30, 80), pattern="noise")
    picture_scene(bundle, tmp_path / "a.png", path, None)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * (2 * 32 - 3), 2 * 30 - 3)
    for name, side in (("small", 64), ("large", 80)):
        write_scene(tmp_path / "pairs" / name, np.zeros((side, side)))
    picture_scene(bundle, tmp_path / "b.png", None, tmp_path / "pairs")
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (2 * (2 * 32 - 3), 2 * 32 - 3)
    with pytest.raises(ConfigError, match="--scene IMAGE or --pairs"):
        picture_scene(bundle, tmp_path / "c.png", None, None)


def test_the_teacher_has_a_row_of_its_own(tmp_path: Path, pairs: Path) -> None:
    torch.manual_seed(2)
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    card = Card(
        name="wide", family="encoder", architecture=Architecture(encoder_args=args), gsd_m=0.5, chip_px=128,
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), canopy_version="0", licence="CC0-1.0", provisional=True,
    )  # fmt: skip
    path = tmp_path / "wide.safetensors"
    save_encoder(path, card, from_card(card).vit.state_dict())
    result = probe(path, pairs, untrained=1, teacher=str(path))
    for comparison in result.ground.comparisons:
        assert list(comparison.scores) == ["encoder", "random", "teacher", "statistics", "colour"]
        # here the teacher is the encoder itself
        assert comparison.scores["teacher"].r2 == pytest.approx(comparison.scores["encoder"].r2, abs=1e-3)
        assert comparison.gains["teacher"].r2 == pytest.approx(0, abs=1e-3)
    assert "| teacher | height_m | linear |" in format_table(result)


def test_a_convolutional_teacher_sees_the_image_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet.r160_in1k", features_only=True, pretrained=False)
    torch.save(net.state_dict(), tmp_path / "teacher.pt")
    image = RNG.integers(0, 255, (3, 64, 96)).astype(np.uint8)
    once, twice = (
        teacher_features("test_resnet.r160_in1k", tmp_path / "teacher.pt", enlarge)(image, 0.5) for enlarge in (1, 2)
    )
    assert once.shape[:2] == twice.shape[:2] == (2, 3)
    assert np.isfinite(once).all() and np.isfinite(twice).all()
    # patches of half the side have a quarter of the finest level's pixels
    assert twice.shape[2] < once.shape[2]


def test_weights_without_their_network_are_refused(bundle: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher-weights"):
        probe(bundle, pairs, teacher_weights=tmp_path / "teacher.pt")


def test_a_run_probes_its_encoder_while_it_learns(
    tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pretrain.training")
    config = tiny_config(
        tiles={"sources": [{"path": str(pairs / "scene_0"), "pattern": "rgb.tif"}]}, probe={"pairs": str(pairs)},
        loop={"steps": 2, "evaluate_every": 1}, monitor_every=100,
    )  # fmt: skip
    run = pretrain(config, tmp_path / "run").parent
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [entry["probe"] for entry in entries if "probe" in entry]
    assert len(scores) == 2 and scores[0] != scores[1]
    assert scores[1].keys() == {"height_m_linear", "height_m_knn", "cover_linear", "cover_knn"}
    expected = probe(run / "last.safetensors", pairs, untrained=1).ground.comparison("height_m", "knn")
    assert scores[1]["height_m_knn"] == expected.scores["encoder"].r2
    assert any(message.startswith("step 2  probe R2: height_m_linear") for message in caplog.messages)
