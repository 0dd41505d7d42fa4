"""The model that maps where none is named."""

from pathlib import Path

import pytest

from canopy.errors import ConfigError
from canopy.models.bundle import DEFAULT_MODEL
from canopy.prediction.default_model import default_model


def test_the_configured_model_comes_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    path = tmp_path / "config.yaml"
    monkeypatch.setenv("CANOPY_CONFIG", str(path))
    assert default_model() == DEFAULT_MODEL
    path.write_text("auto: false\n")
    assert default_model() == DEFAULT_MODEL
    path.write_text(f"model: {tiny_model}\n")
    assert default_model() == str(tiny_model)


def test_a_configured_model_that_is_gone_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: chmv1-gone\n")
    monkeypatch.setenv("CANOPY_CONFIG", str(path))
    with pytest.raises(ConfigError, match=r"config\.yaml: model: no model 'chmv1-gone'.*or take that line out"):
        default_model()
