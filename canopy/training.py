"""Decoder stage: heights learnt from pairs of image and lidar, written as a bundle."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from canopy import __version__
from canopy.bundle import Card, HeightIntervals, read_bundle, read_card, save_bundle
from canopy.config import Config, LossWeights, PairsConfig, TrainConfig, dump_config, load_config
from canopy.errors import TrainingError
from canopy.evaluation import Heights, height_metrics
from canopy.intervals import FEWEST_CELLS, coverage, fit_intervals, raw_interval_m, widened
from canopy.loop import fit
from canopy.losses import charbonnier, gradient_loss, histogram_loss
from canopy.models.dpt import DPTHeights
from canopy.models.heads import SqrtBins
from canopy.models.model import load_weights
from canopy.scenes import (
    Chip,
    Scene,
    Split,
    cast_shadows,
    draw_chip,
    jitter_colour,
    jitter_sharpness,
    mix_chips,
    read_pairs,
)

ChipBatch = Chip
"""Chips stacked along a first dimension."""


class BinNet(Protocol):
    """A network that ends in logits over height bins at half of the image's resolution."""

    bins: SqrtBins

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, bins, H / 2, W / 2)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""
        ...


def train(config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train a height model and write `last.safetensors` and `best.safetensors` (lowest held-out MAE).

    Args:
        config: What to train, on what.
        run: Folder of the run: bundles, `log.jsonl`, `config.yaml`, `checkpoints/`.
        resume: Go on from the last checkpoint, if any.

    Returns:
        Path of the best bundle.

    Raises:
        TrainingError: Data or run are unusable.
    """
    claim_run(run, config, resume)
    split = read_pairs(config.pairs)
    card = _card(config, split)
    net = _start(config, card)
    fit(
        net.to("cuda" if torch.cuda.is_available() else "cpu"),
        partial(height_loss, weights=config.loss),
        partial(draw_batch, scenes=split.train, config=config),
        config.loop,
        run,
        resume=resume,
        evaluate=_Evaluation(run, card, split),
        report=partial(print_entry, steps=config.loop.steps),
    )
    return run / "best.safetensors"


def _start(config: TrainConfig, card: Card) -> DPTHeights:
    """The network with the weights that training starts from."""
    torch.manual_seed(config.loop.seed)
    net = DPTHeights(card, drop_path=config.drop_path)
    if config.detail_weights:
        if net.detail is None:
            raise TrainingError("detail_weights are given, but architecture.detail names no detail network")
        net.detail.load_features(config.detail_weights)
    if config.start:
        load_weights(net, read_bundle(config.start)[1], config.start)
    return net


def claim_run(run: Path, config: Config, resume: bool) -> None:
    """Make the folder of a run, or take up the one there, whose configuration must be the same."""
    record = run / "config.yaml"
    if record.is_file() and not resume:
        raise TrainingError(f"{run} holds a run: pass --resume to go on with it, or name another folder with --out")
    if record.is_file() and load_config(record, type(config)) != config:
        raise TrainingError(f"{record} differs from the configuration given: resume with that, or name another --out")
    run.mkdir(parents=True, exist_ok=True)
    dump_config(config, record)


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
    starts = [_starts(length, chip_px) for length in padded.shape[1:]]
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


def _starts(length: int, chip_px: int) -> list[int]:
    return sorted({*range(0, length - chip_px, chip_px), length - chip_px})


def height_loss(net: nn.Module, batch: ChipBatch, weights: LossWeights) -> Tensor:
    """Weighted sum of the losses of a network with `bins` on a batch of chips."""
    device = next(net.parameters()).device
    image, height = (part.to(device, non_blocking=True) for part in batch)
    known = ~torch.isnan(height)
    logits = net(image)
    bins = cast(SqrtBins, net.bins)
    heights = bins.height_m(logits)
    return (
        weights.histogram * histogram_loss(logits, height, known, bins)
        + weights.charbonnier * charbonnier(heights, height, known)
        + weights.gradient * gradient_loss(heights, height, known)
    )


def draw_batch(number: int, scenes: Sequence[Scene], config: TrainConfig) -> ChipBatch:
    """The batch of a number: image (B, 3, H, W) and height_m (B, H / 2, W / 2)."""
    generator = np.random.default_rng((config.loop.seed, number))
    chances = _chances(scenes, config.pairs)
    chips = []
    for _ in range(config.batch):
        chip = _draw(scenes, chances, generator, config)
        if generator.random() < config.mix:
            chip = mix_chips(chip, _draw(scenes, chances, generator, config), generator)
        chips.append(chip)
    images, heights = zip(*chips, strict=True)
    return torch.stack(images), torch.stack(heights)


def _draw(scenes: Sequence[Scene], chances: np.ndarray, generator: np.random.Generator, config: TrainConfig) -> Chip:
    scene = scenes[generator.choice(len(scenes), p=chances)]
    image, height = draw_chip(scene, generator, config.chip_px, config.zoom)
    if generator.random() < config.shadows:
        image = cast_shadows(image, generator)
    if config.colour > 0:
        image = jitter_colour(jitter_sharpness(image, generator), generator, config.colour)
    return image, height


def _chances(scenes: Sequence[Scene], config: PairsConfig) -> np.ndarray:
    """Chance of each scene: its group's share, spread within the group by area."""
    areas = np.array([scene.height_m.size for scene in scenes], np.float64)
    chances = np.zeros(len(scenes))
    for group, share in config.groups.items():
        inside = np.array([scene.group == group for scene in scenes])
        if inside.any():
            chances[inside] = share * areas[inside] / areas[inside].sum()
    return np.asarray(chances / chances.sum())


def _card(config: TrainConfig, split: Split) -> Card:
    lidar = [scene for scene in split.train if not scene.pseudo]
    pseudo = [scene for scene in split.train if scene.pseudo]
    training = {
        "data_sha256": split.sha256,
        "data_licences": list(config.pairs.licences),
        "train_scenes": [scene.name for scene in lidar],
        "train_ha": _hectares(lidar),
        "pseudo_scenes": len(pseudo),
        "pseudo_ha": _hectares(pseudo),
        "held_out_scenes": [scene.name for scene in split.test],
        "held_out_ha": _hectares(split.test),
        "steps": read_card(config.start).training.get("steps", 0) if config.start else 0,
        "chips_per_step": config.batch * config.loop.accumulate,
        "seed": config.loop.seed,
    }
    own = {name: getattr(config, name) for name in Card.model_fields if name in TrainConfig.model_fields}
    return Card(**own, canopy_version=__version__, training=training)


def _hectares(scenes: Sequence[Scene]) -> float:
    return round(sum(scene.height_m.size * scene.cell_m**2 for scene in scenes) / 1e4, 2)


class _Evaluation:
    """Scores the averaged network on held-out ground, and keeps the last and the best bundle."""

    def __init__(self, run: Path, card: Card, split: Split) -> None:
        self._run, self._card, self._test = run, card, split.test
        self._best_m = self._best_so_far()

    def _best_so_far(self) -> float:
        best = self._run / "best.safetensors"
        return float(read_card(best).metrics["all"]["mae_m"]) if best.is_file() else float("inf")

    def __call__(self, net: nn.Module, step: int) -> dict[str, Any]:
        assert isinstance(net, DPTHeights)
        predictions = [(scene, predict_scene(net, scene)) for scene in self._test]
        metrics = score(predictions) if predictions else {}
        intervals, covered = held_out_intervals(predictions) if predictions else (None, {})
        training = {**self._card.training, "steps": self._card.training["steps"] + step + 1}
        update = {"metrics": metrics, "training": training, "intervals": intervals, "coverage": covered}
        card = self._card.model_copy(update=update)
        weights = {name: _half(tensor) for name, tensor in net.state_dict().items()}
        save_bundle(self._run / "last.safetensors", card, weights)
        mae_m = metrics["all"]["mae_m"] if metrics else -float(step)
        if mae_m < self._best_m:
            self._best_m = mae_m
            save_bundle(self._run / "best.safetensors", card, weights)
        return {"metrics": metrics}


def _half(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array.astype(np.float16) if tensor.is_floating_point() else array


def print_entry(entry: dict[str, Any], steps: int) -> None:
    """Print a line of the log where a person wants one: warnings, scores, and every twentieth step."""
    done = entry["step"] + 1
    if "warning" in entry:
        print(f"step {done}/{steps}  {entry['warning']}", file=sys.stderr, flush=True)
    if "metrics" in entry:
        scores = {group: f"{m['mae_m']:.2f}" for group, m in entry["metrics"].items()}
        print(f"step {done}/{steps}  held-out MAE [m] {scores}", file=sys.stderr, flush=True)
    elif "loss" in entry and done % 20 == 0:
        left = (steps - done) * entry["seconds"] / 60
        print(f"step {done}/{steps}  loss {entry['loss']:.3f}  {left:.0f} min left", file=sys.stderr, flush=True)
