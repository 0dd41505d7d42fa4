"""Whole runs: resumption to the bit, guards, the bundle and its card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining import tiny_config, tiny_tiles
from rasters import make_raster

from canopy.config import load_config
from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import Architecture, read_card
from canopy.models.model import load_model
from pretrain import training
from pretrain.cells import encode
from pretrain.config import PretrainConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.encoder import load_encoder
from pretrain.picture import patch_map
from pretrain.training import check_crops, check_tiles, pretrain

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one scene of noise."""
    return make_raster(tmp_path_factory.mktemp("imagery") / "scene.tif", shape=(96, 128), pattern="noise").parent


def config(imagery: Path, **changes: Any) -> PretrainConfig:
    return tiny_config(**{"tiles": {"sources": [{"path": str(imagery)}]}, "loop": {"steps": 10}, **changes})


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{step:08d}.pt", weights_only=True)
    return state


def tensors(state: Any) -> list[torch.Tensor]:
    """List the tensors of a tree."""
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors(value)]
    return [state] if isinstance(state, torch.Tensor) else []


@pytest.mark.parametrize("changes", [
    {}, {"stem": "conv", "positions": "gsd", "gram": {"start": 0.3, "resolution": 2}},
])  # fmt: skip
def test_five_steps_and_five_more_equal_ten_to_the_bit(
    imagery: Path, tmp_path: Path, monkeypatch: Any, changes: dict[str, Any]
) -> None:
    tiles = {"sources": [{"path": str(imagery)}], "tile_px": 64}
    common: dict[str, Any] = {
        "tiles": tiles, "drop_path": 0.3, "target": {"kind": "centre"}, "terms": {"gram": 1.0, "statistics": 5.0},
        "gram": {"start": 0.3}, "high_resolution": {"start": 0.7, "global_px": 64, "local_px": 24},
        "monitor_every": 100,  # ten steps on one scene of noise end collapsed
    }  # fmt: skip
    settings = config(imagery, **{**common, **changes})
    pretrain(settings, tmp_path / "whole")

    def interrupt(entry: dict[str, Any], steps: int, report: object) -> None:
        if entry["step"] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "report_entry", interrupt)
        pretrain(settings, tmp_path / "cut")
    assert not (tmp_path / "cut" / "last.safetensors").exists()
    pretrain(settings, tmp_path / "cut", resume=True)
    whole, cut = (tensors(checkpoint(tmp_path / name, 10)) for name in ("whole", "cut"))
    assert len(whole) == len(cut) > 100
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    files = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[json.loads(line).get("loss") for line in log] for log in logs]
    assert losses[0] == losses[1]


def phased(imagery: Path, run_steps: int, **schedule: Any) -> PretrainConfig:
    """Return a recipe all of whose phases depend on its length."""
    return config(
        imagery, tiles={"sources": [{"path": str(imagery)}], "tile_px": 64}, terms={"gram": 1.0}, gram={"start": 0.5},
        high_resolution={"start": 0.7, "global_px": 64, "local_px": 24}, loop={"steps": run_steps}, schedule=schedule,
        monitor_every=100,  # a few steps on one scene of noise end collapsed
    )  # fmt: skip


def test_a_run_that_is_lengthened_equals_one_that_was_longer_from_the_beginning(imagery: Path, tmp_path: Path) -> None:
    """Phases stay where the first length has put them."""
    pretrain(phased(imagery, 6, kind="constant"), tmp_path / "long")
    for steps in (8, 10):  # and once more, from a record that was lengthened
        pretrain(phased(imagery, steps, kind="constant"), tmp_path / "long", resume=True)
    pretrain(phased(imagery, 10, kind="constant", steps=6), tmp_path / "whole")
    whole, long = (tensors(checkpoint(tmp_path / name, 10)) for name in ("whole", "long"))
    assert len(whole) == len(long) > 100
    assert all(torch.equal(a, b) for a, b in zip(whole, long, strict=True))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "long")]
    losses = [[entry["loss"] for line in log if "loss" in (entry := json.loads(line))] for log in logs]
    assert len(losses[0]) == 10
    assert losses[0] == losses[1]
    assert load_config(tmp_path / "long" / "config.yaml", PretrainConfig).loop.steps == 10


def test_a_run_with_a_convolutional_stem_ends_in_a_bundle_of_its_average(imagery: Path, tmp_path: Path) -> None:
    settings = config(imagery, stem="conv", loop={"steps": 5}, monitor_every=100)
    path = pretrain(settings, tmp_path / "run")
    card, encoder = load_encoder(path)
    assert card.architecture == Architecture(encoder=settings.encoder, encoder_args=settings.encoder_args, stem="conv")
    learner = SelfDistillation(settings, torch.device("cpu"))
    before = {name: p.clone() for name, p in learner.average.named_parameters()}
    learner.average.load_state_dict(checkpoint(tmp_path / "run", 5)["average"])
    stem = {name: p for name, p in learner.average.named_parameters() if ".patch_embed." in name}
    assert len(stem) == 3 * 4 + 2
    assert all(not torch.equal(p, before[name]) for name, p in stem.items()), "all of it is trained"
    image = torch.rand(2, 3, 32, 32)
    for own, expected in zip(encoder(image), learner.average.encoder(image), strict=True):
        torch.testing.assert_close(own, expected, atol=5e-3, rtol=5e-3)  # half precision
    picture = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    assert np.isfinite(encode(encoder, picture)).all() and patch_map(encoder, picture).shape == (32, 32, 32)
    assert SelfDistillation(settings.model_copy(update={"start": path}), torch.device("cpu")).student is not None


@pytest.mark.parametrize(
    ("schedule", "changes", "message"),
    [
        ({"kind": "cosine"}, {"loop": {"steps": 5}}, r"cosine over 3 steps and cannot have 5: .*kind: constant"),
        ({"kind": "constant"}, {"loop": {"steps": 2}}, "differs from the configuration"),
        ({"kind": "constant"}, {"loop": {"steps": 5}, "drop_path": 0.4}, "differs from the configuration"),
        ({"kind": "constant"}, {"loop": {"steps": 5, "seed": 1}}, "differs from the configuration"),
    ],
)
def test_only_more_steps_of_constant_rates_lengthen_a_run(
    imagery: Path, tmp_path: Path, schedule: Any, changes: Any, message: str
) -> None:
    pretrain(config(imagery, loop={"steps": 3}, schedule=schedule), tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match=message):
        pretrain(config(imagery, schedule=schedule, **changes), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_without_a_checkpoint_may_begin_anew_with_any_length(imagery: Path, tmp_path: Path) -> None:
    pretrain(config(imagery, loop={"steps": 2}), tmp_path / "run")
    for path in [*(tmp_path / "run" / "checkpoints").iterdir(), tmp_path / "run" / "last.safetensors"]:
        path.unlink()
    pretrain(config(imagery, loop={"steps": 3}), tmp_path / "run", resume=True)
    assert load_config(tmp_path / "run" / "config.yaml", PretrainConfig).loop.steps == 3


def test_the_bundle_contains_the_teachers_encoder(imagery: Path, tmp_path: Path) -> None:
    path = pretrain(config(imagery, loop={"steps": 3}), tmp_path / "run")
    card, encoder = load_encoder(path)
    assert (card.family, card.chip_px, card.training["steps"], card.training["images_seen"]) == ("encoder", 32, 3, 12)
    assert card.training["tiles"] == 12
    teacher = checkpoint(tmp_path / "run", 3)["average"]
    for name, weight in encoder.vit.state_dict().items():
        torch.testing.assert_close(weight, teacher[f"encoder.vit.{name}"], atol=1e-3, rtol=1e-3)
    assert read_card(path).training["data_sha256"] == card.training["data_sha256"]
    with pytest.raises(ModelError, match="encoder alone"):
        load_model(path)


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(imagery: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sound = SelfDistillation.loss

    def poisoned(self: SelfDistillation, batch: Any, step: int) -> torch.Tensor:
        return sound(self, batch, step) * (torch.nan if step == 7 else 1)

    monkeypatch.setattr(SelfDistillation, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"nan at step 7; last good checkpoint: .*00000005\.pt"):
        pretrain(config(imagery), tmp_path / "run")


@pytest.mark.parametrize(("changes", "message"), [
    ({"local_crops": {"px": 30}}, "crops of 30 px: a multiple of the encoder's patch, 8 px"),
    ({"encoder": "no_such"}, "timm makes no encoder 'no_such'"),
])  # fmt: skip
def test_a_recipe_that_does_not_fit_leaves_no_run_behind(
    imagery: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(config(imagery, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_imagery_that_is_missing_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no imagery"):
        pretrain(config(tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"global_crops": {"px": 44}}, "crops of 44 px: a multiple of the encoder's patch, 8 px"),
    ({"high_resolution": {"start": 0.5, "global_px": 64, "local_px": 20}}, "crops of 20 px"),
])  # fmt: skip
def test_crops_of_every_phase_are_whole_patches(changes: dict[str, Any], message: str) -> None:
    check_crops(tiny_config(), 8)
    with pytest.raises(ConfigError, match=message):
        check_crops(tiny_config(**changes), 8)


def test_patches_of_14_px_take_any_multiple_of_14() -> None:
    grown = {"start": 0.5, "global_px": 518, "local_px": 98}
    check_crops(tiny_config(global_crops={"px": 98}, local_crops={"px": 42}, high_resolution=grown), 14)


def test_patches_of_14_px_train_and_are_probed(imagery: Path, tmp_path: Path) -> None:
    settings = config(
        imagery, encoder_args={"patch_size": 14}, global_crops={"px": 42}, local_crops={"px": 14},
        loop={"steps": 1}, tiles={"sources": [{"path": str(imagery)}], "tile_px": 48}, terms={"statistics": 1.0},
    )  # fmt: skip
    card, encoder = load_encoder(pretrain(settings, tmp_path / "run"))
    assert (card.chip_px, encoder.patch_px, encoder.square_px) == (42, 14, 16)
    assert encoder.vit.pos_embed.shape[1] == 1 + 1 + 9
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 96), np.uint8)
    cells = encode(encoder, image)
    assert cells.shape == (2, 3, 32)
    # a cell is the mean of four patches of the image resized by 14/16
    small = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None].float() / 255, size=(56, 84), mode="bilinear", antialias=True
    )
    expected = encoder(small)[1].view(4, 6, 32)[:2, :2].mean(dim=(0, 1))
    np.testing.assert_allclose(cells[0, 0], expected.numpy(), atol=1e-5)
    assert patch_map(encoder, image).shape == (64 // 4, 96 // 4, 32)


def test_a_fourth_band_trains_and_is_left_out_for_rgb(tmp_path: Path) -> None:
    make_raster(tmp_path / "imagery" / "a.tif", shape=(96, 128), bands=4, pattern="noise")
    tiles = {"sources": [{"path": str(tmp_path / "imagery")}], "bands": 4}
    with pytest.raises(ValueError, match=r"one for each of tiles\.bands, 4"):
        tiny_config(tiles=tiles)
    means = {"mean": [0.4, 0.4, 0.4, 0.6], "std": [0.2, 0.2, 0.2, 0.3]}
    settings = tiny_config(tiles=tiles, loop={"steps": 1}, terms={"statistics": 1.0}, **means)
    path = pretrain(settings, tmp_path / "run")
    card, encoder = load_encoder(path)
    whole_card, whole = load_encoder(path, rgb=False)
    assert (whole_card.bands, card.bands) == (("red", "green", "blue", "band_4"), ("red", "green", "blue"))
    assert whole_card.mean == (0.4, 0.4, 0.4, 0.6)
    assert whole.vit.patch_embed.proj.weight.shape == (32, 4, 8, 8)
    rgb = torch.rand(1, 3, 32, 32)
    at_mean = torch.cat([rgb, torch.full((1, 1, 32, 32), 0.6)], dim=1)
    torch.testing.assert_close(encoder(rgb)[1], whole(at_mean)[1], atol=1e-5, rtol=1e-4)
    continued = SelfDistillation(settings.model_copy(update={"start": path}), torch.device("cpu"))
    torch.testing.assert_close(
        continued.student.encoder.vit.patch_embed.proj.weight, whole.vit.patch_embed.proj.weight, atol=1e-3, rtol=1e-3
    )
    first = SelfDistillation(tiny_config(start=path), torch.device("cpu"))
    assert first.student.encoder.vit.patch_embed.proj.weight.shape[1] == 3


def test_weights_of_three_bands_start_an_encoder_of_four(imagery: Path, tmp_path: Path) -> None:
    path = pretrain(config(imagery, loop={"steps": 1}), tmp_path / "run")
    four = {"tiles": {"bands": 4}, "mean": [0.4] * 4, "std": [0.2] * 4}
    kernel = SelfDistillation(tiny_config(start=path, **four), torch.device("cpu")).student.encoder.vit.patch_embed.proj
    assert not kernel.weight[:, 3].any(), "the fourth band begins without a say"
    assert kernel.weight[:, :3].abs().max() > 0


def test_masks_that_hide_no_patch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"masks\.ratio of 0\.02 masks no patch of global crops of 32 px"):
        check_crops(tiny_config(masks={"ratio": [0.0, 0.02]}), 8)
    check_crops(tiny_config(masks={"ratio": [0.0, 0.02]}, terms={"ibot": 0}), 8)


def test_a_batch_never_repeats_a_tile() -> None:
    check_tiles(tiny_config(batch=12), tiny_tiles(12))
    with pytest.raises(TrainingError, match="12 tiles for a batch of 13"):
        check_tiles(tiny_config(batch=13), tiny_tiles(12))


def test_crops_larger_than_every_tile_are_refused() -> None:
    fits = {"px": 32, "gsd": [1.0, 1.0]}
    check_tiles(tiny_config(global_crops=fits), tiny_tiles())
    with pytest.raises(ConfigError, match="global_crops of 64 px cover 32 m and more, tiles of 32 px at most 16 m"):
        check_tiles(tiny_config(global_crops=fits | {"px": 64}), tiny_tiles())
    with pytest.raises(ConfigError, match="local_crops of 40 px"):
        check_tiles(tiny_config(global_crops=fits, local_crops={"px": 40, "gsd": [0.9, 1.0]}), tiny_tiles())
    check_tiles(tiny_config(global_crops=fits, local_crops={"count": 0, "px": 40, "gsd": [0.9, 1.0]}), tiny_tiles())
    grown = {"start": 0.9, "global_px": 64, "local_px": 16}
    with pytest.raises(ConfigError, match="global_crops of 64 px"):
        check_tiles(tiny_config(global_crops=fits, high_resolution=grown), tiny_tiles())


def test_the_share_of_crops_that_tiles_cut_short_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    check_tiles(tiny_config(global_crops={"gsd": [0.5, 1.0]}), tiny_tiles())
    assert not caplog.records
    # log-uniform between 0.5 and 2: half of the draws lie above 1, where the crop is as large as its tile
    check_tiles(tiny_config(global_crops={"gsd": [0.5, 2.0]}), tiny_tiles())
    assert caplog.messages[-1].startswith("50 % of the global_crops of 32 px would reach beyond their tile")
    coarser = replace(tiny_tiles(), gsds_m=np.full(12, 1.0))
    caplog.clear()
    check_tiles(tiny_config(global_crops={"gsd": [0.5, 2.0]}), coarser)
    assert not caplog.records, "a tile of twice the GSD is twice as large"


def test_the_share_of_crops_that_a_gram_teacher_sees_no_sharper_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    crops = {"px": 16, "gsd": [0.5, 2.0]}  # log-uniform around the GSD of the tiles
    finer = {"terms": {"gram": 1.0}, "gram": {"resolution": 2}}
    check_tiles(tiny_config(global_crops=crops, terms={"gram": 1.0}), tiny_tiles())
    check_tiles(tiny_config(global_crops=crops, **finer), replace(tiny_tiles(), gsds_m=np.full(12, 0.2)))
    assert not [message for message in caplog.messages if "Gram" in message]
    check_tiles(tiny_config(global_crops=crops, **finer), tiny_tiles())
    assert caplog.messages[-1].startswith("50 % of the global_crops are no coarser than their imagery")


def test_the_card_names_the_start_without_its_folder(imagery: Path, tmp_path: Path) -> None:
    first = pretrain(config(imagery, loop={"steps": 1}), tmp_path / "first")
    second = pretrain(config(imagery, loop={"steps": 1}, start=first, licence="CC0-1.0"), tmp_path / "second")
    start = read_card(second).training["recipe"]["start"]
    assert start == {"name": "tiny", "licence": "Apache-2.0"}


@pytest.mark.slow
def test_the_smoke_configuration_does_not_collapse(tmp_path: Path) -> None:
    settings = load_config(REPOSITORY / "configs" / "pretrain-small.yaml", PretrainConfig)
    sources = [settings.tiles.sources[0].model_copy(update={"path": REPOSITORY / "samples" / "yellowstone.tif"})]
    tiles = settings.tiles.model_copy(update={"sources": tuple(sources)})
    pretrain(settings.model_copy(update={"tiles": tiles}), tmp_path / "run")
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([entry for entry in entries if "information" in entry]) == 6
    assert not [entry["warning"] for entry in entries if "warning" in entry]


def test_the_smoke_configuration_runs_on_the_bundled_sample(tmp_path: Path) -> None:
    overrides = ("loop.steps=1", "batch=2", "encoder_args.depth=1", "local_crops.count=1")
    settings = load_config(REPOSITORY / "configs" / "pretrain-small.yaml", PretrainConfig, overrides)
    sources = [settings.tiles.sources[0].model_copy(update={"path": REPOSITORY / "samples" / "yellowstone.tif"})]
    tiles = settings.tiles.model_copy(update={"sources": tuple(sources)})
    bundle = pretrain(settings.model_copy(update={"tiles": tiles}), tmp_path / "run")
    assert read_card(bundle).training["tiles"] == 16
