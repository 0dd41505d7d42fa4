"""Worth of each ingredient of the self-supervised recipe: pretrain and probe, ingredient by ingredient.

Run: python benchmarks/ssl_ablation.py CONFIG.yaml PAIRS [--steps N] [--seeds N] [--variants FILE.yaml] [--out DIR]

The ingredients come in the order of DINOv2's table 1 and then ours, each on top of the ones before; the last row leaves
the others out again. Scores are R2 of the mean height of 16 m cells in spatial blocks held out (`canopy probe`): the
mean over the seeds ± its standard deviation.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

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
    "+ KoLeo": ["terms.koleo=0.05"],
    "+ Sinkhorn-Knopp": ["target.kind=sinkhorn"],
    "+ untied heads": ["heads.untied=true"],
    "+ registers": ["encoder_args.reg_tokens=4"],
    "+ patch statistics": ["terms.statistics=20"],
    "patch statistics alone": ["terms.dino=0", "terms.ibot=0", "terms.koleo=0", "local_crops.count=0"],
}  # fmt: skip


def main() -> None:
    """Pretrain and probe every variant, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--variants",
        type=Path,
        help="YAML file, name -> settings over the configuration's, in place of the ingredients.",
    )
    parser.add_argument("--out", type=Path, help="Folder of the runs (default: a temporary one).")
    options = parser.parse_args()
    variants = yaml.safe_load(options.variants.read_text()) if options.variants else cumulative(INGREDIENTS)
    print(
        "| recipe | linear R2 | k-NN R2 | linear, less random | information | feature rank |\n|" + "---|" * 6,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in variants.items():
            scores = [
                score(options, [*settings, f"loop.seed={seed}"], (options.out or Path(folder)) / f"{name}-{seed}")
                for seed in range(options.seeds)
            ]
            print(row(name, scores), flush=True)


def cumulative(steps: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return each variant's settings with those of all before it."""
    settings: list[str] = []
    return {name: (settings := [*settings, *added]) for name, added in steps.items()}


def score(options: argparse.Namespace, settings: list[str], run: Path) -> dict[str, float]:
    """Pretrain one variant, probe it, and return its scores."""
    every = [f"loop.{key}={options.steps}" for key in ("steps", "evaluate_every", "checkpoint_every")]
    config = load_config(options.config, PretrainConfig, (*settings, *every))
    result = probe(pretrain(config, run), options.pairs)
    linear, knn = (result.ground.comparison("height_m", method) for method in ("linear", "knn"))
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    signs = [entry for entry in entries if "information" in entry][-1]
    return {
        "linear": linear.scores["encoder"].r2,
        "knn": knn.scores["encoder"].r2,
        "lead": linear.gains["random"].r2,
        "information": signs["information"],
        "rank": signs["feature_rank"],
    }


def row(name: str, scores: list[dict[str, float]]) -> str:
    """Format the mean and the standard deviation over the seeds."""
    cells = []
    for key in scores[0]:
        values = [s[key] for s in scores]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
