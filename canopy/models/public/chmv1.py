"""CHMv1, the first global sub-metre map's network (Tolan et al. 2024): a DINOv2 ViT, a DPT head, linear bins."""

from typing import cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from canopy.models.bundle import Card
from canopy.models.heads import LinearBins
from canopy.models.network import MULTIPLE_PX, PATCH_PX, HeightNet
from canopy.models.public.colour import ColourMatching

TRAINED_PX = 224
"""Side of the image for which position embeddings were learned, pixels."""
HIDDEN = 32
"""Channels of the layer before the logits."""


class CHMv1(HeightNet):
    """Encoder and head of CHMv1.

    The head is DPT's (Ranftl et al. 2021, section 3), with the class token projected into every patch token; logits
    become weights by a rectifier and an offset, not by a softmax.

    Args:
        card: Architecture (with `embed_dim`, `depth` and `num_heads` in `encoder_args`), bins and normalisation.
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card, MULTIPLE_PX)
        arch = card.architecture
        width, fused = int(arch.encoder_args["embed_dim"]), arch.fusion_channels
        self.taps = arch.taps
        self.colour = ColourMatching() if arch.colour_matching else nn.Identity()
        self.encoder = VisionTransformer(
            img_size=TRAINED_PX,
            patch_size=PATCH_PX,
            embed_dim=width,
            depth=int(arch.encoder_args["depth"]),
            num_heads=int(arch.encoder_args["num_heads"]),
            num_classes=0,
            init_values=1.0,
            final_norm=False,
            weight_init="skip",
        )
        self.readout = nn.ModuleList(nn.Linear(2 * width, width) for _ in self.taps)
        self.reassemble = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in arch.decoder_channels)
        self.resize = nn.ModuleList(_resizers(arch.decoder_channels))
        self.lateral = nn.ModuleList(nn.Conv2d(c, fused, 3, padding=1, bias=False) for c in arch.decoder_channels)
        self.fusion = nn.ModuleList(Fusion(fused, merges=level > 0) for level in range(len(self.taps)))
        self.project = nn.Conv2d(fused, fused, 3, padding=1)
        self.halve = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.hidden = nn.Conv2d(fused // 2, HIDDEN, 3, padding=1)
        self.logits = nn.Conv2d(HIDDEN, card.head.bins, 1)
        self.bins = LinearBins(card.head.bins, card.head.max_m)

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) RGB in [0, 1], after the colours are matched if the card says so."""
        return super().normalise(self.colour(image))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits over height bins.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 32.

        Returns:
            (B, bins, H, W) logits.
        """
        levels = self._levels(image)
        # From coarse to fine: each fusion doubles the map and adds the next finer level.
        merged = self.fusion[0](levels[-1])
        for fuse, level in zip(self.fusion[1:], levels[-2::-1], strict=True):
            merged = fuse(merged, level)
        halved = self.halve(F.relu(self.project(merged)))
        full = F.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=True)
        logits: Tensor = self.logits(F.relu(self.hidden(full)))
        return logits

    def whole_height_m(self, image: Tensor) -> Tensor:
        """Return heights of an image whose sides are multiples of 32: (B, 3, H, W) in [0, 1] to (B, H, W) m."""
        logits = self(image).float()
        # Bins are summed in float32 where the layers before run in a lower precision: metres are read off them here.
        with torch.autocast(image.device.type, enabled=False):
            return self.bins.height_m(logits)

    def tokens(self, image: Tensor) -> Tensor:
        """Return the last tap's patch tokens: (B, 3, H, W) image in [0, 1] to (B, width, H / 16, W / 16)."""
        padded = self.padded(image)
        rows, cols = (side // PATCH_PX for side in padded.shape[-2:])
        return self._encode(padded)[-1][:, 1:].transpose(-1, -2).reshape(len(image), -1, rows, cols)

    def _encode(self, image: Tensor) -> list[Tensor]:
        """Return tokens after each tap, the class token first: 4 x (B, 1 + H / 16 * W / 16, width)."""
        patches = self.encoder.patch_embed.proj(self.normalise(image))
        located = patches.flatten(2).transpose(-1, -2) + self._positions(*patches.shape[-2:])
        # The class token has a position of its own, which is not interpolated.
        first = cast(Tensor, self.encoder.cls_token) + cast(Tensor, self.encoder.pos_embed)[:, :1]
        tokens = torch.cat([first.expand(len(image), -1, -1), located], dim=1)
        tapped: list[Tensor] = []
        for index, block in enumerate(self.encoder.blocks[: self.taps[-1] + 1]):
            tokens = block(tokens)
            if index in self.taps:
                tapped.append(tokens)
        return tapped

    def _levels(self, image: Tensor) -> list[Tensor]:
        """Return the taps as maps with the class token projected into every patch.

        Returns:
            4 x (B, fusion channels, h, w), fine to coarse.
        """
        rows, cols = (side // PATCH_PX for side in image.shape[-2:])
        levels: list[Tensor] = []
        for level, tokens in enumerate(self._encode(image)):
            # DPT's readout "project" (Ranftl et al. 2021, section 3): the class token next to every patch token.
            both = torch.cat([tokens[:, 1:], tokens[:, :1].expand_as(tokens[:, 1:])], dim=-1)
            mixed = F.gelu(self.readout[level](both)).transpose(-1, -2).reshape(len(image), -1, rows, cols)
            levels.append(self.lateral[level](self.resize[level](self.reassemble[level](mixed))))
        return levels

    def _positions(self, rows: int, cols: int) -> Tensor:
        """Return position embeddings on a grid: bicubic, corners aligned, without antialiasing, as at training."""
        learned = cast(Tensor, self.encoder.pos_embed)[:, 1:]
        side = TRAINED_PX // PATCH_PX
        if (rows, cols) == (side, side):
            return learned
        square = learned.transpose(-1, -2).reshape(1, -1, side, side)
        return F.interpolate(square, size=(rows, cols), mode="bicubic", align_corners=True).flatten(2).transpose(-1, -2)


class Fusion(nn.Module):
    """Adds a finer level to the coarser one and doubles the sum.

    Args:
        width: Number of channels.
        merges: Whether there is a finer level to add; the coarsest level has none.
    """

    def __init__(self, width: int, *, merges: bool) -> None:
        super().__init__()
        self.finer = Residual(width) if merges else None
        self.merged = Residual(width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """Fuse (B, width, h, w) with a finer level of the same shape to (B, width, 2 h, 2 w)."""
        if self.finer is not None and fine is not None:
            coarse = coarse + self.finer(fine)
        doubled = F.interpolate(self.merged(coarse), scale_factor=2, mode="bilinear", align_corners=True)
        fused: Tensor = self.project(doubled)
        return fused


class Residual(nn.Module):
    """Two 3 x 3 convolutions, each after a rectifier, added to their input (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Transform (B, width, h, w) to the same shape."""
        change: Tensor = self.second(F.relu(self.first(F.relu(features))))
        return features + change


def _resizers(channels: tuple[int, int, int, int]) -> list[nn.Module]:
    """Return layers that resize the grid of patches by 4, 2, 1 and 1/2."""
    return [
        nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
        nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
        nn.Identity(),
        nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
    ]
