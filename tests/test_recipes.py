"""Rendered woodland: shade falls where the sun says, heights are those of the trees. Pseudo-labels on whole metres."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
import timm
import torch
import yaml
from rasters import make_raster
from recipe_modules import load
from torch import Tensor, nn
from training import SMALL_STORE, tiny_config

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.dataset.scene_folders import read_scenes
from canopy.models.bundle import read_card
from canopy.models.heads import HeightBins
from canopy.training import decoder
from canopy.training.config import TrainConfig


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The renderer, of scenes so small that one takes a tenth of the time."""
    module = load("render_scenes")
    module.SIDE_M, module.SIDE_PX = 64, round(64 / module.FINE_M)
    return module


@pytest.mark.parametrize("tangent", [0.5, 1.0, 2.0])
def test_a_pole_shades_its_height_over_the_tangent(recipe: ModuleType, tangent: float) -> None:
    surface_m = np.zeros((200, 200), np.float32)
    surface_m[100:102, 100:102] = 10
    shaded = recipe._shaded(surface_m, np.zeros_like(surface_m), np.array([-1.0, 0.0]), tangent)
    rows, cols = np.nonzero(shaded)
    length_m = (rows.max() - 101) * recipe.FINE_M
    assert rows.min() > 101, "the sun stands in the north: shade falls to the south"
    assert set(cols) == {100, 101}
    assert length_m == pytest.approx(10 / tangent, abs=1.0)


def test_flat_ground_has_no_shade(recipe: ModuleType) -> None:
    flat = np.zeros((50, 50), np.float32)
    assert not recipe._shaded(flat, flat, np.array([0.0, 1.0]), 1.0).any()


def test_light_passes_below_a_crown(recipe: ModuleType) -> None:
    surface_m = np.zeros((200, 200), np.float32)
    surface_m[100:102, 100:102] = 10
    below_m = np.where(surface_m > 0, 5, 0).astype(np.float32)
    rows, _ = np.nonzero(recipe._shaded(surface_m, below_m, np.array([-1.0, 0.0]), 1.0))
    assert (rows.min() - 101) * recipe.FINE_M == pytest.approx(5, abs=1.0)
    assert (rows.max() - 101) * recipe.FINE_M == pytest.approx(10, abs=1.0)


def test_a_crown_is_as_tall_as_its_tree(recipe: ModuleType) -> None:
    generator = np.random.default_rng(0)
    middle = np.array([128.0], np.float32)
    tree = recipe.Trees(middle, middle, np.array([20.0]), np.array([4.0]), np.array([True]), np.full((1, 3), 0.2))
    ground = np.zeros((recipe.SIDE_PX, recipe.SIDE_PX), np.float32)
    bare = np.full((3, *ground.shape), 0.5, np.float32)
    colour, surface_m, below_m = recipe._add_crowns(generator, tree, bare, ground)
    assert (below_m[surface_m > 0] <= surface_m[surface_m > 0]).all()
    assert surface_m.max() == pytest.approx(20, rel=0.15)
    assert np.argwhere(surface_m > 15).mean(axis=0) == pytest.approx([128, 128], abs=5)
    reach_px = 1.7 * 4 / recipe.FINE_M
    rows, cols = np.nonzero(surface_m)
    assert np.hypot(rows - 128, cols - 128).max() < reach_px
    assert (colour[:, surface_m == 0] == 0.5).all()


def test_a_scene_is_a_function_of_its_seed(recipe: ModuleType) -> None:
    (image, height_m), (again, heights_again) = (recipe.render(np.random.default_rng(5), []) for _ in range(2))
    assert np.array_equal(image, again)
    assert np.array_equal(height_m, heights_again)
    assert image.shape == (3, 2 * recipe.SIDE_M, 2 * recipe.SIDE_M)
    assert height_m.shape == (recipe.SIDE_M, recipe.SIDE_M)
    assert 5 < height_m.max() < 70
    assert image[:, height_m.repeat(2, 0).repeat(2, 1) == 0].mean() > image.mean() * 0.8


def test_open_ground_is_cut_from_scenes_and_rendered_on(recipe: ModuleType) -> None:
    height_m = np.zeros((120, 72), np.float32)
    height_m[60:, :] = 12
    image = np.full((3, 240, 144), 90, np.uint8)
    pictures = recipe.open_ground([Scene("a", "a", image, height_m, 1.0)])
    assert {picture.shape for picture in pictures} == {(3, 96, 96)}
    assert len(pictures) == 1, "of three rows of squares only the first is open"
    colour, ground_m = recipe._real_ground(np.random.default_rng(0), pictures)
    assert colour.shape == (3, recipe.SIDE_PX, recipe.SIDE_PX)
    assert (ground_m == 0).all()
    assert np.unique(colour).tolist() == pytest.approx([90 / 255])


def test_each_pixel_climbs_to_the_top_of_its_crown(recipe: ModuleType) -> None:
    rows, cols = np.mgrid[:20, :30]
    tops = [(9, 6), (9, 22)]
    height_m = np.max([20 - np.hypot(rows - row, cols - col) for row, col in tops], axis=0).astype(np.float32)
    climbed = recipe._climb(height_m)
    assert set(np.unique(climbed)) == {row * 30 + col for row, col in tops}
    assert (climbed[:, :14] == 9 * 30 + 6).all()
    assert (climbed[:, 15:] == 9 * 30 + 22).all()


def test_level_ground_climbs_nowhere(recipe: ModuleType) -> None:
    assert (recipe._climb(np.zeros((4, 5), np.float32)) == np.arange(20).reshape(4, 5)).all()


def test_a_draped_scene_has_the_heights_of_its_canopy_height_model(recipe: ModuleType) -> None:
    rows, cols = np.mgrid[: recipe.SIDE_M, : recipe.SIDE_M]
    chm = np.clip(18 - 2.0 * np.hypot(rows % 16 - 8, cols % 16 - 8), 0, None).astype(np.float32)
    chm[:, 40:] = 0
    image, height_m = recipe.render(np.random.default_rng(3), [], chm)
    assert image.shape == (3, 2 * recipe.SIDE_M, 2 * recipe.SIDE_M)
    tall = chm > 4
    assert np.corrcoef(height_m[tall], chm[tall])[0, 1] > 0.9
    # cells take their highest pixel, as those of lidar take their highest return
    assert 0 <= np.mean(height_m[tall] - chm[tall]) < 2
    assert height_m[:, 42:].max() < 1.5, "beyond the stand there are shrubs at most"


def test_stands_are_cut_where_heights_are_known_and_trees_stand(recipe: ModuleType, tmp_path: Path) -> None:
    side = recipe.SIDE_M
    values = np.zeros((1, 3 * side, 2 * side), np.uint16)
    values[:, side : 2 * side] = 2000
    values[:, :, 0] = 65535
    path = make_raster(tmp_path / "chm.tif", values=values, dtype="uint16", bands=1, resolution=1.0, nodata=65535)
    tile = recipe.read_stands(path)
    assert np.isnan(tile[:, 0]).all()
    assert set(np.unique(tile[:, 1:])) == {0.0, 20.0}
    for seed in range(5):
        stand = recipe.cut_stand(np.random.default_rng(seed), [tile])
        assert stand.shape == (side, side)
        assert not np.isnan(stand).any()
        assert np.mean(stand > 2) >= 0.05


@pytest.mark.parametrize(("resolution", "side"), [(2.0, 200), (1.0, 40)])
def test_height_models_that_fit_no_scene_are_refused(
    recipe: ModuleType, tmp_path: Path, resolution: float, side: int
) -> None:
    values = np.full((1, side, side), 2000, np.uint16)
    path = make_raster(tmp_path / "chm.tif", values=values, dtype="uint16", bands=1, resolution=resolution)
    with pytest.raises(ValueError, match=r"chm\.tif: cells of . m, \d+ x \d+: a scene needs 64 x 64 of 1 m"):
        recipe.read_stands(path)


def test_height_models_without_trees_have_no_stands(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match="name other height models"):
        recipe.cut_stand(np.random.default_rng(0), [np.zeros((100, 100), np.float32)])


def test_a_rendered_scene_is_read_as_it_was_written(recipe: ModuleType, tmp_path: Path) -> None:
    image, height_m = recipe.render(np.random.default_rng(1), [])
    recipe.write_scene(tmp_path / "render_0000", image, height_m)
    (scene,) = read_scenes(tmp_path)
    assert np.array_equal(scene.image, image)
    np.testing.assert_allclose(scene.height_m, height_m, atol=0.006)


def test_the_scenes_of_a_configuration_are_rendered_before_they_exist(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    config = tiny_config(store={"path": str(SMALL_STORE), "made": str(made), "shares": {"render_": 1.0}})
    values = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    argv = ["render_scenes", str(tmp_path / "tiny.yaml"), "--scenes", "1", "--out", str(made)]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    (alone,) = read_scenes(made)
    assert alone.name == "render_0000"
    # Several seeds share a folder; each renders what it renders alone.
    monkeypatch.setattr(sys, "argv", [*argv[:-1], str(tmp_path / "both"), "--seeds", "0", "1"])
    recipe.main()
    scenes = read_scenes(tmp_path / "both")
    assert [scene.name for scene in scenes] == ["render_0000_s0", "render_0000_s1"]
    assert np.array_equal(scenes[0].image, alone.image)
    assert not np.array_equal(scenes[1].image, alone.image)


class Red(nn.Module):
    """A teacher whose heights are 40 m times the red of a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.bins, self.weight = HeightBins(64, 40.0, "linear"), nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        red = nn.functional.avg_pool2d(image[:, :1], 2)
        return -20 * (self.bins.centres_m.view(1, -1, 1, 1) - 40 * red) ** 2


def test_a_teacher_is_a_unet_trained_on_the_data_of_a_configuration_and_labels_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = load("pseudo_labels")
    monkeypatch.setattr(decoder, "DOMAIN_CHIPS", 8)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(labels, "imagenet_weights", lambda: tmp_path / "weights.pth")
    labels.teach(tiny_config(encoder="canopy-tiny", encoder_rate=0, pool=4), tmp_path / "run")
    card = read_card(tmp_path / "run" / "last.safetensors")
    assert (card.family, card.architecture.encoder, card.training["steps"]) == ("unet", "tf_efficientnet_lite0", 2)
    # the configuration of the run is one that canopy train takes too
    assert load_config(tmp_path / "run" / "config.yaml", TrainConfig).architecture == card.architecture
    values = np.random.default_rng(0).integers(0, 255, (3, 100, 120), np.uint8)
    path = make_raster(tmp_path / "crop.tif", values=values, resolution=0.5, origin=(320_000, 4_100_000))
    labels.label(tmp_path / "run", [path], tmp_path / "out")
    (scene,) = read_scenes(tmp_path / "out")
    assert scene.name == "pseudo_crop"
    assert np.nanstd(scene.height_m) > 0
    assert 0 <= np.nanmin(scene.height_m) <= np.nanmax(scene.height_m) <= 40


def test_pseudo_labels_lie_on_whole_metres_and_leave_unknown_ground_unknown(tmp_path: Path) -> None:
    labels = load("pseudo_labels")
    values = np.full((3, 100, 120), 102, np.uint8)
    values[:, :20, :20] = 0
    path = make_raster(tmp_path / "crop.tif", values=values, resolution=0.5, nodata=0, origin=(320_000.3, 4_100_000.2))
    labels.label_one(Red(), path, tmp_path / "out" / "pseudo_crop", 0.5)
    (scene,) = read_scenes(tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "pseudo_crop" / "chm_cm.tif") as heights:
        assert (heights.transform.c, heights.transform.f) == (320_001, 4_100_000)
    assert np.isnan(scene.height_m[:9, :8]).all()
    assert not np.isnan(scene.height_m[12:, :]).any()
    assert np.nanmedian(scene.height_m) == pytest.approx(16, abs=0.4)
