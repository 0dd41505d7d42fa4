"""Chips drawn from scenes at random, and changed as sensors, seasons and shadows change them."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from canopy.dataset.scene import Scene

ChipTensors = tuple[Tensor, Tensor]
"""Image (3, H, W) float32 in [0, 1] and height_m (H / 2, W / 2) float32, NaN where unknown."""


def draw_chip(scene: Scene, generator: np.random.Generator, chip_px: int, zoom: float) -> ChipTensors:
    """Draw a chip at a random position, rotation, reflection and zoom; beyond the scene's border it is mirrored.

    Half of the chips are centred on a tree, so that a scene of mostly open ground still teaches crowns.

    Args:
        scene: Scene to draw from.
        generator: Source of all randomness.
        chip_px: Side of the image, pixels.
        zoom: Largest factor between the chip's and the scene's GSD, either way.

    Returns:
        image: (3, chip_px, chip_px) float32 in [0, 1]; height_m: (chip_px / 2, chip_px / 2), NaN where unknown.
    """
    rows, cols = scene.height_m.shape
    # The order of the draws decides which chips a seed gives: a new draw goes last.
    centre = generator.random(2) * (rows, cols)
    if len(scene.trees) and generator.random() < 0.5:
        centre = scene.trees[generator.integers(len(scene.trees))] + generator.random(2)
    angle, factor = generator.random() * 2 * np.pi, np.exp(generator.uniform(-1, 1) * np.log(zoom))
    flip = generator.choice((-1.0, 1.0))
    turn = factor * np.array([[np.cos(angle), -flip * np.sin(angle)], [np.sin(angle), flip * np.cos(angle)]])
    half = chip_px // 2
    part, corner = _around(scene, centre, factor * half)
    centre_in_part, shape = centre - corner, part.height_m.shape
    image = torch.from_numpy(part.image).float().div(255)[None]
    height = torch.from_numpy(part.height_m)[None, None]
    fine = _grid(turn, centre_in_part, half, chip_px, shape)
    coarse = _grid(turn, centre_in_part, half, half, shape)
    image = F.grid_sample(image, fine, mode="bilinear", padding_mode="reflection", align_corners=False)
    # heights are not interpolated: between a crown and the ground stands nothing of middle height
    height = F.grid_sample(height, coarse, mode="nearest", padding_mode="reflection", align_corners=False)
    return image[0], height[0, 0]


def _around(scene: Scene, centre: NDArray[np.float64], side: float) -> tuple[Scene, NDArray[np.int64]]:
    """Return the part of a scene that a turned square of `side` cells can reach, and its upper-left cell.

    Ground beyond the scene's border is mirrored from within reach too, so the part suffices.
    """
    reach = side / np.sqrt(2) + 2
    rows, cols = scene.height_m.shape
    row0, col0 = np.maximum(np.floor(centre - reach), 0).astype(np.int64)
    row1, col1 = np.minimum(np.ceil(centre + reach), (rows, cols)).astype(np.int64)
    image = np.ascontiguousarray(scene.image[:, 2 * row0 : 2 * row1, 2 * col0 : 2 * col1])
    height_m = np.ascontiguousarray(scene.height_m[row0:row1, col0:col1])
    return Scene(scene.name, scene.group, image, height_m, scene.cell_m), np.array([row0, col0])


def _grid(turn: NDArray[np.float64], centre: NDArray[np.float64], side: int, px: int, shape: tuple[int, int]) -> Tensor:
    """Return the sampling grid (1, px, px, 2) of a turned square of `side` cells around `centre`, for grid_sample.

    Args:
        turn: (2, 2) rotation, reflection and zoom.
        centre: Row and column of the square's centre, in cells of the sampled array.
        side: Side of the square, cells.
        px: Samples along a side.
        shape: Rows and columns of the sampled array, cells.
    """
    offset = (np.arange(px) + 0.5) / px * side - side / 2
    x, y = np.meshgrid(offset, offset)
    col = turn[0, 0] * x + turn[0, 1] * y + centre[1]
    row = turn[1, 0] * x + turn[1, 1] * y + centre[0]
    # grid_sample takes x before y, from -1 at one border of the array to 1 at the other
    return torch.from_numpy(np.stack([2 * col / shape[1] - 1, 2 * row / shape[0] - 1], axis=-1)[None]).float()


def jitter_colour(image: Tensor, generator: np.random.Generator, strength: float) -> Tensor:
    """Change exposure, contrast, gamma, hue, saturation, haze and noise of an image, drawn once for all of it.

    Few scenes tie colour to height by accident: a green meadow would be tall because a green forest is. So hue and
    exposure are drawn for each image, some images lose their colour, and texture has to decide.

    Args:
        image: (3, H, W) float32 in [0, 1].
        generator: Source of all randomness.
        strength: 0 leaves the image; 0.2 goes beyond the difference between sensors, seasons and hours.
    """
    if strength == 0:
        return image
    mixing = np.eye(3) + generator.normal(0, strength, (3, 3))
    mixing /= mixing.sum(axis=1, keepdims=True).clip(0.5)
    contrast, gamma, saturation = np.exp(generator.normal(0, (strength, strength, 2 * strength)))
    saturation *= generator.random() > strength
    image = torch.einsum("ij,jhw->ihw", torch.from_numpy(mixing).float(), image)
    grey = image.mean(dim=0, keepdim=True)
    image = grey + (image - grey) * float(saturation)
    # First to one exposure, then by gamma to a random one: how dark an image came says nothing any more.
    level = image.mean()
    image = ((image - level) * (contrast * _EXPOSURE / level.clamp_min(0.05)) + _EXPOSURE).clamp(0, 1)
    exposure = generator.uniform(0.18, 0.6)
    image = image ** (gamma * np.log(exposure) / np.log(_EXPOSURE))
    haze = generator.uniform(0, strength / 2)
    noise = torch.from_numpy(generator.normal(0, 0.01, image.shape)).float()
    return (image * (1 - haze) + haze * generator.uniform(0.5, 1) + noise).clamp(0, 1)


_EXPOSURE = 0.4


def jitter_sharpness(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Blur or sharpen an image (3, H, W): sensors differ, and a crisp image is no taller than a soft one."""
    blurred = gaussian_blur(image, [7, 7], [float(generator.uniform(0.3, 1.5))])
    sharpened: Tensor = (image + generator.uniform(-1, 1.5) * (image - blurred)).clamp(0, 1)
    return sharpened


def mix_chips(first: ChipTensors, second: ChipTensors, generator: np.random.Generator) -> ChipTensors:
    """Patch two chips together along a random smooth line (CutMix, Yun et al. 2019, with an irregular mask).

    Few scenes let a model know the place and guess the height of all of it. In a patchwork each part has to be
    judged by what is seen there.

    Args:
        first: image (3, H, W) and height_m (H / 2, W / 2).
        second: Chip of the same shape.
        generator: Source of all randomness.
    """
    mask = smooth_noise(first[1].shape, int(generator.integers(24, 64)), generator) > 0
    # the mask is drawn over cells of height and doubled for pixels, so that image and heights change together
    fine = mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    return torch.where(fine, first[0], second[0]), torch.where(mask, first[1], second[1])


def smooth_noise(shape: torch.Size, size: int, generator: np.random.Generator) -> Tensor:
    """Return noise (H, W) that is smooth over `size` cells."""
    height, width = shape
    noise = torch.from_numpy(generator.normal(size=(1, 1, height // size + 2, width // size + 2))).float()
    return F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0, 0]


def cast_shadows(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Darken random patches as skylight does: dimmer and bluer. Heights below stay as they are.

    Without shadows of no tree a model learns that dark means tall, for shade and crowns go together in few scenes.

    Args:
        image: (3, H, W) float32 in [0, 1].
        generator: Source of all randomness.
    """
    smooth = smooth_noise(image.shape[1:], int(generator.integers(6, 32)), generator)
    edge = torch.quantile(smooth, 1 - generator.uniform(0.05, 0.3))
    shade = torch.sigmoid((smooth - edge) * generator.uniform(10, 40))
    light = torch.tensor([1.0, *generator.uniform(1, (1.15, 1.5))]).view(3, 1, 1) * generator.uniform(0.2, 0.6)
    return image * (1 - shade * (1 - light.float().clamp(max=1)))
