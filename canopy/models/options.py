"""Names of devices and backends, checked without torch, so that a typo costs no seconds."""

import re

from canopy.errors import ModelError

BACKENDS = ("auto", "eager", "compile", "openvino", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")
REQUIRED_DEVICE = {"openvino": "cpu", "bf16": "cuda"}
"""Device that a backend runs on, where it runs on one alone."""
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
    required = REQUIRED_DEVICE.get(backend, kind)
    if kind not in ("auto", required):
        raise ModelError(f"the {backend} backend runs on {required}, not on {kind}: use auto, or --device {required}")
