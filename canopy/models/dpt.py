"""Dense prediction transformer: a timm ViT, the DPT decoder of segmentation-models-pytorch, a bin head."""

from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.bundle import Card
from canopy.models.heads import SqrtBins

MULTIPLE_PX = 32
"""Sides of an image: the decoder halves the 16 px patches once more."""


class DPTHeights(nn.Module):
    """ViT encoder and narrowed DPT decoder (Ranftl et al. 2021) that end in logits over height bins.

    A patch is 16 px, wider than a small crown, so a few convolutions at half of the image's resolution hand the
    head the detail that tokens blur; they see about 15 px around a cell. Heights are decoded there too,
    before the last upsampling: the head is then a quarter of the work.

    Args:
        card: Architecture, bins and normalisation.
        drop_path: Stochastic depth rate of the encoder, for training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, drop_path: float = 0.0) -> None:
        super().__init__()
        arch = card.architecture
        encoder_args: dict[str, Any] = {
            "img_size": card.chip_px,
            "dynamic_img_size": True,
            **arch.encoder_args,
        }
        self.dpt = smp.DPT(
            f"tu-{arch.encoder}",
            encoder_weights=None,
            encoder_output_indices=list(arch.taps),
            decoder_readout="ignore",
            decoder_intermediate_channels=arch.decoder_channels,
            decoder_fusion_channels=arch.fusion_channels,
            drop_path_rate=drop_path,
            **encoder_args,
        )
        width = arch.fusion_channels
        self.dpt.segmentation_head = nn.Identity()
        self.detail = _detail(arch.detail_channels) if arch.detail_channels else None
        fused = width + arch.detail_channels
        self.head = nn.Sequential(nn.Conv2d(fused, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, card.head.bins, 1))
        self.bins = SqrtBins(card.head.bins, card.head.max_m)
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits over height bins.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 32.

        Returns:
            (B, bins, H / 2, W / 2) logits.
        """
        normal = (image - self.mean) / self.std
        features, prefix = self.dpt.encoder(normal)
        decoded = self.dpt.decoder(features, prefix)
        if self.detail is not None:
            decoded = torch.cat([decoded, self.detail(normal)], dim=1)
        return cast(Tensor, self.head(decoded))

    def height_m(self, image: Tensor) -> Tensor:
        """Heights: (B, 3, H, W) image in [0, 1] to (B, H, W) float32 metres; any H and W (padding is cropped)."""
        height, width = image.shape[-2:]
        pad = (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX)
        padded = F.pad(image, pad, mode="replicate") if any(pad) else image
        half = self.bins.height_m(self(padded))
        full = F.interpolate(half[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        return full[:, :height, :width]


def _detail(width: int) -> nn.Sequential:
    """Convolutions from the image (B, 3, H, W) to (B, width, H / 2, W / 2)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
    for dilation in (1, 2, 4):
        layers += [nn.BatchNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.GELU())
