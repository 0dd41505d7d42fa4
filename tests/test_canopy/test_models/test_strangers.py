"""Bundles from strangers: each hostile one is refused in one line, reaches no server and writes nothing anywhere."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny_models import ARCHITECTURE, CHIP_PX, random_image, save_tiny_model, tiny_card, tiny_net

from canopy.errors import ModelError
from canopy.models.bundle import CARD_KEY, read_bundle
from canopy.models.model import load_model

ARCH = json.loads(ARCHITECTURE.model_dump_json())
OLD_CARDS = json.loads((Path(__file__).parents[2] / "data" / "old" / "models" / "cards.json").read_text())
WEIGHTS = {name: tensor.numpy() for name, tensor in tiny_net(tiny_card()).state_dict().items()}


class Payload:
    """Unpickling an object of it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in a folder with a payload, and find it as it was; the network is blocked in all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "payload.pth").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    yield
    files = {path.name for path in tmp_path.iterdir()}
    assert files <= {"payload.pth", "folder", "hostile.safetensors", "models"}, files
    compiled = tmp_path / "models" / "compiled"
    assert {path.parent for path in (tmp_path / "models").rglob("*.bin")} <= {compiled}


def hostile(**changes: Any) -> Path:
    """Write a bundle whose card, but for the changes, is that of its weights; no check of ours sees it written."""
    card = {**json.loads(tiny_card().model_dump_json()), **changes}
    path = Path("hostile.safetensors")
    save_file(WEIGHTS, path, metadata={CARD_KEY: json.dumps(card)})
    return path


def arch(**changes: Any) -> dict[str, Any]:
    """Return a change of the card's architecture."""
    return {"architecture": {**ARCH, **changes}}


def args(**changes: Any) -> dict[str, Any]:
    """Return a change of the encoder's arguments."""
    return arch(encoder_args={**ARCH["encoder_args"], **changes})


def unet(**changes: Any) -> dict[str, Any]:
    """Return a card of a U-Net."""
    return {"family": "unet", "architecture": {"kind": "unet", **changes}}


def library(**changes: Any) -> dict[str, Any]:
    """Return a card of CHMv2 whose configuration is changed."""
    card = OLD_CARDS["chmv2"]
    return {**card, "architecture": {**card["architecture"], "config": card["architecture"]["config"] | changes}}


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a pickle in place of weights": (args(checkpoint_path="payload.pth"), "checkpoint_path is no argument"),
    "weights of a server": (args(pretrained=True), "pretrained is no argument"),
    "another configuration": (args(pretrained_cfg="payload.pth"), "pretrained_cfg is no argument"),
    "an encoder of a server": (arch(encoder="hf-hub:someone/model"), "is no name of a network"),
    "an encoder of a folder": (arch(encoder="local-dir:folder"), "is no name of a network"),
    "a detail network of a server": (arch(detail="hf-hub:someone/model"), "is no name of a network"),
    "a detail network of a folder": (arch(detail="local-dir:folder"), "is no name of a network"),
    "no such network": (arch(encoder="vit_of_no_one"), "no network comes of its card"),
    "a U-Net of a server": (unet(encoder="hf-hub:someone/model"), "is no name of a network"),
    "a U-Net of no such network": (unet(encoder="net_of_no_one"), "timm gives no levels of net_of_no_one"),
    "a U-Net of any size": (unet(decoder_channels=(4096,) * 4), "weights do not fit"),
    "a U-Net with blocks of others": (unet(taps=(0, 1, 2, 3)), "has no taps: leave it out"),
    "a name that leaves the cache": ({"name": "../../x"}, "is no name of a model"),
    "a name that clears the screen": ({"name": "a\x1b[2J"}, "is no name of a model"),
    "chips of 51 GB": ({"chip_px": 65536}, "chip_px 65536: Input should be less than or equal to 1024"),
    "an image of the encoder out of range": ({"chip_px": 1024, **arch(enlarge=8)}, "4096 px at most"),
    "an encoder far larger than the file": (arch(encoder="vit_gigantic_patch14_224", encoder_args={}), "are stored"),
    "an encoder without end": (args(depth=10**9), "a whole number from 1 to 128"),
    "a decoder far larger than the file": (arch(decoder_channels=[4096] * 4), "are stored"),
    "bins far more than the file's": ({"head": {"bins": 10**9}}, "head.bins"),
    "taps that no encoder has": (arch(taps=[0, 1, 2, 99]), "no network comes of its card"),
    "taps in disorder": (arch(taps=[5, 3, 1, 0]), "four rising numbers"),
    "taps that are no numbers": (arch(taps=["a", None, {}, []]), "architecture.taps.0"),
    "too few taps": (arch(taps=[1]), "architecture.taps"),
    "an argument that the decoder takes": (args(depth=6), "no network comes of its card"),
    "an argument of another type": (args(embed_dim="16"), "a whole number from 1 to 4096"),
    "an argument that is a list": (args(embed_dim=[16]), "architecture.encoder_args.embed_dim"),
    "heads that do not divide": (args(num_heads=5), "no network comes of its card"),
    "patches that do not fit": (args(patch_size=7), ""),
    "an unknown family": ({"family": "llama"}, "family 'llama'"),
    "an unknown key": ({"on_load": "import os"}, "on_load"),
    "no numbers for normalisation": ({"mean": [float("nan")] * 3}, "mean.0 nan: Input should be a finite number"),
    "a division by nothing": ({"std": [0, 1, 1]}, "std.0"),
    "a pixel of no size": ({"gsd_m": 0}, "gsd_m"),
    "a pixel without end": ({"gsd_m": float("inf")}, "gsd_m"),
    "intervals that do not fit": (
        {"intervals": {"height_m": [1, 2], "lower_m": [0], "upper_m": [0]}}, "as many lower and upper offsets",
    ),
    "a domain that does not fit": ({"domain": {"mean": [0], "precision": [[1]], "limit": 1}}, "8 statistics"),
    "a backbone of a server": (library(backbone="someone/model", use_pretrained_backbone=True), "config: backbone"),
    "code of a server": (library(auto_map={"AutoModel": "someone/model--code.Model"}), "config: auto_map"),
    "kernels of a server": (library(_attn_implementation="someone/kernel"), "config: _attn_implementation"),
    "another backbone": (library(backbone_config={"model_type": "llama"}), "dinov2 or dinov3_vit expected"),
    "a library's network far larger than the file": (library(fusion_hidden_size=4096), "are stored"),
    "a library's network without weights": (library(), "weights do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_one_line(kind: str) -> None:
    changes, message = HOSTILE[kind]
    with pytest.raises(ModelError) as caught:
        load_model(hostile(**changes), backend="eager")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text and len(text) < 600


def test_the_same_bundle_without_a_change_loads() -> None:
    assert load_model(hostile(), backend="eager").predict(random_image(1, 3, 64, 64)).shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "damaged"),
        ('{"name": ' + "1" * 10_000 + "}", "damaged"),
        ("null", "damaged"),
        ("{", "damaged"),
        (" " * (16 * 2**20 + 1), "a card of 16 MB"),
    ],
)
def test_a_card_that_is_no_card_is_one_line(text: str, message: str) -> None:
    save_file(WEIGHTS, "hostile.safetensors", metadata={CARD_KEY: text})
    with pytest.raises(ModelError, match=message) as caught:
        load_model("hostile.safetensors")
    assert len(str(caught.value)) < 600


def stored(change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """Write a bundle whose weights are changed."""
    weights = dict(WEIGHTS)
    change(weights)
    save_file(weights, "hostile.safetensors", metadata={CARD_KEY: tiny_card().model_dump_json()})
    return Path("hostile.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_give_no_heights_are_one_line(value: float) -> None:
    path = stored(lambda weights: weights.update({"head.0.bias": np.full_like(weights["head.0.bias"], value)}))
    with pytest.raises(ModelError, match="its network gives no heights"):
        load_model(path, backend="eager")


def test_weights_of_a_type_that_numpy_does_not_know_are_one_line() -> None:
    from safetensors.torch import save_file as save_tensors

    tensors = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    tensors["head.0.bias"] = tensors["head.0.bias"].bfloat16()
    save_tensors(tensors, "hostile.safetensors", metadata={CARD_KEY: tiny_card().model_dump_json()})
    with pytest.raises(ModelError, match="is not a model bundle") as caught:
        load_model("hostile.safetensors")
    assert "\n" not in str(caught.value)


def test_the_compiled_network_is_named_by_digest(tmp_path: Path) -> None:
    path = save_tiny_model(Path("hostile.safetensors"))
    load_model(path, backend="openvino").predict(random_image(1, 3, CHIP_PX, CHIP_PX))
    (compiled,) = (tmp_path / "models" / "compiled").iterdir()
    assert compiled.name == f"{read_bundle(path).sha256}-heights.bin"
