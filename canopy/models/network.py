"""What every network of heights shares: its own normalisation, and padding that is cropped, never squeezed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ModelError
from canopy.models.bundle import Card


class HeightNet(nn.Module):
    """A network of any family, from RGB in [0, 1] to metres.

    Args:
        card: Whose normalisation it applies.
        multiple_px: Sides of an image that the network takes are multiples of this.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, multiple_px: int) -> None:
        super().__init__()
        self.multiple_px = multiple_px
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to what the encoder was trained on."""
        return (image - self.mean) / self.std

    def whole_height_m(self, image: Tensor) -> Tensor:
        """Heights of an image whose sides are multiples of `multiple_px`: (B, 3, H, W) in [0, 1] to (B, H, W) m."""
        raise NotImplementedError

    def height_m(self, image: Tensor) -> Tensor:
        """Heights: (B, 3, H, W) image in [0, 1] to (B, H, W) float32 metres; any H and W (padding is cropped)."""
        height, width = image.shape[-2:]
        return self.whole_height_m(self.padded(image))[:, :height, :width]

    def tokens(self, image: Tensor) -> Tensor:
        """The encoder's last patch tokens: (B, 3, H, W) image in [0, 1] to (B, C, H / 16, W / 16).

        Raises:
            ModelError: The family gives none.
        """
        raise ModelError(f"a model of the kind {type(self).__name__} gives no features: use one of ours or CHMv1")

    def padded(self, image: Tensor) -> Tensor:
        """An image whose edges are repeated until its sides are multiples of `multiple_px`."""
        pad = (0, -image.shape[-1] % self.multiple_px, 0, -image.shape[-2] % self.multiple_px)
        return F.pad(image, pad, mode="replicate") if any(pad) else image
