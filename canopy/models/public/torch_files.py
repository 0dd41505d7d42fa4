"""Tensors of publishers' torch files. Nothing in a file is executed."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.eight_bits import STEP

GROWTH = 2
"""Size of a file's tensors over that of the file, at most: a weight may have two names."""
_PACKED = "._packed_params._packed_params"
"""Suffix of the weights of a layer that torch quantised dynamically."""
_QUANTISER = re.compile(r"\.(scale|zero_point|_packed_params\.dtype)$")
"""Names of the other entries of such a layer."""


class State(dict[str, Any]):
    """Tensors of a file under the publisher's names.

    Attributes:
        linear_bits: Bits of a weight of linear layers, where the file stores them quantised; else None.
    """

    linear_bits: int | None = None


class _Ignored(list[Any]):
    """Stands for an object that is no tensor: it accepts whatever a file gives it, and stores and does nothing."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


def read_state(path: Path, *, eight_bits: bool = False) -> State:
    """Read the tensors of a torch file under the publisher's names, without wrapper and quantisation.

    Args:
        path: The file.
        eight_bits: Whether weights of linear layers that are whole numbers of one step stay such numbers, with the
            step under its own name, as `canopy.models.eight_bits` takes them.

    Raises:
        ModelError: The file is no torch file, is not whole, is larger in memory than on the disk, or cannot be read
            without running its code.
    """
    _require_uncompressed(path)
    try:
        # A file of a whole training also names the publisher's classes, which torch would refuse.
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        ignored = torch.serialization.safe_globals([(_Ignored, name) for name in classes])
        with warnings.catch_warnings(), ignored:
            warnings.simplefilter("ignore")  # torch warns of its own quantised tensors
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
            _require_bounded(state, path)
            tensors = _dequantise(state, eight_bits)
            plain = State((name.removeprefix("chm_module_."), value) for name, value in tensors.items())
            plain.linear_bits = 8 if any(name.endswith(_PACKED) for name in state) else None
            return plain
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, ValueError) as error:
        if not zipfile.is_zipfile(path):
            size_mb = path.stat().st_size / 1e6
            raise ModelError(
                f"{path} is no torch file, or not a whole one ({size_mb:.1f} MB): fetch it again"
            ) from error
        detail = one_line(error.__context__ or error, 200)  # torch's own text advises to run the file
        raise ModelError(f"{path} cannot be read as weights without running its code: {detail}") from error


def _require_uncompressed(path: Path) -> None:
    """Refuse an archive that unpacks to far more than it is: torch stores weights as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return  # the error of the reader says more
    if unpacked > GROWTH * path.stat().st_size:
        raise ModelError(f"{path} unpacks to {unpacked / 1e6:,.0f} MB: a torch file, which is not packed, expected")


def _require_bounded(state: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that take far more memory than the file: a small one can be viewed as one of any size."""
    size = sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))
    if size > GROWTH * path.stat().st_size:
        raise ModelError(f"{path}: tensors of {size / 1e6:,.0f} MB in a file of {path.stat().st_size / 1e6:,.1f} MB")


def _dequantise(state: Mapping[str, Any], eight_bits: bool) -> dict[str, Any]:
    """Return plain tensors of a state dict whose linear layers torch quantised dynamically to int8."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if name.endswith(_PACKED):
            weight, bias = value
            layer = name.removesuffix(_PACKED)
            plain[f"{layer}.bias"] = bias.detach()
            if eight_bits and _has_one_step(weight):
                plain |= {f"{layer}.weight": weight.int_repr(), f"{layer}.{STEP}": torch.tensor(weight.q_scale())}
            else:
                plain[f"{layer}.weight"] = weight.dequantize()
        elif not _QUANTISER.search(name):
            plain[name] = value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value
    return plain


def _has_one_step(weight: Tensor) -> bool:
    """Return whether quantised weights are whole numbers, of 8 bits, of one step."""
    return weight.dtype == torch.qint8 and weight.qscheme() == torch.per_tensor_affine and weight.q_zero_point() == 0
