"""Backends of public models on a CPU: equal bits in any company, differences in metres, errors where one is absent."""

from pathlib import Path

import pytest
import torch
from checkpoints import THIN, packed, released_state
from tiny_models import random_image

from canopy.errors import ModelError
from canopy.models.backends import faster_backends, pick_backend
from canopy.models.model import CanopyModel, load_model
from canopy.models.public.conversion import convert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> CanopyModel:
    """CHMv1 with random weights, stored in 8 bits as its publisher does."""
    folder = tmp_path_factory.mktemp("chmv1")
    torch.save(packed(released_state(**THIN)), folder / "compressed.pth")
    convert(folder / "compressed.pth", folder / "thin.safetensors")
    return load_model(folder / "thin.safetensors", "cpu")


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that claims to multiply bfloat16; one that does not converts it, and is slow but right."""
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: True)
    monkeypatch.setattr("canopy.models.backends.has_bfloat16", lambda: True)


CHIPS = random_image(3, 3, 64, 96)


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize(("option", "mean_m"), [("eager", 0.0), ("bf16", 0.5), ("int8", 1.0)])
def test_a_chip_has_the_same_bits_in_any_company(eager: CanopyModel, option: str, mean_m: float) -> None:
    model = eager.with_backend(option)
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
def test_another_backend_leaves_the_model_as_it_is(eager: CanopyModel) -> None:
    before = eager.predict(CHIPS)
    for option in ("bf16", "int8"):
        eager.with_backend(option)
        assert torch.equal(eager.predict(CHIPS), before)


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("option", ["bf16", "int8"])
def test_a_backend_shares_the_weights_that_it_does_not_change(eager: CanopyModel, option: str) -> None:
    """A whole copy of a large network would take gigabytes."""
    shared = {parameter.data_ptr() for parameter in eager._net.parameters()}
    kept = [parameter for parameter in eager.with_backend(option)._net.parameters() if parameter.dtype == torch.float32]
    assert kept
    assert all(parameter.data_ptr() in shared for parameter in kept)


@pytest.mark.usefixtures("any_processor")
def test_metres_are_read_off_the_bins_in_float32(eager: CanopyModel) -> None:
    """A sum of 256 bins in bfloat16 would leave steps of a quarter of a metre."""
    heights = eager.with_backend("bf16").predict(CHIPS)
    assert not torch.equal(heights, heights.to(torch.bfloat16).float())


def test_openvino_agrees_with_torch(eager: CanopyModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And stores nothing: writing the compiled function of a large network takes several times its memory."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    chips = random_image(1, 3, eager.card.chip_px, eager.card.chip_px)
    assert (eager.with_backend("openvino").predict(chips) - eager.predict(chips)).abs().max() < 5e-3
    assert not list(tmp_path.iterdir())


def test_a_processor_without_bfloat16_refuses_it(eager: CanopyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: False)
    for option in ("bf16", "openvino-bf16"):
        with pytest.raises(ModelError, match="lists no bfloat16 instructions"):
            eager.with_backend(option)


def test_a_build_of_torch_without_8_bit_layers_says_so(eager: CanopyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ModelError, match="no 8-bit linear layers"):
        eager.with_backend("int8")


def test_the_library_of_8_bit_products_is_left_as_it_was(eager: CanopyModel) -> None:
    before = torch.backends.quantized.engine
    eager.with_backend("int8")
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
