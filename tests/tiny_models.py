"""Height models small enough to create, save and compile within a test."""

from pathlib import Path
from typing import Any

import torch

from canopy.models.bundle import Architecture, Card, HeightHead, HeightIntervals, save_bundle
from canopy.models.dpt import DPTHeights

CHIP_PX = 64
ARCHITECTURE = Architecture(
    encoder="test_vit", encoder_args={"embed_dim": 16, "num_heads": 1, "mlp_ratio": 1.0}, taps=(0, 1, 3, 5),
    decoder_channels=(4, 8, 8, 8), fusion_channels=8,
)  # fmt: skip
INTERVALS = HeightIntervals(height_m=(1.0, 10.0), lower_m=(0.5, -1.0), upper_m=(-0.5, 2.0))


def tiny_card(**changes: Any) -> Card:
    """Return the card of a tiny height model of our own family."""
    values: dict[str, Any] = {
        "name": "tiny", "architecture": ARCHITECTURE, "head": HeightHead(bins=16, max_m=40.0), "gsd_m": 0.5,
        "chip_px": CHIP_PX, "mean": (0.45, 0.47, 0.4), "std": (0.2, 0.19, 0.17), "canopy_version": "0",
        "licence": "none", "provisional": True, "intervals": INTERVALS,
    }  # fmt: skip
    return Card(**{**values, **changes})


def tiny_net(card: Card, seed: int = 0) -> DPTHeights:
    """Return a network with random weights, whose heights vary by metres over random images."""
    torch.manual_seed(seed)
    net = DPTHeights(card).eval()
    with torch.no_grad():
        for module in net.head:
            if isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(8)
    return net


def save_tiny_model(path: Path, **changes: Any) -> Path:
    """Write the bundle of a tiny height model."""
    card = tiny_card(**changes)
    save_bundle(path, card, {name: tensor.numpy() for name, tensor in tiny_net(card).state_dict().items()})
    return path


def random_image(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return (B, 3, H, W) float32 noise in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
