"""Settings of training: ranges, ramps, and names that stored configurations use."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from training import tiny_config

from canopy.config import dump_config, load_config
from canopy.errors import ConfigError
from canopy.training.config import Augmentation, LossWeights, Ramp, TrainConfig, weight_at

CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_curriculum_ramps_its_weights() -> None:
    ramp = Ramp(first=1.0, last=0.0, begins=0.2, ends=0.6)
    assert [round(weight_at(ramp, share), 3) for share in (0, 0.2, 0.4, 0.6, 1)] == [1, 1, 0.5, 0, 0]
    step = Ramp(first=0.0, last=2.0, begins=0.5, ends=0.5)
    assert [weight_at(step, share) for share in (0.5, 0.51)] == [0, 2]
    assert weight_at(0.3, 0.9) == 0.3
    LossWeights.model_validate({"silog": {"first": 1, "last": 0, "ends": 0.3}, "charbonnier": {"first": 0, "last": 1}})
    with pytest.raises(ValidationError, match="begin before"):
        Ramp(first=1, last=0, begins=0.6, ends=0.2)
    with pytest.raises(ValidationError, match="every loss term is 0"):
        LossWeights(histogram=0, charbonnier=0, gradient=0)


@pytest.mark.parametrize(("override", "message"), [
    ("loop.steps=-1", "loop.steps"), ("colours=1", "colours"), ("x", "a.b=value"), ("loop.clip=2", "loop.clip"),
    ("pool=9", "pool must be a multiple of the batch"), ("store.short=0.7", "store.short"), ("mix=2", "mix"),
    ("loop.clip_norm=0", "loop.clip_norm"), ("loop.warmup_steps=-1", "loop.warmup_steps"), ("drop_path=1", "drop_path"),
    ("loop.weight_decay=-1", "loop.weight_decay"), ("loop.betas=[1.5, 0.9]", "loop.betas"),
    ("loop.seed=-1", "loop.seed"), ("loop.seed=10000000000000000000", "loop.seed"),
    ("mean=[123, 116, 103]", "mean"), ("std=[58, 57, 57]", "std"),
    ("store.shares={render_: -1}", "store.shares"), ("store.weak_shares={a: -1}", "store.weak_shares"),
    ("store.weak_shares={a: 0}", "every share is 0"), ("crop_px=2048", "crop_px"), ("zoom=1000", "zoom"),
    ("head.bins=1", "needs two bins or more"), ("head.spacing=none", "needs two bins or more"),
])  # fmt: skip
def test_faults_of_a_configuration_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIGS / "train-small.yaml", TrainConfig, (override,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("train-*.yaml"))])
def test_the_configurations_that_ship_are_valid(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml", TrainConfig, ("loop.steps=7",)).loop.steps == 7


def test_stored_names_of_synthetic_scenes_stay(tmp_path: Path) -> None:
    settings = {"path": "store", "made": "scenes", "made_licences": ["CC0-1.0: somebody"], "shares": {"a": 1.0}}
    config = tiny_config(store=settings)
    assert (config.store.synthetic, config.store.synthetic_licences) == (Path("scenes"), ("CC0-1.0: somebody",))
    dump_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "made: scenes" in text
    assert "synthetic" not in text
    assert load_config(tmp_path / "config.yaml", TrainConfig) == config


def test_chips_are_as_large_as_the_crop_where_one_is_set() -> None:
    assert tiny_config().augmentation == Augmentation(32, zoom=1.25, colour=0, shadows=0, mix=0)
    assert tiny_config(crop_px=64).augmentation.chip_px == 64


@pytest.mark.parametrize(("name", "detail_rate"), [("train-weak", 0), ("train-detail", 0.5)])
def test_the_recipes_of_the_bundled_model_load_and_have_a_mean(name: str, detail_rate: float) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", TrainConfig)
    assert (config.weak_batch, config.decode, config.encoder_rate, config.fix_statistics) == (4, "median", 0, True)
    assert config.detail_rate == detail_rate
    assert "mlbs" in config.store.held_out_sites
    # what a mean of both needs: one start, one network
    other = load_config(CONFIGS / "train-weak.yaml", TrainConfig)
    assert (config.start, config.architecture, config.head) == (other.start, other.architecture, other.head)


def test_losses_of_weak_labels_alone_are_no_loss() -> None:
    nothing = dict.fromkeys(("histogram", "charbonnier", "gradient"), 0.0)
    with pytest.raises(ValidationError, match="every loss term is 0"):
        LossWeights.model_validate(nothing)
