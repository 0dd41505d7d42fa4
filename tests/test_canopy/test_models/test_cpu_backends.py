"""Backends of public models on a CPU: equal bits in any company, differences in metres, errors where one is absent."""

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from checkpoints import THIN, packed, released_state
from tiny_models import random_image

from canopy.errors import ModelError
from canopy.models.backends import faster_backends, pick_backend
from canopy.models.bundle import read_bundle, save_bundle
from canopy.models.eight_bits import EightBitLinear
from canopy.models.model import CanopyModel, load_model
from canopy.models.network import HeightNet
from canopy.models.public.conversion import convert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHMv1 with random weights, stored in 8 bits as its publisher does."""
    folder = tmp_path_factory.mktemp("chmv1")
    torch.save(packed(released_state(**THIN)), folder / "compressed.pth")
    convert(folder / "compressed.pth", folder / "thin.safetensors")
    return folder / "thin.safetensors"


@pytest.fixture(scope="module")
def eager(bundle: Path) -> CanopyModel:
    return load_model(bundle, "cpu")


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that claims to multiply bfloat16; one that does not converts it, and is slow but right."""
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: True)
    monkeypatch.setattr("canopy.models.backends.has_bfloat16", lambda: True)


CHIPS = random_image(3, 3, 64, 96)


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize(("option", "mean_m"), [("eager", 0.0), ("bf16", 0.5), ("int8", 1.0)])
def test_a_chip_has_the_same_bits_in_any_company(bundle: Path, eager: CanopyModel, option: str, mean_m: float) -> None:
    model = load_model(bundle, "cpu", option)
    heights = model.predict(CHIPS)
    assert (model.chip_by_chip, model.parallel, model.backend) == (True, False, f"{option} on cpu")
    assert torch.equal(torch.cat([model.predict(chip[None]) for chip in CHIPS]), heights)
    assert torch.equal(model.predict(CHIPS.flip(0)), heights.flip(0))
    difference = (heights - eager.predict(CHIPS)).abs()
    # Random weights magnify what is rounded: the heights of trained ones are compared where they are.
    assert difference.mean() <= mean_m < eager.predict(CHIPS).std()
    assert (option == "eager") == (difference.max() == 0)
    assert heights.dtype == torch.float32


@pytest.mark.usefixtures("any_processor")
def test_a_model_goes_over_to_another_backend_and_back(bundle: Path) -> None:
    model = load_model(bundle, "cpu")
    expected = {option: load_model(bundle, "cpu", option).predict(CHIPS) for option in ("bf16", "int8", "eager")}
    for option in (*expected, "int8"):
        model.use_backend(option)
        assert (model.backend_option, model.backend) == (option, f"{option} on cpu")
        assert torch.equal(model.predict(CHIPS), expected[option])


@pytest.mark.usefixtures("any_processor")
def test_no_two_networks_are_in_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take gigabytes: the one before is freed first, and a backend changes the weights where they lie."""
    model = load_model(bundle, "cpu")
    read_net = model._read_net
    there: list[object] = []

    def read_again() -> HeightNet:
        there.append(before())
        return read_net()

    monkeypatch.setattr(model, "_read_net", read_again)
    for option in ("bf16", "int8", "eager"):
        model.predict(CHIPS)
        before = weakref.ref(model._net)
        model.use_backend(option)
    assert there == [None, None, None]


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("option", ["bf16", "int8"])
def test_a_backend_changes_the_weights_where_they_lie(bundle: Path, option: str) -> None:
    """A whole copy of a large network would take gigabytes."""
    model = load_model(bundle, "cpu")
    net = model._net
    kept = {name: tensor.data_ptr() for name, tensor in net.named_parameters()}
    assert pick_backend(option, model.card, "0", CPU).prepare(net) is net
    assert not [layer for layer in net.modules() if isinstance(layer, EightBitLinear)], "8-bit weights are given up"
    same = [name for name, tensor in net.named_parameters() if tensor.dtype == torch.float32]
    assert same
    assert all(net.get_parameter(name).data_ptr() == kept[name] for name in same)


def test_a_model_stays_on_its_backend_where_it_cannot_go_over(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(bundle, "cpu")
    before = model.predict(CHIPS)
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: False)
    with pytest.raises(ModelError, match="lists no bfloat16 instructions"):
        model.use_backend("bf16")
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ModelError, match="no 8-bit linear layers"):
        model.use_backend("int8")
    assert model.backend_option == "eager"
    assert torch.equal(model.predict(CHIPS), before)


def test_a_file_that_changed_is_not_another_backend_of_the_model(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(bundle, path)
    model = load_model(path, "cpu")
    stored = read_bundle(path)
    save_bundle(path, stored.card.model_copy(update={"notes": "another"}), stored.weights)
    for option in ("int8", "eager"):
        with pytest.raises(ModelError, match="has changed since it was opened"):
            model.use_backend(option)
        assert model.backend_option == ""


@pytest.mark.usefixtures("any_processor")
def test_metres_are_read_off_the_bins_in_float32(bundle: Path) -> None:
    """A sum of 256 bins in bfloat16 would leave steps of a quarter of a metre."""
    heights = load_model(bundle, "cpu", "bf16").predict(CHIPS)
    assert not torch.equal(heights, heights.to(torch.bfloat16).float())


def test_openvino_agrees_with_torch(
    bundle: Path, eager: CanopyModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And stores nothing: writing the compiled function of a large network takes several times its memory."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    chips = random_image(1, 3, eager.card.chip_px, eager.card.chip_px)
    assert (load_model(bundle, "cpu", "openvino").predict(chips) - eager.predict(chips)).abs().max() < 5e-3
    assert not list(tmp_path.iterdir())


def test_a_processor_without_bfloat16_refuses_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: False)
    for option in ("bf16", "openvino-bf16"):
        with pytest.raises(ModelError, match="lists no bfloat16 instructions"):
            load_model(bundle, "cpu", option)


def test_a_build_of_torch_without_8_bit_layers_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ModelError, match="no 8-bit linear layers"):
        load_model(bundle, "cpu", "int8")


def test_the_library_of_8_bit_products_is_left_as_it_was(bundle: Path) -> None:
    before = torch.backends.quantized.engine
    load_model(bundle, "cpu", "int8")
    assert torch.backends.quantized.engine == before


def test_8_bits_are_tried_where_the_publisher_stored_8_bits(
    eager: CanopyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canopy.models.backends.has_bfloat16", lambda: True)
    monkeypatch.setattr("canopy.models.backends._import_openvino", lambda: object())
    assert eager.card.training["linear_bits"] == 8
    assert faster_backends(eager.card) == ["bf16", "int8", "openvino-bf16", "openvino"]
    plain = eager.card.model_copy(update={"training": {}})
    assert faster_backends(plain) == ["bf16", "openvino-bf16", "openvino"]
    monkeypatch.setattr("canopy.models.backends.has_bfloat16", lambda: False)
    assert faster_backends(plain) == ["openvino"]
    monkeypatch.setattr("canopy.models.backends._import_openvino", lambda: None)
    assert faster_backends(plain) == []


def test_public_models_run_in_float_unless_another_is_named(eager: CanopyModel) -> None:
    assert eager.backend_option == "eager"
    assert pick_backend("auto", eager.card, "0", CPU).option == "eager"
    with pytest.raises(ModelError, match="int8 backend runs on cpu, not on cuda"):
        pick_backend("int8", eager.card, "0", torch.device("cuda"))
