"""Weights: enough of them for their network, and loaded strictly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from canopy.errors import ModelError
from canopy.models.weights import count_weights, load_weights, require_size


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


def test_arrays_are_loaded_by_name() -> None:
    net = torch.nn.Linear(3, 2)
    weights = {"weight": np.arange(6, dtype=np.float16).reshape(2, 3), "bias": np.array([1, 2], np.int64)}
    load_weights(net, weights, Path("x"))
    assert net.weight.dtype == torch.float32
    np.testing.assert_array_equal(net.weight.detach(), weights["weight"])
    np.testing.assert_array_equal(net.bias.detach(), [1, 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": np.zeros(3, np.float32)},
        {"extra": np.zeros(2, np.float32)},
        {"bias": np.array(["a", "b"])},
        {"bias": np.array([None, None])},
    ],
)
def test_arrays_that_do_not_fit_are_one_line(changes: dict[str, np.ndarray]) -> None:
    weights = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(ModelError, match=r"^x: weights do not fit the card's architecture: ") as caught:
        load_weights(torch.nn.Linear(3, 2), {**weights, **changes}, Path("x"))
    assert "\n" not in str(caught.value)
