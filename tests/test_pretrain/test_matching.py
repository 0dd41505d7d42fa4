"""Matches between two images: mutual nearest patches, and their picture."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain.encoder import Encoder
from pretrain.matching import match_patches, save_matches

RNG = np.random.default_rng(0)


def test_patches_find_their_own_in_a_shifted_image() -> None:
    ground = RNG.normal(size=(6, 8, 5)).astype(np.float32)
    matches = match_patches(ground[:4, :5], ground[1:5, 2:], count=50)
    assert len(matches.similarity) >= 9, "the patches that both images show"
    top = matches.similarity > 0.999
    assert top.sum() == 9
    assert np.array_equal(matches.first[top] - (1, 2), matches.second[top])
    assert np.all(np.diff(matches.similarity) <= 0)
    assert len(match_patches(ground, ground, count=3).similarity) == 3


def test_the_picture_shows_both_images_enlarged_and_lines_between_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 16, "num_heads": 1}
    encoder = Encoder("vit_tiny_patch16_224", args, 128, (0.5,) * 3, (0.2,) * 3).eval()
    image = RNG.integers(0, 255, (3, 48, 64)).astype(np.uint8)
    matches = save_matches(tmp_path / "m.png", encoder, (image, image[:, :32]))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.size == (2 * 64 + 16 + 2 * 64, 2 * 48)
        gap = np.asarray(picture)[:, 128:144]
    assert len(matches.similarity) > 0
    assert (gap != 255).any(axis=2).any(), "lines cross the gap"
