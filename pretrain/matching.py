"""Pictures of matches: patches of two images joined where each is the other's nearest in features."""

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pretrain.encoder import Encoder
from pretrain.picture import ENLARGED, patch_map
from tiles.files import replacing

MATCHES = 40
GAP_PX = 16
DOT_PX = 4


@dataclass(frozen=True)
class Matches:
    """Patches of two images that are each other's nearest, the most similar first."""

    first: NDArray[np.int64]
    """(n, 2) row and column of the patch in the first image."""
    second: NDArray[np.int64]
    """(n, 2) row and column of the patch in the second image."""
    similarity: NDArray[np.float64]
    """(n,) cosine of their features."""


def match_patches(first: NDArray[np.float32], second: NDArray[np.float32], count: int = MATCHES) -> Matches:
    """Join the patches of two images that are each other's nearest.

    Args:
        first: (rows, cols, D) features of the patches of one image.
        second: The same of another image, of any size.
        count: Largest number of matches.
    """
    # Both are centred together: what all patches share says nothing of which belong together.
    flat = [x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (first, second)]
    centre = np.concatenate(flat).mean(axis=0)
    own, others = ((x - centre) / (np.linalg.norm(x - centre, axis=1, keepdims=True) + 1e-9) for x in flat)
    similarity = own @ others.T
    there, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    mutual = np.flatnonzero(back[there] == np.arange(len(there)))
    best = mutual[np.argsort(-similarity[mutual, there[mutual]], kind="stable")][:count]
    return Matches(
        np.stack(np.unravel_index(best, first.shape[:2]), axis=1),
        np.stack(np.unravel_index(there[best], second.shape[:2]), axis=1),
        similarity[best, there[best]],
    )


def save_matches(
    path: Path,
    encoder: Encoder,
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    gsds_m: tuple[float, float] | None = None,
) -> Matches:
    """Write a PNG of two images next to each other, enlarged, with their matches as lines.

    Args:
        path: Path of the PNG.
        encoder: Encoder in eval mode.
        images: Two images (3, H, W) uint8 RGB.
        gsds_m: GSD of each, metres; the encoder's own if None.

    Returns:
        The matches that are drawn.
    """
    large = [_enlarged(image) for image in images]
    first, second = (
        patch_map(encoder, image, steps=1, gsd_m=gsd_m / ENLARGED)
        for image, gsd_m in zip(large, gsds_m or (encoder.gsd_m,) * 2, strict=True)
    )
    matches = match_patches(first, second)
    height, left_px = max(image.shape[1] for image in large), large[0].shape[2] + GAP_PX
    sheet = np.full((height, left_px + large[1].shape[2], 3), 255, np.uint8)
    sheet[: large[0].shape[1], : large[0].shape[2]] = large[0].transpose(1, 2, 0)
    sheet[: large[1].shape[1], left_px:] = large[1].transpose(1, 2, 0)
    drawing = Image.fromarray(sheet)
    pen = ImageDraw.Draw(drawing)
    # the middles of the patches, (x, y)
    ends = [(rows[:, ::-1] + 0.5) * encoder.square_px for rows in (matches.first, matches.second)]
    ends[1] = ends[1] + (left_px, 0)
    for number, (start, stop) in enumerate(zip(*ends, strict=True)):
        red, green, blue = colorsys.hsv_to_rgb(number / len(matches.similarity), 0.9, 1.0)
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        pen.line([*start, *stop], fill=colour, width=2)
        for x, y in (start, stop):
            pen.ellipse([x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX], fill=colour)
    with replacing(path) as draft:
        drawing.save(draft, format="PNG")
    return matches


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge an image as pictures of features do: a patch then covers less than most shadows."""
    pixels = F.interpolate(torch.from_numpy(image)[None].float(), scale_factor=ENLARGED, mode="bicubic")
    return pixels.round().clamp(0, 255).byte()[0].numpy()
