"""Settings: what is refused by name, and the configurations that ship."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from canopy.config import load_config
from canopy.errors import ConfigError
from pretrain.config import CurateConfig, PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("setting", [
    "batch=1", "global_crops.count=3", "local_crops.gsd=[1.0, 4.0]", "masks.ratio=[0.1, 1.5]", "colours.hue=0.1",
    "global_crops.gsd=[1.5, 1.0]", "target.kind=magic", "global_crops.count=0", "masks.ratio=[0.5, 0.1]",
    "schedule.momentum=[1.0, 1.0]", "schedule.weight_decay=[-0.1, 0.2]", "schedule.betas=[0.9, 1.0]", "drop_path=1.0",
    "high_resolution={start: 1.0, global_px: 128, local_px: 48}", "gram.start=1.0", "target.centre_momentum=1.0",
    "std=[0.2, 0.0, 0.2]", "schedule.momentum=[0.99, 0.9]", "schedule.lr_end=0.1", "schedule.freeze_last=1.0",
    "loop.clip_norm=0", "heads={untied: false, patches: {prototypes: 16}}", "koleo.group=-1",
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[0]):
        load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, (setting,))


def test_the_references_defaults_apply_where_nothing_is_given() -> None:
    base = {"name": "a", "tiles": {"sources": [{"path": "x"}]}, "loop": {"steps": 1}, "batch": 2}
    config = PretrainConfig.model_validate(base)
    assert config.encoder_args == {"init_values": 1e-5}
    assert (config.loop.clip_norm, config.koleo.group, config.heads.patch_shape.prototypes) == (3.0, 0, 65536)
    given = PretrainConfig.model_validate(base | {"encoder_args": {"init_values": 0, "reg_tokens": 4}})
    assert given.encoder_args == {"init_values": 0, "reg_tokens": 4}
    assert PretrainConfig.model_validate(given.model_dump()) == given


@pytest.mark.parametrize("name", ["pretrain-small", "pretrain-ssl", "pretrain-tiny"])
def test_committed_configurations_pin_what_the_defaults_were(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", PretrainConfig)
    assert config.encoder_args["init_values"] == 0
    assert config.loop.clip_norm == 3.0


def test_a_recipe_without_a_term_is_refused() -> None:
    without = ("terms={dino: 0, ibot: 0, koleo: 0}",)
    with pytest.raises(ConfigError, match="one of the terms must be above 0"):
        load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, without)


@pytest.mark.parametrize(("settings", "message"), [
    (("masks.share=0",), "terms.ibot needs masks"),
    (("masks.ratio=[0, 0]",), "terms.ibot needs masks"),
    (("terms={dino: 0, ibot: 0, koleo: 0, gram: 1}",), "before, another term must be above 0"),
])  # fmt: skip
def test_a_term_without_its_means_is_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, settings)


@pytest.mark.parametrize("settings", [
    ("masks.share=0", "terms.ibot=0"), ("masks.ratio=[0.3, 0.3]",), ("schedule.momentum=[0.99, 0.99]",),
    ("terms={dino: 0, ibot: 0, koleo: 0, gram: 1}", "gram.start=0"), ("target.temperature=[0.07, 0.04]",),
])  # fmt: skip
def test_settings_at_the_edge_of_their_range_are_taken(settings: tuple[str, ...]) -> None:
    assert load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, settings).name


@pytest.mark.parametrize("name", ["pretrain-small", "pretrain-ssl", "pretrain-tiny"])
def test_the_configurations_that_ship_are_valid(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml", PretrainConfig).name


@pytest.mark.parametrize("clusters", [(), (10, 10), (2, 6), (4, 0)])
def test_clusters_become_fewer_from_level_to_level(clusters: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="clusters"):
        CurateConfig.model_validate(
            {"tiles": {"store": "a"}, "encoder": "b", "choose": 3, "clusters": clusters}
        )  # fmt: skip
