"""`canopy models`: what is printed, and faults that are said before torch is imported."""

import json
import subprocess
import sys

import pytest
import torch
from checkpoints import THIN, released_state
from tiny_models import save_tiny_model

from canopy.models.bundle import read_card
from canopy.models.speeds import record_speed


def test_models_are_listed_as_a_table_and_as_json(canopy, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    code, out, _ = canopy("models", "list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        "name", "family", "size", "gsd_m", "licence", "state", "accuracy", "s/km2", "source"
    ]  # fmt: skip
    licences = {line.index("Apache-2.0") for line in lines if "Apache-2.0" in line}
    assert licences == {lines[0].index("licence")}, "columns are aligned"
    rows = {row["name"]: row for row in json.loads(canopy("models", "list", "--json")[1])}
    assert rows["canopy-small"]["state"] == "bundled"
    assert (rows["chmv2"]["state"], rows["chmv2"]["licence"]) == ("gated", "DINOv3 License")
    table = [line for line in lines[1:] if not line.startswith(("[", "s/km2"))]
    assert len(rows) == len(table)
    aerial = next(line for line in table if line.startswith("chmv1-huge-aerial "))
    note = next(word for word in aerial.split() if word.startswith("["))
    assert "MAE 2.50 m, block R2 0.70" in aerial
    assert any(line.startswith(f"{note} tested by the publisher on aerial images") for line in lines)
    assert any(cell.startswith("~") for cell in aerial.split()), "the time is estimated"
    assert rows["chmv1-huge-aerial"]["timed"] == "estimated"
    assert rows["chmv1-huge"]["seconds_km2"] > rows["chmv1-large"]["seconds_km2"] > 0
    assert (rows["canopy-small"]["seconds_km2"], rows["canopy-small"]["timed"]) == (None, "")
    record_speed("chmv1-huge-aerial", "eager on cpu", 1.0)
    row = next(row for row in json.loads(canopy("models", "list", "--json")[1]) if row["name"] == "chmv1-huge-aerial")
    assert (round(row["seconds_km2"]), row["timed"]) == (56, "eager on cpu")


def test_a_model_is_shown_as_yaml_and_as_json(canopy, tmp_path) -> None:
    shown = json.loads(canopy("models", "show", "chmv1-huge", "--json")[1])
    assert shown["urls"][0].endswith("/saved_checkpoints/SSLhuge_satellite.pth")
    assert (shown["family"], shown["gsd_m"]) == ("chmv1", 0.597)
    bundle = save_tiny_model(tmp_path / "tiny.safetensors")
    assert "family: dpt" in canopy("models", "show", bundle)[1].splitlines()
    code, out, err = canopy("models", "show", "chmv9")
    assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_a_checkpoint_is_converted(canopy, tmp_path) -> None:
    torch.save(released_state(**THIN), tmp_path / "SSLlarge.pth")
    code, out, err = canopy("models", "convert", tmp_path / "SSLlarge.pth", "--out", tmp_path / "a.safetensors")
    assert (code, out.strip()) == (0, str(tmp_path / "a.safetensors")), err
    assert read_card(tmp_path / "a.safetensors").name == "a"


@pytest.mark.parametrize("out", ["file/a.safetensors", "/proc/nowhere/a.safetensors"])
def test_a_folder_that_cannot_be_written_to_is_one_line(canopy, tmp_path, monkeypatch, out) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    save_tiny_model(tmp_path / "tiny.safetensors")
    code, stdout, err = canopy("models", "convert", "tiny.safetensors", "--out", out)
    assert (code, stdout, len(err.splitlines())) == (1, "", 1), err
    assert "cannot" in err and out.partition("/a.")[0] in err


FAULTS = {
    "models fetch chmv9": "no public checkpoint",
    "models fetch chmv1-large --out .": "is not accepted",
    "models fetch --out .": "is not accepted",
    "models show chmv9": "no model",
    "models convert absent.pth --out a.safetensors": "no model",
    "models convert tiny.safetensors --out a.pth": "a name ending in .safetensors expected",
    "models convert tiny.safetensors --out tiny.safetensors": "exists",
    "models convert tiny.safetensors --out a.safetensors --gsd 0": "gsd_m 0",
    "info absent.safetensors": "no model",
}


def test_faults_are_said_before_torch_is_imported(tmp_path) -> None:
    """One process, because each would import the command line anew."""
    save_tiny_model(tmp_path / "tiny.safetensors")
    code = """
import json, sys
from canopy.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["canopy", *line.split()]
    try:
        main()
    except SystemExit as end:
        print(json.dumps([line, end.code, "torch" in sys.modules]), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(FAULTS))],
        cwd=tmp_path, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[line, 1, False] for line in FAULTS]
    messages = [line for line in done.stderr.splitlines() if line.startswith("canopy: ")]
    assert len(messages) == len(FAULTS)
    for message, expected in zip(messages, FAULTS.values(), strict=True):
        assert expected in message
