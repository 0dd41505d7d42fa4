"""Whole runs: the command, resumption to the bit, guards, ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from pretraining import TINY, tiny_config
from rasters import make_raster
from typer.testing import CliRunner

from canopy.cli import app as cli
from canopy.config import load_config
from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import read_bundle, read_card
from canopy.models.model import load_model
from pretrain import training
from pretrain.cli import pretrain as command
from pretrain.config import PretrainConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.encoder import load_encoder
from pretrain.training import pretrain

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def imagery(tmp_path: Path) -> Path:
    return make_raster(tmp_path / "imagery" / "scene.tif", shape=(96, 128), pattern="noise").parent


def config(imagery: Path, **changes: Any) -> PretrainConfig:
    return tiny_config(**{"tiles": {"sources": [{"path": str(imagery)}]}, "loop": {"steps": 10}, **changes})


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    made: dict[str, Any] = torch.load(run / "checkpoints" / f"{step:08d}.pt", weights_only=True)
    return made


def flat(state: Any) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in flat(value)]
    return [state] if isinstance(state, torch.Tensor) else []


def test_five_steps_and_five_more_equal_ten_to_the_bit(imagery: Path, tmp_path: Path, monkeypatch: Any) -> None:
    settings = config(imagery, drop_path=0.3, target={"kind": "centre"}, terms={"gram": 1.0, "statistics": 5.0},
                      gram={"start": 0.3}, high_resolution={"start": 0.7, "global_px": 64, "local_px": 24})  # fmt: skip
    pretrain(settings, tmp_path / "whole")

    def interrupt(entry: dict[str, Any], steps: int, report: object) -> None:
        if entry["step"] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "report_entry", interrupt)
        pretrain(settings, tmp_path / "cut")
    assert not (tmp_path / "cut" / "last.safetensors").exists()
    pretrain(settings, tmp_path / "cut", resume=True)
    whole, cut = (flat(checkpoint(tmp_path / name, 10)) for name in ("whole", "cut"))
    assert len(whole) == len(cut) > 100
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    files = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[json.loads(line).get("loss") for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_the_bundle_holds_the_teachers_encoder(imagery: Path, tmp_path: Path) -> None:
    path = pretrain(config(imagery), tmp_path / "run")
    card, encoder = load_encoder(path)
    assert (card.family, card.chip_px, card.training["steps"], card.training["images_seen"]) == ("encoder", 32, 10, 40)
    teacher = checkpoint(tmp_path / "run", 10)["average"]
    for name, weight in encoder.vit.state_dict().items():
        torch.testing.assert_close(weight, teacher[f"encoder.vit.{name}"], atol=1e-3, rtol=1e-3)
    assert read_card(path).training["data_sha256"] == card.training["data_sha256"]
    with pytest.raises(ModelError, match="holds an encoder alone"):
        load_model(path)


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(imagery: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sound = SelfDistillation.loss

    def poisoned(self: SelfDistillation, batch: Any, step: int) -> torch.Tensor:
        return sound(self, batch, step) * (torch.nan if step == 7 else 1)

    monkeypatch.setattr(SelfDistillation, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"nan at step 7; last good checkpoint: .*00000005\.pt"):
        pretrain(config(imagery), tmp_path / "run")


@pytest.mark.parametrize(("changes", "found"), [
    ({"local_crops": {"px": 30}}, "crops of 30 px: a multiple of the encoder's patch, 8 px"),
    ({"global_crops": {"px": 40}}, "global crops of 40 px: a multiple of 32 px"),
    ({"high_resolution": {"start": 0.5, "global_px": 64, "local_px": 20}}, "crops of 20 px"),
    ({"encoder": "no_such"}, "timm makes no encoder 'no_such'"),
])  # fmt: skip
def test_a_recipe_that_does_not_hold_leaves_no_run_behind(
    imagery: Path, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        pretrain(config(imagery, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", [
    "batch=1", "global_crops.count=3", "local_crops.gsd=[1.0, 4.0]", "masks.ratio=[0.1, 1.5]", "colours.hue=0.1",
    "global_crops.gsd=[1.5, 1.0]", "target.kind=magic", "global_crops.count=0",
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[0]):
        load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, (setting,))


def test_the_card_names_what_was_started_from_without_its_folder(imagery: Path, tmp_path: Path) -> None:
    first = pretrain(config(imagery, loop={"steps": 1}), tmp_path / "first")
    second = pretrain(config(imagery, loop={"steps": 1}, start=first, licence="CC0-1.0"), tmp_path / "second")
    started = read_bundle(second)[0].training["recipe"]["start"]
    assert started == {"name": "tiny", "licence": "Apache-2.0"}


@pytest.mark.parametrize("name", ["pretrain-small", "pretrain-ssl", "pretrain-tiny"])
def test_the_configs_that_ship_are_valid(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml", PretrainConfig).name


def test_the_command_mounts_through_its_entry_point(imagery: Path, tmp_path: Path, monkeypatch: Any) -> None:
    class Offered:
        name = "pretrain"

        def load(self) -> Any:
            return command

    monkeypatch.setattr(cli, "entry_points", lambda group: [Offered()] if group == "canopy.commands" else [])
    app = typer.Typer()
    app.command("other")(lambda: None)
    cli.mount(app)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["pretrain", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--set", "loop.steps=2",
                 "--set", f"tiles.sources=[{{path: {imagery}}}]"]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run" / "last.safetensors")
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, TrainingError)
    assert "--resume" in str(again.exception)


def launch(settings: PretrainConfig, run: Path, ranks: int) -> None:
    """Run the stage on ranks of their own, as torchrun would."""
    run.with_suffix(".yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = (
        "import sys; from pathlib import Path; from canopy.config import load_config;"
        "from pretrain.config import PretrainConfig; from pretrain.training import pretrain;"
        f"run = Path({str(run)!r}); pretrain(load_config(run.with_suffix('.yaml'), PretrainConfig), run)"
    )
    places = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"} for r in range(ranks)]  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **place}, stderr=subprocess.PIPE, text=True)
        for place in places
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("terms", [{"gram": 1.0, "statistics": 5.0}, {"dino": 0, "ibot": 0, "statistics": 5.0}])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_ranks_equal_one_and_their_checkpoint_loads_on_one(
    imagery: Path, tmp_path: Path, sharding: str, terms: dict[str, float]
) -> None:
    settings = config(imagery, loop={"steps": 4, "checkpoint_every": 2}, scale={"sharding": sharding},
                      terms=terms, gram={"start": 0.5})  # fmt: skip
    pretrain(settings, tmp_path / "one")
    launch(settings, tmp_path / "two", 2)
    one, two = (checkpoint(tmp_path / name, 4) for name in ("one", "two"))
    for name, weight in one["average"].items():
        torch.testing.assert_close(two["average"][name], weight, atol=2e-4, rtol=2e-3)
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=1e-3)
    (tmp_path / "two" / "checkpoints" / "00000004.pt").unlink()
    pretrain(settings, tmp_path / "two", resume=True)
    resumed = checkpoint(tmp_path / "two", 4)
    for name, weight in one["average"].items():
        torch.testing.assert_close(resumed["average"][name], weight, atol=2e-4, rtol=2e-3)


def test_a_run_on_the_bundled_sample_is_a_matter_of_configuration(tmp_path: Path) -> None:
    settings = load_config(CONFIGS / "pretrain-small.yaml", PretrainConfig, ("loop.steps=1", "batch=2"))
    sources = [settings.tiles.sources[0].model_copy(update={"path": CONFIGS.parent / "samples" / "yellowstone.tif"})]
    moved = settings.model_copy(update={"tiles": settings.tiles.model_copy(update={"sources": tuple(sources)})})
    bundle = pretrain(moved, tmp_path / "run")
    assert read_bundle(bundle)[0].training["tiles"] == 16
