"""A step of self-distillation against its bare networks, and against the same step assembled from lightly's parts.

Run: python benchmarks/pretraining.py [--config CONFIG.yaml] [--steps N]   (its last row needs lightly)

The bare networks: student forward and backward and teacher forward on the same crops, with a sum for a loss.
lightly's step: its transforms, masks, losses and momentum update around the same networks, in the same process.
Times are CPU seconds of this process where there is no GPU, so a busy machine distorts them less. Figures in
docs/pretraining.md.
"""

import argparse
import contextlib
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canopy.config import load_config
from canopy.training.loop import computes_bf16
from pretrain.batch import draw_batch, draw_rows
from pretrain.config import PretrainConfig
from pretrain.data import ArrayTiles, Tiles
from pretrain.dinov2 import SelfDistillation

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain-ssl.yaml"
WORLD = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Time a step and its parts, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    config = load_config(options.config, PretrainConfig)
    learner, tiles = SelfDistillation(config, DEVICE), noise(config)
    whole = median_s(lambda n: step(learner, tiles, n), options.steps)
    bare = median_s(bare_networks(learner, tiles), options.steps)
    drawing = median_s(lambda n: draw_batch(n, tiles, config, learner.student.encoder.patch_px), options.steps)
    share_s = median_s(rank_share(config, tiles, learner.student.encoder.patch_px), options.steps)
    print(f"| part of a step of {config.batch} tiles, {config.encoder} | seconds | of the step |\n|---|---|---|")
    print(f"| whole step | {whole:.3f} | 1 |")
    print(f"| student and teacher, forward and backward | {bare:.3f} | {bare / whole:.2f} |")
    print(f"| drawing the batch (in a thread of its own) | {drawing:.3f} | {drawing / whole:.2f} |")
    print(f"| the same rows as one of {WORLD} ranks | {share_s:.3f} | {share_s / whole:.2f} |")
    with contextlib.suppress(ImportError):
        lightly_s = median_s(lightly_step(config, tiles), options.steps)
        print(f"| the step assembled from lightly | {lightly_s:.3f} | {lightly_s / whole:.2f} |")
    print(f"\n{config.batch / whole:.1f} tiles per second; peak memory {peak_gib():.2f} GiB")


def rank_share(config: PretrainConfig, tiles: Tiles, patch_px: int) -> Callable[[int], None]:
    """Return the drawing of a rank's rows, as many as a batch has, of a batch that is `WORLD` times as large."""
    large = config.model_copy(update={"batch": WORLD * config.batch})
    rows = range(config.batch * (WORLD - 1), config.batch * WORLD)
    return lambda number: draw_rows(number, rows, tiles, large, patch_px)


def noise(config: PretrainConfig) -> ArrayTiles:
    """Return tiles of noise: their content does not change the time."""
    side, count = config.tiles.tile_px, 2 * config.batch
    images = np.random.default_rng(0).integers(0, 255, (count, 3, side, side)).astype(np.uint8)
    return ArrayTiles(images, np.full(count, config.gsd_m), "noise")


def median_s(run: Callable[[int], Any], steps: int) -> float:
    """Return the median seconds of a call: of the process on a CPU, of the clock on a GPU."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    run(0)
    spent = []
    for number in range(1, steps + 1):
        began = clock()
        run(number)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        spent.append(clock() - began)
    return statistics.median(spent)


def autocast(config: PretrainConfig) -> torch.autocast:
    """Return the autocast of the training loop."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=config.loop.amp and computes_bf16(DEVICE))


def step(learner: SelfDistillation, tiles: Tiles, number: int) -> None:
    """Take one whole step, as the training loop does."""
    batch = draw_batch(number, tiles, learner.config, learner.student.encoder.patch_px)
    learner.student.train()
    learner.schedule(number)
    with autocast(learner.config):
        loss = learner.loss(batch, number)
    finish(loss, learner, number)


def finish(loss: torch.Tensor, learner: SelfDistillation, number: int) -> None:
    """Do the backward pass, clip, step the optimizer, move the average."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.student.parameters(), learner.config.loop.clip_norm)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.update(number)


def bare_networks(learner: SelfDistillation, tiles: Tiles) -> Callable[[int], None]:
    """Return a step of the networks alone, on crops cut beforehand."""
    config = learner.config
    batch = draw_batch(0, tiles, config, learner.student.encoder.patch_px)
    count, rows = config.global_crops.count, config.batch
    global_crops = torch.rand(count, rows, 3, batch.global_px, batch.global_px, device=DEVICE)
    local_crops = torch.rand(config.local_crops.count, rows, 3, batch.local_px, batch.local_px, device=DEVICE)
    masks = batch.masks.to(DEVICE)

    def run(number: int) -> None:
        with autocast(config):
            with torch.no_grad():
                learner.teacher(global_crops, None, masks, blind=False)
            tokens = learner.student(global_crops, local_crops, masks, blind=True)
            total = tokens.cls_logits.float().sum() + tokens.patch_logits.float().sum() + tokens.cls.float().sum()
        total.backward()
        learner.optimizer.zero_grad(set_to_none=True)

    return run


def lightly_step(config: PretrainConfig, tiles: Tiles) -> Callable[[int], None]:
    """Return the same step from lightly's transforms, masks, losses and momentum update."""
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.utils import random_block_mask, update_momentum
    from lightly.transforms.dino_transform import DINOTransform
    from PIL import Image

    learner = SelfDistillation(config, DEVICE)
    views = DINOTransform(
        global_crop_size=config.global_crops.px, local_crop_size=config.local_crops.px,
        n_local_views=config.local_crops.count, vf_prob=0.5, rr_prob=0.5,
    )  # fmt: skip
    prototypes = config.heads.prototypes
    dino, ibot = DINOLoss(prototypes).to(DEVICE), IBOTPatchLoss(prototypes).to(DEVICE)
    koleo = KoLeoLoss()
    side = config.global_crops.px // learner.student.encoder.patch_px

    def run(number: int) -> None:
        learner.schedule(number)
        pictures = [Image.fromarray(tiles[i % len(tiles)].transpose(1, 2, 0)) for i in range(config.batch)]
        crops = [torch.stack(crop).to(DEVICE) for crop in zip(*(views(p) for p in pictures), strict=True)]
        global_crops, local_crops = torch.stack(crops[:2]), torch.stack(crops[2:])
        masks = random_block_mask((2 * config.batch, side, side), min_num_masks_per_block=1).to(DEVICE)
        by_crop = masks.view(2, config.batch, side, side)
        with autocast(config):
            with torch.no_grad():
                teacher = learner.teacher(global_crops, None, by_crop, blind=False)
            student = learner.student(global_crops, local_crops, by_crop, blind=True)
            loss = dino(list(teacher.cls_logits.float()), list(student.cls_logits.float()))
            loss = loss + ibot(teacher.patch_logits.float(), student.patch_logits.float(), masks)
            loss = loss + 0.1 * sum(koleo(cls.float()) for cls in student.cls) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.student.parameters(), config.loop.clip_norm)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        update_momentum(learner.student, learner.average, 0.99)

    return run


def peak_gib() -> float:
    """Return the peak memory, of the device where there is one."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
