"""Training a height model from a store: where it starts, what it learns, what its bundle says."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from training import (
    OLD,
    SMALL_STORE,
    TINY,
    checkpoint,
    copy_old_run,
    encoder_bundle,
    tiny_card,
    tiny_config,
    trained,
    write_scenes,
)

from canopy.config import load_config
from canopy.errors import TrainingError
from canopy.models.bundle import Architecture, read_bundle, read_card
from canopy.models.dpt import DPTHeights
from canopy.models.encoders import fit_weights
from canopy.models.model import load_model
from canopy.training.config import TrainConfig
from canopy.training.decoder import (
    TrainingRecord,
    height_loss,
    make_card,
    measure_domain,
    prepare,
    price,
    start_net,
    take_encoder,
    train,
    training_record,
)
from canopy.training.sampling import ChipSampler, Split, read_store

CONFIGS = Path(__file__).parents[3] / "configs"


def split_of(config: TrainConfig) -> Split:
    return read_store(config.store, config.batch, config.loop.seed)


def started(config: TrainConfig) -> DPTHeights:
    split = split_of(config)
    return start_net(config, make_card(config, training_record(config, split)), split)


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pool", [None, 8])
def test_a_price_opens_all_that_a_run_opens_and_leaves_nothing(tmp_path: Path, pool: int | None) -> None:
    loop = {"steps": 30, "warmup_steps": 3, "amp": False, "checkpoint_every": 10, "evaluate_every": 30}
    changes = {"pool": pool, "encoder_rate": 0} if pool else {}
    cost = price(tiny_config(loop=loop, **changes), tmp_path / "run")
    assert (cost.steps, cost.steps_left) == (30, 30)
    assert cost.seconds > 0
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingError, match=r"detail_weights .* architecture\.detail"):
        price(tiny_config(detail_weights=tmp_path / "none.pt"), tmp_path / "run")


def test_the_price_of_a_resumed_run_is_that_of_the_steps_left(tmp_path: Path) -> None:
    config = tiny_config(loop={"steps": 6, "warmup_steps": 1, "amp": False, "checkpoint_every": 2, "evaluate_every": 2})
    run = trained(config, tmp_path / "run")
    (run / "checkpoints" / "00000006.pt").unlink()
    with pytest.raises(TrainingError, match="--resume"):
        price(config, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert price(config, run, resume=True).steps_left == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_training_writes_bundles_and_learns(tmp_path: Path) -> None:
    loop = {"steps": 25, "warmup_steps": 3, "lr": 0.01, "evaluate_every": 25, "amp": False}
    config = tiny_config(loop=loop, zoom=1)
    best = train(config, tmp_path / "run")
    losses = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    card, split = read_card(best), split_of(config)
    assert card.metrics["all"]["n_px"] == sum(int((~np.isnan(scene.height_m)).sum()) for scene in split.test)
    assert set(card.training["held_out_scenes"]) == {scene.name for scene in split.test}
    assert not set(card.training["train_scenes"]) & set(card.training["held_out_scenes"])
    assert load_model(best).predict(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 64)


def test_training_starts_from_a_bundle_and_counts_its_steps(tmp_path: Path) -> None:
    best = train(tiny_config(), tmp_path / "run")
    still = {"steps": 1, "lr": 1e-12, "warmup_steps": 0, "evaluate_every": 1, "amp": False}
    again = train(tiny_config(start=best, loop=still), tmp_path / "again")
    before, after = (read_bundle(path).weights["head.0.weight"] for path in (best, again))
    assert np.allclose(before, after, atol=1e-3)
    assert read_card(again).training["steps"] == read_card(best).training["steps"] + 1 == 3


def test_a_shipped_configuration_trains_on_a_small_store(tmp_path: Path) -> None:
    overrides = (
        *("chip_px=64", "crop_px=null", "batch=1", "loop.steps=1", "loop.warmup_steps=0", "loop.amp=false"),
        *(f"store.path={SMALL_STORE}", "store.shares={a: 1.0}", "encoder=null"),
        "architecture.encoder_args={embed_dim: 24, num_heads: 2, mlp_ratio: 1.0}",
    )
    config = load_config(CONFIGS / "train-small.yaml", TrainConfig, overrides)
    card = read_card(train(config, tmp_path / "run"))
    assert (card.name, card.architecture.detail, card.training["steps"]) == ("canopy-small", "tf_efficientnet_lite0", 1)


def test_a_model_has_the_gsd_of_the_chips_that_it_learns_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingError, match=r"gsd_m 1: the chips of .* have pixels of 0\.5 m; set gsd_m to that"):
        train(tiny_config(gsd_m=1.0), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    prepare(tiny_config(), tmp_path / "run")
    assert "chip_px 32: canopy predict maps with chips of 64 px or more" in caplog.text


def test_detail_weights_without_a_detail_network_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"detail_weights .* architecture\.detail"):
        train(tiny_config(detail_weights=tmp_path / "none.pt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_of_the_old_code_goes_on_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_old_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    # Errors of the old code are those of the mean of the bins, the only decoder that it had.
    with (run / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("decode: mean\n")
    config = load_config(run / "config.yaml", TrainConfig)
    assert config.store.synthetic_licences == ("CC0-1.0: nobody else",)
    train(config, run, resume=True)
    uninterrupted = [json.loads(line) for line in (OLD / "run" / "uninterrupted.jsonl").read_text().splitlines()]
    lines = logged(run)
    assert len(lines) == len(uninterrupted) == 8
    for line, expected in zip(lines, uninterrupted, strict=True):
        assert line["step"] == expected["step"]
        value, expected_value = (
            (line["loss"], expected["loss"]) if "loss" in line else (line["metrics"]["all"]["mae_m"], expected["mae_m"])
        )
        assert value == pytest.approx(expected_value, rel=1e-4)
    assert read_card(run / "last.safetensors").training["steps"] == 6


def test_the_record_of_a_card_says_what_was_learnt_from() -> None:
    config = tiny_config(encoder_rate=0)
    split = split_of(config)
    record = training_record(config, split)
    assert record == TrainingRecord(
        data_sha256=split.sha256,
        data_licences=("CC0-1.0: nobody",),
        train_scenes=tuple(scene.name for scene in split.train),
        train_ha=0.23,
        pseudo_scenes=0,
        pseudo_ha=0.0,
        held_out_scenes=tuple(scene.name for scene in split.test),
        held_out_ha=0.1,
        steps=0,
        chips_per_step=4,
        seed=0,
        encoder="",
        encoder_licence="",
        encoder_frozen=True,
    )
    assert make_card(config, record).training == asdict(record)


def test_the_head_begins_with_how_common_each_height_is() -> None:
    config = tiny_config()
    split, net = split_of(config), started(config)
    bias = net.head[-1].bias
    assert net.bins.height_m(bias.view(1, -1, 1, 1)).item() == pytest.approx(
        sum(chance * np.nanmean(scene.height_m) for scene, chance in zip(split.train, split.chances, strict=True)),
        abs=1.0,
    )
    assert bias.softmax(dim=0).min() > 1e-5, "a height that never occurs is unlikely, not impossible"


def test_a_frozen_encoder_stays_as_it_was_to_the_bit(tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors")
    config = tiny_config(encoder=str(bundle), encoder_rate=0, drop_path=0.5)
    before = {name: value.clone() for name, value in started(config).state_dict().items()}
    weights = read_bundle(bundle).weights
    assert np.array_equal(
        before["dpt.encoder.model.blocks.2.attn.qkv.weight"].numpy(), weights["blocks.2.attn.qkv.weight"]
    )
    assert before["dpt.encoder.model.pos_embed"].shape[1] == 1 + 4
    state = checkpoint(trained(config, tmp_path / "run"), 2)
    moved = {name.split(".")[0] for name, value in state["net"].items() if not torch.equal(value, before[name])}
    frozen = [name for name in state["net"] if name.startswith("dpt.encoder.")]
    assert all(torch.equal(state["net"][name], before[name]) for name in frozen)
    assert all(torch.equal(state["average"][name], before[name]) for name in frozen)
    assert moved == {"dpt", "head"}
    card = read_card(tmp_path / "run" / "last.safetensors")
    assert card.training["encoder_frozen"] is True
    assert card.training["encoder"] == "tiny"


def test_an_encoder_with_stem_and_positions_of_ours_is_taken_trained_and_mapped_with(tmp_path: Path) -> None:
    shape = TINY.model_copy(update={"stem": "conv", "positions": "gsd", "reference_gsd_m": 1.0})
    bundle = encoder_bundle(tmp_path / "encoder.safetensors", architecture=shape)
    config = tiny_config(encoder=str(bundle), architecture=shape, encoder_rate=0)
    state = started(config).state_dict()
    stem = {name: value for name, value in read_bundle(bundle).weights.items() if name.startswith("patch_embed.")}
    assert len(stem) == 4 * 4 + 2
    assert all(np.array_equal(state[f"dpt.encoder.model.{name}"].numpy(), value) for name, value in stem.items())
    model = load_model(trained(config, tmp_path / "run") / "last.safetensors", device="cpu", backend="eager")
    assert model.card.architecture == shape
    assert torch.isfinite(model.predict(torch.rand(1, 3, 40, 32))).all()
    start = tmp_path / "run" / "last.safetensors"
    started(tiny_config(start=start, architecture=shape))
    other = shape.model_copy(update={"reference_gsd_m": 2.0})
    with pytest.raises(TrainingError, match=r"its reference_gsd_m is 1\.0, the configuration's 2\.0: name the same"):
        started(tiny_config(start=start, architecture=other))


def test_a_slow_encoder_moves_less(tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors")
    moved = []
    for rate in (1.0, 0.1):
        config = tiny_config(encoder=str(bundle), encoder_rate=rate)
        before = started(config).dpt.encoder.model.blocks[0].mlp.fc1.weight.detach().clone()
        after = checkpoint(trained(config, tmp_path / str(rate)), 2)["net"]["dpt.encoder.model.blocks.0.mlp.fc1.weight"]
        moved.append(float((after - before).abs().mean()))
    assert 0 < moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"mean": (0.5, 0.5, 0.5)}, "its mean is"),
    ({"architecture": Architecture(encoder="vit_small_patch16_224")}, "its encoder is vit_small"),
    ({"architecture": TINY.model_copy(update={"stem": "conv"})}, "its stem is conv, the configuration's patch"),
    ({"architecture": TINY.model_copy(update={"positions": "gsd", "reference_gsd_m": 1.0})}, "its positions is gsd"),
])  # fmt: skip
def test_an_encoder_that_differs_is_a_clear_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors", **changes)
    with pytest.raises(TrainingError, match=message):
        take_encoder(DPTHeights(tiny_card()), tiny_card(), bundle)


@pytest.mark.parametrize("name", [
    "vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m",
])  # fmt: skip
def test_encoders_of_timm_are_taken_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    create_model, brought = timm.create_model, {}

    def create(model: str, *, pretrained: bool = False, **args: Any) -> nn.Module:
        net: nn.Module = create_model(model, **args)
        if pretrained:
            brought.update({key: value.clone() for key, value in net.state_dict().items()})
        return net

    monkeypatch.setattr(timm, "create_model", create)
    published = timm.get_pretrained_cfg(name)
    assert published is not None
    shape = {**TINY.model_dump(), "encoder": name, "encoder_args": {"patch_size": 16}, "normed": True}
    config = tiny_config(
        encoder=f"timm:{name}", encoder_rate=0, architecture=shape, mean=published.mean, std=published.std
    )
    split = split_of(config)
    card = make_card(config, training_record(config, split))
    net = start_net(config, card, split)
    state = net.dpt.encoder.model.state_dict()
    taken = [key for key in state if key in brought and key != "pos_embed"]
    assert len(taken) > 100
    fitted = fit_weights(net.dpt.encoder.model, brought)
    assert all(torch.equal(state[key], fitted[key]) for key in taken)
    assert card.training["encoder"] == name
    assert card.training["encoder_licence"] == published.license
    torch.save(brought, tmp_path / "weights.pth")
    monkeypatch.setattr(timm, "create_model", create_model)
    offline = config.model_copy(update={"encoder_weights": tmp_path / "weights.pth"})
    read = start_net(offline, card, split).dpt.encoder.model.state_dict()
    assert all(torch.equal(state[key], read[key]) for key in taken)
    assert training_record(offline, split).encoder == f"{name} of weights.pth"
    assert net.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 16, 32, 32)


def test_two_runs_with_one_seed_give_the_same_weights_under_any_loss(tmp_path: Path) -> None:
    losses = {"silog": {"first": 1, "last": 0, "ends": 0.5}, "charbonnier": {"first": 0, "last": 1, "ends": 0.5},
              "patch_gradient": 0.1, "l1": 0.1, "histogram": 0.1, "shift_cells": 1}  # fmt: skip
    config = tiny_config(loss=losses, head={"bins": 16, "max_m": 40.0, "spacing": "mixed"})
    first, second = (read_bundle(trained(config, tmp_path / name) / "last.safetensors").weights for name in "ab")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert read_card(tmp_path / "a" / "last.safetensors").head.spacing == "mixed"


def test_a_term_of_weight_zero_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(loss={"histogram": 0, "charbonnier": 0, "gradient": 0, "l1": 2.0})
    net = started(config)
    batch = torch.rand(2, 3, 32, 32), torch.full((2, 16, 16), 3.0)
    expected = 2 * (net.bins.height_m(net.eval()(batch[0])) - 3).abs().mean()
    assert height_loss(net, batch, 0, config.loss, 2).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_held_out_ground_the_last_network_is_the_best(tmp_path: Path) -> None:
    store = {"path": str(SMALL_STORE), "exclude": ["b"]}
    run = trained(tiny_config(store=store), tmp_path / "run")
    assert (run / "best.safetensors").read_bytes() == (run / "last.safetensors").read_bytes()
    assert read_card(run / "best.safetensors").metrics == {}


def test_synthetic_scenes_are_not_in_the_domain(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    mixed = tiny_config(
        store={"path": str(SMALL_STORE), "made": str(scenes), "shares": {"a_": 0.25, "a": 0.75}}, crop_px=64
    )
    lidar = tiny_config(store={"path": str(SMALL_STORE), "shares": {"a": 1.0}})
    alone = tiny_config(store={"path": str(SMALL_STORE), "made": str(scenes), "shares": {"a_": 1.0}})
    domains = [
        measure_domain(ChipSampler(split_of(config), config.augmentation, config.batch, 0), config.chip_px)
        for config in (mixed, lidar, alone)
    ]
    assert domains[0] == domains[1]
    assert domains[2] != domains[1], "where nothing else is, synthetic scenes must do"
