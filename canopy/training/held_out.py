"""Scores and intervals of a network in training on held-out scenes."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from canopy.dataset.scene import Scene
from canopy.evaluation import Heights, height_metrics
from canopy.models.bundle import HeightIntervals
from canopy.models.heads import HeightBins
from canopy.models.intervals import FEWEST_CELLS, coverage, fit_intervals, raw_interval_m, widened
from tiles.windows import window_starts


class BinNet(Protocol):
    """A network that ends in logits over height bins at half of the image's resolution."""

    bins: HeightBins

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, bins, H / 2, W / 2)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""
        ...


Predicted = list[tuple[Scene, Heights]]
"""Scenes never trained on, each with its height and raw interval (3, H, W)."""


def score(predictions: Predicted) -> dict[str, Any]:
    """Held-out metrics at the heights' own cells: under ``all`` and under each group of scenes."""
    groups = {"all": predictions}
    for scene, heights in predictions:
        groups.setdefault(scene.group, []).append((scene, heights))
    return {
        name: {
            "scenes": len(members),
            **height_metrics([(h[0], s.height_m) for s, h in members], members[0][0].cell_m),
        }
        for name, members in groups.items()
    }


@torch.inference_mode()
def predict_scene(net: BinNet, scene: Scene, chip_px: int = 256) -> Heights:
    """Height and raw 90 % interval of a scene at its own cells, mirrored to whole chips, which do not overlap.

    Args:
        net: In eval mode.
        scene: Image and heights.
        chip_px: Side of a chip.

    Returns:
        (3, H, W) float32 metres.
    """
    rows, cols = scene.image.shape[1:]
    pad = [
        (0, 0),
        (0, max(chip_px, -(-rows // 32) * 32) - rows),
        (0, max(chip_px, -(-cols // 32) * 32) - cols),
    ]
    padded = np.pad(scene.image, pad, mode="symmetric")
    starts = [window_starts(length, chip_px) for length in padded.shape[1:]]
    total = np.zeros((3, padded.shape[1] // 2, padded.shape[2] // 2), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    device = next(net.parameters()).device
    for row in starts[0]:
        for col in starts[1]:
            chip = torch.from_numpy(padded[:, row : row + chip_px, col : col + chip_px]).float().div(255)
            chip_m = raw_interval_m(net.bins, net(chip[None].to(device)))[0].cpu().numpy()
            where = np.s_[row // 2 : (row + chip_px) // 2, col // 2 : (col + chip_px) // 2]
            total[:, *where] += chip_m
            count[where] += 1
    return (total / count)[:, : rows // 2, : cols // 2].astype(np.float32)


def held_out_intervals(predictions: Predicted) -> tuple[HeightIntervals | None, dict[str, Any]]:
    """The interval's calibration on all held-out ground, and its coverage; None where that ground is too small.

    For the coverage, half of the ground, in squares of 64 m like those of a chessboard, tests what the other half
    calibrated, and the reverse.
    """
    raw = np.concatenate([made.reshape(3, -1) for _, made in predictions], axis=1)
    truth = np.concatenate([scene.height_m.ravel() for scene, _ in predictions])
    half = np.concatenate([_chessboard(scene, number) for number, (scene, _) in enumerate(predictions)])
    if min((half & ~np.isnan(truth)).sum(), (~half & ~np.isnan(truth)).sum()) < FEWEST_CELLS:
        return None, {}
    tested = np.empty_like(raw)
    for one in (True, False):
        here = half == one
        tested[:, here] = widened(raw[:, here], fit_intervals(raw[:, ~here], truth[~here]))
    return fit_intervals(raw, truth), coverage(tested, truth)


def _chessboard(scene: Scene, number: int) -> np.ndarray:
    side = max(1, round(INTERVAL_BLOCK_M / scene.cell_m))
    row, col = np.indices(scene.height_m.shape) // side
    return np.asarray((row + col + number) % 2 == 0).ravel()


INTERVAL_BLOCK_M = 64
