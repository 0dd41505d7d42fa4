"""Publishers' torch files: tensors are read, nothing is executed."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import packed

from canopy.errors import ModelError
from canopy.models.public.torch_files import read_state


def set_trap() -> None:
    Path("trapped").touch()


class Publishers:
    """A class of the publisher's; reading an object of it would run `set_trap`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (set_trap, (), {"width": 8})


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def test_the_file_of_a_whole_training_gives_its_weights_and_runs_nothing(tmp_path, monkeypatch) -> None:
    """As pytorch-lightning writes them: the publisher's classes, functions and optimiser next to the weights."""
    monkeypatch.chdir(tmp_path)
    state = {"chm_module_.layer.weight": torch.arange(6.0).view(2, 3)}
    others = {"backbone_cls": Publishers, "loss": set_trap, "opt": partial(torch.optim.Adam, lr=1e-3)}
    others |= {"object": Publishers()}
    training = {"state_dict": state, "hyper_parameters": others, "optimizer_states": [{"state": {}}]}
    torch.save(training, tmp_path / "SSLhuge.pth")
    assert torch.equal(read_state(tmp_path / "SSLhuge.pth")["layer.weight"], state["chm_module_.layer.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["SSLhuge.pth"]
    # What one file may name, the next may not.
    assert not [name for name in torch.serialization.get_safe_globals() if isinstance(name, tuple)]


@pytest.mark.parametrize("content", [{"trap": Trap()}, [1, 2], 3])
def test_foreign_content_is_refused_and_never_run(tmp_path, monkeypatch, content) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ModelError, match="without running its code"):
        read_state(tmp_path / "foreign.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.pth"]


def test_a_file_that_is_not_whole_is_refused(tmp_path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"not a whole one \(0\.4 MB\): fetch it again"):
        read_state(path)


def test_layers_of_eight_bits_are_dequantised(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"fc.weight": torch.randn(4, 3, generator=generator), "fc.bias": torch.randn(4, generator=generator)}
    small = packed(state)
    torch.save(small, tmp_path / "small.pth")
    plain = read_state(tmp_path / "small.pth")
    assert set(plain) == {"fc.weight", "fc.bias"}
    integers = small["fc._packed_params._packed_params"][0].int_repr().numpy()
    step = float(state["fc.weight"].abs().max() / 127)
    np.testing.assert_allclose(plain["fc.weight"], integers * step, rtol=1e-6)
    assert torch.equal(plain["fc.bias"], state["fc.bias"])
    stored = read_state(tmp_path / "small.pth", eight_bits=True)
    assert set(stored) == {"fc.weight", "fc.bias", "fc.step"}
    assert stored["fc.weight"].dtype == torch.int8
    assert torch.equal(stored["fc.weight"] * stored["fc.step"], plain["fc.weight"])


@pytest.mark.filterwarnings("ignore")  # torch will drop these tensors; the published files contain them
@pytest.mark.parametrize(
    "quantise",
    [
        lambda weight: torch.quantize_per_tensor(weight, 0.02, 3, torch.qint8),
        lambda weight: torch.quantize_per_channel(weight, torch.full((4,), 0.02), torch.zeros(4), 0, torch.qint8),
        lambda weight: torch.quantize_per_tensor(weight, 0.02, 0, torch.quint8),
    ],
)
def test_other_layers_of_eight_bits_are_always_dequantised(tmp_path, quantise) -> None:
    state = {"fc.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), "fc.bias": torch.zeros(4)}
    small = packed(state)
    small["fc._packed_params._packed_params"] = (quantise(state["fc.weight"]), torch.nn.Parameter(state["fc.bias"]))
    torch.save(small, tmp_path / "small.pth")
    plain = read_state(tmp_path / "small.pth", eight_bits=True)
    assert set(plain) == {"fc.weight", "fc.bias"}
    assert torch.equal(plain["fc.weight"], quantise(state["fc.weight"]).dequantize())


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=r"packed\.pth unpacks to 4 MB: a torch file, which is not packed, expected"):
        read_state(tmp_path / "packed.pth")
    assert read_state(tmp_path / "plain.pth")["a"].numel() == 1_000_000


def test_a_small_tensor_that_is_viewed_as_a_large_one_is_refused(tmp_path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "view.pth")
    assert (tmp_path / "view.pth").stat().st_size < 2000
    with pytest.raises(ModelError, match=r"tensors of 4,000 MB in a file of 0\.0 MB"):
        read_state(tmp_path / "view.pth")
