"""U-Net: a convolutional network of timm's that narrows an image, our decoder that widens it again, a bin head."""

from itertools import pairwise
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Card
from canopy.models.network import PATCH_PX, BinHeights

STRIDES = (2, 4, 8, 16, 32)
"""Pixels of the image per pixel of each of the encoder's levels."""


class UNetHeights(BinHeights):
    """U-Net (Ronneberger et al. 2015) that ends in logits over height bins.

    The contracting path is a classifier without its last layers. The expanding path enlarges the coarsest level
    twofold, joins the encoder's level of that size to it, and convolves twice (section 2 there), until half of the
    image's resolution; there a convolution of one pixel gives each bin its logit.

    Args:
        card: Architecture, bins and normalisation.
        drop_path: Stochastic depth rate of the encoder, for training.

    Raises:
        ModelError: timm has no such network, or it is no pyramid from half of the resolution to a 32nd.
    """

    def __init__(self, card: Card, drop_path: float = 0.0) -> None:
        super().__init__(card)
        arch = card.architecture
        self.encoder = create_stages(arch.encoder, drop_path)
        *skips, deepest = self.encoder.feature_info.channels()
        widths = (deepest, *reversed(arch.decoder_channels))
        self.expansions = nn.ModuleList(
            Expansion(coarse, skip, width)
            for (coarse, width), skip in zip(pairwise(widths), reversed(skips), strict=True)
        )
        self.head = nn.Sequential(nn.Conv2d(widths[-1], card.head.bins, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits over height bins: (B, 3, H, W) RGB in [0, 1] to (B, bins, H / 2, W / 2)."""
        *skips, merged = self._levels(image)
        for expansion, skip in zip(self.expansions, reversed(skips), strict=True):
            merged = expansion(merged, skip)
        return cast(Tensor, self.head(merged))

    def tokens(self, image: Tensor) -> Tensor:
        """Return the encoder's level at patches of 16 px: (B, 3, H, W) in [0, 1] to (B, C, H / 16, W / 16)."""
        return self._levels(self.padded(image))[STRIDES.index(PATCH_PX)]

    def _levels(self, image: Tensor) -> list[Tensor]:
        """Return the encoder's levels (B, C, H / stride, W / stride), the finest first."""
        return cast(list[Tensor], self.encoder(self.normalise(image)))


class Expansion(nn.Module):
    """One step of the expanding path: twice the resolution, the encoder's level of that size, two convolutions.

    Args:
        coarse: Channels of the coarser level.
        skip: Channels of the encoder's level.
        width: Channels of the result.
    """

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*_convolution(coarse + skip, width), *_convolution(width, width))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Return the finer level: (B, coarse, h, w) and (B, skip, 2 h, 2 w) to (B, width, 2 h, 2 w)."""
        enlarged = F.interpolate(coarse, scale_factor=2, mode="nearest")
        return cast(Tensor, self.convolutions(torch.cat([enlarged, skip], dim=1)))


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    """Return a padded convolution, where the paper's crops, and its normalisation (Ioffe and Szegedy 2015)."""
    return nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def create_stages(network: str, drop_path: float = 0.0) -> Any:
    """Create a convolutional network of timm's for its levels alone, with random weights.

    Args:
        network: timm name.
        drop_path: Stochastic depth rate.

    Raises:
        ModelError: timm has no such network, or it is no pyramid from half of the resolution to a 32nd.
    """
    # Not every network knows the rate of stochastic depth, so that 0 is not passed.
    args: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        stages = cast(Any, timm.create_model(network, features_only=True, pretrained=False, **args))
        strides = tuple(stages.feature_info.reduction())
    except Exception as error:  # a network that timm lacks, or cannot take apart, ends in any error
        raise ModelError(f"timm gives no levels of {network}, a U-Net's encoder: {one_line(error, 200)}") from error
    if strides != STRIDES:
        raise ModelError(f"{network} has levels of strides {strides}: a U-Net's encoder has {STRIDES}")
    return stages
