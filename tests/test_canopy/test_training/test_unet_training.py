"""Training a U-Net: where it starts, weak labels, exact resume, and settings that it does not have."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from towns import build_town
from training import SMALL_STORE, checkpoint, tiny_config, trained

from canopy.config import load_config
from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import Architecture, read_card
from canopy.models.model import load_model
from canopy.models.unet import UNetHeights
from canopy.training import decoder
from canopy.training.config import TrainConfig
from canopy.training.decoder import make_card, start_net, training_record
from canopy.training.sampling import read_store
from pretrain.encoder import load_encoder

CONFIGS = Path(__file__).parents[3] / "configs"
SHAPE = Architecture(kind="unet", encoder="test_efficientnet", decoder_channels=(4, 8, 8, 8))
LOOP = {"steps": 2, "warmup_steps": 1, "lr": 1e-2, "amp": False, "checkpoint_every": 1, "evaluate_every": 2}


@pytest.fixture(autouse=True)
def _few_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "DOMAIN_CHIPS", 16)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_town(tmp_path_factory.mktemp("town"))


def unet_config(**changes: Any) -> TrainConfig:
    return tiny_config(**{"architecture": SHAPE, "loop": LOOP, **changes})


def started(config: TrainConfig) -> UNetHeights:
    split = read_store(config.store, config.batch, config.loop.seed)
    net = start_net(config, make_card(config, training_record(config, split)), split)
    assert isinstance(net, UNetHeights)
    return net


def test_it_learns_from_lidar_and_weak_labels_and_maps(town: Path, tmp_path: Path) -> None:
    config = unet_config(store={"path": str(town)}, batch=2, weak_batch=3)
    before = {name: value.clone() for name, value in started(config).state_dict().items()}
    run = trained(config, tmp_path / "run")
    state = checkpoint(run, 2)["net"]
    moved = {name.split(".")[0] for name, value in state.items() if not torch.equal(value, before[name])}
    assert moved == {"encoder", "expansions", "head"}
    card = read_card(run / "last.safetensors")
    assert (card.family, card.architecture, card.decode) == ("unet", SHAPE, "median")
    assert (card.training["weak_sites"], card.training["encoder_frozen"]) == (["t"], False)
    assert card.domain is not None
    model = load_model(run / "last.safetensors", device="cpu", backend="eager")
    assert model.predict(torch.rand(1, 3, 40, 50)).shape == (1, 40, 50)


def test_a_run_that_was_stopped_ends_at_the_same_weights(tmp_path: Path) -> None:
    whole = trained(unet_config(), tmp_path / "whole")
    parts = trained(unet_config(), tmp_path / "parts")
    (parts / "checkpoints" / "00000002.pt").unlink()
    trained(unet_config(), parts, resume=True)
    assert (parts / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_the_encoder_starts_from_a_classifiers_weights(tmp_path: Path) -> None:
    classifier = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    config = unet_config(encoder_weights=tmp_path / "weights.pth")
    assert torch.equal(started(config).encoder.conv_stem.weight, classifier.conv_stem.weight)
    record = training_record(config, read_store(config.store, config.batch, 0))
    assert (record.encoder, record.encoder_licence) == ("test_efficientnet of weights.pth", "unknown")


def test_it_starts_from_a_unet_alone(tmp_path: Path) -> None:
    first = trained(unet_config(), tmp_path / "unet") / "last.safetensors"
    weight = load_model(first, device="cpu", backend="eager")._net.head[-1].weight
    again = unet_config(start=first, fix_statistics=True)
    assert torch.equal(started(again).head[-1].weight, weight)
    assert training_record(again, read_store(again.store, again.batch, 0)).steps == 2
    dpt = trained(tiny_config(), tmp_path / "dpt") / "last.safetensors"
    with pytest.raises(TrainingError, match="its kind is dpt, the configuration's unet"):
        started(unet_config(start=dpt))
    with pytest.raises(TrainingError, match="its encoder is test_efficientnet, the configuration's vit_tiny"):
        trained(tiny_config(encoder=first), tmp_path / "other")
    with pytest.raises(ModelError, match="is of the family unet: an encoder, or a height model of the family dpt"):
        load_encoder(first)


@pytest.mark.parametrize(("setting", "value"), [
    ("encoder", "canopy-tiny"), ("encoder_rate", 0), ("detail_weights", "x.pth"), ("detail_rate", 0.5),
])  # fmt: skip
def test_settings_of_a_dpt_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"a U-Net \(architecture\.kind: unet\) has no {setting}: leave it out"):
        unet_config(**{setting: value})


def test_a_pool_is_refused_whatever_the_rate() -> None:
    with pytest.raises(ValidationError, match="a pool needs encoder_rate 0"):
        unet_config(pool=8)
    with pytest.raises(ValidationError, match="has no encoder_rate"):
        unet_config(pool=8, encoder_rate=0)


def test_weights_of_a_unet_are_refused_elsewhere() -> None:
    for encoder in (None, "canopy-tiny"):
        with pytest.raises(ValidationError, match="those of a U-Net or of an encoder timm:NAME"):
            tiny_config(encoder_weights="x.pth", encoder=encoder)


@pytest.mark.parametrize(("name", "encoder"), [
    ("unet", "tf_efficientnet_lite0"), ("encoder", "vit_tiny_patch16_224"),
])  # fmt: skip
def test_a_shipped_configuration_trains(town: Path, tmp_path: Path, name: str, encoder: str) -> None:
    overrides = (
        *("chip_px=64", "crop_px=32", "batch=2", "weak_batch=2", "loop.steps=1", "loop.warmup_steps=0"),
        *("loop.amp=false", f"store.path={town}", "store.weak_shares={t: 1}", "store.held_out_sites=[]"),
    )
    config = load_config(CONFIGS / f"train-{name}.yaml", TrainConfig, overrides)
    card = read_card(trained(config, tmp_path / "run") / "last.safetensors")
    assert (card.name, card.architecture.encoder, card.mean) == (f"canopy-{name}", encoder, config.mean)


def test_the_kind_set_on_a_recipe_of_the_other_says_what_to_leave_out() -> None:
    with pytest.raises(ConfigError, match=r"a U-Net \(kind: unet\) has no enlarge: leave it out") as error:
        load_config(CONFIGS / "train-frozen.yaml", TrainConfig, ("architecture.kind=unet", f"store.path={SMALL_STORE}"))
    assert "\n" not in str(error.value)
