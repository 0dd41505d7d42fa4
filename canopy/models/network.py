"""Parts that every network of heights shares: its own normalisation, and padding that is cropped, never squeezed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ModelError
from canopy.models.bundle import Card

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
