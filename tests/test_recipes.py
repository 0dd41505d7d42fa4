"""Rendered woodland: shade falls where the sun says, heights are those of the trees."""

from types import ModuleType

import numpy as np
import pytest
from recipe_modules import load


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("render_scenes")


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
    one = np.array([300.0], np.float32)
    tree = recipe.Trees(one, one, np.array([20.0]), np.array([4.0]), np.array([True]), np.full((1, 3), 0.2))
    ground = np.zeros((recipe.SIDE_PX, recipe.SIDE_PX), np.float32)
    bare = np.full((3, *ground.shape), 0.5, np.float32)
    colour, surface_m, below_m = recipe._add_crowns(generator, tree, bare, ground)
    assert (below_m[surface_m > 0] <= surface_m[surface_m > 0]).all()
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
