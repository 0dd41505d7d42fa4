"""Encoders by name: bundled ones, those of bundles, and timm's pretrained ones."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Architecture, Card, Weights, find_bundle, read_bundle, read_card
from canopy.models.network import PATCH_PX
from canopy.version import __version__

TIMM = "timm:"
"""Prefix of the name of one of timm's encoders."""
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


def read_encoder(path: Path) -> tuple[Card, Weights]:
    """Read the card and the weights of an encoder bundle, a height model, or a timm model.

    Args:
        path: Path of a bundle, name of a bundled one, or ``timm:NAME`` for one of timm's pretrained encoders, whose
            patches are resampled to 16 px, and whose weights timm downloads.

    Raises:
        ModelError: Not a bundle, or weights that timm does not know or cannot download.
    """
    if not str(path).startswith(TIMM):
        bundle = read_bundle(find_bundle(path))
        return bundle.card, bundle.weights
    card = encoder_card(path)
    try:
        weights = timm.create_model(
            card.name, pretrained=True, num_classes=0, img_size=TIMM_PX, patch_size=PATCH_PX, dynamic_img_size=True
        ).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"timm cannot download {card.name}: {one_line(error, 200)}") from error
    return card, {name: tensor.numpy() for name, tensor in weights.items()}


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
    side = math.isqrt(target.shape[1] - prefix)
    return {**weights, "pos_embed": resample_abs_pos_embed(source, [side, side], num_prefix_tokens=prefix)}
