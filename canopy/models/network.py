"""What every network of heights shares: its own normalisation, and padding that is cropped, never squeezed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.bundle import Card


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

    def padded(self, image: Tensor) -> Tensor:
        """An image (B, 3, H, W) with its border repeated until the network takes its sides."""
        pad = (0, -image.shape[-1] % self.multiple_px, 0, -image.shape[-2] % self.multiple_px)
        return F.pad(image, pad, mode="replicate") if any(pad) else image
