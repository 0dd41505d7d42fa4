"""A bundle so small that a chip takes milliseconds."""

from pathlib import Path
from typing import Any

import torch

from canopy.models.bundle import Architecture, Card, save_bundle
from canopy.models.dpt import DPTHeights

TINY = Architecture(
    encoder_args={"embed_dim": 24, "num_heads": 2, "mlp_ratio": 1.0},
    decoder_channels=(8, 8, 16, 16),
    fusion_channels=8,
)


def tiny_bundle(path: Path, **changes: Any) -> Path:
    """Write a bundle of our family with random weights, the same for each seed of torch.

    Args:
        path: Bundle to write.
        changes: Fields of the card that differ.
    """
    values: dict[str, Any] = {
        "name": "tiny", "architecture": TINY, "gsd_m": 0.5, "chip_px": 96, "mean": (0.5,) * 3, "std": (0.2,) * 3,
        "canopy_version": "0.1.0", "licence": "CC0-1.0", "provisional": True,
    }  # fmt: skip
    card = Card(**{**values, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPTHeights(card)
    save_bundle(path, card, {name: value.numpy() for name, value in network.state_dict().items()})
    return path
