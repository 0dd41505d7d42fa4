"""Backends of torch on a CPU that run one chip at a time, so that a chip's bits depend on no other chip.

A large network fills the cores with one chip; a batch would gain nothing, and need blank chips on small maps.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

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


def to_bfloat16_weights(net: HeightNet) -> HeightNet:
    """Store the matrices and kernels of a network in bfloat16, and return it.

    Autocast would convert them at each call, which takes as long as the products.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | EightBitLinear | nn.Conv2d | nn.ConvTranspose2d):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    replace_eight_bits(net, lambda layer: layer.plain(torch.bfloat16))
    return net


def in_bfloat16(function: ImageFunction) -> ImageFunction:
    """Return a function whose products are of bfloat16, added in float32."""

    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(image).float()

    return run


def to_int8_layers(net: HeightNet) -> HeightNet:
    """Replace the linear layers of a network by some that multiply 8-bit integers, scaled by each chip's own range.

    Raises:
        ModelError: This build of torch has no such layers.
    """
    try:
        with _quantised_engine(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it will move this function to another library
            # One by one: all of them in float32 would take four times their memory.
            replace_eight_bits(net, lambda layer: _quantised(nn.Sequential(layer.plain(torch.float32)))[0])
            return _quantised(net)
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
