"""Pictures of an encoder's features: patch features as colours, clusters as rows of tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pretrain.encoder import Encoder
from tiles.files import replacing
from tiles.fill import extend

CHIP_PX = 128
STEPS = 4
ENLARGED = 2
"""A patch of 16 px covers 8 m at 0.5 m, more than most shadows; enlarged, it covers 4 m."""


@torch.inference_mode()
def patch_map(
    encoder: Encoder, image: NDArray[np.uint8], steps: int = STEPS, gsd_m: float | None = None
) -> NDArray[np.float32]:
    """Return patch features on a lattice as fine as the patches or finer, by shifting the image.

    Only the inner half of each chip is used, so that no seams show between chips.

    Args:
        encoder: Encoder in eval mode.
        image: (3, H, W) uint8 RGB; mirrored beyond its border.
        steps: Cells of the lattice along the side of a patch.
        gsd_m: GSD of the image, metres; the encoder's own if None.

    Returns:
        (rows, cols, D) float32.
    """
    shift, margin, inner = encoder.square_px // steps, CHIP_PX // 4, CHIP_PX // 2
    chips = [-(-length // inner) for length in image.shape[1:]]
    beyond = [n * inner - length + margin + encoder.square_px for n, length in zip(chips, image.shape[1:], strict=True)]
    padded = extend(image, (margin, margin), (beyond[0], beyond[1]))
    # In patches: side of a chip, first patch of its inner half, patches of that half.
    side, first, used = CHIP_PX // encoder.square_px, margin // encoder.square_px, inner // encoder.square_px
    features = np.zeros((chips[0] * used * steps, chips[1] * used * steps, encoder.width), np.float32)
    for down, across, i, j in np.ndindex(steps, steps, *chips):
        top, left = i * inner + down * shift, j * inner + across * shift
        chip = torch.from_numpy(padded[:, top : top + CHIP_PX, left : left + CHIP_PX].copy())
        patches = encoder.square_features(chip[None].float() / 255, gsd_m).view(side, side, -1)
        # Patches of one shift are steps cells apart.
        rows, cols = (slice(start // shift, start // shift + used * steps, steps) for start in (top, left))
        features[rows, cols] = patches[first : first + used, first : first + used].numpy()
    return features[: image.shape[1] // shift, : image.shape[2] // shift]


def principal_colours(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn features (rows, cols, D) into RGB (3, rows, cols): three principal components, 2nd to 98th percentile."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, :-4:-1]  # eigh sorts upwards: the last three, the largest first
    low, high = np.percentile(scores, (2, 98), axis=0)
    colours = np.clip((scores - low) / (high - low), 0, 1) * 255
    grid: NDArray[np.uint8] = colours.round().astype(np.uint8).reshape(*features.shape[:2], 3)
    return grid.transpose(2, 0, 1)


def save_principal_colours(path: Path, encoder: Encoder, image: NDArray[np.uint8], gsd_m: float | None = None) -> None:
    """Write an image, enlarged, and to its right its patch features as colours.

    Args:
        path: Path of the PNG.
        encoder: Encoder in eval mode.
        image: (3, H, W) uint8 RGB.
        gsd_m: GSD of the image, metres; the encoder's own if None.
    """
    pixels = F.interpolate(torch.from_numpy(image)[None].float(), scale_factor=ENLARGED, mode="bicubic")
    large = pixels.round().clamp(0, 255).byte()[0].numpy()
    step = encoder.square_px // STEPS
    features = patch_map(encoder, large, gsd_m=(encoder.gsd_m if gsd_m is None else gsd_m) / ENLARGED)
    colours = principal_colours(features).repeat(step, axis=1).repeat(step, axis=2)
    # A feature stands for the middle of its patch.
    offset = (encoder.square_px - step) // 2
    shown = large[:, offset:, offset:]
    rows, cols = (min(a, b) for a, b in zip(shown.shape[1:], colours.shape[1:], strict=True))
    save_picture(path, np.concatenate([shown[:, :rows, :cols], colours[:, :rows, :cols]], axis=2))


def save_rows(path: Path, rows: Sequence[Sequence[NDArray[np.uint8]]], side_px: int = 96) -> None:
    """Write rows of tiles (3, H, W), shrunk to `side_px`; short rows end in black."""
    width = max(len(row) for row in rows)
    sheet = np.zeros((3, len(rows) * side_px, width * side_px), np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            nearest = np.linspace(0, tile.shape[1] - 1, side_px).round().astype(int)
            shrunk = tile[:, nearest][:, :, nearest]
            sheet[:, r * side_px : (r + 1) * side_px, c * side_px : (c + 1) * side_px] = shrunk
    save_picture(path, sheet)


def save_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (3, H, W) as a PNG, under its final name only when it is whole."""
    with replacing(path) as draft:
        Image.fromarray(image.transpose(1, 2, 0)).save(draft, format="PNG")
