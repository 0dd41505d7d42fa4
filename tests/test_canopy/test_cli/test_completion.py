"""Values that a shell completes."""

import sys
from pathlib import Path

import pytest

from canopy.cli.completion import complete_backend, complete_device, complete_encoder, complete_model


def test_names_of_models_backends_and_devices_are_completed() -> None:
    assert complete_model("canopy-s") == ["canopy-small", "canopy-ssl-tiny"] or complete_model("canopy-s") == [
        "canopy-small"
    ]
    assert {"chmv1-huge", "chmv1-large"} <= set(complete_model("chmv1"))
    assert complete_encoder("canopy-t") == ["canopy-tiny"]
    assert complete_backend("o") == ["openvino", "openvino-bf16"]
    assert set(complete_backend("")) == {"auto", "eager", "compile", "openvino", "openvino-bf16", "bf16", "int8"}
    assert complete_device("cu") == ["cuda"]


def test_bundles_of_folders_are_completed_as_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_text("")
    (tmp_path / "run" / "log.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert complete_model("r") == ["run/"]
    assert complete_model("run/") == ["run/best.safetensors"]
    assert complete_model("absent/") == []
    assert complete_model(f"{tmp_path}/run/b") == [f"{tmp_path}/run/best.safetensors"]


def test_the_command_line_completes_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from canopy.cli.app import app

    monkeypatch.setenv("_CANOPY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "canopy predict --backend ")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr(sys, "argv", ["canopy"])
    with pytest.raises(SystemExit):
        app(prog_name="canopy")
    assert "openvino" in capsys.readouterr().out.split()
