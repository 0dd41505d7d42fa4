"""Pictures of what an encoder sees: patch features as colours, clusters as rows of tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pretrain.encoder import Encoder
from tiles.files import replacing

CHIP_PX = 128
STEPS = 4


@torch.inference_mode()
def patch_map(encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Patch features on a lattice four times finer than the patches, by shifting the image.

    Args:
        encoder: In eval mode.
        image: (3, H, W) uint8, sides of at least 256 px.

    Returns:
        (rows, cols, D), at a quarter of a patch.
    """
    shift = encoder.patch_px // STEPS
    chips = [(length - encoder.patch_px) // CHIP_PX for length in image.shape[1:]]
    rows, cols = (n * CHIP_PX // shift for n in chips)
    made = np.zeros((rows, cols, encoder.width), np.float32)
    for down, across, i, j in np.ndindex(STEPS, STEPS, *chips):
        top, left = i * CHIP_PX + down * shift, j * CHIP_PX + across * shift
        chip = torch.from_numpy(image[:, top : top + CHIP_PX, left : left + CHIP_PX].copy())
        side = CHIP_PX // encoder.patch_px
        patches = encoder(chip[None].float() / 255)[1].view(side, side, -1).numpy()
        made[
            top // shift : top // shift + side * STEPS : STEPS, left // shift : left // shift + side * STEPS : STEPS
        ] = patches
    return made


def principal_colours(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """First three principal components, 2nd to 98th percentile, as RGB: (rows, cols, D) to (3, rows, cols)."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, :-4:-1]
    low, high = np.percentile(scores, (2, 98), axis=0)
    colours = np.clip((scores - low) / (high - low), 0, 1) * 255
    grid: NDArray[np.uint8] = colours.round().astype(np.uint8).reshape(*features.shape[:2], 3)
    return grid.transpose(2, 0, 1)


def save_principal_colours(path: Path, encoder: Encoder, image: NDArray[np.uint8]) -> None:
    """Write the image and, beside it, its patch features as colours."""
    colours = principal_colours(patch_map(encoder, image))
    large = colours.repeat(encoder.patch_px // STEPS, axis=1).repeat(encoder.patch_px // STEPS, axis=2)
    # a feature stands for the middle of its patch
    offset = (encoder.patch_px - encoder.patch_px // STEPS) // 2
    seen = image[:, offset : offset + large.shape[1], offset : offset + large.shape[2]]
    save_picture(path, np.concatenate([seen, large], axis=2))


def save_rows(path: Path, rows: Sequence[Sequence[NDArray[np.uint8]]], side_px: int = 96) -> None:
    """Write rows of tiles (3, H, W), shrunk to `side_px`; short rows end in black."""
    width = max(len(row) for row in rows)
    sheet = np.zeros((3, len(rows) * side_px, width * side_px), np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            at = np.linspace(0, tile.shape[1] - 1, side_px).round().astype(int)
            sheet[:, r * side_px : (r + 1) * side_px, c * side_px : (c + 1) * side_px] = tile[:, at][:, :, at]
    save_picture(path, sheet)


def save_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG under its final name only when it is whole."""
    with replacing(path) as draft:
        Image.fromarray(image.transpose(1, 2, 0)).save(draft, format="PNG")
