"""A recipe and tiles so small that a step takes milliseconds."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pretrain.batch import draw_batch
from pretrain.config import PretrainConfig
from pretrain.data import ArrayTiles
from pretrain.dinov2 import SelfDistillation

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "name": "tiny", "batch": 4, "tiles": {"sources": [{"path": "nowhere"}], "tile_px": 32},
    "loop": {"steps": 20, "amp": False, "clip_norm": 3.0, "checkpoint_every": 5, "evaluate_every": 100},
    "encoder_args": {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "reg_tokens": 1, "init_values": 0},
    "drop_path": 0.0,
    "global_crops": {"count": 2, "px": 32}, "local_crops": {"count": 2, "px": 16},
    "heads": {"hidden": 32, "bottleneck": 16, "prototypes": 32},
    "schedule": {"lr": 0.02, "warmup": 0.1, "momentum": [0.9, 1.0], "patch_embed": 1.0}, "monitor_every": 5,
}  # fmt: skip


def tiny_config(**changes: Any) -> PretrainConfig:
    """Return the tiny recipe; a group of settings is changed, not replaced."""
    return PretrainConfig.model_validate(_merge(TINY, changes))


def tiny_tiles(count: int = 12, side: int = 32) -> ArrayTiles:
    """Return tiles of stripes and blots, each unlike the others."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        angle, wave = generator.uniform(0, np.pi), generator.uniform(4, 16)
        stripes = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / wave)
        base, tint = generator.uniform(60, 190, (3, 1, 1)), generator.uniform(20, 60, (3, 1, 1))
        images.append(np.clip(base + tint * stripes + generator.normal(0, 4, (3, side, side)), 0, 255))
    stacked = np.stack(images).astype(np.uint8)
    return ArrayTiles(stacked, np.full(count, 0.5), hashlib.sha256(stacked.tobytes()).hexdigest())


def step_once(learner: SelfDistillation, step: int = 0) -> float:
    """Take one step on the tiny tiles without the moving average, and return the loss."""
    batch = draw_batch(step, tiny_tiles(), learner.config, learner.student.encoder.patch_px)
    learner.schedule(step)
    loss = learner.loss(batch, step)
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return loss.item()


def run_steps(learner: SelfDistillation, steps: int) -> list[dict[str, Any]]:
    """Take steps on the tiny tiles, and return the entries of their log with the losses."""
    return [{"loss": step_once(learner, step), **learner.update(step)} for step in range(steps)]


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
