"""Worth of each ingredient of the self-supervised recipe: pretrain and probe, ingredient by ingredient.

Run: python benchmarks/ssl_ablation.py CONFIG.yaml PAIRS [--steps N] [--seeds N] [--row NAME] [--published] [--out DIR]

The ingredients are all those of DINOv2's table 1, in its order, and then ours, each on top of the ones before; the last
row leaves the others out again. Each is a line of settings over the configuration. Scores are R2 of the mean height of
16 m cells in spatial blocks held out (`canopy probe`): the mean over the seeds ± its standard deviation.
"""

import argparse
import json
import math
import statistics
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from canopy.config import load_config
from pretrain.config import PretrainConfig
from pretrain.monitors import CollapseError
from pretrain.probe import probe
from pretrain.training import pretrain

SIGNS = ("information", "feature_rank")


@dataclass(frozen=True)
class Scale:
    """Values of the ingredients that are numbers: before, and after."""

    prototypes: tuple[int, int]
    batch: tuple[int, int]


PUBLISHED = Scale(prototypes=(8192, 131072), batch=(1024, 3072))
"""DINOv2's values."""
SMALL = Scale(prototypes=(256, 4096), batch=(16, 48))
"""Sixteen times the prototypes and three times the batch, as there, for one CPU core."""


def ingredients(scale: Scale, config: PretrainConfig) -> dict[str, list[str]]:
    """Return the settings that each row adds: the published rows in their order, and then ours.

    Args:
        scale: Values of the numbers.
        config: The configuration that the settings change; patches of 14 px keep its grids of patches.
    """
    px_14 = [config.global_crops.px // 16 * 14, config.local_crops.px // 16 * 14]
    return {
        "iBOT": [
            "terms.statistics=0", "terms.features=0", "terms.dino=1", "terms.ibot=1", "terms.koleo=0",
            "target.kind=centre", "heads.untied=false", f"heads.prototypes={scale.prototypes[0]}", "drop_path=0",
            "encoder_args.init_values=0", "encoder_args.reg_tokens=0", "schedule.momentum=[0.996, 1.0]",
            "schedule.warmup=0.03", "target.temperature_warmup=0.1", "target.temperature=[0.04, 0.07]",
            "schedule.layer_decay=1", "schedule.patch_embed=1", "schedule.freeze_last=0", f"batch={scale.batch[0]}",
        ],
        "+ LayerScale, stochastic depth": ["encoder_args.init_values=1e-5", "drop_path=0.1", "drop_path_uniform=true"],
        "+ more prototypes": [f"heads.prototypes={scale.prototypes[1]}"],
        "+ KoLeo": ["terms.koleo=0.1"],
        "+ SwiGLU": ["encoder_args.mlp_layer=swiglu"],
        "+ patch 14": [
            "encoder_args.patch_size=14", f"global_crops.px={px_14[0]}", f"local_crops.px={px_14[1]}",
        ],
        "+ teacher momentum 0.994": ["schedule.momentum=[0.994, 1.0]"],
        "+ longer warm-ups": ["schedule.warmup=0.16", "target.temperature_warmup=0.48", "schedule.freeze_last=0.01"],
        "+ larger batch": [f"batch={scale.batch[1]}"],
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
    parser.add_argument("--row", help="Run one row alone; with --out, a run that was cut short goes on.")
    parser.add_argument("--published", action="store_true", help="DINOv2's prototypes and batches, not a CPU's.")
    options = parser.parse_args()
    scale = PUBLISHED if options.published else SMALL
    base = load_config(options.config, PretrainConfig)
    variants = (
        yaml.safe_load(options.variants.read_text()) if options.variants else cumulative(ingredients(scale, base))
    )
    if options.row:
        if options.row not in variants:
            parser.error(f"no row {options.row!r}: one of {', '.join(map(repr, variants))} expected")
        variants = {options.row: variants[options.row]}
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
    every = [f"loop.{key}={options.steps}" for key in ("steps", "evaluate_every")]
    every.append(f"loop.checkpoint_every={max(1, options.steps // 10)}")
    config = load_config(options.config, PretrainConfig, (*settings, *every))
    # a row that collapses is a result too
    with suppress(CollapseError):
        pretrain(config, run, resume=True)
    result = probe(run / "last.safetensors", options.pairs)
    linear, knn = (result.ground.comparison("height_m", method) for method in ("linear", "knn"))
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # prototypes that nothing trains have no signs
    signs = [entry for entry in entries if "information" in entry][-1:] or [dict.fromkeys(SIGNS, math.nan)]
    return {
        "linear": linear.scores["encoder"].r2,
        "knn": knn.scores["encoder"].r2,
        "lead": linear.gains["random"].r2,
        "information": signs[0]["information"],
        "rank": signs[0]["feature_rank"],
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
