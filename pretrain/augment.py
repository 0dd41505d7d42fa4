"""Augmentation of nadir imagery in batches on the training device, with parameters of its own for every sample.

Parameters are drawn on the CPU for the whole batch of all ranks, so they do not depend on how many ranks share it.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import ColourConfig, CropConfig

# Columns: luma, and two axes of colour around which hue turns (NTSC).
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
HAZE = torch.tensor([0.78, 0.84, 0.92])


@dataclass(frozen=True)
class Draws:
    """Parameters of the crops of a batch; every tensor's first dimensions are (crops, B).

    Attributes:
        turn: (C, B, 2, 2) output offsets to source offsets, both in source pixels over the crop's side.
        centre: (C, B, 2) where the crop's centre lies within what the tile allows: x, y in [0, 1].
        gsd: (C, B) GSD of the crop over the nominal GSD.
        colour: (C, B, 3, 3) matrix on RGB: hue, saturation, tint.
        gain: (C, B) contrast around the crop's mean.
        light: (C, B) brightness.
        gamma: (C, B) exponent.
        haze: (C, B) share of veil.
        blur_px: (C, B) sigma of the blur in pixels of the crop, 0 for none.
    """

    turn: Tensor
    centre: Tensor
    gsd: Tensor
    colour: Tensor
    gain: Tensor
    light: Tensor
    gamma: Tensor
    haze: Tensor
    blur_px: Tensor

    def take(self, rows: slice) -> "Draws":
        """Parameters of some of the samples."""
        return replace(self, **{f.name: getattr(self, f.name)[:, rows] for f in fields(self)})


def draw(crops: CropConfig, colour: ColourConfig, count: int, generator: torch.Generator) -> Draws:
    """Draw the parameters of `crops.count` crops of `count` tiles.

    Args:
        crops: How many, how large, at which GSDs.
        colour: Strengths and chances.
        count: Tiles, B.
        generator: All randomness; on the CPU.
    """
    shape = (crops.count, count)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    angle, flip = uniform(0, 2 * math.pi), torch.where(chance(0.5), 1.0, -1.0)
    turn = torch.stack([angle.cos(), -flip * angle.sin(), angle.sin(), flip * angle.cos()], -1).view(*shape, 2, 2)
    log_low, log_high = (math.log(g) for g in crops.gsd)
    return Draws(
        turn=turn,
        centre=torch.stack([uniform(0, 1), uniform(0, 1)], dim=-1),
        gsd=uniform(log_low, log_high).exp(),
        colour=_colour_matrix(
            hue=uniform(-colour.hue, colour.hue) * 2 * math.pi,
            saturation=uniform(1 - colour.saturation, 1 + colour.saturation) * ~chance(colour.grey),
            tint=1 + colour.tint * (2 * torch.rand(*shape, 3, generator=generator) - 1),
        ),
        gain=uniform(1 - colour.contrast, 1 + colour.contrast),
        light=uniform(1 - colour.brightness, 1 + colour.brightness),
        gamma=(uniform(-1, 1) * colour.gamma).exp(),
        haze=uniform(0, colour.haze) * chance(colour.haze_share),
        blur_px=uniform(0.2, max(0.2, colour.blur_px)) * chance(colour.blur_share),
    )


def crop(tiles: Tensor, gsd_m: Tensor, draws: Draws, px: int, nominal_gsd_m: float) -> Tensor:
    """Cut turned, mirrored, rescaled and recoloured crops.

    What a turned crop sees beyond its tile is mirrored. A crop never reaches further than its tile's side.

    Args:
        tiles: (B, 3, H, W) uint8.
        gsd_m: (B,) GSD of the tiles.
        draws: Parameters, (C, B, ...), on any device.
        px: Side of the crops.
        nominal_gsd_m: GSD that `draws.gsd` multiplies.

    Returns:
        (C, B, 3, px, px) float32 in [0, 1], on the tiles' device.
    """
    if not len(draws.gsd):
        return torch.zeros(0, len(tiles), 3, px, px, device=tiles.device)
    device, side = tiles.device, torch.tensor(tiles.shape[:-3:-1], dtype=torch.float32, device=tiles.device)
    image = tiles.float() / 255
    made = []
    for c in range(len(draws.gsd)):
        reach = px * draws.gsd[c].to(device) * nominal_gsd_m / gsd_m.to(device)
        reach = torch.minimum(reach, side.min())
        # clamp: a crop as large as its tile leaves its centre no room
        centre = reach[:, None] / 2 + draws.centre[c].to(device) * (side - reach[:, None]).clamp(min=0)
        theta = torch.cat([draws.turn[c].to(device) * reach[:, None, None], (2 * centre - side)[..., None]], dim=-1)
        theta = theta / side[None, :, None]
        grid = F.affine_grid(theta, [len(tiles), 3, px, px], align_corners=False)
        made.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False))
    return recolour(torch.stack(made), draws)


def recolour(image: Tensor, draws: Draws) -> Tensor:
    """Colour, light, haze and blur: (C, B, 3, H, W) in [0, 1] to the same."""
    device = image.device

    def per_sample(values: Tensor) -> Tensor:
        return values.to(device)[..., None, None, None]

    image = torch.einsum("cbij,cbjhw->cbihw", draws.colour.to(device), image)
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    image = (mean + (image - mean) * per_sample(draws.gain)) * per_sample(draws.light)
    image = image.clamp(1e-4, 1).pow(per_sample(draws.gamma))
    veil = per_sample(draws.haze)
    image = image * (1 - veil) + HAZE.to(device).view(3, 1, 1) * veil
    return blur(image.flatten(0, 1), draws.blur_px.flatten().to(device)).view_as(image)


def blur(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with a sigma of its own for every image; 0 leaves an image as it is.

    Args:
        image: (B, 3, H, W).
        sigma_px: (B,), up to about 2: the kernel reaches 4 pixels.
    """
    chosen = sigma_px.nonzero()[:, 0]
    if not len(chosen):
        return image
    at = torch.arange(-4, 5, device=image.device)
    kernel = torch.exp(-0.5 * (at / sigma_px[chosen, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    height, width = image.shape[-2:]
    part = F.pad(image[chosen], (4, 4, 4, 4), mode="reflect").reshape(1, -1, height + 8, width + 8)
    part = F.conv2d(part, kernel[:, None, :, None], groups=len(kernel))
    part = F.conv2d(part, kernel[:, None, None, :], groups=len(kernel))
    return image.index_copy(0, chosen, part.view(len(chosen), 3, height, width))


def _colour_matrix(hue: Tensor, saturation: Tensor, tint: Tensor) -> Tensor:
    """Matrices on RGB, (..., 3, 3): turn the plane of colour by `hue`, stretch it, then scale the channels."""
    turn = torch.zeros(*hue.shape, 3, 3)
    turn[..., 0, 0] = 1
    turn[..., 1, 1] = turn[..., 2, 2] = saturation * hue.cos()
    turn[..., 1, 2], turn[..., 2, 1] = -saturation * hue.sin(), saturation * hue.sin()
    matrix: Tensor = tint[..., None] * (torch.linalg.inv(YIQ) @ turn @ YIQ)
    return matrix
