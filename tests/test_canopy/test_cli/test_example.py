"""`canopy example`."""

import os
from pathlib import Path
from typing import Any

import pytest


def test_the_sample_goes_to_a_folder_and_the_next_command_is_named(
    canopy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = canopy("example")
    assert (code, out) == (0, "canopy-example\n")
    assert "canopy predict --aoi canopy-example/region.geojson --imagery canopy-example/scenes" in err
    assert (tmp_path / "canopy-example" / "scenes" / "yellowstone.tif").is_file()


def test_a_second_run_replaces_nothing(canopy: Any, tmp_path: Path) -> None:
    assert canopy("example", tmp_path / "a")[0] == 0
    code, out, err = canopy("example", tmp_path / "a")
    assert (code, out) == (1, "")
    assert err.startswith(f"canopy: {tmp_path}{os.sep}a{os.sep}region.geojson exists")
    assert canopy("example", tmp_path / "a", "--overwrite")[0] == 0
