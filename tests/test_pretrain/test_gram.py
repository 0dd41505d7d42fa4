"""The Gram teacher: what it sees at each resolution, and what it gives the student's patches."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretraining import CPU, run_steps, tiny_config, tiny_tiles
from torch import Tensor

from pretrain import dinov2
from pretrain.augment import crop
from pretrain.batch import TileBatch, draw_batch
from pretrain.config import PretrainConfig
from pretrain.data import ArrayTiles
from pretrain.dinov2 import SelfDistillation
from pretrain.losses import gram_loss, shrink_grid

PLAIN = {
    "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "tint": 0, "gamma": 0, "haze_share": 0, "blur_share": 0,
}  # fmt: skip


def anchored(**changes: Any) -> PretrainConfig:
    return tiny_config(**{"terms": {"gram": 1.0}, "gram": {"start": 0.0}, **changes})


def seen(learner: SelfDistillation, batch: TileBatch) -> Tensor:
    """Return the images (n, 3, H, W) that the Gram teacher sees of a batch."""
    assert learner.anchor is not None
    images: list[Tensor] = []
    hook = learner.anchor.register_forward_pre_hook(lambda module, args: images.append(args[0]))
    learner.loss(batch, 0)
    hook.remove()
    (image,) = images
    return image


def batch_of(config: PretrainConfig, tiles: ArrayTiles) -> TileBatch:
    return draw_batch(0, tiles, config, 8)


def test_at_resolution_1_the_gram_teacher_sees_what_the_student_sees() -> None:
    config, entries = anchored(), []
    batch = batch_of(config, tiny_tiles())
    learner = SelfDistillation(config, CPU)
    assert learner.anchor is not None
    with torch.no_grad():
        for p in learner.anchor.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        crops = crop(batch.tiles, batch.gsd_m, batch.global_draws, 32, 0.5)
        assert torch.equal(seen(learner, batch), crops.flatten(0, 1))
        student = learner.student.encoder(crops.flatten(0, 1), batch.masks.flatten(0, 1))[1]
        expected = gram_loss(student, learner.anchor(crops.flatten(0, 1))[1])
    assert learner.update(0)["gram"] == pytest.approx(expected.item(), rel=1e-6)
    for gram in ({}, {"resolution": 1}):
        config = anchored(gram={"start": 0.2, "refresh_steps": 2, **gram})
        entries.append(run_steps(SelfDistillation(config, CPU), 6))
    assert entries[0] == entries[1]
    assert [("gram" in entry) for entry in entries[0]] == [False] * 4 + [True] * 2


def test_at_resolution_2_it_sees_twice_the_pixels_and_gives_the_grid_of_the_student(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: list[tuple[torch.Size, torch.Size]] = []

    def gram(student: Tensor, teacher: Tensor) -> Tensor:
        shapes.append((student.shape, teacher.shape))
        return gram_loss(student, teacher)

    monkeypatch.setattr(dinov2, "gram_loss", gram)
    config = anchored(gram={"start": 0.0, "resolution": 2})
    learner, batch = SelfDistillation(config, CPU), batch_of(config, tiny_tiles(side=64))
    assert seen(learner, batch).shape == (2 * 4, 3, 64, 64)
    assert shapes == [((8, 16, 32), (8, 16, 32))]
    once = anchored(gram={"start": 0.0})
    other = SelfDistillation(once, CPU)
    losses = [net.loss(batch_of(once, tiny_tiles(side=64)), 0).item() for net in (learner, other)]
    assert losses[0] != losses[1]
    late = anchored(gram={"start": 0.5, "resolution": 2})
    assert ["gram" in entry for entry in run_steps(SelfDistillation(late, CPU), 12)] == [False] * 10 + [True] * 2


def test_its_pixels_are_those_of_the_imagery_over_the_same_ground() -> None:
    """Crops at twice the imagery's GSD: the student's blur a chequerboard of single pixels, the teacher's show it."""
    config = anchored(colour=PLAIN, gram={"start": 0.0, "resolution": 2}, global_crops={"px": 32, "gsd": [2.0, 2.0]})
    learner = SelfDistillation(config, CPU)
    smooth = tiny_tiles(side=128)
    waves = np.cos(np.linspace(0, 4 * np.pi, 128)) * 60 + 120
    smooth = replace(smooth, images=np.broadcast_to(waves[:, None] / 2 + waves / 2, (12, 3, 128, 128)).astype(np.uint8))
    batch = batch_of(config, smooth)
    student = crop(batch.tiles, batch.gsd_m, batch.global_draws, 32, 0.5).flatten(0, 1)
    torch.testing.assert_close(F.avg_pool2d(seen(learner, batch), 2), student, atol=0.02, rtol=0)
    rows, cols = np.indices((128, 128))
    chequered = np.broadcast_to((rows + cols) % 2 * 255, (12, 3, 128, 128)).astype(np.uint8)
    batch = batch_of(config, replace(smooth, images=chequered))
    batch = replace(batch, global_draws=replace(batch.global_draws, turn=torch.eye(2).expand(2, 4, 2, 2)))
    image = seen(learner, batch)
    enlarged = F.interpolate(
        crop(batch.tiles, batch.gsd_m, batch.global_draws, 32, 0.5).flatten(0, 1), scale_factor=2, mode="bilinear"
    )
    contrast = [pixels.diff(dim=-1).abs().mean().item() for pixels in (image, enlarged)]
    assert contrast[0] > 0.2, "pixels of the tile, resampled at their own size"
    assert contrast[1] < 0.05


def test_features_of_a_finer_grid_are_shrunk_in_raster_order() -> None:
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    fine = torch.stack([rows, cols, torch.full_like(rows, 3.0)], dim=-1).view(1, 256, 3)
    coarse = shrink_grid(fine, 2).view(8, 8, 3)
    middle = coarse[2:-2, 2:-2]
    expected = 2 * torch.arange(2.0, 6.0) + 0.5
    torch.testing.assert_close(middle[..., 0], expected[:, None].expand(4, 4))
    torch.testing.assert_close(middle[..., 1], expected.expand(4, 4))
    torch.testing.assert_close(coarse[..., 2], torch.full((8, 8), 3.0))
    one = torch.zeros(1, 256, 1)
    one[0, 16 * 6 + 9] = 4.0  # in the patch of row 3 and column 4
    assert shrink_grid(one, 2)[0, :, 0].argmax() == 8 * 3 + 4
    assert shrink_grid(one, 2).sum() == pytest.approx(1.0, abs=1e-2), "every patch has its share"
