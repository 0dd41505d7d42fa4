"""Trained vision transformers as teachers, seen at the patches of a student, whatever their own patch."""

import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from canopy.errors import ConfigError, ModelError, one_line
from canopy.models.bundle import TIMM, find_bundle
from canopy.models.encoders import pretrained_weights, published_weights
from pretrain.config import FeaturesConfig
from pretrain.encoder import Encoder, fit_grid, load_encoder, load_fitted

VIT_MODULES = ("vision_transformer", "eva", "deit", "beit")
"""Modules of timm whose networks are plain vision transformers."""


class VitFeatures(nn.Module):
    """A trained vision transformer's features of a student's patches.

    The image is resized until the teacher's grid of patches is the student's, so each patch has one token of the
    teacher, and the teacher's kernel stays as it was trained.

    Args:
        config: Name of the network, and file of its weights.
        patch_px: Side of the student's patches.
        grid: Side of the grid of patches whose positions are resampled once; other grids are interpolated at each call.

    Raises:
        ConfigError: timm knows no such network, or it has no class token.
        ModelError: Its weights cannot be read or downloaded.
        TrainingError: The file of weights is of another network.
    """

    def __init__(self, config: FeaturesConfig, patch_px: int, grid: int) -> None:
        super().__init__()
        self._patch_px, self.encoder = patch_px, _open(config, grid).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor, gsd_m: Tensor | None = None) -> Tensor:
        """Return the features after the last norm.

        Args:
            image: (n, 3, H, W) float32 RGB in [0, 1], as the student sees it.
            gsd_m: (n,) GSD of each image, metres; the network's own if None.

        Returns:
            (n, patches, D) float32.
        """
        seen_gsd_m = None if gsd_m is None else gsd_m * self._patch_px / self.encoder.patch_px
        resized = fit_grid(image, self._patch_px, self.encoder.patch_px)
        patches: Tensor = self.encoder(resized, gsd_m=seen_gsd_m)[1].float()
        return patches


def is_vit(network: str) -> bool:
    """Return whether a name is that of a vision transformer of timm, or of an encoder in a bundle."""
    name = network.removeprefix(TIMM)
    if timm.is_model(name.split(".")[0]):
        return is_model_in_modules(name.split(".")[0], VIT_MODULES)
    try:
        find_bundle(network)
    except ModelError:
        return False
    return True


def vit_width(network: str) -> int:
    """Return the width of the tokens of a vision transformer, without reading its weights where it is timm's."""
    name = network.removeprefix(TIMM)
    if not timm.is_model(name.split(".")[0]):
        return load_encoder(Path(network))[1].width
    with torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    return int(net.num_features)


def _open(config: FeaturesConfig, grid: int) -> Encoder:
    """Create a vision transformer with its trained weights, for a grid of patches."""
    name = config.network.removeprefix(TIMM)
    if not timm.is_model(name.split(".")[0]):
        return load_encoder(Path(config.network))[1]
    own = re.search(r"patch(\d+)", name)
    patch_px = int(own[1]) if own else 16
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"timm knows no {name!r}: {one_line(error, 200)}") from error
    assert pretrained is not None
    encoder = Encoder(name, {}, grid * patch_px, pretrained.mean, pretrained.std)
    weights = pretrained_weights(name) if config.weights is None else published_weights(config.weights)
    load_fitted(encoder, weights, f"features.weights of {name}")
    return encoder
