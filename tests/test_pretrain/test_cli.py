"""The commands: mounted through entry points, plain help texts, clear errors."""

import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pretraining import TINY
from rasters import make_raster
from typer.testing import CliRunner

from canopy.cli import app as cli
from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import Architecture, Card, read_card
from pretrain import cli as commands
from pretrain import probe as probes
from pretrain.encoder import from_card, save_encoder


@pytest.fixture
def application() -> typer.Typer:
    """The stage's commands alone."""
    app = typer.Typer()
    for command in (commands.pretrain, commands.distill, commands.curate, commands.pack, commands.probe):
        app.command(command.__name__)(command)
    return app


def test_a_command_mounts_through_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EntryPoint:
        name = "pretrain"

        def load(self) -> Any:
            return commands.pretrain

    imagery = make_raster(tmp_path / "scene.tif", pattern="noise")
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint()] if group == "canopy.commands" else [])
    app = typer.Typer()
    app.command("other")(lambda: None)
    cli.mount(app)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["pretrain", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--set", "loop.steps=2",
                 "--set", f"tiles.sources=[{{path: {imagery}}}]"]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("cost: 2 steps, ")
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run" / "last.safetensors")
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, TrainingError)
    assert "--resume" in str(again.exception)


@pytest.mark.parametrize("command", ["pretrain", "distill", "curate", "probe"])
def test_help_texts_are_noun_phrases(application: typer.Typer, command: str) -> None:
    text = CliRunner().invoke(application, [command, "--help"]).stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "Usage" in plain
    assert not re.search(r"(PATH|INTEGER|TEXT)\s+(Of|Where|Which|How) ", plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to do"),
        ({"scene": Path("a.tif")}, "give both"),
        ({"picture": Path("p.png")}, "--scene IMAGE or --pairs"),
        ({"match": (Path("a.tif"), Path("b.tif"))}, "--picture FILE: give both"),
    ],
)
def test_probing_nothing_says_what_to_give(options: dict[str, Path], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        commands.probe(Path("canopy-tiny"), **options)


def test_probe_joins_the_patches_of_two_images(application: typer.Typer, tmp_path: Path) -> None:
    image = make_raster(tmp_path / "a.tif", shape=(40, 40), pattern="noise")
    arguments = ["probe", "canopy-ssl-tiny", "--match", str(image), str(image), "--picture", str(tmp_path / "m.png")]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["25 patches joined", str(tmp_path / "m.png")]
    assert (tmp_path / "m.png").is_file()


def test_probe_prints_a_table_or_json_and_records(
    application: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "probe", partial(probes.probe, untrained=1))
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    card = Card(
        name="small", family="encoder", architecture=Architecture(encoder_args=args), gsd_m=0.5, chip_px=32,
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), canopy_version="0", licence="CC0-1.0", provisional=True,
    )  # fmt: skip
    bundle = tmp_path / "small.safetensors"
    save_encoder(bundle, card, from_card(card).vit.state_dict())
    make_raster(tmp_path / "pairs" / "a" / "rgb.tif", shape=(64, 3328), pattern="noise")
    make_raster(tmp_path / "pairs" / "a" / "chm_cm.tif", shape=(32, 1664), bands=1, dtype="uint16", resolution=1.0)
    arguments = ["probe", str(bundle), "--pairs", str(tmp_path / "pairs")]
    table = CliRunner().invoke(application, arguments)
    assert table.exit_code == 0, table.output
    assert table.stdout.startswith("| features | target | probe | R2 |")
    assert "probe" not in read_card(bundle).metrics
    as_json = CliRunner().invoke(application, [*arguments, "--json", "--record"])
    tree = json.loads(as_json.stdout)
    assert tree["cells"] == 208
    assert read_card(bundle).metrics["probe"]["height_m"] == tree["height_m"]


def test_packed_tiles_train_by_the_command_that_is_printed(
    application: typer.Typer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    imagery = make_raster(tmp_path / "scene.tif", pattern="noise")
    tiles = {"sources": [{"path": str(imagery)}], "tile_px": 32}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "tiles": tiles}))
    arguments = ["pack", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "shards"), "--tiles-a-shard", "3"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    printed = (result.stderr + capfd.readouterr().err).splitlines()
    command = next(line for line in printed if "canopy pretrain" in line).partition("canopy ")[2]
    out = ["--out", str(tmp_path / "run"), "--set", "loop.steps=1"]
    result = CliRunner().invoke(application, [*shlex.split(command), *out])
    assert result.exit_code == 0, result.output
