"""Weights of a network: whether there are enough of them, and how they are loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from canopy.errors import CanopyError, ModelError, one_line
from canopy.models.bundle import Weights

SLACK = 2
"""Weights that a network may have for each that is stored: some networks drop a few when they are saved."""

_INITIALISATIONS = frozenset({"uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_", "copy_"})
"""Functions that give a new network its values in place."""


class _ShapesOnly(TorchFunctionMode):
    """Leave the values of new weights out: tensors on the meta device have none, and asking for them takes time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and getattr(func, "__name__", "") in _INITIALISATIONS:
            return args[0]
        return func(*args, **(kwargs or {}))


def require_size(create: Callable[[], nn.Module], stored: int, path: Path) -> None:
    """Refuse a network that is far larger than the file of its weights, before memory is taken for it.

    Args:
        create: Function that creates the network.
        stored: Number of weights in the file.
        path: The file, for the error.

    Raises:
        ModelError: The network has more than `SLACK` times as many weights, or cannot be created.
    """
    try:
        with torch.device("meta"), _ShapesOnly():  # no memory
            needed = sum(tensor.numel() for tensor in create().state_dict().values())
    except CanopyError as error:
        if "meta" not in str(error):
            raise
        return  # older versions of timm compute with values in some constructors; sizes are then those of its networks
    if needed > SLACK * stored:
        raise ModelError(
            f"{path}: weights do not fit the card's architecture: {stored:,} are stored, {needed:,} expected"
        )


class _ParametersAsTheyAre(TorchFunctionMode):
    """Leave the values of new parameters out; buffers, which no file has, get theirs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        initialises = getattr(func, "__module__", None) == "torch.nn.init" or func.__name__ in _INITIALISATIONS
        if initialises and isinstance(tensor, nn.Parameter):
            return tensor
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Let networks be created whose parameters have no values yet, for weights to be loaded into.

    Drawing those of a large network takes seconds, and memory that is not taken before something is written to it.
    """
    with _ParametersAsTheyAre():
        yield


def count_weights(weights: Weights) -> int:
    """Return the number of weights in arrays."""
    return sum(array.size for array in weights.values())


def move_weights(net: nn.Module, weights: Weights, path: Path) -> None:
    """Load arrays into a network as `load_weights` does, and let go of each: no two copies of a network are in memory.

    Args:
        net: The network, on the CPU.
        weights: Arrays by parameter name; empty afterwards.
        path: File of the weights, for the error.

    Raises:
        ModelError: As by `load_weights`.
    """
    own = net.state_dict()
    with _one_error(path):
        tensors: dict[str, Tensor] = {}
        while weights:
            name, array = weights.popitem()
            tensor = torch.from_numpy(array)
            # A copy, in memory that torch aligned: the bits of a product may depend on that.
            tensors[name] = tensor.to(own[name].dtype, copy=True) if name in own else tensor
        net.load_state_dict(tensors, assign=True)


def load_weights(net: nn.Module, weights: Weights, path: Path) -> None:
    """Load arrays into a network, strictly.

    Args:
        net: The network.
        weights: Arrays by parameter name.
        path: File of the weights, for the error.

    Raises:
        ModelError: A parameter is missing, superfluous, of another shape or of a type that torch does not know.
    """
    with _one_error(path):
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Turn an error of torch's into one line."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{path}: weights do not fit the card's architecture: {one_line(error, 300)}") from error
