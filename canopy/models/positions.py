"""Positions of patches on the ground: sines and cosines whose wavelengths are metres, not patches.

Reed et al. 2023 (Scale-MAE, arXiv 2212.14532, section 3) scale a patch's number by the GSD over a reference, so that an
encoder sees how large a patch is: two patches of an image of twice the GSD are as far apart as four of the other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from canopy.errors import ConfigError

WAVELENGTH = 10_000.0
"""Longest wavelength over the shortest, as in Vaswani et al. 2017, section 3.5."""
Gsd = float | Tensor
"""GSD in metres: a number, or (B,), one for each image."""


def ground_positions(grid: tuple[int, int], width: int, scale: Tensor) -> Tensor:
    """Return positions of the patches of images (Scale-MAE, section 3).

    With position p of a row or column, scale s and i = 0 ... width / 4 - 1, the values are the sines and the cosines of
    s p / 10000^(4 i / width), first of columns and then of rows.

    Args:
        grid: Rows and columns of patches.
        width: Width of the tokens, a multiple of 4.
        scale: (B,) GSD of each image over the reference.

    Returns:
        (B, rows, cols, width) float32, on the device of `scale`.
    """
    number = torch.arange(width // 4, device=scale.device, dtype=torch.float32)
    frequency = WAVELENGTH ** (-4 * number / width)
    down, across = (_waves(scale.float(), length, frequency) for length in grid)
    shape = (len(scale), *grid, width // 2)
    return torch.cat([across[:, None].expand(shape), down[:, :, None].expand(shape)], dim=-1)


def _waves(scale: Tensor, length: int, frequency: Tensor) -> Tensor:
    """Return sines and cosines (B, length, 2 F) of scaled positions, for F frequencies."""
    position = scale[:, None] * torch.arange(length, device=scale.device, dtype=torch.float32)
    phase = position[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class GroundPositions(nn.Module):
    """Adds positions on the ground to the patches of a vision transformer; class and register tokens have none.

    Args:
        reference_gsd_m: GSD at which patches are one apart.
        gsd_m: GSD of the images.
    """

    def __init__(self, reference_gsd_m: float, gsd_m: float) -> None:
        super().__init__()
        self.reference_gsd_m = reference_gsd_m
        self.gsd_m: Gsd = gsd_m
        """GSD of the images of the next call: of all of them, or (B,)."""

    def forward(self, module: nn.Module, args: tuple[Tensor, ...], patches: Tensor) -> Tensor:
        """Return patches (B, rows, cols, D) with their positions; a hook of the embedding, hence the arguments."""
        rows, cols, width = (int(length) for length in patches.shape[1:])
        gsd_m = self.gsd_m
        if not isinstance(gsd_m, Tensor):
            gsd_m = torch.full((1,), gsd_m, device=patches.device)
        positions = ground_positions((rows, cols), width, gsd_m.to(patches.device) / self.reference_gsd_m)
        return patches + positions.to(patches.dtype)


def set_positions(vit: Any, reference_gsd_m: float | None, gsd_m: float) -> GroundPositions | None:
    """Give a vision transformer positions on the ground in place of learned ones.

    Args:
        vit: timm model that takes images of any size, changed in place.
        reference_gsd_m: GSD at which patches are one apart; None leaves the model as it is.
        gsd_m: GSD of images of which no other is given.

    Returns:
        The module that adds the positions, to be given the GSD of each image; None where they are learned.

    Raises:
        ConfigError: A network without learned positions of patches, or of a width that is no multiple of 4.
    """
    if reference_gsd_m is None:
        return None
    if getattr(vit, "pos_embed", None) is None or not getattr(vit, "dynamic_img_size", False):
        raise ConfigError("positions: gsd take the place of learned ones in a network that takes images of any size")
    if int(vit.embed_dim) % 4:
        raise ConfigError(f"positions: gsd need tokens of a multiple of 4 values, these have {vit.embed_dim}")
    vit.pos_embed = None
    positions = GroundPositions(reference_gsd_m, gsd_m)
    vit.patch_embed.register_forward_hook(positions)
    return positions
