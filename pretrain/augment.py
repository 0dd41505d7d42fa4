"""Augmentation of nadir imagery in batches on the training device, with parameters of its own for every sample.

Parameters are functions of random numbers that belong to the sample, so they do not depend on the samples next to it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import ColourConfig, CropConfig

# Columns: luma, and two axes of colour around which hue turns (NTSC).
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
HAZE = torch.tensor([0.78, 0.84, 0.92])
BLUR_REACH_PX = 4
NUMBERS = 18
"""Random numbers of a crop."""


@dataclass(frozen=True)
class Draws:
    """Random parameters of C crops of each of B tiles."""

    turn: Tensor
    """(C, B, 2, 2) rotation and mirroring: offsets from the centre in the crop to offsets in the tile."""
    centre: Tensor
    """(C, B, 2) position of the crop's centre in the range that the tile allows: x, y in [0, 1]."""
    gsd: Tensor
    """(C, B) GSD of the crop over the nominal GSD."""
    colour: Tensor
    """(C, B, 3, 3) matrix on RGB: hue, saturation, tint."""
    gain: Tensor
    """(C, B) contrast around the crop's mean."""
    light: Tensor
    """(C, B) factor of brightness."""
    gamma: Tensor
    """(C, B) exponent."""
    haze: Tensor
    """(C, B) share of the veil."""
    blur_px: Tensor
    """(C, B) sigma of the blur, pixels of the crop; 0 for none."""


def draw(crops: CropConfig, colour: ColourConfig, uniform: Tensor) -> Draws:
    """Turn random numbers into the parameters of crops.

    Args:
        crops: GSD range of the crops.
        colour: Strengths and chances of the colour augmentations.
        uniform: (C, B, NUMBERS) float32, uniform in [0, 1).
    """
    # The order in which columns are used is part of the result: a new one goes to the end.
    columns = iter(uniform.unbind(dim=-1))

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns)

    def chance(share: float) -> Tensor:
        return next(columns) < share

    angle, flip = between(0, 2 * math.pi), torch.where(chance(0.5), 1.0, -1.0)
    turn = torch.stack([angle.cos(), -flip * angle.sin(), angle.sin(), flip * angle.cos()], dim=-1)
    log_low, log_high = (math.log(factor) for factor in crops.gsd)
    return Draws(
        turn=turn.view(*angle.shape, 2, 2),
        centre=torch.stack([between(0, 1), between(0, 1)], dim=-1),
        gsd=between(log_low, log_high).exp(),
        colour=_colour_matrix(
            hue=between(-colour.hue, colour.hue) * 2 * math.pi,
            saturation=between(1 - colour.saturation, 1 + colour.saturation) * ~chance(colour.grey),
            tint=1 + colour.tint * torch.stack([between(-1, 1) for _ in range(3)], dim=-1),
        ),
        gain=between(1 - colour.contrast, 1 + colour.contrast),
        light=between(1 - colour.brightness, 1 + colour.brightness),
        gamma=(between(-1, 1) * colour.gamma).exp(),
        haze=between(0, colour.haze) * chance(colour.haze_share),
        blur_px=between(0.2, max(0.2, colour.blur_px)) * chance(colour.blur_share),
    )


def crop(tiles: Tensor, gsd_m: Tensor, draws: Draws, px: int, nominal_gsd_m: float) -> Tensor:
    """Cut turned, mirrored, rescaled and recoloured crops.

    Where a turned crop reaches beyond its tile, the tile is mirrored. A crop covers at most its tile's side.

    Args:
        tiles: (B, bands, H, W) uint8, first RGB.
        gsd_m: (B,) GSD of the tiles, metres.
        draws: Parameters, (C, B, ...), on any device.
        px: Side of the crops, pixels.
        nominal_gsd_m: GSD that `draws.gsd` multiplies, metres.

    Returns:
        (C, B, bands, px, px) float32 in [0, 1], on the tiles' device; colours change in RGB alone.
    """
    if not len(draws.gsd):
        return torch.zeros(0, *tiles.shape[:2], px, px, device=tiles.device)
    device, side_px = tiles.device, torch.tensor(tiles.shape[:-3:-1], dtype=torch.float32, device=tiles.device)
    reaches_px = _reach_px(draws, gsd_m, px, int(min(tiles.shape[-2:])), nominal_gsd_m)
    image = tiles.float() / 255
    crops = []
    # One crop of all tiles after the other: all crops at once would hold C copies of the sampling grid.
    for c in range(len(draws.gsd)):
        reach_px = reaches_px[c].to(device)
        # The clamp is for a crop as large as its tile, whose centre has no room to move.
        room_px = (side_px - reach_px[:, None]).clamp(min=0)
        centre_px = reach_px[:, None] / 2 + draws.centre[c].to(device) * room_px
        # Affine maps of torch take and give coordinates from -1 to 1: hence the division by the side.
        offset_px = (2 * centre_px - side_px)[..., None]
        theta = torch.cat([draws.turn[c].to(device) * reach_px[:, None, None], offset_px], dim=-1)
        theta = theta / side_px[None, :, None]
        grid = F.affine_grid(theta, [*tiles.shape[:2], px, px], align_corners=False)
        crops.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False))
    return recolour(torch.stack(crops), draws)


def crop_gsd_m(tiles: Tensor, gsd_m: Tensor, draws: Draws, px: int, nominal_gsd_m: float) -> Tensor:
    """Return the GSD of the crops that `crop` cuts with the same arguments.

    Returns:
        (C, B) float32, metres; finer than drawn where a crop is cut to its tile's side.
    """
    reach_px = _reach_px(draws, gsd_m, px, int(min(tiles.shape[-2:])), nominal_gsd_m)
    return reach_px * gsd_m.to(reach_px.device) / px


def _reach_px(draws: Draws, gsd_m: Tensor, px: int, side_px: int, nominal_gsd_m: float) -> Tensor:
    """Return the sides (C, B) of crops in pixels of their tile, on the device of `gsd_m`; at most the tile's side."""
    return (px * draws.gsd.to(gsd_m.device) * nominal_gsd_m / gsd_m).clamp(max=side_px)


def recolour(image: Tensor, draws: Draws) -> Tensor:
    """Change colour, light, haze and sharpness of crops.

    Args:
        image: (C, B, bands, H, W) float32 in [0, 1], first RGB; other bands are blurred, and keep their values.
        draws: Parameters, (C, B, ...), on any device.

    Returns:
        (C, B, bands, H, W) float32 in [0, 1].
    """
    device = image.device
    image, others = image[:, :, :3], image[:, :, 3:]

    def per_sample(values: Tensor) -> Tensor:
        return values.to(device)[..., None, None, None]

    image = torch.einsum("cbij,cbjhw->cbihw", draws.colour.to(device), image)
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    image = (mean + (image - mean) * per_sample(draws.gain)) * per_sample(draws.light)
    # Not down to 0, where the gradient of a power is infinite.
    image = image.clamp(1e-4, 1).pow(per_sample(draws.gamma))
    veil = per_sample(draws.haze)
    image = image * (1 - veil) + HAZE.to(device).view(3, 1, 1) * veil
    image = torch.cat([image, others], dim=2)
    return blur(image.flatten(0, 1), draws.blur_px.flatten().to(device)).view_as(image)


def blur(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur every image with a Gaussian of its own; a sigma of 0 leaves an image as it is.

    Args:
        image: (B, bands, H, W) float32.
        sigma_px: (B,) sigma, up to about 2 px: the kernel reaches 4 pixels.
    """
    chosen = sigma_px.nonzero()[:, 0]
    if not len(chosen):
        return image
    bands, height, width = image.shape[1:]
    offsets_px = torch.arange(-BLUR_REACH_PX, BLUR_REACH_PX + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offsets_px / sigma_px[chosen, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(bands, dim=0)
    # Every channel of every image is a group of one convolution, rows first and then columns.
    part = F.pad(image[chosen], (BLUR_REACH_PX,) * 4, mode="reflect")
    part = part.reshape(1, -1, height + 2 * BLUR_REACH_PX, width + 2 * BLUR_REACH_PX)
    part = F.conv2d(part, kernel[:, None, :, None], groups=len(kernel))
    part = F.conv2d(part, kernel[:, None, None, :], groups=len(kernel))
    return image.index_copy(0, chosen, part.view(len(chosen), bands, height, width))


def _colour_matrix(hue: Tensor, saturation: Tensor, tint: Tensor) -> Tensor:
    """Return matrices on RGB, (..., 3, 3): turn the plane of colour by `hue`, stretch it, then scale the channels."""
    turn = torch.zeros(*hue.shape, 3, 3)
    turn[..., 0, 0] = 1
    turn[..., 1, 1] = turn[..., 2, 2] = saturation * hue.cos()
    turn[..., 1, 2], turn[..., 2, 1] = -saturation * hue.sin(), saturation * hue.sin()
    matrix: Tensor = tint[..., None] * (torch.linalg.inv(YIQ) @ turn @ YIQ)
    return matrix
