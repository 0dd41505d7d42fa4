"""A convolutional stem in place of the linear patch embedding, which no masked patch leaks through.

Xiao et al. 2021 (arXiv 2106.14881) reach the patch by convolutions of stride 2; Vélez-García et al. 2025 (SCOTT, arXiv
2502.18056) keep masked patches out of them by sparse convolutions: what is masked is 0 before each convolution.
"""

import itertools
from typing import Any

from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from canopy.errors import ConfigError
from canopy.models.bundle import Stem


class ConvStem(nn.Module):
    """Convolutions of 3x3 and stride 2, each with a norm and GELU, and a linear step to the width of the tokens.

    The norm is over the channels of one position: unlike the batch normalisation of Xiao et al., it mixes neither
    positions nor images, so that masked patches stay unseen, and the moving average of the weights is all there is.

    Args:
        bands: Bands of the image.
        width: Width of the tokens.
        patch_px: Side of a patch. The steps of stride 2 go as far as it is even; the last step takes what is left, as
            the 7 of 14 = 2 x 7.

    Raises:
        ConfigError: An odd patch, which has no step of stride 2.
    """

    def __init__(self, bands: int, width: int, patch_px: int) -> None:
        super().__init__()
        halvings = (patch_px & -patch_px).bit_length() - 1  # factors of 2
        if not halvings:
            raise ConfigError(
                f"stem: conv needs patches of an even side, these have {patch_px} px; stem: patch takes any"
            )
        # From an eighth of the width, channels double up to it: 24, 48, 96, 192, as in Xiao et al.'s ViT_C-1GF.
        channels = [bands, *(max(1, min(width, (width << step) // 8)) for step in range(halvings))]
        self.steps = nn.ModuleList(_step(*pair) for pair in itertools.pairwise(channels))
        side_px = patch_px >> halvings
        self.project = nn.Conv2d(channels[-1], width, side_px, stride=side_px)
        self.mask: Tensor | None = None
        """(B, rows, cols) bool, True where a patch is hidden; set for one call, for timm hands no mask on."""

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, bands, H, W) float32, normalised, into (B, width, rows, cols); hidden patches say nothing."""
        features = self._erase(image)
        for step in self.steps:
            features = self._erase(step(features))
        tokens: Tensor = self.project(features)
        return tokens

    def _erase(self, features: Tensor) -> Tensor:
        """Set hidden patches to 0 at any resolution."""
        if self.mask is None:
            return features
        side = features.shape[-1] // self.mask.shape[-1]
        hidden = self.mask.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
        return features.masked_fill(hidden[:, None], 0.0)


def _step(channels: int, width: int) -> nn.Sequential:
    """Return a convolution that halves the resolution, a norm over channels, and GELU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1), LayerNorm2d(width), nn.GELU())


def set_stem(vit: Any, stem: Stem, bands: int) -> None:
    """Give a vision transformer its stem.

    Args:
        vit: timm model with the linear embedding that timm gives it, changed in place.
        stem: Kind of stem; `patch` leaves the model as it is.
        bands: Bands of the image.

    Raises:
        ConfigError: A network without a linear patch embedding, or patches of an odd side.
    """
    if stem == "patch":
        return
    embedding = getattr(vit, "patch_embed", None)
    if type(embedding) is not PatchEmbed:
        raise ConfigError(f"stem: conv takes the place of a linear patch embedding, which {type(vit).__name__} lacks")
    vit.patch_embed.proj = ConvStem(bands, int(vit.embed_dim), int(embedding.patch_size[0]))
