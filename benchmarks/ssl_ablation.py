"""What each ingredient of the self-supervised recipe is worth: pretrain, probe, ingredient by ingredient.

Run: python benchmarks/ssl_ablation.py CONFIG.yaml PAIRS [--steps N] [--seeds N] [--variants FILE.yaml] [--out DIR]

The ingredients come in the order of DINOv2's table 1 and then ours, each on top of the ones before; the last row leaves
the others out again. Scores are R2 of the mean height of 16 m cells in spatial blocks held out (`canopy probe`); beside
the mean over the seeds stands its standard deviation.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from canopy.config import load_config
from pretrain.config import PretrainConfig
from pretrain.probe import probe
from pretrain.training import pretrain

INGREDIENTS: dict[str, list[str]] = {
    "DINO and iBOT alone": [
        "terms.statistics=0", "terms.koleo=0", "target.kind=centre", "heads.untied=false", "drop_path=0",
        "encoder_args.reg_tokens=0", "schedule.layer_decay=1", "schedule.patch_embed=1", "schedule.freeze_last=0",
    ],
    "+ LayerScale, stochastic depth": ["encoder_args.init_values=0.1", "drop_path=0.1"],
    "+ KoLeo": ["terms.koleo=0.1"],
    "+ Sinkhorn-Knopp": ["target.kind=sinkhorn"],
    "+ untied heads": ["heads.untied=true"],
    "+ registers": ["encoder_args.reg_tokens=4"],
    "+ patch statistics": ["terms.statistics=20"],
    "patch statistics alone": ["terms.dino=0", "terms.ibot=0", "terms.koleo=0", "local_crops.count=0"],
}  # fmt: skip


def main() -> None:
    """Print one row a variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--variants", type=Path, help="YAML: name -> settings over the config's, in place of the order."
    )
    parser.add_argument("--out", type=Path, help="Keep the runs here.")
    given = parser.parse_args()
    variants = yaml.safe_load(given.variants.read_text()) if given.variants else cumulative(INGREDIENTS)
    print(
        "| recipe | linear R2 | k-NN R2 | linear, less random | information | feature rank |\n|" + "---|" * 6,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in variants.items():
            scores = [
                score(given, [*settings, f"loop.seed={seed}"], (given.out or Path(folder)) / f"{name}-{seed}")
                for seed in range(given.seeds)
            ]
            print(row(name, scores), flush=True)


def cumulative(steps: dict[str, list[str]]) -> dict[str, list[str]]:
    """Each variant's settings with those of all before it."""
    settings: list[str] = []
    return {name: (settings := [*settings, *added]) for name, added in steps.items()}


def score(given: argparse.Namespace, settings: list[str], run: Path) -> dict[str, float]:
    """Pretrain one variant and probe it."""
    every = [f"loop.{key}={given.steps}" for key in ("steps", "evaluate_every", "checkpoint_every")]
    config = load_config(given.config, PretrainConfig, (*settings, *every))
    table: dict[str, Any] = probe(pretrain(config, run), given.pairs)["height_m"]
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    signs = [entry for entry in entries if "information" in entry][-1]
    return {
        "linear": table["linear"]["encoder"]["r2"],
        "knn": table["knn"]["encoder"]["r2"],
        "lead": table["linear"]["gain"]["random"]["r2"],
        "information": signs["information"],
        "rank": signs["feature_rank"],
    }


def row(name: str, scores: list[dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds."""
    cells = []
    for key in scores[0]:
        values = [s[key] for s in scores]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
