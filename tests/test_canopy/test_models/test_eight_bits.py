"""Layers of 8 bits: the products of dequantised weights to the bit, in a quarter of the memory, on every backend."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import THIN, packed, released_state
from tiny_models import random_image
from torch import nn

from canopy.errors import ModelError
from canopy.models.bundle import read_bundle, save_bundle
from canopy.models.eight_bits import STEP, EightBitLinear
from canopy.models.model import load_model
from canopy.models.public.conversion import convert

CHIPS = random_image(2, 3, 64, 96)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of CHMv1 with random weights, as its publisher stores them in 8 bits."""
    folder = tmp_path_factory.mktemp("chmv1")
    torch.save(packed(released_state(**THIN)), folder / "compressed.pth")
    convert(folder / "compressed.pth", folder / "thin.safetensors")
    return folder / "thin.safetensors"


@pytest.fixture(scope="module")
def dequantised(stored: Path) -> Path:
    """The same model of float32 weights."""
    bundle = read_bundle(stored)
    weights = dict(bundle.weights)
    for name in [name for name in weights if name.endswith(f".{STEP}")]:
        weight = name.replace(STEP, "weight")
        weights[weight] = weights[weight].astype(np.float32) * weights.pop(name)
    path = stored.with_name("float.safetensors")
    save_bundle(path, bundle.card, weights)
    return path


@pytest.mark.parametrize("option", ["eager", "bf16", "int8"])
def test_heights_are_to_the_bit_those_of_dequantised_weights(
    stored: Path, dequantised: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: True)
    model = load_model(stored, "cpu", option)
    expected = load_model(dequantised, "cpu", option)
    assert torch.equal(model.predict(CHIPS), expected.predict(CHIPS))
    assert torch.equal(model.features(CHIPS), expected.features(CHIPS))


@pytest.mark.parametrize("name", ["thin.safetensors", "compressed.pth"])
def test_weights_stay_8_bits_in_files_and_in_memory(stored: Path, dequantised: Path, name: str) -> None:
    plain = list(load_model(dequantised, "cpu")._net.modules())
    assert not [layer for layer in plain if isinstance(layer, EightBitLinear)]
    layers = sum(isinstance(layer, nn.Linear) for layer in plain)
    net = load_model(stored.with_name(name), "cpu")._net
    assert not [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    eight_bits = [layer for layer in net.modules() if isinstance(layer, EightBitLinear)]
    assert len(eight_bits) == layers
    assert {layer.weight.dtype for layer in eight_bits} == {torch.int8}
    assert sum(array.dtype == np.int8 for array in read_bundle(stored).weights.values()) == layers


def test_openvino_keeps_8_bits_and_multiplies_in_float32(stored: Path) -> None:
    """Else it would have a copy of the weights, and round the tokens to 8 bits where the processor multiplies these."""
    pytest.importorskip("openvino")
    model = load_model(stored, "cpu")
    chip = random_image(1, 3, model.card.chip_px, model.card.chip_px)
    compiled = load_model(stored, "cpu", "openvino")
    assert (compiled.predict(chip) - model.predict(chip)).abs().max() < 1e-3
    operations = compiled._heights._compiled.get_runtime_model().get_ops()  # type: ignore[attr-defined]
    kinds = [str(operation.get_rt_info()["primitiveType"].astype(str)) for operation in operations]
    eight_bits = sum(kind.endswith("_i8") for kind in kinds)
    assert eight_bits == sum(isinstance(layer, EightBitLinear) for layer in model._net.modules())


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_a_trace_has_each_layer_as_one_operation(stored: Path) -> None:
    """Of a layer traced in its parts, the float32 weights stay in memory until the trace ends."""
    net = load_model(stored, "cpu")._net
    layer = next(layer for layer in net.modules() if isinstance(layer, EightBitLinear))
    tokens = torch.rand(5, layer.weight.shape[1])
    traced = torch.jit.trace(lambda tokens: layer(tokens), tokens)
    operations = [node.kind() for node in traced.graph.nodes()]
    assert "prim::CallFunction" in operations
    assert not [operation for operation in operations if operation.startswith("aten::")]
    assert torch.equal(traced(tokens), layer(tokens))


def test_8_bits_without_their_step_are_refused(stored: Path, tmp_path: Path) -> None:
    bundle = read_bundle(stored)
    name = next(name for name in bundle.weights if name.endswith(f".{STEP}"))
    weight = name.replace(STEP, "weight")
    for changes in ({STEP: None}, {"weight": bundle.weights[weight].astype(np.float32)}):
        weights = dict(bundle.weights)
        for key, array in changes.items():
            if array is None:
                del weights[name]
            else:
                weights[name.replace(STEP, key)] = array
        save_bundle(tmp_path / "odd.safetensors", bundle.card, weights)
        with pytest.raises(ModelError, match="weights do not fit"):
            load_model(tmp_path / "odd.safetensors", "cpu")
