"""Encoders by name: bundled ones, those of bundles, and timm's pretrained ones."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.bundle import RGB, TIMM, Architecture, Card, Weights, find_bundle, read_bundle, read_card
from canopy.models.network import PATCH_PX
from canopy.version import __version__

KERNELS = ("patch_embed.proj.weight", "patch_embed.proj.steps.0.0.weight")
"""Kernel of the layer that reads the bands: that of the linear embedding, or the first of a convolutional stem."""
TIMM_PX = 128
"""Side of the image for which timm creates an encoder, pixels."""


def encoder_card(path: Path) -> Card:
    """Return the card of an encoder.

    Args:
        path: Path of a bundle, name of a bundled one, or ``timm:NAME``.

    Raises:
        ModelError: Not a bundle, or a name for which timm has no weights.
    """
    if not str(path).startswith(TIMM):
        return read_card(find_bundle(path))
    name = str(path).removeprefix(TIMM)
    try:
        pretrained = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ModelError(f"timm knows no pretrained weights {name!r}") from error
    assert pretrained is not None
    # Patches of 16 px, whatever the model's own: the DPT decoder needs them, and timm resamples the weights.
    return Card.model_validate(
        {
            "name": name,
            "family": "encoder",
            "architecture": Architecture(encoder=name, encoder_args={"patch_size": PATCH_PX}),
            "gsd_m": 0.5,
            "chip_px": TIMM_PX,
            "mean": pretrained.mean,
            "std": pretrained.std,
            "canopy_version": __version__,
            "licence": pretrained.license or "unknown",
            "provisional": False,
        }
    )


def rgb_only(card: Card, weights: Weights) -> tuple[Card, Weights]:
    """Return an encoder of more bands as one of RGB, which sees its other bands at their means.

    Args:
        card: Card of the encoder, its first bands red, green and blue.
        weights: Its weights.
    """
    bands = len(RGB)
    if len(card.bands) == bands:
        return card, weights
    # A band at its mean is 0 after normalisation, and adds nothing to a token.
    narrow = {**weights, **{name: weights[name][:, :bands] for name in KERNELS if name in weights}}
    update = {"bands": card.bands[:bands], "mean": card.mean[:bands], "std": card.std[:bands]}
    return card.model_copy(update=update), narrow


def read_encoder(path: Path, *, rgb: bool = True, published: Path | None = None) -> tuple[Card, Weights]:
    """Read the card and the weights of an encoder bundle, a height model, or a timm model.

    Args:
        path: Path of a bundle, name of a bundled one, or ``timm:NAME`` for one of timm's pretrained encoders, whose
            patches are resampled to 16 px, and whose weights timm downloads.
        rgb: Whether an encoder of more bands is read as one of RGB.
        published: File of the weights of ``timm:NAME``, under timm's names: nothing is downloaded then.

    Raises:
        ModelError: Not a bundle, or weights that timm does not know or cannot download, or that are another network's.
    """
    if not str(path).startswith(TIMM):
        bundle = read_bundle(find_bundle(path))
        return rgb_only(bundle.card, bundle.weights) if rgb else (bundle.card, bundle.weights)
    card = encoder_card(path)
    weights = published_weights(published) if published else pretrained_weights(card.name)
    vit = timm.create_model(
        card.name, pretrained=False, num_classes=0, img_size=TIMM_PX, patch_size=PATCH_PX, dynamic_img_size=True
    )
    try:
        vit.load_state_dict(fit_weights(vit, weights))
    except RuntimeError as error:
        raise ModelError(f"{published or 'timm'} has no weights of {card.name}: {one_line(error, 200)}") from error
    return card, {name: tensor.numpy() for name, tensor in vit.state_dict().items()}


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """Download the weights of one of timm's pretrained encoders, for its own patches and size of image.

    Args:
        name: timm name, without a prefix.

    Raises:
        ModelError: timm knows no such weights, or cannot download them.
    """
    try:
        weights: dict[str, Tensor] = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"timm cannot download {name}: {one_line(error, 200)}") from error
    return weights


def published_weights(path: Path) -> dict[str, Tensor]:
    """Read weights under timm's names from a file without a card: safetensors, or a torch state dict.

    Raises:
        ModelError: No such file, or not a file of weights.
    """
    try:
        if path.suffix == ".safetensors":
            return {name: tensor.float() for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in state.items()}
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, AttributeError) as error:
        raise ModelError(f"{path}: no weights that can be read: {one_line(error, 200)}") from error


def fit_weights(vit: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for a vision transformer of another patch, size of image, or number of bands or registers.

    Classifiers and mask tokens are left out; registers that the weights lack stay as they are.

    Args:
        vit: timm model that the weights are for.
        weights: State dict of the same model, perhaps with other patches, bands, positions or registers.
    """
    own = vit.state_dict()
    fitted = {name: tensor for name, tensor in weights.items() if name != "mask_token" and not name.startswith("head.")}
    for name in KERNELS:
        if name in fitted and name in own:
            fitted[name] = _fit_kernel(fitted[name], own[name].shape)
    if "reg_token" in own:
        fitted.setdefault("reg_token", own["reg_token"])
    return with_positions(vit, fitted)


def _fit_kernel(kernel: Tensor, shape: torch.Size) -> Tensor:
    """Resample the kernel of a layer that reads the bands, (D, bands, h, w), to the patch and the bands of a shape."""
    if kernel.shape[-2:] != shape[-2:]:
        # so that the embedding of a resized patch stays the same (Beyer et al. 2023, FlexiViT, section 3.4)
        kernel = resample_patch_embed(kernel.float(), list(shape[-2:]))
    # A band that the weights do not know begins with 0: the network is that of the others.
    missing = max(0, shape[1] - kernel.shape[1])
    return F.pad(kernel, (0, 0, 0, 0, 0, missing))[:, : shape[1]]


def with_positions(vit: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose position embeddings are resampled to the number of patches of a vision transformer.

    Args:
        vit: timm model that the weights are for.
        weights: State dict of the same model, perhaps for another size of image.
    """
    target, source = vit.state_dict().get("pos_embed"), weights.get("pos_embed")
    if target is None or source is None or target.shape == source.shape:
        return dict(weights)
    # Class and register tokens have embeddings too in some models; they are not resampled.
    prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
    length = source.shape[1]
    own_prefix = prefix if math.isqrt(length - prefix) ** 2 == length - prefix else length - math.isqrt(length) ** 2
    side = math.isqrt(target.shape[1] - prefix)
    tokens, patches = source[:, :own_prefix], source[:, own_prefix:]
    patches = resample_abs_pos_embed(patches, [side, side], num_prefix_tokens=0)
    fitted = dict(weights)
    if prefix == 0 and own_prefix == 1 and "cls_token" in fitted:
        # a class token without a position of its own takes the one that it had
        fitted["cls_token"], tokens = fitted["cls_token"] + tokens, tokens[:, :0]
    # registers that were not there have no position yet
    tokens = F.pad(tokens, (0, 0, 0, max(0, prefix - own_prefix)))[:, :prefix]
    return {**fitted, "pos_embed": torch.cat([tokens, patches], dim=1)}
