"""Scores and intervals of a network in training on held-out scenes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from canopy.dataset.scene import Scene
from canopy.evaluation import Heights, height_metrics
from canopy.evaluation.metrics import Scores
from canopy.models.bundle import Decode, HeightIntervals
from canopy.models.heads import HeightBins
from canopy.models.intervals import (
    FEWEST_CELLS,
    Coverage,
    CoverageByHeight,
    fit_intervals,
    interval_coverage,
    raw_interval_m,
    widened,
)
from tiles.fill import extend
from tiles.windows import window_starts

INTERVAL_BLOCK_M = 64
"""Side of the squares of ground that calibrate or test an interval."""


class BinNet(Protocol):
    """A network that ends in logits over height bins at half of the image's resolution."""

    bins: HeightBins

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, bins, H / 2, W / 2)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters, as any module does."""
        ...


@dataclass(frozen=True)
class ScenePrediction:
    """What a network predicts for a scene that it was never trained on."""

    scene: Scene
    """Scene with its true heights."""
    interval_m: Heights
    """(3, H, W) float32 metres: height, and the ends of its raw 90 % interval."""


@dataclass(frozen=True)
class GroupScores:
    """Scores of a group of scenes."""

    scenes: int
    """Number of scenes."""
    scores: Scores
    """Scores at the heights' own cells."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as they stand in a card and in the log."""
        return {"scenes": self.scenes, **self.scores.to_json()}


def score(predictions: Sequence[ScenePrediction]) -> dict[str, GroupScores]:
    """Score predictions at the heights' own cells: under ``all`` and under each group of scenes; empty without any."""
    groups: dict[str, list[ScenePrediction]] = {"all": list(predictions)} if predictions else {}
    for prediction in predictions:
        groups.setdefault(prediction.scene.group, []).append(prediction)
    return {name: _group_scores(members) for name, members in groups.items()}


def _group_scores(members: Sequence[ScenePrediction]) -> GroupScores:
    pairs = [(member.interval_m[0], member.scene.height_m) for member in members]
    return GroupScores(len(members), height_metrics(pairs, members[0].scene.cell_m))


@torch.inference_mode()
def predict_scene(net: BinNet, scene: Scene, chip_px: int = 256, decode: Decode = "mean") -> Heights:
    """Predict height and raw 90 % interval of a scene at its own cells, mirrored out to whole chips.

    Args:
        net: Network in eval mode.
        scene: Image and heights.
        chip_px: Side of a chip, pixels.
        decode: How heights are read off the bins.

    Returns:
        (3, H, W) float32 metres.
    """
    rows, cols = scene.image.shape[1:]
    missing_rows, missing_cols = (max(chip_px, -(-length // 32) * 32) - length for length in (rows, cols))
    padded = extend(scene.image, (0, 0), (missing_rows, missing_cols))
    # Chips do not overlap, except that the last of a row or column is moved back to end at the border.
    starts = [window_starts(length, chip_px) for length in padded.shape[1:]]
    total = np.zeros((3, padded.shape[1] // 2, padded.shape[2] // 2), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    device = next(net.parameters()).device
    for row in starts[0]:
        for col in starts[1]:
            chip = torch.from_numpy(padded[:, row : row + chip_px, col : col + chip_px]).float().div(255)
            chip_m = raw_interval_m(net.bins, net(chip[None].to(device)), decode)[0].cpu().numpy()
            where = np.s_[row // 2 : (row + chip_px) // 2, col // 2 : (col + chip_px) // 2]
            total[:, *where] += chip_m
            count[where] += 1
    return (total / count)[:, : rows // 2, : cols // 2].astype(np.float32)


@dataclass(frozen=True)
class HeldOutIntervals:
    """The calibration of a network's 90 % interval, and how well it does."""

    intervals: HeightIntervals
    """Offsets fitted to all held-out ground."""
    coverage: CoverageByHeight
    """Coverage of held-out ground by offsets that were fitted to other held-out ground."""
    by_site: dict[str, Coverage]
    """Coverage of each group of scenes by offsets that were fitted to all other groups; empty where there is one."""

    def coverage_json(self) -> dict[str, Any]:
        """Return the coverage as it stands in a card."""
        return {**asdict(self.coverage), "by_site": {name: asdict(site) for name, site in self.by_site.items()}}


def held_out_intervals(predictions: Sequence[ScenePrediction]) -> HeldOutIntervals | None:
    """Calibrate the interval on all held-out ground and measure its coverage; None where that ground is too small.

    For the coverage, half of the ground, in squares of 64 m like those of a chessboard, tests what the other half
    calibrated, and the reverse. For that of a site, the site tests what all others calibrated.
    """
    if not predictions:
        return None
    raw = np.concatenate([prediction.interval_m.reshape(3, -1) for prediction in predictions], axis=1)
    truth = np.concatenate([prediction.scene.height_m.ravel() for prediction in predictions])
    half = np.concatenate([_chessboard(prediction.scene, n) for n, prediction in enumerate(predictions)])
    if min((half & ~np.isnan(truth)).sum(), (~half & ~np.isnan(truth)).sum()) < FEWEST_CELLS:
        return None
    # The white squares test what the black ones calibrated, then the reverse; what ships is fitted to all of them.
    tested = np.empty_like(raw)
    for colour in (True, False):
        cells = half == colour
        tested[:, cells] = widened(raw[:, cells], fit_intervals(raw[:, ~cells], truth[~cells]))
    groups = np.concatenate([np.full(one.scene.height_m.size, one.scene.group) for one in predictions])
    by_site = _coverage_by_site(raw, truth, groups)
    return HeldOutIntervals(fit_intervals(raw, truth), interval_coverage(tested, truth), by_site)


def _coverage_by_site(raw_m: Heights, truth_m: Heights, groups: NDArray[np.str_]) -> dict[str, Coverage]:
    """Return the coverage of each group by offsets fitted to the other groups, where both have cells enough."""
    coverages = {}
    for name in sorted(set(groups.tolist())):
        cells = groups == name
        if min((cells & ~np.isnan(truth_m)).sum(), (~cells & ~np.isnan(truth_m)).sum()) < FEWEST_CELLS:
            continue
        intervals = fit_intervals(raw_m[:, ~cells], truth_m[~cells])
        whole = interval_coverage(widened(raw_m[:, cells], intervals), truth_m[cells])
        coverages[name] = Coverage(whole.coverage, whole.width_m, whole.n_px)
    return coverages


def _chessboard(scene: Scene, number: int) -> NDArray[np.bool_]:
    """Return which cells (H W,) of a scene lie on white squares; every other scene begins with a black one."""
    side = max(1, round(INTERVAL_BLOCK_M / scene.cell_m))
    row, col = np.indices(scene.height_m.shape) // side
    return np.asarray((row + col + number) % 2 == 0).ravel()
