"""Encoders: timm's vision transformers with masked patches, and bundles of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from canopy.errors import ConfigError, ModelError, TrainingError, one_line
from canopy.models.bundle import TIMM, Card, Stem, read_card, save_bundle
from canopy.models.dpt import ENCODER
from canopy.models.encoders import fit_weights, pretrained_weights, published_weights, read_encoder
from canopy.models.network import PATCH_PX
from canopy.models.positions import Gsd, set_positions
from canopy.models.stem import ConvStem, set_stem
from canopy.models.weights import count_weights, load_weights, require_size

MLP_LAYERS = {"swiglu": SwiGLUPacked}
CELL_PX = 32
CLASSIFIER = "head."
"""Prefix of timm's classifier in a height model's encoder: smp keeps it, nothing reads it."""


class Encoder(nn.Module):
    """A timm vision transformer that takes bands in [0, 1] of any size and may be blind to some patches.

    Args:
        name: timm name of a model with a class token.
        args: Arguments over timm's own; ``mlp_layer`` may be ``swiglu``.
        image_px: Side of the images whose position embeddings are learnt; other sizes are interpolated.
        mean: Mean of each channel, for normalisation.
        std: Standard deviation of each channel.
        drop_path: Rate of stochastic depth.
        stem: How patches become tokens.
        reference_gsd_m: GSD at which patches are one apart, for positions on the ground; None for learned ones.
        gsd_m: GSD of images of which no other is given; the reference if None.

    Raises:
        ConfigError: timm knows no such model or argument, the model has no class token, or it cannot have such a stem
            or such positions.
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
        *,
        stem: Stem = "patch",
        reference_gsd_m: float | None = None,
        gsd_m: float | None = None,
    ) -> None:
        super().__init__()
        self.vit = _create(name, args, image_px, drop_path, len(mean))
        set_stem(self.vit, stem, len(mean))
        self.width = int(self.vit.num_features)
        self.mask_token = nn.Parameter(torch.zeros(self.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        # The mask reaches the patches by a hook: timm's forward_features has no argument for it.
        self._mask: Tensor | None = None
        self.vit.patch_embed.register_forward_hook(self._hide)
        # After the mask, for a masked patch has a position too.
        self.reference_gsd_m, self.gsd_m = reference_gsd_m, gsd_m or reference_gsd_m or 1.0
        self._positions = set_positions(self.vit, reference_gsd_m, self.gsd_m)
        self._qkv: Tensor | None = None

    @property
    def patch_px(self) -> int:
        """Side of a patch, pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def square_px(self) -> int:
        """Side of the squares of imagery that patches stand for where squares must fill cells of 32 px.

        The patch's own side, or 16 px: with patches of 14 px, the encoder sees imagery an eighth smaller.
        """
        return self.patch_px if CELL_PX % self.patch_px == 0 else PATCH_PX

    def forward(self, image: Tensor, mask: Tensor | None = None, gsd_m: Gsd | None = None) -> tuple[Tensor, Tensor]:
        """Return the features after the last norm.

        Args:
            image: (B, bands, H, W) float32 in [0, 1], first RGB; H and W multiples of the patch.
            mask: (B, rows, cols) bool, True where a patch is replaced by the mask token.
            gsd_m: GSD of all images or (B,) of each, metres, for positions on the ground; the encoder's own if None.

        Returns:
            Class token (B, D) and patches (B, rows cols, D).
        """
        if self._positions is not None:
            self._positions.gsd_m = self.gsd_m if gsd_m is None else gsd_m
        self._set_mask(mask)
        tokens = self.vit.forward_features((image - self.mean) / self.std)
        self._set_mask(None)  # the next call may come without one
        return tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :]

    def square_features(self, image: Tensor, gsd_m: Gsd | None = None) -> Tensor:
        """Return the features (B, rows cols, D) of squares of `square_px`, each shown as one patch.

        Args:
            image: (B, bands, H, W) float32 in [0, 1], first RGB; H and W multiples of the square.
            gsd_m: GSD of the images, metres; the encoder's own if None.
        """
        seen_gsd_m = (self.gsd_m if gsd_m is None else gsd_m) * self.square_px / self.patch_px
        patches: Tensor = self(fit_grid(image, self.square_px, self.patch_px), gsd_m=seen_gsd_m)[1]
        return patches

    def watch_relations(self, block: int) -> None:
        """Keep the queries, keys and values that a block computes, for `take_relations`.

        Args:
            block: Number of the block; negative from the end.

        Raises:
            ConfigError: No such block, or one that does not compute them in one layer.
        """
        blocks = self.vit.blocks
        if not -len(blocks) <= block < len(blocks):
            raise ConfigError(f"relations.layer {block}: a block of {len(blocks)} expected, negative from the end")
        layer = getattr(getattr(blocks[block], "attn", None), "qkv", None)
        if layer is None:
            raise ConfigError("terms.relations: a network whose attention has one layer for q, k and v is expected")
        layer.register_forward_hook(self._keep_qkv)

    def take_relations(self) -> Tensor:
        """Return queries, keys and values of the class token and the patches in the last call, and forget them.

        Returns:
            (B, 1 + patches, 3 D) float32 or bf16.
        """
        qkv, self._qkv = self._qkv, None
        if qkv is None:
            raise ConfigError("terms.relations: the network's attention does not call its layer for q, k and v")
        return torch.cat([qkv[:, :1], qkv[:, self.vit.num_prefix_tokens :]], dim=1)

    def _keep_qkv(self, module: nn.Module, args: tuple[Tensor, ...], qkv: Tensor) -> None:
        """Keep what a block's layer for q, k and v returns; rotary positions come later, and are not part of it."""
        self._qkv = qkv

    def _set_mask(self, mask: Tensor | None) -> None:
        """Set the mask of a call, which convolutions need before patches become tokens."""
        self._mask = mask
        stem = getattr(self.vit.patch_embed, "proj", None)
        if isinstance(stem, ConvStem):
            stem.mask = mask

    def _hide(self, module: nn.Module, args: tuple[Tensor, ...], patches: Tensor) -> Tensor:
        """Replace masked patches by the mask token, right after the embedding of any timm model."""
        if self._mask is None:
            return patches
        mask = self._mask.reshape(*patches.shape[:-1], 1)
        return torch.where(mask, self.mask_token.to(patches.dtype), patches)


def _create(name: str, args: dict[str, Any], image_px: int, drop_path: float, bands: int) -> Any:
    """Create a timm model with random weights."""
    try:
        timm_args = {**args, "mlp_layer": MLP_LAYERS[str(args["mlp_layer"])]} if "mlp_layer" in args else args
        # dynamic_img_size: crops of several sizes go through one network.
        vit = timm.create_model(
            name, num_classes=0, img_size=image_px, dynamic_img_size=True, drop_path_rate=drop_path, in_chans=bands,
            **timm_args,
        )  # fmt: skip
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"timm makes no encoder {name!r} of {args}: {one_line(error, 200)}") from error
    if getattr(vit, "cls_token", None) is None:
        raise ConfigError(f"encoder {name!r} has no class token; a vision transformer with one is expected")
    return vit


def from_card(card: Card, drop_path: float = 0.0) -> Encoder:
    """Create the untrained encoder that a card describes."""
    arch = card.architecture
    image_px = arch.enlarge * card.chip_px
    return Encoder(
        arch.encoder, dict(arch.encoder_args), image_px, card.mean, card.std, drop_path,
        stem=arch.stem, reference_gsd_m=arch.reference_gsd_m, gsd_m=card.gsd_m,
    )  # fmt: skip


def load_encoder(path: Path, *, rgb: bool = True) -> tuple[Card, Encoder]:
    """Read the encoder of an encoder bundle or of a height model; in eval mode.

    Args:
        path: Path of a bundle, the name of a bundled one, or ``timm:NAME`` for one of timm's pretrained encoders.
        rgb: Whether an encoder of more bands is read as one of RGB.

    Raises:
        ModelError: Not a bundle, weights that do not fit its card, or weights that timm cannot download.
    """
    card, weights = read_encoder(path, rgb=rgb)
    if card.family == "dpt":
        start = len(ENCODER)
        weights = {name[start:]: array for name, array in weights.items() if name.startswith(ENCODER)}
        weights = {name: array for name, array in weights.items() if not name.startswith(CLASSIFIER)}
        if not weights:
            raise ModelError(f"{path}: no weights under {ENCODER!r}, where a height model's encoder is expected")
    elif card.family != "encoder":
        raise ModelError(
            f"{path} is of the family {card.family}: an encoder, or a height model of the family dpt, is expected"
        )
    require_size(lambda: from_card(card).vit, count_weights(weights), path)
    encoder = from_card(card)
    missing = set(encoder.vit.state_dict()) - set(weights)
    # smp drops the last norm, which feeds no tap; an untrained one only scales.
    norm = {name: encoder.vit.state_dict()[name].numpy() for name in missing if name.startswith("norm.")}
    load_weights(encoder.vit, {name: array.astype(np.float32) for name, array in (weights | norm).items()}, path)
    return card, encoder.eval().requires_grad_(False)


def start_from(encoder: Encoder, path: Path) -> None:
    """Load the weights of another encoder of the same network, its patches and positions resampled to this one's.

    Args:
        encoder: The encoder that takes the weights.
        path: The other encoder, named as for `load_encoder`, or a file of weights as published, under timm's names.

    Raises:
        ModelError: The weights cannot be read.
        TrainingError: They are of another network, or of one with other positions.
    """
    if str(path).startswith(TIMM):
        weights = pretrained_weights(str(path).removeprefix(TIMM))
    elif is_published(path):
        weights = published_weights(path)
    else:
        other = load_encoder(path, rgb=False)[1]
        if other.reference_gsd_m != encoder.reference_gsd_m:
            raise TrainingError(
                f"start {path}: the reference_gsd_m of its positions is {other.reference_gsd_m}, the configuration's "
                f"{encoder.reference_gsd_m} (None: learned positions); name the same"
            )
        weights = other.vit.state_dict()
    load_fitted(encoder, weights, f"start {path}")


def is_published(path: Path) -> bool:
    """Return whether a path is a file of weights without a card, as publishers of networks give them."""
    if not path.is_file():
        return False
    try:
        read_card(path)
    except ModelError:
        return True
    return False


def load_fitted(encoder: Encoder, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights of the same network, for whichever patch and size of image they are.

    Args:
        encoder: The encoder that takes the weights.
        weights: State dict under timm's names.
        origin: Where the weights come from, for the error.

    Raises:
        TrainingError: They are of another network.
    """
    try:
        encoder.vit.load_state_dict(fit_weights(encoder.vit, weights))
    except RuntimeError as error:
        raise TrainingError(
            f"{origin} is another network than the configuration's encoder (init_values 0 is one without LayerScale): "
            f"{one_line(error, 200)}"
        ) from error


def fit_grid(image: Tensor, patch_px: int, other_px: int) -> Tensor:
    """Resize an image so that patches of another size form the same grid.

    Args:
        image: (n, C, H, W) float32; H and W multiples of `patch_px`.
        patch_px: Side of the patches that the image is for.
        other_px: Side of the patches that it shall be for.
    """
    if patch_px == other_px:
        return image
    size = [length // patch_px * other_px for length in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=other_px < patch_px)


def save_encoder(path: Path, card: Card, weights: Mapping[str, Tensor]) -> None:
    """Write an encoder's weights, under timm's own names, as a bundle in half precision."""
    save_bundle(path, card, {name: tensor.detach().cpu().half().numpy() for name, tensor in weights.items()})
