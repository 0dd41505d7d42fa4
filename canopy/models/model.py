"""CanopyModel: one interface for every model family, from a bundle to heights."""

import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.backends import Backend, pick_backend
from canopy.models.bundle import DEFAULT_MODEL, OUR_FAMILIES, Bundle, Card, Decode, find_bundle, read_bundle
from canopy.models.eight_bits import take_eight_bits
from canopy.models.families import build_net
from canopy.models.intervals import around_m, interval_m
from canopy.models.memory import return_memory
from canopy.models.network import MULTIPLE_PX, BinHeights, HeightNet
from canopy.models.options import check_backend, check_decode, check_device, no_interval
from canopy.models.public.conversion import is_published, read_published
from canopy.models.weights import count_weights, move_weights, require_size, without_values

OVERSHOOT = 0.01
"""Distance from [0, 1] at which values count as rounded or resampled, not as values of another range."""

_LOG = logging.getLogger(__name__)


class HeightModel(Protocol):
    """A model, as the prediction engine uses it."""

    card: Card
    """Description of the model."""
    sha256: str
    """SHA-256 of the model's file."""
    chip_by_chip: bool
    """Whether a chip's bits depend on no other chip of its batch, nor on their number."""

    def predict(self, image: Tensor) -> Tensor:
        """Return heights: (B, 3, H, W) float32 RGB in [0, 1] at the card's GSD to (B, H, W) float32 metres."""
        ...

    def predict_interval(self, image: Tensor) -> Tensor:
        """Return height, 5th and 95th percentile, (B, 3, H, W) metres; called only where the card has intervals."""
        ...

    def features(self, image: Tensor) -> Tensor:
        """Return the encoder's patch tokens, (B, C, H / 16, W / 16); called only by calibrations fitted on them."""
        ...


class CanopyModel:
    """A height model of any family, ready to predict.

    Attributes:
        card: Card of the bundle.
        sha256: SHA-256 of the bundle's file.
        reference: Name or path by which the model was asked for.
        device: Device on which the model runs.
        backend: Name of the backend and type of the device; another backend may compute other bits.
        backend_option: Name by which that backend is requested.
        chip_by_chip: Whether a chip's bits depend on no other chip of its batch, nor on their number.
        parallel: Whether two threads may gain by calling at the same time.
        decode: How heights are read off the bins: ``median`` or ``mean``; None for a family without such a choice.
    """

    def __init__(
        self,
        card: Card,
        sha256: str,
        device: torch.device,
        backend: Backend,
        read_net: Callable[[], HeightNet],
        reference: str,
    ) -> None:
        self.card, self.sha256, self.device, self.reference = card, sha256, device, reference
        self._read_net = read_net
        self._run_on(backend)

    def _run_on(self, backend: Backend) -> None:
        net = self._read_net().to(self.device).eval().requires_grad_(False)
        self._net = backend.prepare(net)
        self.backend = f"{backend.name} on {self.device.type}"
        self.chip_by_chip = backend.chip_by_chip
        self.backend_option, self.parallel = backend.option, backend.parallel
        self.decode: Decode | None = net.decode if isinstance(net, BinHeights) else None
        # A compiled function is stored by its name: another decoder than the card's is another function.
        suffix = f"-{self.decode}" if self.decode not in (None, self.card.decode) else ""
        # Each function is compiled alone and at its first call: a map needs one or two of the three.
        self._heights = backend.accelerate(self._net.height_m, f"heights{suffix}")
        self._tokens = backend.accelerate(self._net.tokens, "tokens")
        self._interval = backend.accelerate(self._net_interval, f"interval{suffix}")

    def __repr__(self) -> str:
        card = self.card
        return (
            f"<CanopyModel {card.name}: family {card.family}, {card.gsd_m:g} m, chips of {card.chip_px} px, "
            f"{self.backend}{', provisional' if card.provisional else ''}>"
        )

    def use_backend(self, option: str) -> None:
        """Go over to another backend of the device.

        The network is given up and read again from its file, so that memory never has to hold two.

        Args:
            option: Name of the backend.

        Raises:
            ModelError: The backend cannot run it, and the model stays on the present one; or its file has changed, and
                the model has no network any more.
        """
        backend = pick_backend(option, self.card, self.sha256, self.device)
        before = self.backend_option
        try:
            self._give_up_network()
            self._run_on(backend)
        except (ModelError, RuntimeError):
            self._give_up_network()
            if before:
                self._run_on(pick_backend(before, self.card, self.sha256, self.device))
            raise

    def _give_up_network(self) -> None:
        self.backend_option = ""  # none, until a network was read again
        for name in ("_net", "_heights", "_tokens", "_interval"):
            self.__dict__.pop(name, None)
        gc.collect()  # compiled functions refer to themselves
        return_memory()

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        """Return canopy height.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1] at the model's GSD (``card.gsd_m``).

        Returns:
            (B, H, W) float32 metres above ground, on the CPU.

        Raises:
            ModelError: The image has another shape, contains NaN or leaves [0, 1].
        """
        return self._heights(self._checked(image)).cpu()

    @torch.inference_mode()
    def predict_interval(self, image: Tensor) -> Tensor:
        """Return canopy height and the 90 % interval around it.

        Args:
            image: (B, 3, H, W) as for `predict`.

        Returns:
            (B, 3, H, W) float32 metres: height, 5th and 95th percentile, on the CPU.

        Raises:
            ModelError: The image is not one for `predict`, or the bundle has no calibrated interval.
        """
        if isinstance(self._net, BinHeights):
            return self._interval(self._checked(image)).cpu()
        if self.card.intervals is None:
            raise ModelError(no_interval(self.reference))
        return around_m(self.predict(image), self.card.intervals)

    @torch.inference_mode()
    def features(self, image: Tensor) -> Tensor:
        """Return the encoder's last patch tokens.

        Args:
            image: (B, 3, H, W) as for `predict`.

        Returns:
            (B, C, H / 16, W / 16) float32, on the CPU.

        Raises:
            ModelError: The image is not one for `predict`, or the model's family gives no features.
        """
        return self._tokens(self._checked(image)).cpu()

    def _net_interval(self, image: Tensor) -> Tensor:
        intervals = self.card.intervals
        if intervals is None or not isinstance(self._net, BinHeights):
            raise ModelError(no_interval(self.reference))
        decode = partial(interval_m, self._net.bins, intervals, fitted=self.card.decode, decode=self._net.decode)
        return self._net.decoded(image, decode)

    def _checked(self, image: Tensor) -> Tensor:
        """Return an image on the model's device, or raise where no height can come of it."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ModelError(f"image of shape {tuple(image.shape)}: (B, 3, H, W) expected")
        if not bool(torch.isfinite(image).all()):
            raise ModelError("image contains NaN or Inf: fill unknown pixels first (canopy.predict_array does)")
        low, high = (float(end) for end in torch.aminmax(image))
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            raise ModelError(
                f"image of values from {low:g} to {high:g}: RGB in [0, 1] expected; divide 8-bit values by 255 "
                "(canopy.predict_array decides the range itself)"
            )
        return image.to(self.device, torch.float32)


def load_model(
    model: str | Path = DEFAULT_MODEL, device: str = "auto", backend: str = "auto", decode: Decode | None = None
) -> CanopyModel:
    """Read a model.

    Args:
        model: Name of a bundled or fetched model, path of a bundle, or path of a publisher's unconverted checkpoint.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (untested).
        backend: ``auto``, ``eager``, ``compile``, ``openvino``, ``openvino-bf16``, ``bf16`` or ``int8``: see
            `canopy.models.backends`.
        decode: ``median`` or ``mean`` of the height bins, in place of the card's choice.

    Raises:
        ModelError: No such model, a damaged one, weights that do not fit its card, no such device, a backend that
            cannot run it, or a decoder for a model without bins of ours.
    """
    # From cheap to dear: names, then the file, then shapes alone, then memory for the network, then one small image.
    check_device(device)
    check_backend(backend, device)
    check_decode(decode)
    path = find_bundle(model)
    bundle = _read(path)
    card, sha256 = bundle.card, bundle.sha256
    if card.family == "encoder":
        raise ModelError(f"{path} is an encoder alone: a height model, which canopy train makes of one, is expected")
    if decode is not None and card.family not in OUR_FAMILIES:
        raise ModelError(
            f"{card.name} of the family {card.family} decodes heights as its publisher does: leave --decode out"
        )
    chosen = pick_device(device)
    picked = pick_backend(backend, card, sha256, chosen)
    unread = [bundle]
    del bundle  # the network takes over its arrays, one by one

    def read_net() -> HeightNet:
        return _build(unread.pop() if unread else _read_again(path, sha256), path, decode)

    return CanopyModel(card, sha256, chosen, picked, read_net, str(model))


def _read(path: Path) -> Bundle:
    return read_published(path) if is_published(path) else read_bundle(path)


def _read_again(path: Path, sha256: str) -> Bundle:
    bundle = _read(path)
    if bundle.sha256 != sha256:
        raise ModelError(f"{path}: has changed since it was opened; start again")
    return bundle


def _build(bundle: Bundle, path: Path, decode: Decode | None) -> HeightNet:
    """Return the network of a bundle, which loses its weights to it."""
    require_size(lambda: build_net(bundle.card), count_weights(bundle.weights), path)
    with without_values():
        net = build_net(bundle.card)
    take_eight_bits(net, bundle.weights)
    move_weights(net, bundle.weights, path)
    if decode is not None and isinstance(net, BinHeights):
        net.decode = decode
    _require_heights(net, path)
    return net


@torch.inference_mode()
def _require_heights(net: HeightNet, path: Path) -> None:
    """Refuse a network that gives no heights of the smallest image.

    Raises:
        ModelError: The network cannot be run, or its heights are no finite numbers.
    """
    try:
        height_m = net.eval().height_m(torch.zeros(1, 3, MULTIPLE_PX, MULTIPLE_PX))
    except Exception as error:  # a card can describe a network whose parts do not fit each other
        raise ModelError(f"{path}: the network of its card cannot be run: {one_line(error, 200)}") from error
    if height_m.shape != (1, MULTIPLE_PX, MULTIPLE_PX) or not bool(torch.isfinite(height_m).all()):
        raise ModelError(f"{path}: its network gives no heights: its weights are damaged")


def pick_device(device: str) -> torch.device:
    """Return the torch device of a name.

    Args:
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: There is no such device, or none on this machine.
    """
    check_device(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ModelError(f"device {device} was requested, but torch sees no GPU: use --device cpu")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ModelError(f"device {device} was requested, but torch sees {torch.cuda.device_count()} of them")
    if chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError(f"device {device} was requested, but torch sees no Apple GPU: use --device cpu")
        _LOG.warning("device mps is untested: compare a small map with one of --device cpu before you trust it")
    return chosen
