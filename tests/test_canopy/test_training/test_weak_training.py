"""Training with weak labels: what is drawn, what is frozen, what the loss adds, and that a run resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from towns import build_town
from training import SMALL_STORE, TINY, tiny_card, tiny_config, trained

from canopy.errors import TrainingError
from canopy.evaluation.weak_ground import BARE, TREE
from canopy.models.bundle import read_bundle, read_card
from canopy.models.dpt import DETAIL, DPTHeights
from canopy.training import decoder
from canopy.training.config import StoreConfig, TrainConfig
from canopy.training.decoder import height_loss, make_card, start_net, training_record
from canopy.training.sampling import ChipSampler, MixedBatch, MixedSampler, Split, read_store

LOOP = {"steps": 2, "warmup_steps": 1, "amp": False, "checkpoint_every": 1, "evaluate_every": 2}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_town(tmp_path_factory.mktemp("town"))


@pytest.fixture(scope="module")
def run(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "DOMAIN_CHIPS", 16)
        return trained(config_of(town), tmp_path_factory.mktemp("run") / "run")


def config_of(town: Path, **changes: Any) -> TrainConfig:
    store = {"path": str(town), **changes.pop("store", {})}
    return tiny_config(**{"store": store, "weak_batch": 3, "batch": 2, "loop": LOOP, **changes})


def split_of(config: TrainConfig) -> Split:
    return read_store(config.store, config.batch, 0, weak=True)


def test_a_town_held_out_gives_no_chip(town: Path) -> None:
    weak = split_of(config_of(town)).weak
    assert weak is not None
    assert {scene.name for scene in weak.train} == {"t/t/0_0", "stems/t/0_0"}
    assert (weak.sites, weak.held_out) == (("t",), ("u",))
    assert weak.chances.tolist() == [0.5, 0.5]


def test_sites_are_held_out_whatever_the_store_says(town: Path) -> None:
    config = StoreConfig(path=town, held_out_sites=("u",))
    assert {scene.group for scene in read_store(config, 2, 0).test} == {"b"}
    whole = StoreConfig(path=town, held_out_sites=("t", "u"))
    with pytest.raises(TrainingError, match="no chip with weak labels to train on"):
        read_store(whole, 2, 0, weak=True)
    with pytest.raises(TrainingError, match=r"has no site z, which store\.held_out_sites names"):
        read_store(StoreConfig(path=town, held_out_sites=("z",)), 2, 0)


def test_shares_say_how_often_a_source_is_drawn(town: Path) -> None:
    weak = split_of(config_of(town, store={"weak_shares": {"stems": 3.0, "t": 1.0}})).weak
    assert weak is not None
    assert dict(zip((scene.group for scene in weak.train), weak.chances, strict=True)) == {"stems": 0.75, "t": 0.25}


def test_a_batch_has_both_kinds_and_is_a_function_of_its_number(town: Path) -> None:
    config = config_of(town, mix=1.0)
    split = split_of(config)
    assert split.weak is not None
    sampler = MixedSampler.of(ChipSampler(split, config.augmentation, 2, 0), split.weak, 3)
    one, again = sampler.draw_batch(5), sampler.draw_batch(5)
    assert (len(one.measured[0]), len(one.weak[0])) == (2, 3)
    assert torch.equal(one.weak[1].nan_to_num(9), again.weak[1].nan_to_num(9))
    drawn = torch.cat([sampler.draw_batch(number).weak[1] for number in range(6)])
    assert {TREE, BARE} <= set(drawn[~drawn.isnan()].tolist())


def test_the_loss_is_that_of_both_kinds(town: Path) -> None:
    config = config_of(town)
    split = split_of(config)
    net = start_net(config, make_card(config, training_record(config, split)), split).eval()
    generator = torch.Generator().manual_seed(0)
    image, weak_image = torch.rand(2, 3, 32, 32, generator=generator), torch.rand(3, 3, 32, 32, generator=generator)
    height_m, labels = torch.full((2, 16, 16), 5.0), torch.full((3, 16, 16), BARE)
    labels[0, 4, 4] = TREE
    with torch.no_grad():
        mixed = height_loss(net, MixedBatch((image, height_m), (weak_image, labels)), 0, config.loss, 2)
        measured = height_loss(net, (image, height_m), 0, config.loss, 2)
        only = config.loss.model_copy(update={"bare": 0.0, "trees": 0.0})
        without = height_loss(net, MixedBatch((image, height_m), (weak_image, labels)), 0, only, 2)
    assert mixed > measured
    assert without.item() == pytest.approx(measured.item(), rel=1e-5)


def test_two_steps_write_a_bundle_that_says_what_it_learnt_from(run: Path) -> None:
    card = read_card(run / "best.safetensors")
    assert card.decode == "median"
    assert card.training["weak_scenes"] == 2
    assert (card.training["weak_sites"], card.training["weak_held_out"]) == (["t"], ["u"])
    assert card.training["data_licences"] == ["CC0-1.0: synthetic forest", "CC0-1.0: towns"]


def test_training_goes_on_from_a_bundle_and_leaves_frozen_parts_as_they_are(town: Path, run: Path) -> None:
    start = run / "last.safetensors"
    config = config_of(town, encoder_rate=0, detail_rate=0, fix_statistics=True, start=str(start))
    split = split_of(config)
    record = training_record(config, split)
    assert record.start.startswith("tiny ")
    net = start_net(config, make_card(config, record), split)
    assert not any(value.requires_grad for value in net.dpt.encoder.parameters())
    weight = torch.from_numpy(read_bundle(start).weights["head.0.weight"]).float()
    assert torch.equal(net.state_dict()["head.0.weight"], weight)


def test_a_frozen_detail_network_and_fixed_statistics_survive_a_pass_of_training() -> None:
    shape = TINY.model_copy(update={"detail": "test_resnet", "detail_channels": 4, "normed": True})
    net = DPTHeights(tiny_card(architecture=shape))
    net.freeze_detail()
    net.fix_statistics()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "running_" in name}
    net(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert before and all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    gradients = {name: value.grad is not None for name, value in net.named_parameters()}
    assert gradients["head.0.weight"]
    assert not any(has for name, has in gradients.items() if name.startswith(DETAIL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 4, "encoder_rate": 0, "batch": 4}, "a pool has no chips with weak labels"),
        ({"fix_statistics": True}, "name it as start"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**{"weak_batch": 3, **changes})


def test_a_store_without_weak_labels_is_refused() -> None:
    with pytest.raises(TrainingError, match="has no chips with weak labels: add a source of the kind weak"):
        read_store(StoreConfig(path=SMALL_STORE), 2, 0, weak=True)
