"""CHMv2 (Brandt et al. 2026) and Depth Any Canopy (Rege Cambrin et al. 2024), run by the transformers library."""

import importlib
from typing import Any

import torch
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Card
from canopy.models.limits import listed_config
from canopy.models.network import HeightNet

CLASSES = {
    "chmv2": ("CHMv2Config", "CHMv2ForDepthEstimation"),
    "depth-any-canopy": ("DepthAnythingConfig", "DepthAnythingForDepthEstimation"),
}
"""Names of the library's classes of configuration and model, by family."""


class DepthHeights(HeightNet):
    """A depth estimator whose output is height.

    The library's own processor pads an image to whole patches and then squeezes the padded prediction into the
    image's shape; here the padding is cropped.

    Args:
        card: Family, configuration of the library's model, normalisation.

    Raises:
        ModelError: The library is absent or too old, or refuses the configuration.
    """

    def __init__(self, card: Card) -> None:
        config_class, model_class = library_classes(card.family)
        try:
            config = config_class.from_dict(listed_config(card.architecture.config))
            net = model_class(config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = one_line(error, 200)
            raise ModelError(
                f"{card.name}: transformers cannot create a {model_class.__name__} from it: {detail}"
            ) from error
        self.shares = card.family == "depth-any-canopy"
        self.max_m = card.head.max_m
        # CHMv2's head halves the grid of patches once more; Depth Anything resizes its levels to one another.
        super().__init__(card, int(config.patch_size) * (1 if self.shares else 2))
        self.net = net

    def whole_height_m(self, image: Tensor) -> Tensor:
        """Return heights of an image of whole patches: (B, 3, H, W) in [0, 1] to (B, H, W) float32 m."""
        # One chip at a time on a CPU: the library takes gigabytes for the bins of four CHMv2 chips.
        parts = self.normalise(image).chunk(len(image) if image.device.type == "cpu" else 1)
        depth = torch.cat([self.net(pixel_values=part).predicted_depth.float() for part in parts])
        return depth.clamp(0, 1) * self.max_m if self.shares else depth


def library_classes(family: str) -> tuple[Any, Any]:
    """Return the library's configuration and model class of a family.

    Raises:
        ModelError: The library is absent, or older than the family.
    """
    names = CLASSES[family]
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError(
            f"models of the family {family} need the transformers library: pip install transformers"
        ) from error
    try:
        return getattr(library, names[0]), getattr(library, names[1])
    except AttributeError as error:
        raise ModelError(
            f"transformers {library.__version__} has no {names[1]}: pip install -U transformers"
        ) from error
