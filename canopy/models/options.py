"""Names of devices, backends and decoders, and what a model lacks: checked without torch, which takes seconds."""

import re
import shlex

from canopy.errors import ModelError

BACKENDS = ("auto", "eager", "compile", "openvino", "openvino-bf16", "bf16", "int8")
DEVICES = ("auto", "cpu", "cuda", "mps")
DECODERS = ("median", "mean")
REQUIRED_DEVICES = {"openvino": ("cpu",), "openvino-bf16": ("cpu",), "int8": ("cpu",), "bf16": ("cpu", "cuda")}
"""Devices that a backend runs on, where it does not run on all."""
_DEVICE = re.compile(r"auto|(cpu|cuda|mps)(:\d{1,2})?")


def check_device(device: str) -> None:
    """Refuse a name that is no device of ours.

    Raises:
        ModelError: The name is none of `DEVICES`, with an index or without.
    """
    if not _DEVICE.fullmatch(device):
        raise ModelError(f"no device {device!r}: {', '.join(DEVICES[:-1])} or {DEVICES[-1]} expected")


def check_backend(backend: str, device: str = "auto") -> None:
    """Refuse a name that is no backend, or one that does not run on a device.

    Args:
        backend: Name of the backend.
        device: Name of the device, or ``auto`` where it is not chosen yet.

    Raises:
        ModelError: The name is none of `BACKENDS`, or the backend runs on another device.
    """
    if backend not in BACKENDS:
        raise ModelError(f"no backend {backend!r}: {', '.join(BACKENDS)} expected")
    kind = device.partition(":")[0]
    required = REQUIRED_DEVICES.get(backend, (kind,))
    if kind not in ("auto", *required):
        devices = " or ".join(required)
        raise ModelError(f"the {backend} backend runs on {devices}, not on {kind}: use auto, or --device {required[0]}")


def check_decode(decode: str | None) -> None:
    """Refuse a name that is no decoder of height bins; None stands for the card's choice.

    Raises:
        ModelError: The name is none of `DECODERS`.
    """
    if decode not in (None, *DECODERS):
        raise ModelError(f"no decoder {decode!r}: {' or '.join(DECODERS)} expected")


def no_interval(model: str) -> str:
    """Return the message of a model without a calibrated interval: how to fit one, or to do without.

    Args:
        model: Name or path by which the user asked for the model.
    """
    return (
        f"model {model} has no calibrated interval: fit one on your lidar (canopy models calibrate "
        f"{shlex.quote(model)} --imagery I --truth CHM.tif --out B.safetensors), or map without --uncertainty"
    )
