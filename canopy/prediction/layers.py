"""What is made of each pixel before chips are blended: height, its interval, and the gain that features foretell."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.calibration.curves import FeatureGain
from canopy.errors import CalibrationError, ModelError
from canopy.models.features import PATCH_PX, pooled
from canopy.models.model import HeightModel


@dataclass(frozen=True)
class Layers:
    """Layers of a model: (B, 3, H, W) image in [0, 1] to (B, count, H, W).

    Attributes:
        model: What makes the heights.
        uncertainty: Whether the 5th and 95th percentile follow the height.
        gain: Foretold from the encoder's features; its logarithm is the last layer.
    """

    model: HeightModel
    uncertainty: bool = False
    gain: FeatureGain | None = None

    def __post_init__(self) -> None:
        """Refuse what the model cannot give.

        Raises:
            ModelError: No interval.
            CalibrationError: Features of another model.
        """
        if self.uncertainty and getattr(self.model.card, "intervals", None) is None:
            raise ModelError(f"model {self.model.card.name} holds no calibrated interval: map without --uncertainty")
        if self.gain is not None and self.gain.model_sha256 != self.model.sha256:
            raise CalibrationError(
                f"the calibration reads features of another model than {self.model.card.name}: fit it with this one"
            )

    @property
    def heights(self) -> int:
        """How many of the layers are metres."""
        return 3 if self.uncertainty else 1

    @property
    def count(self) -> int:
        """How many there are."""
        return self.heights + (self.gain is not None)

    def __call__(self, image: Tensor) -> Tensor:
        """Compute them: (B, 3, H, W) to (B, count, H, W) float32, on the CPU."""
        model = self.model
        made = model.predict_interval(image) if self.uncertainty else model.predict(image)[:, None]
        if self.gain is None:
            return made
        weights = torch.tensor(self.gain.weights).view(1, -1, 1, 1)
        tokens = model.features(image)
        if tokens.shape[1] != weights.shape[1]:
            found = f"the calibration reads {weights.shape[1]} features, the model has {tokens.shape[1]}"
            raise CalibrationError(f"{found}: fit it with this model")
        # Chip by chip, like the model where it computes so: torch may sum in another order in a larger batch.
        scores = [(pooled(chip, self.gain.sigma_m, model.card.gsd_m) * weights).sum(dim=1) for chip in tokens[:, None]]
        log_gain = torch.stack(scores) + self.gain.bias
        full = F.interpolate(log_gain, scale_factor=PATCH_PX, mode="bilinear", align_corners=False)
        return torch.cat([made, full[..., : made.shape[-2], : made.shape[-1]]], dim=1)
