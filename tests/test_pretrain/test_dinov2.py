"""Student, teacher and schedules: the effect of each ingredient on its own."""

from typing import Any

import numpy as np
import pytest
import torch
from pretraining import CPU, run_steps, step_once, tiny_config, tiny_tiles
from torch.utils._pytree import tree_leaves

from pretrain.batch import draw_batch
from pretrain.dinov2 import Distiller, SelfDistillation, build_distiller, parameter_groups, patch_weights


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


def test_patch_weights_sum_to_one_in_every_masked_image() -> None:
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[2, :, 0] = True
    assert patch_weights(masks).tolist() == [1.0, 0.5, 0.5]


def test_rates_reach_the_groups_of_the_optimizer() -> None:
    config = tiny_config(schedule={"lr": 8e-3, "layer_decay": 0.5, "patch_embed": 0.2, "freeze_last": 0.05})
    learner = SelfDistillation(config, CPU)
    rates = learner.schedule(0)
    assert rates == {"lr": learner.schedules.learning_rate(0), "weight_decay": learner.schedules.weight_decay(0)}
    scales = {group["scale"] for group in parameter_groups(learner.student, config)}
    assert scales == {1.0, 0.5, 0.25, 0.125, 0.125 * 0.2}, "two blocks below heads, embeddings below both"
    for group in learner.optimizer.param_groups:
        assert group["lr"] == (0 if group["prototypes"] else rates["lr"] * group["scale"])
        assert group["weight_decay"] == (rates["weight_decay"] if group["decays"] else 0)
    learner.schedule(1)
    assert all(group["lr"] > 0 for group in learner.optimizer.param_groups), "prototypes are frozen for one step"


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    student = build_distiller(tiny_config())
    groups = list(parameter_groups(student, tiny_config()))
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in student.parameters())
    assert all(group["decays"] is False for group in groups for p in group["params"] if p.ndim < 2)
    spared = [p for name, p in student.named_parameters() if "pos_embed" in name or "_token" in name]
    decayed = {id(p) for group in groups if group["decays"] for p in group["params"]}
    tokens = {name for name, p in student.named_parameters() if id(p) in decayed and "pos_embed" in name}
    assert spared and not tokens


def test_each_term_can_be_switched_off() -> None:
    def terms(**weights: float) -> set[str]:
        learner = SelfDistillation(tiny_config(terms=weights, gram={"start": 0.0}), CPU)
        step_once(learner)
        return {"dino", "ibot", "koleo", "gram"} & learner.update(0).keys()

    assert terms() == {"dino", "ibot", "koleo"}
    assert terms(ibot=0) == {"dino", "koleo"}
    assert terms(koleo=0, gram=1.0) == {"dino", "ibot", "gram"}


def test_the_loss_is_the_weighted_sum_of_its_logged_terms() -> None:
    learner = SelfDistillation(tiny_config(terms={"dino": 2.0, "koleo": 0.5, "statistics": 3.0}), CPU)
    loss = learner.loss(draw_batch(0, tiny_tiles(), learner.config, 8), 0).item()
    entry = learner.update(0)
    expected = 2 * entry["dino"] + entry["ibot"] + 0.5 * entry["koleo"] + 3 * entry["statistics"]
    assert loss == pytest.approx(expected, rel=1e-6)


def test_signs_of_collapse_are_measured_at_their_steps_and_warn_after_the_warmup() -> None:
    flat = {"kind": "none", "temperature": [1.0, 1.0], "student_temperature": 1.0}
    learner = SelfDistillation(tiny_config(target=flat, schedule={"warmup": 0.3}, monitor_every=3), CPU)
    entries = run_steps(learner, 8)
    assert [step for step, entry in enumerate(entries) if "information" in entry] == [0, 3, 6]
    assert [step for step, entry in enumerate(entries) if "warning" in entry] == [6]
    assert entries[6].keys() > {"entropy", "prototypes_used", "feature_std", "feature_rank"}


def test_tied_heads_share_prototypes() -> None:
    def parameters(student: Distiller) -> int:
        return sum(p.numel() for p in student.parameters())

    tied, untied = (build_distiller(tiny_config(heads={"untied": u})) for u in (False, True))
    assert tied.own_patch_head is None
    assert parameters(untied) - parameters(tied) == sum(p.numel() for p in tied.cls_head.parameters())


def test_the_two_heads_may_differ_in_shape_and_the_gain_waits_with_its_prototypes() -> None:
    heads = {"patches": {"hidden": 24, "bottleneck": 8, "prototypes": 48, "gain": True}}
    for kind in ("sinkhorn", "centre"):
        learner = SelfDistillation(tiny_config(heads=heads, target={"kind": kind}, schedule={"freeze_last": 0.5}), CPU)
        patch_head = learner.student.own_patch_head
        assert patch_head is not None and patch_head.prototypes_gain is not None
        assert (learner.student.cls_head.prototypes.shape, patch_head.prototypes.shape) == ((32, 16), (48, 8))
        assert np.isfinite(step_once(learner))
        assert torch.equal(patch_head.prototypes_gain, torch.ones(48, 1)), "it does not move while prototypes stay"


def test_the_gram_teacher_is_copied_at_the_start_and_renewed() -> None:
    learner = SelfDistillation(tiny_config(terms={"gram": 1.0}, gram={"start": 0.1, "refresh_steps": 2}), CPU)
    equal = []
    for step in range(5):
        step_once(learner, step)
        learner.update(step)
        assert learner.anchor is not None
        pairs = zip(learner.anchor.parameters(), learner.teacher.encoder.parameters(), strict=True)
        equal.append(all(torch.equal(a, b) for a, b in pairs))
    assert equal == [False, True, False, True, False]


@pytest.mark.slow
def test_provoked_collapse_is_detected_and_the_recipe_does_not_collapse() -> None:
    common: dict[str, Any] = {
        "batch": 8,
        "loop": {"steps": 40, "seed": 2},
        "schedule": {"lr": 0.05, "momentum": [0.9, 0.9]},
    }
    target = {"kind": "none", "temperature": [1.0, 1.0], "student_temperature": 1.0}
    configs = tiny_config(**common, target=target, terms={"koleo": 0}), tiny_config(**common)
    bad, good = (
        [entry for entry in run_steps(SelfDistillation(config, CPU), 36) if "information" in entry][-1]
        for config in configs
    )
    assert "collapse" in bad["warning"]
    assert "warning" not in good
    assert good["information"] > 10 * bad["information"]


def test_the_loss_falls() -> None:
    entries = run_steps(SelfDistillation(tiny_config(loop={"steps": 40}, schedule={"lr": 0.05}), CPU), 40)
    losses = [entry["dino"] + entry["ibot"] for entry in entries]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_a_checkpoint_names_its_parts_as_before() -> None:
    learner = SelfDistillation(tiny_config(terms={"gram": 1.0, "statistics": 1.0}), CPU)
    parts = learner.parts()
    assert list(parts) == ["net", "average", "centres", "optimizer", "standardisers", "anchor"]
    assert {"encoder.mask_token", "tellers.statistics.weight", "own_patch_head.prototypes"} < set(
        parts["net"].state_dict()
    )
    assert set(parts["standardisers"].state_dict()) == {"statistics.mean", "statistics.square", "statistics.seen"}
    assert set(parts["centres"].state_dict()) == {"0.mean", "1.mean"}


def test_data_parallel_wrappers_find_every_tensor_of_the_output() -> None:
    learner = SelfDistillation(tiny_config(terms={"statistics": 1.0}), CPU)
    crops, masks = torch.rand(2, 4, 3, 32, 32), torch.ones(2, 4, 4, 4, dtype=torch.bool)
    leaves = tree_leaves(learner.student(crops, None, masks, blind=True))
    assert len(leaves) == 5
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
