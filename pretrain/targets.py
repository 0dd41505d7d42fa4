"""What patches tell beside prototypes: colours and edges, and a trained network's features.

A student regresses what others make of an image (Romero et al. 2015, FitNets, arXiv 1412.6550; Wei et al. 2022,
MaskFeat): each patch's token alone tells the standardised numbers of its own patch, by a linear layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ConfigError, one_line
from canopy.models.dpt import load_stages
from pretrain.config import FeaturesConfig, PretrainConfig
from pretrain.statistics import STATISTICS, Standardiser, patch_statistics


class PatchTargets(nn.Module):
    """The targets that a recipe asks for, and how far a student's tokens are from them.

    Args:
        config: The recipe.
        patch_px: Side of the encoder's patches.

    Raises:
        ConfigError: timm knows no such network, or has no weights for it.
        ModelError: The file of weights is of another network.
    """

    def __init__(self, config: PretrainConfig, patch_px: int) -> None:
        super().__init__()
        self._levels = target_levels(config, patch_px)
        self.standardisers = nn.ModuleDict({name: Standardiser(sum(levels)) for name, levels in self._levels.items()})
        self._truth: dict[str, Callable[[Tensor], Tensor]] = {
            "statistics": partial(patch_statistics, patch_px=patch_px)
        }
        if "features" in self._levels:
            self.features = self._truth["features"] = NetworkFeatures(config.features, patch_px)
        self.requires_grad_(False).eval()

    def losses(self, told: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Distance of what tokens tell from each target.

        Args:
            told: (n, patches, numbers) by target.
            image: (n, 3, H, W) RGB in [0, 1], as the student sees it.
        """
        made = {}
        for name, levels in self._levels.items():
            truth = self.standardisers[name](self._truth[name](image))
            made[name] = levels_loss(told[name].float(), truth, levels)
        return made


def target_levels(config: PretrainConfig, patch_px: int) -> dict[str, list[int]]:
    """Numbers told of each patch, by target and level of it; no weights are read.

    Raises:
        ConfigError: As of `PatchTargets`.
    """
    wanted: dict[str, Callable[[], list[int]]] = {
        "statistics": lambda: [STATISTICS],
        "features": lambda: _channels(config.features, patch_px),
    }
    return {name: levels() for name, levels in wanted.items() if getattr(config.terms, name) > 0}


def levels_loss(told: Tensor, truth: Tensor, levels: list[int]) -> Tensor:
    """Smooth absolute error of standardised targets (n, patches, sum of `levels`); each level counts alike."""
    error = F.smooth_l1_loss(told, truth, reduction="none").mean(dim=(0, 1))
    split = torch.split(error, levels)
    return torch.stack([level.mean() for level in split]).mean()


class NetworkFeatures(nn.Module):
    """The pyramid of a trained convolutional network, folded to the patches of an encoder.

    Args:
        config: Which network, with which weights.
        patch_px: Side of the encoder's patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: FeaturesConfig, patch_px: int) -> None:
        super().__init__()
        self.shrink, self.side_px = config.shrink, patch_px // config.shrink
        self.stages = _create(config.network, pretrained=config.weights is None)
        if config.weights is not None:
            load_stages(self.stages, config.weights)
        for key in ("mean", "std"):
            given = torch.tensor(self.stages.pretrained_cfg[key])
            self.register_buffer(key, given.view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features of each patch: (n, 3, H, W) RGB in [0, 1] to (n, patches, numbers), in raster order.

        Maps finer than patches are unfolded, coarser ones interpolated.
        """
        seen = (F.avg_pool2d(image, self.shrink) - self.mean) / self.std
        grid = [side // self.side_px for side in seen.shape[-2:]]
        parts = [
            F.pixel_unshuffle(level, level.shape[-1] // grid[-1])
            if level.shape[-1] >= grid[-1]
            else F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
            for level in self.stages(seen)
        ]
        return torch.cat(parts, dim=1).flatten(2).movedim(1, 2)


def _create(network: str, *, pretrained: bool) -> Any:
    try:
        return timm.create_model(network, features_only=True, pretrained=pretrained)
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"timm brings no {network!r}: {one_line(error, 200)}") from error


def _channels(config: FeaturesConfig, patch_px: int) -> list[int]:
    side_px = patch_px / config.shrink
    info = _create(config.network, pretrained=False).feature_info
    strides = info.reduction()
    if any(side_px % stride and stride % side_px for stride in strides):
        raise ConfigError(
            f"features: patches of {side_px:g} px do not fit {config.network}, whose strides are {strides}"
        )
    return [
        channels * max(1, int(side_px) // stride) ** 2
        for channels, stride in zip(info.channels(), strides, strict=True)
    ]
