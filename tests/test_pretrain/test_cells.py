"""Cells: features and heights of the same ground."""

import numpy as np
import pytest
import torch

from canopy.dataset.scene import Scene
from canopy.errors import TrainingError
from pretrain.cells import BLOCK_M, CELL_PX, colour_statistics, encode, measure
from pretrain.encoder import Encoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    return Encoder("vit_tiny_patch16_224", args, 128, (0.5,) * 3, (0.2,) * 3).eval()


def indices(image: np.ndarray) -> np.ndarray:
    """Row and column of every cell, as its features."""
    rows, cols = (length // CELL_PX for length in image.shape[1:])
    return np.indices((rows, cols)).transpose(1, 2, 0).astype(float)


def test_cells_have_the_heights_and_the_block_of_their_ground() -> None:
    height_m = np.zeros((300, 32), np.float32)
    height_m[:16, :16], height_m[16:32, :12], height_m[:16, 24:] = 8, np.nan, 3
    cells = measure([Scene("s", "s", np.zeros((3, 600, 64), np.uint8), height_m, 1.0)], indices)
    assert len(cells.height_m) == 18 * 2 - 1, "a cell that is three quarters unknown is left out"
    assert cells.height_m[:2].tolist() == [8, 1.5]
    assert cells.cover[:2].tolist() == [1, 0.5]
    assert (cells.block == cells.features[:, 0] * CELL_PX * 0.5 // BLOCK_M).all()


def test_blocks_of_scenes_are_numbered_without_gaps() -> None:
    scenes = [Scene(n, n, np.zeros((3, 64, 64), np.uint8), np.zeros((32, 32), np.float32), 1.0) for n in ("b", "a")]
    cells = measure(scenes, indices)
    assert cells.block.tolist() == [1] * 4 + [0] * 4


def test_scenes_without_a_whole_cell_are_a_clear_error() -> None:
    small = Scene("s", "s", np.zeros((3, 30, 64), np.uint8), np.zeros((15, 32), np.float32), 1.0)
    with pytest.raises(TrainingError, match="no scene contains a whole cell of 32 px"):
        measure([small], indices)


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
