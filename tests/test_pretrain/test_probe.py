"""The probe finds what features know, and no more."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pretraining import tiny_config
from rasters import make_raster
from typer.testing import CliRunner

from canopy.cli.app import app
from canopy.dataset.scene import Scene
from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import read_card
from pretrain import cli
from pretrain.encoder import load_encoder
from pretrain.picture import patch_map, principal_colours, save_principal_colours
from pretrain.probe import (
    BLOCK_M,
    CELL_PX,
    Cells,
    colour_statistics,
    compare,
    encode,
    folds,
    held_out,
    measure,
    nearest,
    probe,
    r2,
    resample,
    ridge,
)  # fmt: skip
from pretrain.training import pretrain

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_raster(folder / "imagery" / "a.tif", shape=(64, 64), pattern="noise")
    settings = tiny_config(tiles={"sources": [{"path": str(folder / "imagery")}]}, loop={"steps": 1})
    return pretrain(settings, folder / "run")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes whose height is a tenth of their brightness, in stripes 16 m wide."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        level = np.repeat(np.repeat(RNG.integers(0, 240, (4, 9)) * RNG.integers(0, 2, (4, 9)), 32, axis=0), 32, axis=1)
        make_raster(root / f"scene_{number}" / "rgb.tif", values=np.broadcast_to(level, (3, *level.shape)))
        low = level[None, ::2, ::2]
        make_raster(root / f"scene_{number}" / "chm_cm.tif", values=low * 10, bands=1, dtype="uint16", resolution=1.0)
    return root


def cells(features: np.ndarray, height_m: np.ndarray, blocks: int = 20) -> Cells:
    return Cells(features, height_m, height_m > 2, np.arange(len(height_m)) * blocks // len(height_m))


def test_ridge_equals_the_normal_equations_and_shrinks_noise() -> None:
    x, weights = RNG.normal(size=(400, 5)), np.array([1.0, -2, 0.5, 0, 3])
    y = x @ weights + 7
    new = RNG.normal(size=(10, 5))
    np.testing.assert_allclose(ridge(x, y, new, np.arange(400) // 20), new @ weights + 7, rtol=1e-2)
    noise = RNG.normal(size=(400, 100))
    predicted = ridge(noise, RNG.normal(size=400), RNG.normal(size=(50, 100)), np.arange(400) // 20)
    assert predicted.std() < 0.1


def test_nearest_neighbours_recover_a_smooth_function() -> None:
    angle = RNG.uniform(0, 2 * np.pi, 3000)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    predicted = nearest(x[100:], np.sin(3 * angle[100:]), x[:100], np.zeros(2900, np.int64))
    assert np.abs(predicted - np.sin(3 * angle[:100])).max() < 0.1


def test_a_block_is_never_on_both_sides() -> None:
    block = RNG.integers(0, 23, 500)
    fold = folds(block, 5, 0)
    assert all(len(set(fold[block == b])) == 1 for b in range(23))
    assert set(fold) == set(range(5))


def test_features_that_only_name_their_block_do_not_score() -> None:
    block = np.repeat(np.arange(20), 20)
    height_m = RNG.normal(size=20)[block] + 0.01 * RNG.normal(size=400)
    blocks = Cells(np.eye(20)[block], height_m, height_m, block)
    assert r2(height_m, held_out(ridge, blocks, "height_m", 0)) < 0.05


def test_held_out_r2_is_that_of_the_signal() -> None:
    x = RNG.normal(size=(2000, 4))
    height_m = x[:, 0] + RNG.normal(size=2000)
    made = cells(x, height_m)
    score = r2(height_m, held_out(ridge, made, "height_m", 0))
    assert score == pytest.approx(0.5, abs=0.05)
    table = compare(height_m, {"good": x[:, 0], "none": np.full(2000, height_m.mean())}, resample(made.block, 0))
    low, high = table["good"]["interval"]
    assert low < table["good"]["r2"] < high
    assert high - low < 0.15
    assert table["gain"]["none"]["r2"] == pytest.approx(table["good"]["r2"])


def test_resampling_keeps_blocks_whole() -> None:
    block = RNG.integers(0, 7, 60)
    for drawn in resample(block, 0)[:20]:
        counts = np.bincount(drawn, minlength=60)
        assert all(len(set(counts[block == b])) == 1 for b in range(7))


def test_colour_statistics_are_those_of_the_cell() -> None:
    image = RNG.integers(0, 255, (3, 64, 96)).astype(np.uint8)
    made = colour_statistics(image)
    cell = image[:, 32:64, 64:96].reshape(3, -1) / 255
    expected = [cell.mean(1), cell.std(1), *np.percentile(cell, (5, 50, 95), axis=1)]
    np.testing.assert_allclose(made[1, 2], np.concatenate(expected))


def test_cells_know_their_heights_and_blocks() -> None:
    height_m = np.zeros((300, 32), np.float32)
    height_m[:16, :16], height_m[16:32, :12], height_m[:16, 24:] = 8, np.nan, 3
    scene = Scene("s", "s", np.zeros((3, 600, 64), np.uint8), height_m, 1.0)
    made = measure([scene], lambda image: np.indices((len(image[0]) // 32, 2)).transpose(1, 2, 0).astype(float))
    assert len(made.height_m) == 18 * 2 - 1, "a cell that is three quarters unknown is left out"
    assert made.height_m[:2].tolist() == [8, 1.5]
    assert made.cover[:2].tolist() == [1, 0.5]
    rows = made.features[:, 0] * CELL_PX * 0.5 // BLOCK_M
    assert (made.block == rows).all()


def test_patch_features_land_in_their_cells(bundle: Path) -> None:
    _, encoder = load_encoder(bundle)
    image = RNG.integers(0, 255, (3, 160, 160)).astype(np.uint8)
    made = encode(encoder, image)
    assert made.shape == (5, 5, 32)
    np.testing.assert_allclose(made[4, 4], encode(encoder, image[:, 128:, 128:])[0, 0], atol=1e-6)
    np.testing.assert_allclose(made[:4, :4], encode(encoder, image[:, :128, :128]), atol=1e-6)


def test_the_command_compares_encoder_random_and_colour(
    bundle: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = type(app)()
    application.command("probe")(cli.probe)
    application.command("other")(lambda: None)
    result = CliRunner().invoke(application, ["probe", str(bundle), "--pairs", str(pairs), "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["cells"], made["blocks"]) == (6 * 36, 12)
    assert made["height_m"]["linear"]["colour"]["r2"] > 0.99
    assert made["height_m"]["linear"]["encoder"]["r2"] < 1
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(bundle.read_bytes())
    table = CliRunner().invoke(application, ["probe", str(copy), "--pairs", str(pairs), "--record"]).stdout
    assert read_card(copy).metrics["probe"]["height_m"]["linear"] == made["height_m"]["linear"]
    assert load_encoder(copy)[0].training == read_card(bundle).training
    assert table.count("| colour |") == 4
    with pytest.raises(TrainingError, match="no scenes"):
        probe(bundle, tmp_path)


def test_any_encoder_can_be_probed_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    make = timm.create_model
    torch.manual_seed(0)
    vit = make("vit_tiny_patch16_224", num_classes=0, img_size=128, patch_size=16, dynamic_img_size=True)

    def brought(name: str, *, pretrained: bool = False, **args: object) -> torch.nn.Module:
        return vit if pretrained else make(name, **args)

    monkeypatch.setattr(timm, "create_model", brought)
    card, encoder = load_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))
    assert card.mean == (0.5, 0.5, 0.5)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(image)[1], vit.forward_features((image - 0.5) / 0.5)[:, 1:])
    with pytest.raises(ModelError, match="knows no pretrained"):
        load_encoder(Path("timm:vit_tiny_patch16_224.nothing"))
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained=False, **k: offline(pretrained) or make(*a, **k))
    with pytest.raises(ModelError, match="timm cannot bring vit_tiny"):
        load_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))
    monkeypatch.setattr(timm, "create_model", make)
    card, encoder = load_encoder(Path("canopy-small"))
    assert (card.family, encoder.width) == ("dpt", 192)


def offline(pretrained: bool) -> None:
    if pretrained:
        raise OSError("no network")


def test_principal_colours_tell_two_textures_apart(bundle: Path, tmp_path: Path) -> None:
    _, encoder = load_encoder(bundle)
    image = np.full((3, 136, 150), 90, np.uint8)
    image[:, :, 75:] = 200
    features = patch_map(encoder, image)
    assert features.shape == (68, 75, 32)
    # a shift of the even part moves nothing but where a patch lies among its neighbours
    np.testing.assert_allclose(features[4:8:4, :4:4], features[:4:4, :4:4], atol=1)
    colours = principal_colours(features).astype(float)
    left, right = colours[:, :, :30].mean(axis=(1, 2)), colours[:, :, 45:].mean(axis=(1, 2))
    assert np.abs(left - right).max() > 30
    save_principal_colours(tmp_path / "p.png", encoder, image)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (2 * 297, 269)


def test_features_lie_where_they_were_seen(bundle: Path) -> None:
    _, encoder = load_encoder(bundle)
    image = np.random.default_rng(0).integers(0, 255, (3, 160, 160), dtype=np.uint8)
    features = patch_map(encoder, image)
    # the chip whose inner half begins at pixel 64 begins at 32; its fifth patch of 8 px is the first of that half
    chip = torch.from_numpy(image[:, 32:160, 32:160].copy())[None].float() / 255
    with torch.inference_mode():
        tokens = encoder(chip)[1].view(16, 16, -1).numpy()
    np.testing.assert_allclose(features[32:64:4, 32:64:4], tokens[4:12, 4:12], atol=1e-5)


def test_a_picture_is_made_of_any_image_without_pairs(bundle: Path, tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "samples" / "yellowstone.tif"
    cli.probe(bundle, picture=tmp_path / "p.png", scene=sample)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size[0] > picture.size[1] > 700


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to do"),
        ({"scene": Path("a.tif")}, "give both"),
        ({"picture": Path("p.png")}, "--scene IMAGE or --pairs"),
    ],
)
def test_probing_nothing_says_what_to_give(bundle: Path, options: dict[str, Path], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cli.probe(bundle, **options)
