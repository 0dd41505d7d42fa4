"""Rendered woodland: shade falls where the sun says, heights are those of the trees."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_scenes", RECIPES / "render_scenes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_scenes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tangent", [0.5, 1.0, 2.0])
def test_a_pole_shades_its_height_over_the_tangent(recipe: ModuleType, tangent: float) -> None:
    surface_m = np.zeros((200, 200), np.float32)
    surface_m[100:102, 100:102] = 10
    shaded = recipe._shaded(surface_m, np.array([-1.0, 0.0]), tangent)
    rows, cols = np.nonzero(shaded)
    length_m = (rows.max() - 101) * recipe.FINE_M
    assert rows.min() > 101, "the sun stands in the north: shade falls to the south"
    assert set(cols) == {100, 101}
    assert length_m == pytest.approx(10 / tangent, abs=1.0)


def test_flat_ground_has_no_shade(recipe: ModuleType) -> None:
    assert not recipe._shaded(np.zeros((50, 50), np.float32), np.array([0.0, 1.0]), 1.0).any()


def test_a_crown_is_as_tall_as_its_tree(recipe: ModuleType) -> None:
    generator = np.random.default_rng(0)
    one = np.array([300.0], np.float32)
    tree = recipe.Trees(one, one, np.array([20.0]), np.array([4.0]), np.array([True]), np.full((1, 3), 0.2))
    ground = np.zeros((recipe.SIDE_PX, recipe.SIDE_PX), np.float32)
    colour, surface_m = recipe._add_crowns(generator, tree, np.full((3, *ground.shape), 0.5, np.float32), ground)
    assert surface_m.max() == pytest.approx(20, rel=0.15)
    assert np.argwhere(surface_m > 15).mean(axis=0) == pytest.approx([300, 300], abs=5)
    reach_px = 1.7 * 4 / recipe.FINE_M
    rows, cols = np.nonzero(surface_m)
    assert np.hypot(rows - 300, cols - 300).max() < reach_px
    assert (colour[:, surface_m == 0] == 0.5).all()


def test_a_scene_is_a_function_of_its_seed(recipe: ModuleType) -> None:
    (image, height_m), (again, heights_again) = (recipe.render(np.random.default_rng(5), []) for _ in range(2))
    assert np.array_equal(image, again)
    assert np.array_equal(height_m, heights_again)
    assert image.shape == (3, 2 * recipe.SIDE_M, 2 * recipe.SIDE_M)
    assert height_m.shape == (recipe.SIDE_M, recipe.SIDE_M)
    assert 5 < height_m.max() < 70
    assert image[:, height_m.repeat(2, 0).repeat(2, 1) == 0].mean() > image.mean() * 0.8
