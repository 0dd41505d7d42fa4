"""Targets of patches besides prototypes: colours and edges, and a trained network's features.

A student regresses what others compute from an image (Romero et al. 2015, FitNets, arXiv 1412.6550; Wei et al. 2022,
MaskFeat): a linear layer predicts, from each patch's token alone, the standardised values of the same patch.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.errors import ConfigError, one_line
from canopy.models.dpt import load_stages
from canopy.models.network import PATCH_PX
from pretrain.config import FeaturesConfig, PretrainConfig, RelationsConfig
from pretrain.encoder import Encoder, fit_grid
from pretrain.relations import relation_loss
from pretrain.statistics import STATISTICS, Standardiser, patch_statistics
from pretrain.teachers import VitFeatures, is_vit, vit_width


class PatchTargets(nn.Module):
    """The targets that a recipe names, and the distance of a student's predictions from them.

    Args:
        config: The recipe.
        encoder: The student's encoder.

    Raises:
        ConfigError: timm knows no such network, or has no weights for it, or its heads do not fit the student.
        ModelError: The weights cannot be read or downloaded.
        TrainingError: The file of weights is of another network.
    """

    def __init__(self, config: PretrainConfig, encoder: Encoder) -> None:
        super().__init__()
        patch_px = encoder.patch_px
        self._levels = target_levels(config, patch_px)
        self.standardisers = nn.ModuleDict({name: Standardiser(sum(levels)) for name, levels in self._levels.items()})
        # Only the standardisers enter checkpoints: the network is the same for a whole run.
        self._patch_px, self._relation_heads = patch_px, 0
        if "features" in self._levels or config.terms.relations:
            self.features = open_network(config.features, patch_px, config.global_crops.px // patch_px)
        if config.terms.relations:
            self._relation_heads = _watch(self.features, encoder, config.relations)
        self.requires_grad_(False).eval()

    def losses(self, predictions: dict[str, Tensor], image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """Return the distance of predictions from each target.

        Args:
            predictions: (n, patches, count) of each target, and the student's queries, keys and values.
            image: (n, bands, H, W) float32 in [0, 1], first RGB, as the student sees it.
            gsd_m: (n,) GSD of each image, metres.
        """
        losses = {}
        image = image[:, :3]  # targets are of RGB
        # The network is called once, for its features and its relations.
        names = [*self._levels, *(["features"] if self._relation_heads and "features" not in self._levels else [])]
        for name in names:
            truth = self._truth(name, image, gsd_m)
            if name in self._levels:
                # The standardiser takes the batch in first, so that the very first batch has mean 0 and variance 1.
                truth = self.standardisers[name](truth)
                losses[name] = levels_loss(predictions[name].float(), truth, self._levels[name])
        if self._relation_heads:
            assert isinstance(self.features, VitFeatures)
            expected = self.features.encoder.take_relations()
            losses["relations"] = relation_loss(predictions["relations"], expected, self._relation_heads)
        return losses

    def _truth(self, name: str, image: Tensor, gsd_m: Tensor) -> Tensor:
        """Return the values (n, patches, count) of a target."""
        if name == "statistics":
            return _statistics(image, self._patch_px)
        # Of the networks, vision transformers alone may know where their patches lie on the ground.
        where = (gsd_m,) if isinstance(self.features, VitFeatures) else ()
        values: Tensor = self.features(image, *where)
        return values


def open_network(config: FeaturesConfig, patch_px: int, grid: int) -> "NetworkFeatures | VitFeatures":
    """Create a trained network that says something of each patch of an encoder.

    Args:
        config: Name of the network, file of its weights, and its scale.
        patch_px: Side of the encoder's patches.
        grid: Side of the grid of patches whose positions are resampled once.

    Raises:
        ConfigError: timm knows no such network, or has no weights for it.
        ModelError: The weights cannot be read or downloaded.
        TrainingError: The file of weights is of another network.
    """
    if is_vit(config.network):
        return VitFeatures(config, patch_px, grid)
    return NetworkFeatures(config, patch_px)


def _statistics(image: Tensor, patch_px: int) -> Tensor:
    """Return the statistics of patches of any size; gradients at three scales need a multiple of four pixels."""
    side_px = patch_px if patch_px % 4 == 0 else PATCH_PX
    return patch_statistics(fit_grid(image, patch_px, side_px), side_px)


def _watch(network: nn.Module, student: Encoder, config: RelationsConfig) -> int:
    """Let a network keep the relations of a block, and return the number of their heads.

    Raises:
        ConfigError: A convolutional network, no such block, or heads that do not divide both widths.
    """
    if not isinstance(network, VitFeatures):
        raise ConfigError("terms.relations: features.network must be a vision transformer; terms.features takes others")
    network.encoder.watch_relations(config.layer)
    heads = config.heads or int(network.encoder.vit.blocks[config.layer].attn.num_heads)
    widths = student.width, network.encoder.width
    if any(width % heads for width in widths):
        raise ConfigError(
            f"relations.heads of {heads}: a number expected that divides the widths of student and teacher, "
            f"{widths[0]} and {widths[1]}"
        )
    return heads


def target_levels(config: PretrainConfig, patch_px: int) -> dict[str, list[int]]:
    """Count the values predicted for each patch, by target and by level of the target; no weights are read.

    Args:
        config: The recipe.
        patch_px: Side of the encoder's patches.

    Raises:
        ConfigError: timm knows no such network, or its strides do not fit the patches.
    """
    levels = {}
    if config.terms.statistics > 0:
        levels["statistics"] = [STATISTICS]
    if config.terms.features > 0:
        network = config.features.network
        levels["features"] = [vit_width(network)] if is_vit(network) else _channels(config.features, patch_px)
    return levels


def levels_loss(predictions: Tensor, truth: Tensor, levels: list[int]) -> Tensor:
    """Return the smooth absolute error of standardised targets, each level with the same weight.

    Args:
        predictions: (n, patches, sum of `levels`) float32.
        truth: The same shape.
        levels: Number of values in each level.
    """
    # A mean within each level first: a level of many values would outweigh the others.
    error = F.smooth_l1_loss(predictions, truth, reduction="none").mean(dim=(0, 1))
    split = torch.split(error, levels)
    return torch.stack([level.mean() for level in split]).mean()


class NetworkFeatures(nn.Module):
    """The pyramid of a trained convolutional network, folded to the patches of an encoder.

    Args:
        config: Name of the network, file of its weights, and its scale.
        patch_px: Side of the encoder's patches.

    Raises:
        ConfigError: timm knows no such network, or has no weights for it.
        ModelError: The file of weights is of another network.
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
            values = torch.tensor(self.stages.pretrained_cfg[key])
            self.register_buffer(key, values.view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the features of each patch; maps finer than patches are unfolded, coarser ones interpolated.

        Args:
            image: (n, 3, H, W) float32 RGB in [0, 1].

        Returns:
            (n, patches, values) float32, patches in raster order.
        """
        normalised = (F.avg_pool2d(image, self.shrink) - self.mean) / self.std
        # A fine level gives a patch all its pixels as channels; a coarse one its value at the patch's centre.
        grid = [side // self.side_px for side in normalised.shape[-2:]]
        parts = [
            F.pixel_unshuffle(level, level.shape[-1] // grid[-1])
            if level.shape[-1] >= grid[-1]
            else F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
            for level in self.stages(normalised)
        ]
        return torch.cat(parts, dim=1).flatten(2).movedim(1, 2)


def _create(network: str, *, pretrained: bool) -> Any:
    """Create the pyramid of a timm network, with timm's own weights or random ones."""
    try:
        return timm.create_model(network, features_only=True, pretrained=pretrained)
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"timm brings no {network!r}: {one_line(error, 200)}") from error


def _channels(config: FeaturesConfig, patch_px: int) -> list[int]:
    """Count the values of a patch in each level of the pyramid: a finer level has several pixels a patch."""
    side_px = patch_px / config.shrink
    info = _create(config.network, pretrained=False).feature_info
    strides = info.reduction()
    # A patch has whole pixels of a level, or a pixel of a level has whole patches.
    if any(side_px % stride and stride % side_px for stride in strides):
        raise ConfigError(
            f"features: patches of {side_px:g} px do not fit {config.network}, whose strides are {strides}"
        )
    return [
        channels * max(1, int(side_px) // stride) ** 2
        for channels, stride in zip(info.channels(), strides, strict=True)
    ]
