"""CanopyModel: one face for every model family, from a bundle to heights."""

from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from canopy.bundle import DEFAULT_MODEL, Card, find_bundle, read_bundle
from canopy.errors import ModelError
from canopy.intervals import interval_m
from canopy.models.conversion import is_published, read_published
from canopy.models.dpt import DPTHeights
from canopy.models.families import build_net
from canopy.models.network import HeightNet


class HeightModel(Protocol):
    """What the prediction engine asks of a model."""

    card: Card
    sha256: str

    def predict(self, image: Tensor) -> Tensor:
        """Heights: (B, 3, H, W) float32 RGB in [0, 1] at the card's GSD to (B, H, W) float32 metres."""
        ...

    def predict_interval(self, image: Tensor) -> Tensor:
        """Height, 5th and 95th percentile, (B, 3, H, W) metres; asked for only where the card holds intervals."""
        ...

    def features(self, image: Tensor) -> Tensor:
        """The encoder's patch tokens, (B, C, H / 16, W / 16); asked for only by calibrations fitted on them."""
        ...


class CanopyModel:
    """A height model of any family, ready to predict.

    Attributes:
        card: The bundle's card.
        sha256: Of the bundle file.
        device: Where it runs.
    """

    def __init__(self, card: Card, net: HeightNet, sha256: str, device: torch.device) -> None:
        self.card, self.sha256, self.device = card, sha256, device
        self._net = net.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        """Canopy height.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1] at the model's GSD (``card.gsd_m``).

        Returns:
            (B, H, W) float32 metres above ground, on the CPU.

        Raises:
            ModelError: The image has another shape or holds NaN.
        """
        return self._net.height_m(self._checked(image)).cpu()

    @torch.inference_mode()
    def predict_interval(self, image: Tensor) -> Tensor:
        """Canopy height and the 90 % interval around it.

        Args:
            image: As of `predict`.

        Returns:
            (B, 3, H, W) float32 metres: height, 5th and 95th percentile, on the CPU.

        Raises:
            ModelError: As of `predict`, or the bundle holds no calibrated interval.
        """
        intervals = self.card.intervals
        if intervals is None or not isinstance(self._net, DPTHeights):
            raise ModelError(f"model {self.card.name} holds no calibrated interval: map without --uncertainty")
        return self._net.decoded(self._checked(image), partial(interval_m, self._net.bins, intervals)).cpu()

    @torch.inference_mode()
    def features(self, image: Tensor) -> Tensor:
        """The encoder's last patch tokens: (B, C, H / 16, W / 16) float32, on the CPU; image as of `predict`."""
        return self._net.tokens(self._checked(image)).cpu()

    def _checked(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ModelError(f"image of shape {tuple(image.shape)}: (B, 3, H, W) expected")
        if not bool(torch.isfinite(image).all()):
            raise ModelError("image holds NaN or Inf: fill unknown pixels first (canopy.predict_array does)")
        return image.to(self.device, torch.float32)


def load_model(model: str | Path = DEFAULT_MODEL, device: str = "auto") -> CanopyModel:
    """Read a model.

    Args:
        model: Name of a bundled or fetched model, path of a bundle, or of a publisher's checkpoint as it came.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or any torch device.

    Raises:
        ModelError: No such model, a damaged one, or weights that do not fit its card.
    """
    path = find_bundle(model)
    card, weights, sha256 = read_published(path) if is_published(path) else read_bundle(path)
    if card.family == "encoder":
        raise ModelError(f"{path} holds an encoder alone: a height model, made from one by canopy train, is expected")
    net = build_net(card)
    load_weights(net, weights, path)
    return CanopyModel(card, net, sha256, pick_device(device))


def load_weights(net: torch.nn.Module, weights: dict[str, np.ndarray], path: Path) -> None:
    """Load arrays into a network, strictly.

    Raises:
        ModelError: A parameter is missing, left over or of another shape.
    """
    try:
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ModelError(f"{path}: weights do not fit the card's architecture: {detail[:300]}") from error


def pick_device(device: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or any torch device name.

    Raises:
        ModelError: The device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"no device {device!r}: auto, cpu or cuda expected") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda asked for, but torch sees no GPU: use --device cpu")
    return chosen
