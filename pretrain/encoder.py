"""Encoders: timm's vision transformers with masked patches, and bundles of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from canopy.errors import ConfigError, ModelError, TrainingError, one_line
from canopy.models.bundle import Card, save_bundle
from canopy.models.dpt import ENCODER
from canopy.models.encoders import read_encoder, with_positions
from canopy.models.weights import count_weights, load_weights, require_size

MLP_LAYERS = {"swiglu": SwiGLUPacked}
CLASSIFIER = "head."
"""Prefix of timm's classifier in a height model's encoder: smp keeps it, nothing reads it."""


class Encoder(nn.Module):
    """A timm vision transformer that takes RGB in [0, 1] of any size and may be blind to some patches.

    Args:
        name: timm name of a model with a class token.
        args: Arguments over timm's own; ``mlp_layer`` may be ``swiglu``.
        image_px: Side of the images whose position embeddings are learnt; other sizes are interpolated.
        mean: Mean of each channel, for normalisation.
        std: Standard deviation of each channel.
        drop_path: Rate of stochastic depth.

    Raises:
        ConfigError: timm knows no such model or argument, or the model has no class token.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        args: dict[str, Any],
        image_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.vit = _create(name, args, image_px, drop_path)
        self.width = int(self.vit.num_features)
        self.mask_token = nn.Parameter(torch.zeros(self.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        # The mask reaches the patches by a hook: timm's forward_features has no argument for it.
        self._mask: Tensor | None = None
        self.vit.patch_embed.register_forward_hook(self._hide)

    @property
    def patch_px(self) -> int:
        """Side of a patch, pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features after the last norm.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of the patch.
            mask: (B, rows, cols) bool, True where a patch is replaced by the mask token.

        Returns:
            Class token (B, D) and patches (B, rows cols, D).
        """
        self._mask = mask
        tokens = self.vit.forward_features((image - self.mean) / self.std)
        self._mask = None  # the next call may come without one
        return tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :]

    def _hide(self, module: nn.Module, args: tuple[Tensor, ...], patches: Tensor) -> Tensor:
        """Replace masked patches by the mask token, right after the embedding of any timm model."""
        if self._mask is None:
            return patches
        mask = self._mask.reshape(*patches.shape[:-1], 1)
        return torch.where(mask, self.mask_token.to(patches.dtype), patches)


def _create(name: str, args: dict[str, Any], image_px: int, drop_path: float) -> Any:
    """Create a timm model with random weights."""
    try:
        timm_args = {**args, "mlp_layer": MLP_LAYERS[str(args["mlp_layer"])]} if "mlp_layer" in args else args
        # dynamic_img_size: crops of several sizes go through one network.
        vit = timm.create_model(
            name, num_classes=0, img_size=image_px, dynamic_img_size=True, drop_path_rate=drop_path, **timm_args
        )
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"timm makes no encoder {name!r} of {args}: {one_line(error, 200)}") from error
    if getattr(vit, "cls_token", None) is None:
        raise ConfigError(f"encoder {name!r} has no class token; a vision transformer with one is expected")
    return vit


def from_card(card: Card, drop_path: float = 0.0) -> Encoder:
    """Create the untrained encoder that a card describes."""
    arch = card.architecture
    return Encoder(arch.encoder, dict(arch.encoder_args), arch.enlarge * card.chip_px, card.mean, card.std, drop_path)


def load_encoder(path: Path) -> tuple[Card, Encoder]:
    """Read the encoder of an encoder bundle or of a height model; in eval mode.

    Args:
        path: Path of a bundle, the name of a bundled one, or ``timm:NAME`` for one of timm's pretrained encoders.

    Raises:
        ModelError: Not a bundle, weights that do not fit its card, or weights that timm cannot download.
    """
    card, weights = read_encoder(path)
    if card.family == "dpt":
        start = len(ENCODER)
        weights = {name[start:]: array for name, array in weights.items() if name.startswith(ENCODER)}
        weights = {name: array for name, array in weights.items() if not name.startswith(CLASSIFIER)}
        if not weights:
            raise ModelError(f"{path}: no weights under {ENCODER!r}, where a height model's encoder is expected")
    elif card.family != "encoder":
        raise ModelError(f"{path} is of the family {card.family}: an encoder, or a height model of ours, is expected")
    require_size(lambda: from_card(card).vit, count_weights(weights), path)
    encoder = from_card(card)
    missing = set(encoder.vit.state_dict()) - set(weights)
    # smp drops the last norm, which feeds no tap; an untrained one only scales.
    norm = {name: encoder.vit.state_dict()[name].numpy() for name in missing if name.startswith("norm.")}
    load_weights(encoder.vit, {name: array.astype(np.float32) for name, array in (weights | norm).items()}, path)
    return card, encoder.eval().requires_grad_(False)


def start_from(encoder: Encoder, path: Path) -> None:
    """Load the weights of another encoder of the same network, its position embeddings resampled to this size.

    Args:
        encoder: The encoder that takes the weights.
        path: The other encoder, named as for `load_encoder`.

    Raises:
        ModelError: `load_encoder` cannot read it.
        TrainingError: It is another network.
    """
    _, other = load_encoder(path)
    weights = with_positions(encoder.vit, other.vit.state_dict())
    try:
        encoder.vit.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"start {path} is another network than the configuration's encoder") from error


def save_encoder(path: Path, card: Card, weights: Mapping[str, Tensor]) -> None:
    """Write an encoder's weights, under timm's own names, as a bundle in half precision."""
    save_bundle(path, card, {name: tensor.detach().cpu().half().numpy() for name, tensor in weights.items()})
