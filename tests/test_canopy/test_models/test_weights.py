"""Weights: enough of them for their network, and loaded strictly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from canopy.errors import ModelError
from canopy.models.weights import count_weights, load_weights, move_weights, require_size, without_values

LOADERS = pytest.mark.parametrize("load", [load_weights, move_weights])
Load = Callable[[torch.nn.Module, dict[str, np.ndarray], Path], None]


def test_a_network_larger_than_its_file_takes_no_memory() -> None:
    """Ten thousand million weights, 40 GB, are counted in a moment."""
    with pytest.raises(ModelError, match=r"1,000 are stored, 10,000,100,000 expected"):
        require_size(lambda: torch.nn.Linear(100_000, 100_000), 1000, Path("x"))
    require_size(lambda: torch.nn.Linear(10, 10), 110, Path("x"))


def test_a_network_that_cannot_be_created_without_memory_is_not_judged_by_size() -> None:
    def create() -> torch.nn.Module:
        raise ModelError("x: no network comes of its card: Tensor.item() cannot be called on meta tensors")

    require_size(create, 0, Path("x"))

    def fail() -> torch.nn.Module:
        raise ModelError("x: no network comes of its card")

    with pytest.raises(ModelError, match="no network"):
        require_size(fail, 0, Path("x"))


def test_weights_are_counted() -> None:
    assert count_weights({"a": np.zeros((2, 3)), "b": np.zeros(4)}) == 10


@LOADERS
def test_arrays_are_loaded_by_name(load: Load) -> None:
    net = torch.nn.Linear(3, 2)
    weights = {"weight": np.arange(6, dtype=np.float16).reshape(2, 3), "bias": np.array([1, 2], np.int64)}
    load(net, dict(weights), Path("x"))
    assert net.weight.dtype == torch.float32
    np.testing.assert_array_equal(net.weight.detach(), weights["weight"])
    np.testing.assert_array_equal(net.bias.detach(), [1, 2])


def test_arrays_that_are_moved_are_let_go_of() -> None:
    """Two copies of a large network would take gigabytes."""
    net, array = torch.nn.Linear(3, 2, bias=False), np.zeros((2, 3), np.float32)
    weights = {"weight": array}
    move_weights(net, weights, Path("x"))
    assert weights == {}
    array[:] = 1
    assert not net.weight.detach().any()


def test_parameters_without_values_are_not_drawn() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Conv2d(3, 2, 1))
            # Beyond the bounds of a truncated normal, which then draws again and copies. New memory may be so too.
            self.token = torch.nn.Parameter(torch.full((1, 4), 9.0))
            torch.nn.init.trunc_normal_(self.token)
            torch.nn.init.normal_(tensor=self.token)
            self.register_buffer("steps", torch.empty(3).fill_(1).mul_(2), persistent=False)

    calls: list[str] = []

    class Recorder(TorchFunctionMode):
        """Record what reaches parameters; the global generator would show draws of other threads too."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if args and isinstance(args[0], torch.nn.Parameter) and func.__name__.endswith("_"):
                calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Recorder():
        Net()
        random_calls = {name for name in calls if not name.startswith("__") and name != "requires_grad_"}
        calls.clear()
        with without_values():
            net = Net()
    torch.testing.assert_close(net.steps, torch.full((3,), 2.0))
    assert (net.token == 9).all()
    assert sum(parameter.numel() for parameter in net.parameters()) == 4 + 8 + 8
    assert {"uniform_", "normal_"} & {name.rpartition(".")[2] for name in random_calls}, "otherwise they are drawn"
    assert not [name for name in calls if name in random_calls]


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": np.zeros(3, np.float32)},
        {"extra": np.zeros(2, np.float32)},
        {"bias": np.array(["a", "b"])},
        {"bias": np.array([None, None])},
    ],
)
@LOADERS
def test_arrays_that_do_not_fit_are_one_line(load: Load, changes: dict[str, np.ndarray]) -> None:
    weights = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(ModelError, match=r"^x: weights do not fit the card's architecture: ") as caught:
        load(torch.nn.Linear(3, 2), {**weights, **changes}, Path("x"))
    assert "\n" not in str(caught.value)
