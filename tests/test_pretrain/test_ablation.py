"""The rows of the published ablation: each is a line of settings that the configuration takes."""

from pathlib import Path

import pytest
from recipe_modules import load

from canopy.config import load_config
from pretrain.config import PretrainConfig

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain-ssl.yaml"


@pytest.mark.parametrize("published", [False, True])
def test_the_rows_of_the_published_ablation_are_all_there_and_valid(published: bool) -> None:
    ablation = load("ssl_ablation", "benchmarks")
    scale = ablation.PUBLISHED if published else ablation.SMALL
    rows = ablation.cumulative(ablation.ingredients(scale, load_config(CONFIG, PretrainConfig)))
    configs = {name: load_config(CONFIG, PretrainConfig, tuple(settings)) for name, settings in rows.items()}
    assert list(configs)[:11] == [
        "iBOT", "+ LayerScale, stochastic depth", "+ more prototypes", "+ KoLeo", "+ SwiGLU", "+ patch 14",
        "+ teacher momentum 0.994", "+ longer warm-ups", "+ larger batch", "+ Sinkhorn-Knopp", "+ untied heads",
    ]  # fmt: skip
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs), "each row changes something"
    last = configs["+ untied heads"]
    assert (last.encoder_args["patch_size"], last.encoder_args["mlp_layer"]) == (14, "swiglu")
    assert (last.global_crops.px, last.local_crops.px) == (56, 28), "the grids of 64 and 32 px in patches of 16 px"
    assert (last.heads.prototypes, last.batch) == ((131072, 3072) if published else (4096, 48))
