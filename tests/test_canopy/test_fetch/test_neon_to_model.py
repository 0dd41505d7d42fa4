"""Three commands lead from a site's name to a model."""

from pathlib import Path

import pytest
import yaml
from servers import neon as fake
from training import tiny_config

from canopy.config import dump_config
from canopy.models.bundle import read_card


@pytest.mark.slow
def test_a_name_of_a_site_becomes_a_model(canopy, neon_server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEON_TOKEN", fake.TOKEN)
    monkeypatch.setenv("CANOPY_NEON_API", neon_server.api)
    code, out, err = canopy(
        "fetch", "neon", "--site", "TEAK", "--aoi", neon_server.aoi, "--years", "2018", "--out", "teak"
    )
    assert (code, out.strip()) == (0, "teak/dataset.yaml"), err
    small = ("chip_px=64", "stride_px=32", "splits.block_m=64", "splits.test_share=0.3")
    settings = [part for setting in small for part in ("--set", setting)]
    assert "next: canopy dataset build teak/dataset.yaml --out teak/store" in err
    code, out, err = canopy("dataset", "build", "teak/dataset.yaml", "--out", "teak/store", *settings)
    assert (code, out.strip()) == (0, "teak/store"), err
    dump_config(tiny_config(store={"path": "teak/store"}), tmp_path / "tiny.yaml")
    code, out, err = canopy("train", "tiny.yaml")
    assert code == 0, err
    assert read_card(tmp_path / "runs" / "tiny" / "last.safetensors").name == "tiny"
    stored = yaml.safe_load((tmp_path / "teak" / "dataset.yaml").read_text())
    assert stored["sources"]["neon_teak"]["floor_m"] == 2.0
    assert stored["sources"]["neon_teak"]["image_date"] == "2018-06"
