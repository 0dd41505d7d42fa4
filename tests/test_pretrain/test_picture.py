"""Pictures of features: colours follow the texture, and features lie where their pixels do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.encoder import Encoder
from pretrain.picture import patch_map, principal_colours, save_principal_colours, save_rows


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    return Encoder("vit_tiny_patch16_224", args, 128, (0.5,) * 3, (0.2,) * 3).eval()


def test_principal_colours_distinguish_two_textures(encoder: Encoder) -> None:
    image = np.full((3, 72, 86), 90, np.uint8)
    image[:, :, 43:] = 200
    features = patch_map(encoder, image)
    assert features.shape == (36, 43, 32)
    colours = principal_colours(features).astype(float)
    left, right = colours[:, :, :18].mean(axis=(1, 2)), colours[:, :, 26:].mean(axis=(1, 2))
    assert np.abs(left - right).max() > 30


def test_a_picture_shows_the_image_and_its_features_side_by_side(encoder: Encoder, tmp_path: Path) -> None:
    save_principal_colours(tmp_path / "p.png", encoder, np.full((3, 40, 50), 90, np.uint8))
    with Image.open(tmp_path / "p.png") as picture:
        # enlarged twice, less the 3 px by which a feature stands for the middle of its patch
        assert picture.size == (2 * (100 - 3), 80 - 3)
        assert picture.getpixel((10, 10)) == (90, 90, 90)


def test_features_lie_where_their_pixels_do(encoder: Encoder) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 130, 130), dtype=np.uint8)
    features = patch_map(encoder, image)
    # the chip whose inner half begins at pixel 32 begins at 0; its fifth patch of 8 px is the first of that half
    padded = np.pad(image, [(0, 0), (32, 32), (32, 32)], mode="symmetric")
    chip = torch.from_numpy(padded[:, 64:192, 64:192].copy())[None].float() / 255
    with torch.inference_mode():
        tokens = encoder(chip)[1].view(16, 16, -1).numpy()
    np.testing.assert_allclose(features[32:64:4, 32:64:4], tokens[4:12, 4:12], atol=1e-5)


def test_rows_of_tiles_are_shrunk_and_short_rows_end_in_black(tmp_path: Path) -> None:
    tiles = [np.full((3, side, side), level, np.uint8) for side, level in ((40, 50), (20, 100), (8, 150))]
    save_rows(tmp_path / "rows.png", [tiles[:2], tiles[2:]], side_px=10)
    with Image.open(tmp_path / "rows.png") as picture:
        pixels = np.asarray(picture)[..., 0]
    assert pixels[::10, ::10].tolist() == [[50, 100], [150, 0]]
