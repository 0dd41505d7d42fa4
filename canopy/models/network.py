"""Parts that networks of heights share: normalisation, padding that is cropped, never squeezed, and height bins."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ModelError
from canopy.models.bundle import Card
from canopy.models.heads import HeightBins

PATCH_PX = 16
"""Side of an encoder's patch in our own models and in CHMv1, pixels of the image that the model is given."""
MULTIPLE_PX = 2 * PATCH_PX
"""Multiple of the sides of an image in these models: their decoder halves the grid of patches once more."""


class HeightNet(nn.Module):
    """A network of any family, from RGB in [0, 1] to metres.

    Args:
        card: Card whose normalisation the network applies.
        multiple_px: Number of which the sides of an image must be multiples.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, multiple_px: int) -> None:
        super().__init__()
        self.multiple_px = multiple_px
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) RGB in [0, 1] as the encoder's training images were."""
        return (image - self.mean) / self.std

    def whole_height_m(self, image: Tensor) -> Tensor:
        """Return heights of an image whose sides are multiples of `multiple_px`.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B, H, W) metres.
        """
        raise NotImplementedError

    def height_m(self, image: Tensor) -> Tensor:
        """Return heights: (B, 3, H, W) image in [0, 1] of any size to (B, H, W) float32 metres."""
        height, width = image.shape[-2:]
        return self.whole_height_m(self.padded(image))[:, :height, :width]

    def tokens(self, image: Tensor) -> Tensor:
        """Return the encoder's last patch tokens: (B, 3, H, W) image in [0, 1] to (B, C, H / 16, W / 16).

        Raises:
            ModelError: The family gives none.
        """
        raise ModelError(f"a model of the kind {type(self).__name__} gives no features: use one of ours or CHMv1")

    def padded(self, image: Tensor) -> Tensor:
        """Repeat the edges of an image until its sides are multiples of `multiple_px`."""
        pad = (0, -image.shape[-1] % self.multiple_px, 0, -image.shape[-2] % self.multiple_px)
        return F.pad(image, pad, mode="replicate") if any(pad) else image


class BinHeights(HeightNet):
    """A network of ours: it ends in logits over height bins at half of the image's resolution.

    Heights are decoded before the last upsampling: the head is then a quarter of the work.

    Args:
        card: Bins, how heights are read off them, and normalisation.
    """

    head: nn.Sequential
    """Last layers; the last of them is a convolution of one channel a bin."""

    def __init__(self, card: Card) -> None:
        super().__init__(card, MULTIPLE_PX)
        self._fixed_statistics = False
        self.bins = HeightBins(card.head.bins, card.head.max_m, card.head.spacing)
        self.decode = card.decode

    def forward(self, image: Tensor) -> Tensor:
        """Return logits over height bins.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1]; H and W multiples of 32.

        Returns:
            (B, bins, H / 2, W / 2) logits.
        """
        raise NotImplementedError

    def fix_statistics(self) -> None:
        """Keep the statistics of batch normalisation as they are; its scales and offsets still learn."""
        self._fixed_statistics = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but normalisation of fixed statistics."""
        super().train(mode)
        if self._fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def whole_height_m(self, image: Tensor) -> Tensor:
        """Return heights of an image whose sides are multiples of 32: (B, 3, H, W) in [0, 1] to (B, H, W) m."""
        return self.decoded(image, lambda logits: self.bins.decoded_m(logits, self.decode)[:, None])[:, 0]

    def decoded(self, image: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Decode the logits of an image of any size.

        Args:
            image: (B, 3, H, W) RGB in [0, 1]; it is padded to whole patches, and the padding is cropped.
            decode: Function of (B, bins, H / 2, W / 2) logits that returns (B, K, H / 2, W / 2).

        Returns:
            (B, K, H, W) decoded values.
        """
        height, width = image.shape[-2:]
        # Decoded first, then enlarged: heights and quantiles are few channels, logits are many.
        half = decode(self(self.padded(image)))
        return F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
