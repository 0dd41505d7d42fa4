"""Bins, losses, the loop and bundles, against plain numpy and against themselves."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from chip_stores import build_forests
from pydantic import ValidationError
from rasters import make_raster
from torch import Tensor, nn

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.dataset.scene_folders import read_scenes
from canopy.dataset.store import ChipStore
from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import Architecture, Card, find_bundle, read_bundle, read_card, save_bundle
from canopy.models.dpt import DPTHeights
from canopy.models.heads import HeightBins
from canopy.models.model import load_model
from canopy.progress import Report
from canopy.training import decoder
from canopy.training.augmentation import cast_shadows, draw_chip, jitter_colour, mix_chips
from canopy.training.config import LoopConfig, TrainConfig
from canopy.training.decoder import make_card, measure_domain, read_split, start_net, train
from canopy.training.loop import fit, learning_rate
from canopy.training.losses import charbonnier, gradient_loss, histogram_loss
from canopy.training.sampling import Split, draw_batch, draw_pooled, pooled
from canopy.training.token_cache import KeptTokens

CONFIGS = Path(__file__).parents[2] / "configs"


def card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": "tiny", "gsd_m": 0.5, "chip_px": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3,
        "canopy_version": "0", "licence": "none", "provisional": True,
    }  # fmt: skip
    return Card(**{**values, **changes})


def test_bins_decode_the_mean_of_their_distribution() -> None:
    bins = HeightBins(4, 16.0)
    np.testing.assert_allclose(bins.centres_m.numpy(), [0.5, 2.5, 6.5, 12.5])
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).view(1, 4, 1, 1)
    assert bins.height_m(logits).item() == pytest.approx(0.05 + 0.5 + 1.95 + 5.0)


def test_histogram_loss_is_least_at_the_true_height() -> None:
    bins = HeightBins(64, 70.0)
    height = torch.full((1, 1, 1), 12.0)
    known = torch.ones(1, 1, 1, dtype=torch.bool)
    at = [
        histogram_loss(-((torch.arange(64.0) + 0.5 - bins.position(torch.tensor(h))) ** 2).view(1, 64, 1, 1),
                       height, known, bins).item()
        for h in (6.0, 12.0, 20.0)
    ]  # fmt: skip
    assert at[1] < at[0]
    assert at[1] < at[2]


def test_losses_ignore_unknown_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(2, 8, 8, generator=generator) * 20
    truth = torch.rand(2, 8, 8, generator=generator) * 20
    known = torch.rand(2, 8, 8, generator=generator) > 0.3
    spoilt = torch.where(known, truth, torch.nan)
    for loss in (charbonnier, gradient_loss):
        assert torch.equal(loss(pred, truth, known), loss(pred, spoilt, known))


def test_charbonnier_equals_numpy() -> None:
    pred, truth = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[4.0, 5.0]]])
    expected = (np.sqrt(9 + 0.01) - 0.1) / 2
    assert charbonnier(pred, truth, torch.ones(1, 1, 2, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_loss_of_a_shifted_height_is_zero() -> None:
    truth = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1))
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    assert gradient_loss(truth + 3, truth, known).item() == pytest.approx(0, abs=1e-6)
    assert gradient_loss(2 * truth, truth, known).item() > 0.1


def train_line(run: Path, steps: int, *, resume: bool = False) -> nn.Module:
    """Fit a line by the loop, with dropout so that random state counts."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def batch(number: int) -> Tensor:
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(number))

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        return (model(x)[:, 0] - x.sum(dim=1)).square().mean()

    config = LoopConfig(steps=10, lr=0.01, warmup_steps=2, checkpoint_every=5, evaluate_every=5, amp=False)

    def stop(entry: dict[str, Any]) -> None:
        if "loss" in entry and entry["step"] == steps:
            raise KeyboardInterrupt

    return fit(net, loss, batch, config, run, resume=resume, evaluate=lambda model, step: {}, report=stop)


def test_a_resumed_run_ends_at_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train_line(tmp_path / "whole", 99)
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path / "cut", 7)
    resumed = train_line(tmp_path / "cut", 99, resume=True)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 12


def test_numbers_of_the_log_are_written_for_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = LoopConfig(steps=6, lr=0.1, warmup_steps=1, checkpoint_every=3, evaluate_every=3, tensorboard=True)

    def run(*, stop_at: int, resume: bool = False) -> None:
        def report(entry: dict[str, Any]) -> None:
            if entry["step"] == stop_at:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        fit(nn.Linear(1, 1), lambda model, x, step: model(x).square().sum(), lambda number: torch.ones(1, 1), config,
            tmp_path, resume=resume, evaluate=lambda model, step: {"metrics": {"all": {"mae_m": 2.5, "r2": None}}},
            report=report)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4)
    run(stop_at=-1, resume=True)
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e.step, pytest.approx(e.value)) for e in read.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines if "loss" in line
    ]
    assert [(e.step, e.value) for e in read.Scalars("metrics/all/mae_m")] == [(2, 2.5), (5, 2.5)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"canopy-chm\[log\]"):
        run(stop_at=-1)


def test_nan_loss_stops_the_run(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    config = LoopConfig(steps=2)
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        fit(net, lambda model, x, step: model(x).sum() * torch.nan, lambda number: torch.ones(1, 1), config, tmp_path,
            resume=False, evaluate=lambda model, step: {}, report=lambda entry: None)  # fmt: skip


def tiny_pairs(root: Path) -> Path:
    """Two scenes of a bright square, 20 m high, on dark ground."""
    for name in ("a_1", "a_2"):
        image = np.full((3, 128, 128), 60, np.uint8)
        image[:, 40:80, 40:80] = 220
        heights = np.where(image[0, ::2, ::2] > 100, 2000, 0).astype(np.uint16)
        (root / name).mkdir(parents=True)
        make_raster(root / name / "rgb.tif", values=image, resolution=0.5)
        make_raster(root / name / "chm_cm.tif", values=heights[None], resolution=1.0)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chips")
    build_forests(folder)
    return folder / "store"


def store_config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        "name": "tiny", "store": {"path": str(folder)}, "chip_px": 32, "batch": 4, "colour": 0, "shadows": 0, "mix": 0,
        "drop_path": 0, "architecture": {"encoder_args": {"mlp_ratio": 1.0}},
        "loop": {"steps": 2, "warmup_steps": 1, "amp": False, "checkpoint_every": 1, "evaluate_every": 2},
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def test_a_store_trains_on_its_training_side_and_tests_no_cell_twice(store: Path) -> None:
    split = read_split(store_config(store))
    chips = ChipStore.open(store)
    names = {
        side: {row["chip"] for row in chips.index.to_pylist() if row["split"] == side} for side in ("train", "test")
    }
    assert {scene.name for scene in split.train} == names["train"]
    assert {scene.name for scene in split.test} <= names["test"]
    assert {scene.group for scene in split.test} == {"a", "b"}
    assert split.licences == ("CC0-1.0: nobody",)
    place = {row["chip"]: (row["crs"], row["x"], row["y"]) for row in chips.index.to_pylist()}
    cells = []
    for scene in split.test:
        crs, x, y = place[scene.name]
        assert scene.image.shape[1:] == tuple(2 * side for side in scene.height_m.shape)
        cells += [(crs, x + col, y - row) for row, col in np.argwhere(~np.isnan(scene.height_m))]
    assert len(cells) == len(set(cells)) > 0
    everything = np.concatenate(
        [chips[int(row)].height_m[~np.isnan(chips[int(row)].height_m)] for row in chips.rows("test")]
    )
    assert len(cells) < len(everything), "chips of the test side overlap"
    first, again, other = (draw_batch(number, split, store_config(store)) for number in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    left_out = read_split(store_config(store, store={"path": str(store), "exclude": ["b"]}))
    assert {scene.group for scene in (*left_out.train, *left_out.test)} == {"a"}
    assert left_out.sha256 != split.sha256


def test_scenes_that_were_made_are_trained_on_by_their_share_and_never_tested_on(store: Path, tmp_path: Path) -> None:
    made = tiny_pairs(tmp_path / "made")
    shares = {"a_": 0.25, "a": 0.75}
    given = {"path": str(store), "made": str(made), "shares": shares}
    split, plain = read_split(store_config(store, store=given)), read_split(store_config(store))
    assert {scene.group for scene in split.train} == {"a", "a_"}, "b has no share"
    assert {scene.name for scene in split.train if scene.pseudo} == {"a_1", "a_2"}
    for group, share in shares.items():
        mine = np.array([scene.group == group for scene in split.train])
        assert split.chances[mine].sum() == pytest.approx(share)
    assert [scene.name for scene in split.test] == [scene.name for scene in plain.test]
    assert split.sha256 != plain.sha256
    drawn = draw_batch(0, split, store_config(store, store=given))[0]
    assert drawn.shape == (4, 3, 32, 32)
    lidar = store_config(store, store={"path": str(store), "shares": {"a": 1.0}})
    domain = measure_domain(lidar, read_split(lidar))
    assert measure_domain(store_config(store, store=given), split) == domain, "nothing made is in the domain"
    made_alone = store_config(store, store=given | {"shares": {"a_": 1.0}})
    assert measure_domain(made_alone, read_split(made_alone)) != domain, "where nothing else is, made scenes must do"
    with pytest.raises(ValidationError, match="need a share"):
        store_config(store, store={"path": str(store), "made": str(made)})
    with pytest.raises(TrainingError, match="no scene fits"):
        read_split(store_config(store, store={"path": str(store), "shares": {"c": 1.0}}))


def test_the_head_begins_with_how_common_each_height_is(store: Path) -> None:
    config = store_config(store)
    split = read_split(config)
    net = start_net(config, make_card(config, split), split)
    began = net.head[-1].bias.softmax(dim=0)
    assert net.bins.height_m(net.head[-1].bias.view(1, -1, 1, 1)).item() == pytest.approx(
        sum(chance * np.nanmean(scene.height_m) for scene, chance in zip(split.train, split.chances, strict=True)),
        abs=1.0,
    )
    assert began.min() > 1e-5, "a height that was never seen is unlikely, not impossible"


def test_an_enlarged_encoder_sees_finer_patches_for_the_same_map(store: Path) -> None:
    shape = Architecture(enlarge=2, normed=True)
    net = DPTHeights(card(architecture=shape)).eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Size] = []
    net.dpt.encoder.register_forward_hook(lambda module, given, made: seen.append(made[0][0].shape))
    with torch.inference_mode():
        assert net(image).shape == (1, 64, 32, 48)
        assert net.tokens(image).shape == (1, 192, 4, 6), "features of patches of 16 px, whatever the encoder sees"
    assert seen[0] == (1, 192, 8, 12)
    assert net.dpt.encoder.model.pos_embed.shape[1] == 1 + 4 * 4


def test_a_normed_decoder_does_not_mind_the_scale_of_an_encoder() -> None:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = {}
    for normed in (False, True):
        torch.manual_seed(0)
        net = DPTHeights(card(architecture=Architecture(normed=normed))).eval()
        encode = net.dpt.encoder.forward
        with torch.inference_mode():
            before = net(image)
            net.dpt.encoder.forward = lambda seen, encode=encode: (
                [10 * f + 3 for f in encode(seen)[0]],
                encode(seen)[1],
            )
            made[normed] = (net(image) - before).abs().max().item()
    assert made[True] < 1e-3 < 0.1 < made[False]


def test_training_writes_bundles_and_learns(store: Path, tmp_path: Path) -> None:
    overrides = (
        *("name=tiny", "chip_px=64", "batch=2", "colour=0", "shadows=0", "zoom=1", "drop_path=0", "mix=0"),
        *(f"store.path={store}", "store.shares={a: 1.0}", "encoder=null", "encoder_rate=1", "crop_px=null"),
        *("loop.steps=20", "loop.warmup_steps=3", "loop.lr=0.002", "loop.evaluate_every=20", "loop.amp=false"),
        "architecture.encoder_args={mlp_ratio: 1.0}",
    )
    config = load_config(CONFIGS / "train-small.yaml", TrainConfig, overrides)
    best = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    made = read_card(best)
    split = read_split(config)
    assert made.metrics["all"]["n_px"] == sum(int((~np.isnan(scene.height_m)).sum()) for scene in split.test)
    assert set(made.training["held_out_scenes"]) == {scene.name for scene in split.test}
    assert not set(made.training["train_scenes"]) & set(made.training["held_out_scenes"])
    assert load_model(best).predict(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 64)
    one_step = config.loop.model_copy(update={"steps": 1, "lr": 1e-12, "warmup_steps": 0, "evaluate_every": 1})
    again = train(config.model_copy(update={"start": best, "loop": one_step}), tmp_path / "again")
    before, after = (read_bundle(path)[1]["head.0.weight"] for path in (best, again))
    assert np.allclose(before, after, atol=1e-3)
    assert read_card(again).training["steps"] == made.training["steps"] + 1
    no_detail = config.architecture.model_copy(update={"detail": ""})
    with pytest.raises(TrainingError, match="detail_weights"):
        train(config.model_copy(update={"architecture": no_detail, "detail_weights": best}), tmp_path / "none")
    with pytest.raises(TrainingError, match="--resume"):
        train(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="differs"):
        train(config.model_copy(update={"batch": 3}), tmp_path / "run", resume=True)


def encoder_bundle(path: Path, **changes: Any) -> Path:
    """An encoder as `canopy pretrain` leaves it, learnt on images of another size."""
    torch.manual_seed(5)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, dynamic_img_size=True, mlp_ratio=1.0)
    arch = Architecture(encoder="vit_tiny_patch16_224", encoder_args={"mlp_ratio": 1.0})
    values: dict[str, Any] = {
        "family": "encoder",
        "architecture": arch,
        "mean": (0.45, 0.47, 0.40),
        "std": (0.20, 0.19, 0.17),
    }
    save_bundle(path, card(**{**values, **changes}), {n: v.numpy() for n, v in vit.state_dict().items()})
    return path


def test_a_frozen_encoder_stays_as_it_was_to_the_bit(store: Path, tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors")
    config = store_config(store, encoder=str(bundle), encoder_rate=0, drop_path=0.5)
    split = read_split(config)
    net = start_net(config, make_card(config, split), split)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    given = read_bundle(bundle)[1]
    assert np.array_equal(
        before["dpt.encoder.model.blocks.2.attn.qkv.weight"].numpy(), given["blocks.2.attn.qkv.weight"]
    )
    assert before["dpt.encoder.model.pos_embed"].shape[1] == 1 + 4
    made = torch.load(fitted_run(config, tmp_path / "run") / "checkpoints" / "00000002.pt", weights_only=True)
    moved = {name.split(".")[0] for name, value in made["net"].items() if not torch.equal(value, before[name])}
    frozen = [name for name in made["net"] if name.startswith("dpt.encoder.")]
    assert all(torch.equal(made["net"][name], before[name]) for name in frozen)
    assert all(torch.equal(made["average"][name], before[name]) for name in frozen)
    assert moved == {"dpt", "head"}
    made_card = read_card(tmp_path / "run" / "last.safetensors")
    assert made_card.training["encoder_frozen"] is True
    assert made_card.training["encoder"] == "tiny"


def fitted_run(config: TrainConfig, run: Path) -> Path:
    train(config, run)
    return run


def pool_config(store: Path, encoder: Path, **changes: Any) -> TrainConfig:
    """A frozen encoder over a pool that is passed through twice and a half."""
    loop = {"steps": 5, "warmup_steps": 1, "amp": False, "checkpoint_every": 2, "evaluate_every": 5}
    return store_config(store, encoder=str(encoder), encoder_rate=0, pool=8, colour=0.1, loop=loop, **changes)


def last_weights(run: Path) -> dict[str, np.ndarray]:
    return read_bundle(run / "last.safetensors")[1]


def pool_of(config: TrainConfig, folder: Path) -> tuple[DPTHeights, Split, KeptTokens]:
    assert config.pool
    split = read_split(config)
    net = start_net(config, make_card(config, split), split).eval()
    return net, split, KeptTokens(net, folder, config.pool, config.chip_px)


def test_a_pass_of_a_pool_takes_each_chip_once_and_keeps_its_place() -> None:
    passes = [np.stack([pooled(number, 12, 3, seed=7) for number in range(4 * done, 4 * done + 4)]) for done in (0, 1)]
    for one in passes:
        assert sorted(one.ravel()) == list(range(12))
        assert (one % 3 == np.arange(3)).all()
    assert not np.array_equal(*passes)
    assert np.array_equal(passes[0][2], pooled(2, 12, 3, seed=7))


def test_chips_of_a_pool_come_back_as_they_were(store: Path, tmp_path: Path) -> None:
    config = pool_config(store, encoder_bundle(tmp_path / "encoder.safetensors"), shadows=0.5, mix=0.5)
    net, split, tokens = pool_of(config, tmp_path / "tokens")
    chips: dict[int, Tensor] = {}
    for number in range(4):
        images, heights, taps = draw_pooled(number, split, config, tokens)
        assert heights.shape == (4, 16, 16)
        for which, image in zip(pooled(number, 8, 4, config.loop.seed), images, strict=True):
            assert torch.equal(chips.setdefault(int(which), image), image)
        with torch.inference_mode():
            torch.testing.assert_close(net(images, taps), net(images), rtol=1e-4, atol=1e-4)
    assert len({image.numpy().tobytes() for image in chips.values()}) == 8


def test_learning_from_kept_tokens_ends_at_the_bits_of_running_the_encoder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors")
    shape = Architecture(encoder_args={"mlp_ratio": 1.0}, enlarge=2, normed=True)
    config = pool_config(store, bundle, batch=1, chip_px=64, drop_path=0.5, architecture=shape)
    kept = last_weights(fitted_run(config, tmp_path / "kept"))
    whole = decoder.height_loss
    monkeypatch.setattr(decoder, "height_loss", lambda net, batch, step, **how: whole(net, batch[:2], step, **how))
    run = last_weights(fitted_run(config, tmp_path / "run"))
    assert all(np.array_equal(kept[name], run[name]) for name in run)


def test_an_encoder_sees_each_chip_of_a_pool_once(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pool_config(store, encoder_bundle(tmp_path / "encoder.safetensors"))
    _, split, tokens = pool_of(config, tmp_path / "tokens")
    pool = {image.numpy().tobytes() for number in (0, 1) for image in draw_pooled(number, split, config, tokens)[0]}
    seen: list[bytes] = []
    tapped = DPTHeights.tapped

    def counted(net: DPTHeights, image: Tensor) -> list[Tensor]:
        seen.append(image.numpy().tobytes())
        return tapped(net, image)

    monkeypatch.setattr(DPTHeights, "tapped", counted)
    train(config, tmp_path / "run")
    assert [seen.count(image) for image in pool] == [1] * 8
    assert not (tmp_path / "run" / "tokens").exists(), "a finished run needs them no more"


def test_a_killed_run_with_damaged_tokens_ends_at_the_bits_of_an_uninterrupted_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pool_config(store, encoder_bundle(tmp_path / "encoder.safetensors"))
    whole = last_weights(fitted_run(config, tmp_path / "whole"))

    def kill(entry: dict[str, Any], steps: int, report: Report) -> None:
        if entry["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(decoder, "report_entry", kill)
        train(config, tmp_path / "cut")
    files = sorted((tmp_path / "cut" / "tokens").iterdir())
    assert len(files) == 8
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(files[2].read_bytes())
    files[3].write_bytes(files[3].read_bytes()[:-4] + b"\0\0\x80\x3f")
    files[4].unlink()
    train(config, tmp_path / "cut", resume=True)
    resumed = last_weights(tmp_path / "cut")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_tokens_of_another_encoder_or_chip_are_never_used(store: Path, tmp_path: Path) -> None:
    first = pool_config(store, encoder_bundle(tmp_path / "encoder.safetensors"))
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    pool_of(first, tmp_path / "tokens")[2](0, image)
    other = first.model_copy(update={"encoder": None})
    finer = first.model_copy(update={"architecture": Architecture(encoder_args={"mlp_ratio": 1.0}, enlarge=2)})
    for config in (other, finer, first):
        net, _, tokens = pool_of(config, tmp_path / "tokens")
        for chip in (image, 1 - image):
            with torch.no_grad():
                assert torch.equal(tokens(0, chip), torch.cat(net.tapped(chip[None])))


def test_a_pool_without_use_or_room_is_a_clear_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="needs encoder_rate 0"):
        store_config(store, pool=8)
    with pytest.raises(ValidationError, match="multiple of the batch, which is 4"):
        store_config(store, pool=9, encoder_rate=0)
    config = pool_config(store, encoder_bundle(tmp_path / "encoder.safetensors"))
    tokens = pool_of(config, tmp_path / "tokens")[2]
    (tmp_path / "tokens" / "00000000").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write .*00000000: Is a directory; .* --resume"):
        tokens(0, torch.zeros(3, 32, 32))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(TrainingError, match=r"tokens of 8 chips take .* GB are free: .*smaller pool"):
        train(config, tmp_path / "run")


def test_a_slow_encoder_moves_less(store: Path, tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors")
    moved = []
    for rate in (1.0, 0.1):
        config = store_config(store, encoder=str(bundle), encoder_rate=rate)
        net = start_net(config, make_card(config, read_split(config)), read_split(config))
        before = net.dpt.encoder.model.blocks[0].mlp.fc1.weight.detach().clone()
        made = torch.load(fitted_run(config, tmp_path / str(rate)) / "checkpoints" / "00000002.pt", weights_only=True)
        moved.append(float((made["net"]["dpt.encoder.model.blocks.0.mlp.fc1.weight"] - before).abs().mean()))
    assert 0 < moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"mean": (0.5, 0.5, 0.5)}, "its mean is"),
    ({"architecture": Architecture(encoder="vit_small_patch16_224")}, "its encoder is vit_small"),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_a_clear_error(
    store: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    bundle = encoder_bundle(tmp_path / "encoder.safetensors", **changes)
    with pytest.raises(TrainingError, match=message):
        train(store_config(store, encoder=str(bundle)), tmp_path / "run")


@pytest.mark.parametrize("name", [
    "vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m",
])  # fmt: skip
def test_encoders_of_timm_are_taken_as_they_come(store: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, brought = timm.create_model, {}

    def create(model: str, *, pretrained: bool = False, **args: Any) -> nn.Module:
        made: nn.Module = make(model, **args)
        if pretrained:
            brought.update({key: value.clone() for key, value in made.state_dict().items()})
        return made

    monkeypatch.setattr(timm, "create_model", create)
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    shape = {"encoder": name, "encoder_args": {"patch_size": 16}, "normed": True}
    config = store_config(
        store, encoder=f"timm:{name}", encoder_rate=0, architecture=shape, mean=known.mean, std=known.std
    )
    made_card = make_card(config, read_split(config))
    net = start_net(config, made_card, read_split(config))
    state = net.dpt.encoder.model.state_dict()
    taken = [key for key in state if key in brought and key != "pos_embed"]
    assert len(taken) > 100
    assert all(torch.equal(state[key], brought[key]) for key in taken)
    assert made_card.training["encoder"] == name
    assert made_card.training["encoder_licence"] == known.license
    assert net.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 64, 32, 32)


def test_two_runs_with_one_seed_give_the_same_weights_under_any_loss(store: Path, tmp_path: Path) -> None:
    losses = {"silog": {"first": 1, "last": 0, "ends": 0.5}, "charbonnier": {"first": 0, "last": 1, "ends": 0.5},
              "patch_gradient": 0.1, "l1": 0.1, "histogram": 0.1, "shift_cells": 1}  # fmt: skip
    head = {"bins": 16, "max_m": 40.0, "spacing": "mixed"}
    config = store_config(store, loss=losses, head=head)
    one, other = (read_bundle(fitted_run(config, tmp_path / name) / "last.safetensors")[1] for name in "ab")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert read_card(tmp_path / "a" / "last.safetensors").head.spacing == "mixed"


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = LoopConfig(steps=100, lr=1.0, warmup_steps=10)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(55, config) == pytest.approx(0.5)


def test_bundle_keeps_weights_and_card(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DPTHeights(card()).eval()
    path = tmp_path / "tiny.safetensors"
    save_bundle(path, card(), {name: value.numpy() for name, value in net.state_dict().items()})
    image = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    model = load_model(path, device="cpu")
    with torch.inference_mode():
        assert torch.equal(model.predict(image), net.height_m(image))
    assert model.predict(image).shape == (2, 48, 40)
    assert read_card(path) == card()
    assert len(read_bundle(path)[2]) == 64
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode, "as readable as any file"


def test_bundle_with_a_missing_weight_is_refused(tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in DPTHeights(card()).state_dict().items()}
    weights.pop("head.0.weight")
    save_bundle(tmp_path / "cut.safetensors", card(), weights)
    with pytest.raises(ModelError, match=r"weights do not fit .*head\.0\.weight"):
        load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_foreign_files_are_no_bundles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a model bundle"):
        read_card(tmp_path / "x.safetensors")


def test_nan_image_is_refused() -> None:
    with pytest.raises(ModelError, match="NaN"):
        load_model().predict(torch.full((1, 3, 32, 32), torch.nan))


def test_unknown_model_names_the_bundled_ones() -> None:
    with pytest.raises(ModelError, match="canopy-small"):
        find_bundle("canopy-huge")


def test_config_faults_are_one_line(tmp_path: Path) -> None:
    path = CONFIGS / "train-small.yaml"
    assert load_config(path, TrainConfig, ("loop.steps=7",)).loop.steps == 7
    for override, message in (("loop.steps=-1", "loop.steps"), ("colours=1", "colours"), ("x", "a.b=value")):
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(path, TrainConfig, (override,))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml", TrainConfig)


def test_chips_keep_image_and_heights_together() -> None:
    rows, cols = np.mgrid[0:128, 0:160]
    image = np.repeat(((rows // 32 + cols // 32) % 2 * 200)[None], 3, axis=0).astype(np.uint8)
    height = image[0, ::2, ::2].astype(np.float32)
    scene = Scene("board", "board", image, height, 1.0)
    generator = np.random.default_rng(0)
    for _ in range(10):
        chip, heights = draw_chip(scene, generator, 64, zoom=1.2)
        coarse = torch.nn.functional.avg_pool2d(chip[None, :1] * 255, 2)[0, 0]
        assert (coarse - heights).abs().median() < 1


def test_no_scenes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no scenes under"):
        read_scenes(tmp_path)


def test_colour_and_shadows_stay_in_range_and_follow_the_generator() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jitter_colour(image, np.random.default_rng(1), 0), image)
    for change in (lambda x, g: jitter_colour(x, g, 0.2), cast_shadows):
        first, again, other = (change(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.min() >= 0
        assert first.max() <= 1


def test_shadows_only_darken_and_leave_most_of_the_image() -> None:
    image = torch.full((3, 128, 128), 0.5)
    for seed in range(5):
        shaded = cast_shadows(image, np.random.default_rng(seed))
        assert (shaded <= image + 1e-6).all()
        assert 0.02 < (shaded[0] < 0.4).float().mean() < 0.45
        assert (shaded[2] >= shaded[0] - 1e-6).all()


def test_mixed_chips_keep_image_and_heights_together() -> None:
    one = (torch.zeros(3, 128, 128), torch.zeros(64, 64))
    other = (torch.ones(3, 128, 128), torch.full((64, 64), 20.0))
    image, height = mix_chips(one, other, np.random.default_rng(0))
    assert torch.equal(torch.nn.functional.avg_pool2d(image[None, :1], 2)[0, 0] * 20, height)
    assert 0.1 < (height == 0).float().mean() < 0.9
