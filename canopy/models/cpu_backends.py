"""Backends of torch on a CPU that run one chip at a time, so that a chip's bits depend on no other chip.

A large network fills the cores with one chip; a batch would gain nothing, and need blank chips on small maps.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from canopy.errors import ModelError
from canopy.models.eight_bits import EightBitLinear, replace_eight_bits
from canopy.models.network import HeightNet
from canopy.models.processor import has_bfloat16

ImageFunction = Callable[[Tensor], Tensor]
Net = TypeVar("Net", bound=nn.Module)
_ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")
"""Libraries for products of 8-bit matrices, the fastest on this project's machines first."""


def each_chip(function: ImageFunction) -> ImageFunction:
    """Return a function that runs another one chip by chip."""

    def run(image: Tensor) -> Tensor:
        return function(image) if len(image) == 1 else torch.cat([function(chip[None]) for chip in image])

    return run


def require_bfloat16() -> None:
    """Refuse bfloat16 on a processor that does not multiply it itself.

    Raises:
        ModelError: The processor's flags name no such instructions.
    """
    if not has_bfloat16():
        raise ModelError(
            "this CPU lists no bfloat16 instructions (avx512_bf16, amx_bf16), without which bf16 is many times slower "
            "than float: use auto, or int8"
        )


def with_bfloat16_weights(net: HeightNet) -> HeightNet:
    """Return a copy of a network whose matrices and kernels are stored in bfloat16; all other weights are shared.

    Autocast would convert them at each call, which takes as long as the products.
    """
    converted: dict[int, Tensor] = {}
    for module in net.modules():
        if isinstance(module, nn.Linear | EightBitLinear | nn.Conv2d | nn.ConvTranspose2d):
            for parameter in module.parameters(recurse=False):
                converted[id(parameter)] = nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)
    copied = _sharing(net, converted)
    replace_eight_bits(copied, lambda layer: layer.plain(torch.bfloat16))
    return copied


def in_bfloat16(function: ImageFunction) -> ImageFunction:
    """Return a function whose products are of bfloat16, added in float32."""

    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(image).float()

    return run


def with_int8_layers(net: HeightNet) -> HeightNet:
    """Return a copy of a network whose linear layers multiply 8-bit integers, scaled by each chip's own range.

    All other weights are shared with the network.

    Raises:
        ModelError: This build of torch has no such layers.
    """
    try:
        with _quantised_engine(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it will move this function to another library
            copied = _sharing(net, {})
            # One by one: all of them in float32 would take four times their memory.
            replace_eight_bits(copied, lambda layer: _quantised(nn.Sequential(layer.plain(torch.float32)))[0])
            return _quantised(copied)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"this build of torch has no 8-bit linear layers ({type(error).__name__}): use auto"
        ) from error


def _quantised(net: Net) -> Net:
    """Return a network whose linear layers torch has replaced by those of 8 bits."""
    quantised: Net = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
        net, {nn.Linear}, dtype=torch.qint8, inplace=True
    )
    return quantised


def _sharing(net: HeightNet, replaced: Mapping[int, Tensor]) -> HeightNet:
    """Return a network of its own with the same tensors, but for those replaced, by identity: none is copied."""
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    return copy.deepcopy(net, tensors | dict(replaced))


@contextlib.contextmanager
def _quantised_engine() -> Iterator[None]:
    """Choose the library in which layers are packed; packed layers keep it."""
    before = torch.backends.quantized.engine
    supported = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next((name for name in _ENGINES if name in supported), before)
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
