"""Vision transformers as teachers: one token for each of the student's patches, whatever their own patch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pretraining import CPU, run_steps, tiny_config
from safetensors.torch import save_file

from canopy.errors import ConfigError, ModelError, TrainingError
from pretrain.config import FeaturesConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.teachers import VitFeatures, is_vit, vit_width

NETWORK = "test_vit"
ONLY = {"dino": 0, "ibot": 0, "koleo": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small network, as published: other positions, a mask token and no classifier."""
    torch.manual_seed(0)
    state = timm.create_model(NETWORK, num_classes=0, img_size=96).state_dict()
    path: Path = tmp_path_factory.mktemp("weights") / "published.safetensors"
    save_file({**state, "mask_token": torch.zeros(1, 64)}, path)
    return path


def recipe(weights: Path, **changes: Any) -> Any:
    one = {"local_crops": {"count": 0}, "global_crops": {"count": 1}, "batch": 2}
    return tiny_config(**{**one, "features": {"network": NETWORK, "weights": weights}, **changes})


@pytest.mark.parametrize(("network", "vit"), [
    ("vit_small_patch14_dinov2.lvd142m", True), ("timm:vit_small_patch16_dinov3", True), ("canopy-ssl-tiny", True),
    ("tf_efficientnet_lite0", False), ("no_such_network", False),
])  # fmt: skip
def test_networks_are_distinguished_by_their_names(network: str, vit: bool) -> None:
    assert is_vit(network) is vit


def test_widths_need_no_weights() -> None:
    assert vit_width("timm:vit_small_patch14_dinov2.lvd142m") == 384
    assert vit_width("canopy-ssl-tiny") == 192


def test_the_teacher_sees_one_patch_for_each_of_the_students(weights: Path) -> None:
    teacher = VitFeatures(FeaturesConfig(network=NETWORK, weights=weights), patch_px=8, grid=4)
    assert teacher.encoder.vit.pos_embed.shape[1] == 1 + 16, "positions of the grid of 4 x 4"
    sizes: list[torch.Size] = []
    teacher.encoder.vit.patch_embed.register_forward_hook(lambda m, args, output: sizes.append(args[0].shape))
    assert teacher(torch.rand(2, 3, 32, 48)).shape == (2, 4 * 6, 64)
    assert sizes == [(2, 3, 64, 96)]
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_learns_features_and_relations_of_a_wider_teacher(weights: Path) -> None:
    terms = {**ONLY, "features": 1.0, "relations": 1.0}
    learner = SelfDistillation(recipe(weights, terms=terms, relations={"layer": -2}, loop={"steps": 20}), CPU)
    before = {name: value.clone() for name, value in learner.targets.features.state_dict().items()}
    entries = run_steps(learner, 20)
    for name in ("features", "relations"):
        losses = [entry[name] for entry in entries]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]), name
    assert all(torch.equal(value, before[name]) for name, value in learner.targets.features.state_dict().items())
    assert set(learner.targets.standardisers.state_dict()) == {"features.mean", "features.square", "features.seen"}


def test_relations_alone_need_no_predictions(weights: Path) -> None:
    learner = SelfDistillation(recipe(weights, terms={**ONLY, "relations": 1.0}, local_crops={"count": 1}), CPU)
    entry = run_steps(learner, 1)[0]
    assert entry["relations"] == pytest.approx(entry["loss"])
    assert not learner.student.tellers


@pytest.mark.parametrize(("changes", "message"), [
    ({"relations": {"heads": 5}}, "divides the widths of student and teacher, 32 and 64"),
    ({"relations": {"layer": 9}}, "relations.layer 9: a block of 6"),
    ({"features": {"network": "mobilenetv3_small_050"}}, "must be a vision transformer"),
])  # fmt: skip
def test_relations_that_cannot_be_read_are_a_clear_error(
    weights: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **args: create(name, **{**args, "pretrained": False}))
    features = {"network": NETWORK, "weights": weights, **changes.get("features", {})}
    if "features" in changes:
        features["weights"] = None
    with pytest.raises(ConfigError, match=message):
        SelfDistillation(recipe(weights, **{**changes, "features": features, "terms": {**ONLY, "relations": 1.0}}), CPU)


def test_weights_of_another_network_or_none_are_a_clear_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"features\.weights of vit_tiny_patch16_224 is another network"):
        VitFeatures(FeaturesConfig(network="vit_tiny_patch16_224", weights=weights), 8, 4)
    with pytest.raises(ModelError, match="no weights that can be read"):
        VitFeatures(FeaturesConfig(network=NETWORK, weights=tmp_path / "none.safetensors"), 8, 4)
