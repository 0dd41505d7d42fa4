"""Encoders by name: bundled ones, those of bundles, and timm's pretrained ones."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Architecture, Card, find_bundle, read_bundle, read_card
from canopy.version import __version__

TIMM = "timm:"
"""What the name of one of timm's encoders begins with."""
TIMM_PX = 128
PATCH_PX = 16


def encoder_card(path: Path) -> Card:
    """Card of what holds an encoder; path and errors as of `read_encoder`."""
    if not str(path).startswith(TIMM):
        return read_card(find_bundle(path))
    name = str(path).removeprefix(TIMM)
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ModelError(f"timm knows no pretrained weights {name!r}") from error
    assert found is not None
    return Card.model_validate(
        {
            "name": name,
            "family": "encoder",
            "architecture": Architecture(encoder=name, encoder_args={"patch_size": PATCH_PX}),
            "gsd_m": 0.5,
            "chip_px": TIMM_PX,
            "mean": found.mean,
            "std": found.std,
            "canopy_version": __version__,
            "licence": found.license or "unknown",
            "provisional": False,
        }
    )


def read_encoder(path: Path) -> tuple[Card, dict[str, np.ndarray]]:
    """Card and weights of what holds an encoder.

    Args:
        path: Of a bundle, or the name of a bundled one; or ``timm:NAME`` for one of timm's pretrained encoders, whose
            patches are resampled to 16 px, and whose weights timm downloads.

    Raises:
        ModelError: Not a bundle, or weights that timm does not know or cannot bring.
    """
    if not str(path).startswith(TIMM):
        return read_bundle(find_bundle(path))[:2]
    card = encoder_card(path)
    try:
        weights = timm.create_model(
            card.name, pretrained=True, num_classes=0, img_size=TIMM_PX, patch_size=PATCH_PX, dynamic_img_size=True
        ).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"timm cannot bring {card.name}: {one_line(error, 200)}") from error
    return card, {key: value.numpy() for key, value in weights.items()}


def with_positions(vit: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer's weights with position embeddings brought to the number of patches of another like it.

    Args:
        vit: The other, of timm.
        weights: State dict, perhaps of another size of image.
    """
    own, given = vit.state_dict().get("pos_embed"), weights.get("pos_embed")
    if own is None or given is None or own.shape == given.shape:
        return dict(weights)
    extra = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
    side = math.isqrt(own.shape[1] - extra)
    return {**weights, "pos_embed": resample_abs_pos_embed(given, [side, side], num_prefix_tokens=extra)}
