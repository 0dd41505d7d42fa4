"""CanopyModel: one face for every model family, from a bundle to heights."""

from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.backends import Backend, pick_backend
from canopy.models.bundle import DEFAULT_MODEL, Card, find_bundle, read_bundle
from canopy.models.dpt import DPTHeights
from canopy.models.families import build_net
from canopy.models.intervals import interval_m
from canopy.models.network import HeightNet
from canopy.models.public.conversion import is_published, read_published


class HeightModel(Protocol):
    """What the prediction engine asks of a model."""

    card: Card
    sha256: str
    chip_by_chip: bool
    """Whether a chip's bits depend on no other chip of its batch, nor on their number."""

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
        backend: What runs it, and where; other bits may come from another.
        chip_by_chip: Whether a chip's bits depend on no other chip of its batch, nor on their number.
    """

    def __init__(self, card: Card, net: HeightNet, sha256: str, device: torch.device, backend: Backend) -> None:
        self.card, self.sha256, self.device = card, sha256, device
        self.backend = f"{backend.name} on {device.type}"
        self.chip_by_chip = backend.chip_by_chip
        self._net = net.to(device).to(memory_format=backend.memory_format).eval().requires_grad_(False)
        self._heights = backend.fast(self._net.height_m, "heights")
        self._tokens = backend.fast(self._net.tokens, "tokens")
        self._interval = backend.fast(self._net_interval, "interval")

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
        return self._heights(self._checked(image)).cpu()

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
        return self._interval(self._checked(image)).cpu()

    @torch.inference_mode()
    def features(self, image: Tensor) -> Tensor:
        """The encoder's last patch tokens: (B, C, H / 16, W / 16) float32, on the CPU; image as of `predict`."""
        return self._tokens(self._checked(image)).cpu()

    def _net_interval(self, image: Tensor) -> Tensor:
        intervals = self.card.intervals
        if intervals is None or not isinstance(self._net, DPTHeights):
            raise ModelError(f"model {self.card.name} holds no calibrated interval: map without --uncertainty")
        return self._net.decoded(image, partial(interval_m, self._net.bins, intervals))

    def _checked(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ModelError(f"image of shape {tuple(image.shape)}: (B, 3, H, W) expected")
        if not bool(torch.isfinite(image).all()):
            raise ModelError("image holds NaN or Inf: fill unknown pixels first (canopy.predict_array does)")
        return image.to(self.device, torch.float32)


def load_model(model: str | Path = DEFAULT_MODEL, device: str = "auto", backend: str = "auto") -> CanopyModel:
    """Read a model.

    Args:
        model: Name of a bundled or fetched model, path of a bundle, or of a publisher's checkpoint as it came.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or any torch device.
        backend: ``auto``, ``eager``, ``compile``, ``openvino`` or ``bf16``: see `canopy.models.backends`.

    Raises:
        ModelError: No such model, a damaged one, weights that do not fit its card, or a backend that cannot run it.
    """
    path = find_bundle(model)
    card, weights, sha256 = read_published(path) if is_published(path) else read_bundle(path)
    if card.family == "encoder":
        raise ModelError(f"{path} holds an encoder alone: a height model, made from one by canopy train, is expected")
    net = build_net(card)
    load_weights(net, weights, path)
    place = pick_device(device)
    return CanopyModel(card, net, sha256, place, pick_backend(backend, card, sha256, place))


def load_weights(net: torch.nn.Module, weights: dict[str, np.ndarray], path: Path) -> None:
    """Load arrays into a network, strictly.

    Raises:
        ModelError: A parameter is missing, left over or of another shape.
    """
    try:
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as error:
        detail = one_line(error)
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
