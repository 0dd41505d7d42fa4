"""The assembled objective against one derived from the papers and DINOv2's code, in numpy, loop by loop.

The parts agree with other implementations one by one (`test_losses`); here it is the whole that must mean DINOv2's
numbers: two global crops of which half are masked, local crops, both targets, all weights. DINOv2 divides iBOT's sum by
all global crops and adds KoLeo over them (facebookresearch/dinov2, `ssl_meta_arch.py` and `ibot_patch_loss.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pretraining import CPU, tiny_config, tiny_tiles

from pretrain.augment import crop
from pretrain.batch import TileBatch, draw_batch
from pretrain.config import PretrainConfig
from pretrain.dinov2 import Distiller, SelfDistillation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network, crop by crop."""

    cls: list[Array]
    """(B, D) class tokens of each crop."""
    cls_logits: list[Array]
    """(B, K) of each crop."""
    patch_logits: list[Array]
    """(B, P, K) of each global crop."""


def outputs(net: Distiller, crops: list[torch.Tensor], masks: list[torch.Tensor | None], patch_crops: int) -> Outputs:
    """Run a network crop by crop, and its heads on all tokens."""
    patch_head = net.own_patch_head or net.cls_head
    tokens = [net.encoder(image, mask) for image, mask in zip(crops, masks, strict=True)]
    return Outputs(
        [cls.double().numpy() for cls, _ in tokens],
        [net.cls_head(cls).double().numpy() for cls, _ in tokens],
        [patch_head(patches).double().numpy() for _, patches in tokens[:patch_crops]],
    )


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def sinkhorn(logits: Array, temperature: float) -> Array:
    """SwAV's listing 1: normalise prototypes, then samples, three times."""
    q = np.exp(logits / temperature).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * len(q)
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return np.asarray((q * q.shape[1]).T)


def targets(logits: Array, config: PretrainConfig, temperature: float) -> Array:
    """Probabilities of (n, K) logits; the centre of the first step is 0."""
    if config.target.kind == "sinkhorn":
        return sinkhorn(logits, temperature)
    return np.array([softmax(row / temperature) for row in logits])


def objective(student: Outputs, teacher: Outputs, masks: NDArray[np.bool_], config: PretrainConfig) -> float:
    """Return dino + ibot + 0.1 koleo, from the outputs of both networks and masks (C, B, P)."""
    temperature, tau = config.target.temperature[0], config.target.student_temperature
    images, globals_ = len(student.cls[0]), len(masks)

    assigned = targets(np.concatenate(teacher.cls_logits), config, temperature).reshape(globals_, images, -1)
    pairs = [
        -np.mean([assigned[t][b] @ np.log(softmax(student.cls_logits[s][b] / tau)) for b in range(images)])
        for t in range(globals_) for s in range(len(student.cls_logits)) if s != t
    ]  # fmt: skip
    dino = np.mean(pairs)

    where = [(c, b, p) for c, b, p in np.argwhere(masks)]
    patch_targets = targets(np.array([teacher.patch_logits[c][b, p] for c, b, p in where]), config, temperature)
    ibot = 0.0
    for (c, b, p), target in zip(where, patch_targets, strict=True):
        ibot -= target @ np.log(softmax(student.patch_logits[c][b, p] / tau)) / masks[c, b].sum()
    ibot /= globals_ * images

    koleo = 0.0
    for cls in student.cls[:globals_]:
        unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
        nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(images) if j != i) for i in range(images)]
        koleo -= np.mean(np.log(nearest))
    weights = config.terms
    return float(weights.dino * dino + weights.ibot * ibot + weights.koleo * koleo)


def both_objectives(config: PretrainConfig) -> tuple[float, float]:
    """Return the objective of the code and the one derived here, on the same batch and networks."""
    learner = SelfDistillation(config, CPU)
    with torch.no_grad():  # the teacher differs from the student, as after some steps
        for p in learner.average.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = draw_batch(0, tiny_tiles(), config, patch_px=8)
    assert int(batch.masks.flatten(2).any(dim=2).sum()) == batch.masks.shape[0] * batch.masks.shape[1] / 2
    with torch.no_grad():
        loss = learner.loss(batch, 0).item()
        derived = derive(learner, batch, config)
    return loss, derived


def derive(learner: SelfDistillation, batch: TileBatch, config: PretrainConfig) -> float:
    """Cut the crops of a batch, run both networks crop by crop, and derive the objective."""
    globals_ = list(crop(batch.tiles, batch.gsd_m, batch.global_draws, batch.global_px, config.gsd_m))
    locals_ = list(crop(batch.tiles, batch.gsd_m, batch.local_draws, batch.local_px, config.gsd_m))
    masks: list[torch.Tensor | None] = [*batch.masks, *[None] * len(locals_)]
    student = outputs(learner.student.eval(), globals_ + locals_, masks, len(globals_))
    teacher = outputs(learner.average, globals_, [None] * len(globals_), len(globals_))
    return objective(student, teacher, batch.masks.flatten(2).numpy(), config)


@pytest.mark.parametrize("changes", [
    {}, {"target": {"kind": "centre"}}, {"heads": {"untied": False}}, {"local_crops": {"count": 0}},
    {"batch": 6, "terms": {"dino": 0.7, "ibot": 1.3, "koleo": 0.2}}, {"terms": {"dino": 0, "koleo": 0}},
])  # fmt: skip
def test_the_objective_equals_its_derivation(changes: dict[str, Any]) -> None:
    loss, derived = both_objectives(tiny_config(**changes))
    assert loss == pytest.approx(derived, rel=1e-5)
