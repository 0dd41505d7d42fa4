"""Student, teacher and schedules: what each ingredient does, one by one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining import tiny_config, tiny_tiles

from canopy.errors import ConfigError
from canopy.training.loop import fit_learner
from pretrain.batch import draw_batch
from pretrain.config import PretrainConfig
from pretrain.dinov2 import SelfDistillation, build_distiller, parameter_groups, patch_weights
from pretrain.encoder import Encoder
from pretrain.monitors import collapse_signs, warn_of

CPU = torch.device("cpu")


def step_once(learner: SelfDistillation, step: int = 0) -> float:
    batch = draw_batch(step, tiny_tiles(), learner.config, patch_px=8)
    learner.schedule(step)
    loss = learner.loss(batch, step)
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return loss.item()


def test_the_teacher_is_the_exact_moving_average_and_gets_no_gradient() -> None:
    learner = SelfDistillation(tiny_config(schedule={"momentum": [0.9, 1.0]}), CPU)
    before = {name: p.clone() for name, p in learner.teacher.named_parameters()}
    step_once(learner)
    learner.update(0)
    student = dict(learner.student.named_parameters())
    for name, p in learner.teacher.named_parameters():
        assert p.grad is None
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * student[name], atol=1e-7, rtol=1e-6)
    assert not torch.equal(student["encoder.vit.norm.weight"], before["encoder.vit.norm.weight"])


def test_masked_patches_are_hidden_from_the_student_alone() -> None:
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", {"depth": 1, "patch_size": 8}, 16, (0.5,) * 3, (0.2,) * 3)
    image, mask = torch.rand(1, 3, 16, 16), torch.tensor([[[True, False], [False, False]]])
    other = image.clone()
    other[:, :, :8, :8] = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image, mask)[1], encoder(other, mask)[1])
        assert (encoder(image)[1] - encoder(other)[1]).abs().max() > 1e-3
        encoder.mask_token.fill_(3.0)
        assert (encoder(image, mask)[1] - encoder(image)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("args", [
    {"reg_tokens": 4}, {"init_values": 1e-5}, {"mlp_layer": "swiglu"}, {"patch_size": 16},
])  # fmt: skip
def test_timm_variants_give_class_token_and_patches_at_any_size(args: dict[str, Any]) -> None:
    encoder = Encoder("vit_tiny_patch16_224", {"depth": 2, **args}, 64, (0.5,) * 3, (0.2,) * 3)
    for px in (64, 32):
        cls, patches = encoder(torch.rand(2, 3, px, px), torch.ones(2, px // 16, px // 16, dtype=torch.bool))
        assert cls.shape == (2, 192)
        assert patches.shape == (2, (px // 16) ** 2, 192)


def test_rotary_positions_work_through_timm() -> None:
    encoder = Encoder("vit_small_patch16_dinov3", {"depth": 1}, 64, (0.5,) * 3, (0.2,) * 3)
    cls, patches = encoder(torch.rand(2, 3, 32, 48), torch.zeros(2, 2, 3, dtype=torch.bool))
    assert (cls.shape, patches.shape) == ((2, 384), (2, 6, 384))


@pytest.mark.parametrize(("name", "args", "found"), [
    ("no_such_model", {}, "no_such_model"), ("resnet18", {}, "resnet18"),
    ("vit_tiny_patch16_224", {"colour": 3}, "colour"), ("vit_tiny_patch16_224", {"mlp_layer": "kan"}, "kan"),
])  # fmt: skip
def test_an_encoder_that_timm_does_not_make_is_a_clear_error(name: str, args: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Encoder(name, args, 64, (0.5,) * 3, (0.2,) * 3)


def test_patch_weights_sum_to_one_in_every_masked_image() -> None:
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[2, :, 0] = True
    assert patch_weights(masks).tolist() == [1.0, 0.5, 0.5]


def test_rates_follow_their_schedules() -> None:
    config = tiny_config(schedule={
        "lr": 8e-3, "warmup": 0.2, "momentum": [0.9, 1.0], "weight_decay": [0.04, 0.2], "layer_decay": 0.5,
        "patch_embed": 0.2, "freeze_last": 0.05,
    })  # fmt: skip
    learner = SelfDistillation(config, CPU)
    peak = 8e-3 * math.sqrt(4 / 1024)
    assert learner.schedule(0)["lr"] == pytest.approx(peak / 4)
    assert learner.schedule(3)["lr"] == pytest.approx(peak)
    middle = learner.schedule(12)
    assert middle["lr"] == pytest.approx(1e-6 + (peak - 1e-6) / 2)
    assert learner.schedules.weight_decay(10) == pytest.approx(0.12)
    assert learner.schedules.momentum(20) == 1.0
    assert [round(learner.schedules.temperature(s), 4) for s in (0, 2, 5, 9)] == [0.04, 0.052, 0.07, 0.07]
    scales = {g["scale"] for g in parameter_groups(learner.student, config)}
    assert scales == {1.0, 0.5, 0.25, 0.125, 0.125 * 0.2}
    prototypes = next(g for g in learner.optimizer.param_groups if g["prototypes"] and learner.schedule(0))
    assert prototypes["lr"] == 0
    learner.schedule(1)
    assert prototypes["lr"] > 0
    assert SelfDistillation(tiny_config(schedule={"kind": "constant"}), CPU).schedules.momentum(19) == 0.9


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    student = build_distiller(tiny_config())
    groups = list(parameter_groups(student, tiny_config()))
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in student.parameters())
    assert all(group["decays"] is False for group in groups for p in group["params"] if p.ndim < 2)


def test_each_term_can_be_switched_off() -> None:
    def terms(**weights: float) -> set[str]:
        learner = SelfDistillation(tiny_config(terms=weights, gram={"start": 0.0}), CPU)
        step_once(learner)
        return {"dino", "ibot", "koleo", "gram"} & learner.update(0).keys()

    assert terms() == {"dino", "ibot", "koleo"}
    assert terms(ibot=0) == {"dino", "koleo"}
    assert terms(koleo=0, gram=1.0) == {"dino", "ibot", "gram"}


def test_tied_heads_share_prototypes() -> None:
    tied, untied = (build_distiller(tiny_config(heads={"untied": u})) for u in (False, True))
    extra = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert tied.own_patch_head is None
    assert extra == sum(p.numel() for p in tied.cls_head.parameters())


def test_the_gram_teacher_is_taken_at_the_start_and_renewed() -> None:
    learner = SelfDistillation(tiny_config(terms={"gram": 1.0}, gram={"start": 0.1, "refresh_steps": 2}), CPU)
    same = []
    for step in range(5):
        step_once(learner, step)
        learner.update(step)
        assert learner.anchor is not None
        pairs = zip(learner.anchor.parameters(), learner.teacher.encoder.parameters(), strict=True)
        same.append(all(torch.equal(a, b) for a, b in pairs))
    assert same == [False, True, False, True, False]


def test_collapse_signs_tell_sound_from_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = collapse_signs(torch.eye(16) - 0.5, torch.randn(16, 64, generator=generator), 0.04)
    assert sound["information"] == pytest.approx(1, abs=1e-3)
    assert sound["prototypes_used"] == 1
    assert sound["entropy"] < 0.01
    assert sound["feature_std"] == pytest.approx(1, abs=0.1)
    assert sound["feature_rank"] > 0.7
    assert warn_of(sound) is None
    constant = collapse_signs(torch.ones(16, 8).cumsum(1), torch.ones(16, 64), 0.04)
    assert constant["information"] == pytest.approx(0, abs=1e-6)
    assert constant["feature_std"] == pytest.approx(0, abs=1e-6)
    assert constant["prototypes_used"] == 1 / 8
    assert "information" in str(warn_of(constant))


def run(config: PretrainConfig, folder: Path) -> list[dict[str, Any]]:
    learner, entries = SelfDistillation(config, CPU), list[dict[str, Any]]()
    fit_learner(
        learner, lambda n: draw_batch(n, tiny_tiles(), config, patch_px=8), config.loop, folder,
        resume=False, evaluate=lambda net, step: {}, report=entries.append,
    )  # fmt: skip
    return entries


def test_provoked_collapse_is_detected_and_the_recipe_does_not_collapse(tmp_path: Path) -> None:
    common: dict[str, Any] = {"batch": 8, "loop": {"steps": 60}, "schedule": {"lr": 0.05, "momentum": [0.9, 0.9]}}
    target = {"kind": "none", "temperature": [1.0, 1.0], "student_temperature": 1.0}
    bad = run(tiny_config(**common, target=target, terms={"koleo": 0}), tmp_path / "bad")
    good = run(tiny_config(**common), tmp_path / "good")
    last = [[e for e in entries if "information" in e][-1] for entries in (bad, good)]
    assert "collapse" in last[0]["warning"]
    assert "warning" not in last[1]
    assert last[1]["information"] > 10 * last[0]["information"]


def test_the_loss_is_a_number_that_falls(tmp_path: Path) -> None:
    entries = run(tiny_config(loop={"steps": 60}, schedule={"lr": 0.05}), tmp_path)
    losses = [e["dino"] + e["ibot"] for e in entries if "loss" in e]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
