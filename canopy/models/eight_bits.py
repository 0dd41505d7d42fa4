"""Linear layers of files of 8 bits: their weights stay 8 bits in memory, and become float32 for each product alone.

A weight is a whole number of steps. The float32 weights, and so the products, are to the bit those of a file that was
dequantised at once, in a quarter of the memory.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canopy.models.bundle import Weights
from canopy.models.memory import return_memory

STEP = "step"
"""Name of a layer's step in files, next to ``weight`` and ``bias``."""


class EightBitLinear(nn.Module):
    """A linear layer of 8-bit weights, whose values are loaded later.

    Args:
        layer: Layer of the same shape, whose bias it takes over.
    """

    weight: Tensor
    step: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(layer.weight.shape, dtype=torch.int8))
        self.register_buffer(STEP, torch.empty(()))
        self.bias = layer.bias

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the layer's products, in float32: (..., in) to (..., out)."""
        product: Tensor = _product(tokens, self.weight, self.step, self.bias)
        return product

    def plain(self, dtype: torch.dtype) -> nn.Linear:
        """Return torch's own layer, with the weights in another type."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0], device="meta")
        weight = self.weight.to(torch.float32).mul_(self.step).to(dtype)
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return layer


def _multiply(tokens: Tensor, weight: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(tokens, weight.to(torch.float32).mul_(step), bias)


_product = torch.jit.script_if_tracing(_multiply)  # type: ignore[no-untyped-call]
"""The same; traced operation by operation, the float32 weights of all layers would stay until the trace ends."""


def take_eight_bits(net: nn.Module, weights: Weights) -> None:
    """Give a network layers of 8 bits where its weights have them.

    Args:
        net: The network, changed in place.
        weights: Arrays by parameter name.
    """
    eight_bits = {name for name, array in weights.items() if array.dtype == np.int8}
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and f"{name}.weight" in eight_bits:
            net.set_submodule(name, EightBitLinear(layer))


def replace_eight_bits(net: nn.Module, create: Callable[[EightBitLinear], nn.Module]) -> None:
    """Replace the layers of 8 bits of a network, one after the other.

    Args:
        net: The network, changed in place.
        create: Function that returns another layer for one of them.
    """
    names = [name for name, layer in net.named_modules() if isinstance(layer, EightBitLinear)]
    for name in names:  # of the layers themselves, a list would keep all until the end
        layer = net.get_submodule(name)
        assert isinstance(layer, EightBitLinear)
        net.set_submodule(name, create(layer))
        del layer
        return_memory()  # gaps of float32 weights between what stays would come to as much as the network
