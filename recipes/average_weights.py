"""The mean of two bundles' weights, scored on the held-out ground of a configuration (Wortsman et al. 2022).

    python recipes/average_weights.py configs/train-small.yaml BEFORE AFTER --set pairs.root=PAIRS --out BUNDLE

Two ends of one training lie in one valley; between them lies a model that keeps what either knows.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from canopy.bundle import read_bundle, save_bundle
from canopy.config import TrainConfig, load_config
from canopy.models.dpt import DPTHeights
from canopy.training import held_out_intervals, predict_scene, read_split, score


def average(before: Path, after: Path, out: Path, config: TrainConfig) -> None:
    """Write the bundle and print its held-out mean absolute errors."""
    (old, first, old_sha256), (card, second, new_sha256) = read_bundle(before), read_bundle(after)
    if old.architecture != card.architecture:
        raise SystemExit(f"{before} and {after} differ in architecture: their weights have no mean")
    weights = {name: _mean(first[name], part) for name, part in second.items()}
    net = DPTHeights(card)
    net.load_state_dict({name: torch.from_numpy(part) for name, part in weights.items()})
    predictions = [(scene, predict_scene(net.eval(), scene)) for scene in read_split(config).test]
    metrics = score(predictions)
    intervals, coverage = held_out_intervals(predictions)
    training = {**card.training, "mean_of_sha256": [old_sha256, new_sha256]}
    update = {"metrics": metrics, "intervals": intervals, "coverage": coverage, "training": training}
    save_bundle(out, card.model_copy(update={**update, "notes": config.notes}), weights)
    print({name: round(row["mae_m"], 2) for name, row in metrics.items()})


def _mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray((one.astype(np.float64) + other) / 2).astype(other.dtype)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    average(given.before, given.after, given.out, load_config(given.config, TrainConfig, tuple(given.set)))


if __name__ == "__main__":
    main()
