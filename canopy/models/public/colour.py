"""Colours of aerial imagery, brought to those of the satellite imagery that CHMv1 learned from."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_PX = 256
"""Side of the image that the network takes, pixels."""
LEVELS = (0.05, 0.95)
"""Levels of the percentiles that are matched."""
STEP = 1 / 255
"""One step of 8-bit imagery, the least span between percentiles: a chip of one colour has none."""
_STAGES = (3, 8, 16, 32, 64, 64, 128)
"""Channels before and after each convolutional stage."""
_HIDDEN = (64, 64, 32)
"""Widths of the hidden layers of the regression."""


class ColourMatching(nn.Module):
    """Stretches each band to the percentiles that a small network predicts for Maxar imagery of the same ground.

    After Tolan et al. 2024 as released (``aerial_normalization_quantiles_predictor.ckpt``): the network predicts the
    5th and the 95th percentile of red, green and blue from the aerial chip alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(*widths) for widths in pairwise(_STAGES))
        side = SIDE_PX >> (len(self.stages) - 1)
        layers: list[nn.Module] = []
        for widths in pairwise((_STAGES[-1] * side**2, *_HIDDEN)):
            layers += [nn.Linear(*widths), nn.ReLU()]
        self.regress = nn.Sequential(*layers, nn.Linear(_HIDDEN[-1], 2 * 3))

    def forward(self, image: Tensor) -> Tensor:
        """Stretch (B, 3, H, W) RGB in [0, 1], each chip by its own percentiles."""
        expected = self.expected(image)
        levels = torch.tensor(LEVELS, device=image.device)
        low, high = torch.quantile(image.flatten(2), levels, dim=2)[..., None, None]
        stretch = (expected[1] - expected[0]) / (high - low).clamp_min(STEP)
        matched: Tensor = (image - low) * stretch + expected[0]
        return matched

    def expected(self, image: Tensor) -> Tensor:
        """Predict the percentiles of a satellite image: (B, 3, H, W) in [0, 1] to (2, B, 3, 1, 1)."""
        # The regression is fully connected, so the network takes images of one size only.
        if image.shape[-2:] != (SIDE_PX, SIDE_PX):
            image = F.interpolate(image, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        features = self.stages[0](image)
        for stage in self.stages[1:]:
            features = stage(F.max_pool2d(features, 2))
        percentiles: Tensor = self.regress(features.flatten(1))
        return percentiles.view(-1, 2, 3, 1, 1).transpose(0, 1)


def _stage(width_in: int, width: int) -> nn.Sequential:
    """Return a stage that mixes channels, then neighbouring pixels."""
    return nn.Sequential(
        nn.Conv2d(width_in, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
    )
