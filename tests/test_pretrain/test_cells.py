"""Cells: features and heights of the same ground."""

import math

import numpy as np
import pytest
import torch
from affine import Affine

from canopy.dataset.scene import Scene
from canopy.errors import TrainingError
from pretrain.cells import BLOCK_M, CELL_PX, FAR, Ground, colour_statistics, edge_statistics, encode, measure
from pretrain.encoder import Encoder
from pretrain.statistics import STATISTICS, patch_statistics

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    return Encoder("vit_tiny_patch16_224", args, 128, (0.5,) * 3, (0.2,) * 3).eval()


def indices(image: np.ndarray, gsd_m: float) -> np.ndarray:
    """Row and column of every cell, as its features."""
    rows, cols = (length // CELL_PX for length in image.shape[1:])
    return np.indices((rows, cols)).transpose(1, 2, 0).astype(float)


def ground(x_m: float = 0.0, y_m: float = 0.0, lattice: str = "utm", site: str = "s", unit_m: float = 1.0) -> Ground:
    """A scene of cells of 1 m with its upper left corner at x and y."""
    return Ground(lattice, Affine.scale(unit_m) @ Affine(1, 0, x_m / unit_m, 0, -1, y_m / unit_m), site)


def flat(rows: int = 32, cols: int = 32, name: str = "s") -> Scene:
    """A scene of bare ground."""
    return Scene(name, name, np.zeros((3, 2 * rows, 2 * cols), np.uint8), np.zeros((rows, cols), np.float32), 1.0)


def test_cells_have_the_heights_and_the_position_of_their_ground() -> None:
    height_m = np.zeros((48, 32), np.float32)
    height_m[:16, :16], height_m[16:32, :12], height_m[:16, 24:] = 8, np.nan, 3
    scene = Scene("s", "s", np.zeros((3, 96, 64), np.uint8), height_m, 1.0)
    cells = measure([scene], [ground(1000, 2000, site="a")], indices)
    assert len(cells.height_m) == 3 * 2 - 1, "a cell that is three quarters unknown is left out"
    assert cells.height_m[:2].tolist() == [8, 1.5]
    assert cells.cover[:2].tolist() == [1, 0.5]
    assert cells.position[0].tolist() == [1008, 1992, 0]
    assert cells.position[-1].tolist() == [1024, 1960, 0]
    assert set(cells.site) == {"a"}


def test_blocks_lie_on_the_lattice_of_the_crs_and_ignore_scenes() -> None:
    scenes = [flat(name="a"), flat(name="b"), flat(name="c")]
    # the second scene lies within the first's block, the third across the edge of the lattice at 256 m
    cells = measure(scenes, [ground(130, 100), ground(200, 60), ground(240, 100)], indices)
    expected = [(math.floor(x / BLOCK_M), math.floor(y / BLOCK_M)) for x, y in cells.position[:, :2]]
    names = {name: number for number, name in enumerate(sorted(set(expected)))}
    assert cells.block.tolist() == [names[name] for name in expected]
    assert set(cells.block[:8]) == {0}
    assert set(cells.block[8:]) == {0, 1}


def test_scenes_of_two_crs_share_no_block_and_are_no_neighbours() -> None:
    cells = measure([flat(), flat()], [ground(lattice="a"), ground(lattice="b")], indices)
    assert set(cells.block[:4]).isdisjoint(cells.block[4:])
    assert abs(cells.position[0] - cells.position[4]).max() == FAR


def test_scenes_without_a_whole_cell_are_a_clear_error() -> None:
    with pytest.raises(TrainingError, match="no scene contains a whole cell of 32 px"):
        measure([flat(15, 32)], [ground()], indices)


def test_edge_statistics_are_the_targets_of_the_patches() -> None:
    image = RNG.integers(0, 255, (3, 320, 64)).astype(np.uint8)
    features = edge_statistics(image)
    whole = patch_statistics(torch.from_numpy(image)[None] / 255, CELL_PX)[0].view(10, 2, STATISTICS).numpy()
    np.testing.assert_allclose(features[:7], whole[:7], atol=1e-5)
    assert features.shape == (10, 2, STATISTICS)
    # a strip of 256 px ends there: the gradient of its last row sees no further
    np.testing.assert_allclose(features[7:9], whole[7:9], atol=5e-3)


def test_colour_statistics_are_those_of_the_cell() -> None:
    image = RNG.integers(0, 255, (3, 64, 96)).astype(np.uint8)
    statistics = colour_statistics(image)
    cell = image[:, 32:64, 64:96].reshape(3, -1) / 255
    expected = [cell.mean(1), cell.std(1), *np.percentile(cell, (5, 50, 95), axis=1)]
    np.testing.assert_allclose(statistics[1, 2], np.concatenate(expected))


def test_patch_features_land_in_their_cells(encoder: Encoder) -> None:
    image = RNG.integers(0, 255, (3, 160, 160)).astype(np.uint8)
    features = encode(encoder, image)
    assert features.shape == (5, 5, 32)
    np.testing.assert_allclose(features[4, 4], encode(encoder, image[:, 128:, 128:])[0, 0], atol=1e-6)
    np.testing.assert_allclose(features[:4, :4], encode(encoder, image[:, :128, :128]), atol=1e-6)


def test_an_enlarged_image_is_cut_so_that_the_encoder_sees_chips_of_one_size(encoder: Encoder) -> None:
    image = RNG.integers(0, 255, (3, 64, 64)).astype(np.uint8)
    large = torch.nn.functional.interpolate(torch.from_numpy(image)[None] / 255, scale_factor=2, mode="bilinear")
    with torch.inference_mode():
        patches = encoder(large)[1].view(2, 8, 2, 8, -1).mean(dim=(1, 3))
    np.testing.assert_allclose(encode(encoder, image, enlarge=2), patches.numpy(), atol=1e-5)
