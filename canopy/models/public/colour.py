"""Colours of aerial imagery, brought to those of the satellite imagery that CHMv1 learned from."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_PX = 256
"""Side of the image that the network sees."""
LEVELS = (0.05, 0.95)
STEP = 1 / 255
"""Of 8-bit imagery: a chip of one colour has no span to be stretched by."""
_STAGES = (3, 8, 16, 32, 64, 64, 128)
_HIDDEN = (64, 64, 32)


class ColourMatching(nn.Module):
    """Stretches each band so that its percentiles are those which a small network expects of Maxar imagery there.

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
        """(B, 3, H, W) RGB in [0, 1] to the same shape, each chip by its own percentiles."""
        expected = self.expected(image)
        found = torch.quantile(image.flatten(2), torch.tensor(LEVELS, device=image.device), dim=2)[..., None, None]
        stretch = (expected[1] - expected[0]) / (found[1] - found[0]).clamp_min(STEP)
        return (image - found[0]) * stretch + expected[0]

    def expected(self, image: Tensor) -> Tensor:
        """Percentiles of the satellite image that would match: (B, 3, H, W) in [0, 1] to (2, B, 3, 1, 1)."""
        if image.shape[-2:] != (SIDE_PX, SIDE_PX):
            image = F.interpolate(image, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        features = self.stages[0](image)
        for stage in self.stages[1:]:
            features = stage(F.max_pool2d(features, 2))
        percentiles: Tensor = self.regress(features.flatten(1))
        return percentiles.view(-1, 2, 3, 1, 1).transpose(0, 1)


def _stage(given: int, made: int) -> nn.Sequential:
    """Mixes bands, then looks around each pixel."""
    return nn.Sequential(
        nn.Conv2d(given, made, 1), nn.BatchNorm2d(made), nn.ReLU(), nn.Conv2d(made, made, 3, padding=1)
    )  # fmt: skip
