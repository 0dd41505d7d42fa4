"""Pictures of what an encoder sees: patch features as colours, clusters as rows of tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pretrain.encoder import Encoder
from tiles.files import replacing

CHIP_PX = 128
STEPS = 4
ENLARGED = 2
"""A patch of 16 px covers 8 m at 0.5 m, more than most shadows; enlarged, it covers 4 m."""


@torch.inference_mode()
def patch_map(encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Patch features on a lattice four times finer than the patches, by shifting the image.

    Only the inner half of each chip is kept, so that no seams show between chips.

    Args:
        encoder: In eval mode.
        image: (3, H, W) uint8; mirrored beyond its border.

    Returns:
        (rows, cols, D), at a quarter of a patch.
    """
    shift, margin, inner = encoder.patch_px // STEPS, CHIP_PX // 4, CHIP_PX // 2
    chips = [-(-length // inner) for length in image.shape[1:]]
    beyond = [n * inner - length + margin + encoder.patch_px for n, length in zip(chips, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), (margin, beyond[0]), (margin, beyond[1])], mode="symmetric")
    side, first, kept = CHIP_PX // encoder.patch_px, margin // encoder.patch_px, inner // encoder.patch_px
    made = np.zeros((chips[0] * kept * STEPS, chips[1] * kept * STEPS, encoder.width), np.float32)
    for down, across, i, j in np.ndindex(STEPS, STEPS, *chips):
        top, left = i * inner + down * shift, j * inner + across * shift
        chip = torch.from_numpy(padded[:, top : top + CHIP_PX, left : left + CHIP_PX].copy())
        patches = encoder(chip[None].float() / 255)[1].view(side, side, -1)
        rows, cols = (slice(at // shift, at // shift + kept * STEPS, STEPS) for at in (top, left))
        made[rows, cols] = patches[first : first + kept, first : first + kept].numpy()
    return made[: image.shape[1] // shift, : image.shape[2] // shift]


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
    """Write the image, enlarged, and beside it its patch features as colours."""
    pixels = F.interpolate(torch.from_numpy(image)[None].float(), scale_factor=ENLARGED, mode="bicubic")
    large = pixels.round().clamp(0, 255).byte()[0].numpy()
    step = encoder.patch_px // STEPS
    colours = principal_colours(patch_map(encoder, large)).repeat(step, axis=1).repeat(step, axis=2)
    # a feature stands for the middle of its patch
    offset = (encoder.patch_px - step) // 2
    seen = large[:, offset:, offset:]
    rows, cols = (min(a, b) for a, b in zip(seen.shape[1:], colours.shape[1:], strict=True))
    save_picture(path, np.concatenate([seen[:, :rows, :cols], colours[:, :rows, :cols]], axis=2))


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
