"""Layers of a pixel before chips are blended: its height, the interval, and the gain predicted from features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.calibration.curves import FeatureGain
from canopy.errors import CalibrationError, ModelError
from canopy.models.features import footprint_mean
from canopy.models.model import HeightModel
from canopy.models.network import PATCH_PX
from canopy.models.options import no_interval

OVERLAP_PX = 32
"""Pixels in which neighbouring chips overlap."""


@dataclass(frozen=True)
class Layers:
    """Computes the layers of a model: (B, 3, H, W) image in [0, 1] to (B, count, H, W)."""

    model: HeightModel
    """Model of the heights."""
    uncertainty: bool = False
    """Whether the 5th and 95th percentile follow the height."""
    gain: FeatureGain | None = None
    """Gain predicted from the encoder's features; its logarithm is the last layer."""

    def __post_init__(self) -> None:
        """Refuse layers that the model does not have.

        Raises:
            ModelError: The model has no calibrated interval, or its chips are too small to overlap.
            CalibrationError: The gain was fitted on features of another model.
        """
        if self.model.card.chip_px < 2 * OVERLAP_PX:
            raise ModelError(
                f"{self.model.card.name} maps chips of {self.model.card.chip_px} px, which overlap by {OVERLAP_PX} px: "
                f"train it with chip_px {2 * OVERLAP_PX} or more"
            )
        if self.uncertainty and getattr(self.model.card, "intervals", None) is None:
            raise ModelError(no_interval(getattr(self.model, "reference", self.model.card.name)))
        if self.gain is not None and self.gain.model_sha256 != self.model.sha256:
            raise CalibrationError(
                f"the calibration reads features of another model than {self.model.card.name}: fit it with this one"
            )

    @property
    def heights(self) -> int:
        """Number of layers in metres."""
        return 3 if self.uncertainty else 1

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.heights + (self.gain is not None)

    def __call__(self, image: Tensor) -> Tensor:
        """Compute the layers.

        Args:
            image: (B, 3, H, W) float32, reflectance in [0, 1], without NaN.

        Returns:
            (B, count, H, W) float32, on the CPU.
        """
        heights = self.model.predict_interval(image) if self.uncertainty else self.model.predict(image)[:, None]
        if self.gain is None:
            return heights
        log_gain = self._log_gain(image, self.gain)
        return torch.cat([heights, log_gain[..., : heights.shape[-2], : heights.shape[-1]]], dim=1)

    def _log_gain(self, image: Tensor, gain: FeatureGain) -> Tensor:
        """Return the logarithm of the gain, (B, 1, H, W): linear in footprint means of the encoder's features."""
        weights = torch.tensor(gain.weights).view(1, -1, 1, 1)
        tokens = self.model.features(image)
        if tokens.shape[1] != weights.shape[1]:
            raise CalibrationError(
                f"the calibration reads {weights.shape[1]} features, the model has {tokens.shape[1]}: "
                "fit it with this model"
            )
        gsd_m = self.model.card.gsd_m
        # Chip by chip, like the model where it computes so: torch may sum in another order in a larger batch.
        scores = [(footprint_mean(chip, gain.sigma_m, gsd_m) * weights).sum(dim=1) for chip in tokens[:, None]]
        coarse = torch.stack(scores) + gain.bias
        return F.interpolate(coarse, scale_factor=PATCH_PX, mode="bilinear", align_corners=False)
