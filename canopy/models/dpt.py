"""Dense prediction transformer: a timm ViT, the DPT decoder of segmentation-models-pytorch, a bin head."""

import pickle
from pathlib import Path
from typing import Any, Self, cast

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from torch import Tensor, nn

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Card
from canopy.models.network import BinHeights
from canopy.models.positions import set_positions
from canopy.models.stem import set_stem

ENCODER = "dpt.encoder.model."
"""Prefix of the encoder's weights."""
DETAIL = "detail."
"""Prefix of the detail network's weights."""


class DPTHeights(BinHeights):
    """ViT encoder and narrowed DPT decoder (Ranftl et al. 2021) that end in logits over height bins.

    A patch is 16 px, wider than a small crown, so a small convolutional network gives the head the
    detail that tokens blur, as in DPT-Hybrid (section 3 there).

    Args:
        card: Architecture, bins and normalisation.
        drop_path: Stochastic depth rate of the encoder, for training.
    """

    def __init__(self, card: Card, drop_path: float = 0.0) -> None:
        super().__init__(card)
        self._frozen = self._detail_frozen = False
        arch = card.architecture
        self._normed, self._enlarge = arch.normed, arch.enlarge
        encoder_args: dict[str, Any] = {
            "img_size": arch.enlarge * card.chip_px,
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
        set_stem(self.dpt.encoder.model, arch.stem, len(card.bands))
        # Images come at the card's GSD, which an enlarged image has only a share of.
        set_positions(self.dpt.encoder.model, arch.reference_gsd_m, card.gsd_m / arch.enlarge)
        width = arch.fusion_channels
        # The head below takes the place of smp's own, which decodes at full resolution.
        self.dpt.segmentation_head = nn.Identity()
        if arch.enlarge > 1:
            # Tokens of an enlarged image are finer than smp assumes, so the decoder is created again for their strides.
            self.dpt.decoder = DPTDecoder(
                encoder_out_channels=self.dpt.encoder.out_channels,
                encoder_output_strides=[stride // arch.enlarge for stride in self.dpt.encoder.output_strides],
                encoder_has_prefix_tokens=self.dpt.encoder.has_prefix_tokens,
                readout="ignore",
                intermediate_channels=arch.decoder_channels,
                fusion_channels=width,
            )
        self.detail = Detail(arch.detail, arch.detail_channels) if arch.detail else None
        fused = width + (arch.detail_channels if arch.detail else 0)
        norm = [nn.BatchNorm2d(width)] if arch.normed else []
        self.head = nn.Sequential(
            nn.Conv2d(fused, width, 3, padding=1), *norm, nn.GELU(), nn.Conv2d(width, card.head.bins, 1)
        )

    def forward(self, image: Tensor, taps: Tensor | None = None) -> Tensor:
        """Return logits over height bins.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 32.
            taps: (taps, B, C, h, w) tokens that `tapped` returned for the image; None to run the encoder.

        Returns:
            (B, bins, H / 2, W / 2) logits.
        """
        features = self.tapped(image) if taps is None else list(taps)
        # Tokens of different encoders and blocks differ in scale by orders of magnitude; layer norm without weights.
        if self._normed:
            features = [F.layer_norm(tokens.movedim(1, -1), tokens.shape[1:2]).movedim(-1, 1) for tokens in features]
        # No prefix tokens (None): the readout ignores them.
        decoded = self.dpt.decoder(features, [None] * len(features))
        if self.detail is not None:
            decoded = torch.cat([decoded, self.detail(image)], dim=1)
        return cast(Tensor, self.head(decoded))

    def freeze_encoder(self) -> None:
        """Keep the encoder as it is: no gradients, and eval mode whatever mode the rest is in."""
        self.dpt.encoder.requires_grad_(False).eval()
        self._frozen = True

    def freeze_detail(self) -> None:
        """Keep the detail network, if there is one, as it is: no gradients, and eval mode."""
        if self.detail is not None:
            self.detail.requires_grad_(False).eval()
        self._detail_frozen = True

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but frozen parts and normalisation of fixed statistics."""
        super().train(mode)
        if self._frozen:
            self.dpt.encoder.eval()
        if self._detail_frozen and self.detail is not None:
            self.detail.eval()
        return self

    def tokens(self, image: Tensor) -> Tensor:
        """Return the encoder's last patch tokens: (B, 3, H, W) image in [0, 1] to (B, C, H / 16, W / 16)."""
        # An enlarged image has more patches; their mean is that of a patch of 16 px on the ground.
        return F.avg_pool2d(self.tapped(self.padded(image))[-1], self._enlarge)

    def tapped(self, image: Tensor) -> list[Tensor]:
        """Return patch tokens (B, C, h, w) of each tap, all that the decoder reads of the encoder."""
        normalised = self.normalise(image)
        if self._enlarge > 1:
            normalised = F.interpolate(normalised, scale_factor=self._enlarge, mode="bilinear", align_corners=False)
        return cast(list[Tensor], self.dpt.encoder(normalised)[0])


class Detail(nn.Module):
    """Convolutional features finer than a patch: a network's pyramid, merged from coarse to fine (Lin et al. 2017).

    Args:
        network: timm name of a convolutional network.
        width: Channels of the result.
    """

    def __init__(self, network: str, width: int) -> None:
        super().__init__()
        self.stages = cast(Any, timm.create_model(network, features_only=True, pretrained=False))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in self.stages.feature_info.channels())
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU())
            for _ in self.lateral
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return features at half of the resolution: (B, 3, H, W) RGB in [0, 1] to (B, width, H / 2, W / 2)."""
        # From [0, 1] to [-1, 1]; then from the coarsest level on, each is enlarged and added to the next finer one.
        merged: Tensor | None = None
        pyramid = zip(self.stages(2 * image - 1), self.lateral, self.smooth, strict=True)
        for features, lateral, smooth in reversed(list(pyramid)):
            level = lateral(features)
            if merged is not None:
                level = level + F.interpolate(merged, scale_factor=2, mode="nearest")
            merged = smooth(level)
        return cast(Tensor, merged)


def load_stages(stages: nn.Module, path: Path) -> None:
    """Load a classifier's weights into the same network without its classifier.

    Args:
        stages: Network that timm created for its features alone.
        path: torch state dict of the whole classifier, whose first tensors are the network's, in the same order.

    Raises:
        ModelError: No such file, or weights of another network.
    """
    try:
        # By order, not by name: zip drops the layers of the classifier, which come last.
        tensors = torch.load(path, map_location="cpu", weights_only=True).values()
        stages.load_state_dict(dict(zip(stages.state_dict(), tensors, strict=False)))
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        fault = one_line(error, 200)
        raise ModelError(f"{path} does not contain the weights of the network that is expected: {fault}") from error
