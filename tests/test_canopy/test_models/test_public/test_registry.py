"""The list of bundled and public models."""

import re

import pytest
from tiny_models import save_tiny_model

from canopy.errors import ModelError
from canopy.models.public.registry import CHECKPOINTS, describe_model, find_checkpoint, list_models


def test_bundled_models_come_first_and_public_ones_say_how_to_get_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    rows = {row.name: row for row in list_models()}
    assert next(iter(rows)) == "canopy-small"
    assert (rows["canopy-small"].state, rows["canopy-small"].size) == ("bundled", "22 MB")
    assert (rows["chmv2"].state, rows["chmv2"].licence, rows["chmv2"].size) == ("gated", "DINOv3 License", "unknown")
    assert rows["chmv1-huge"].state == "to fetch"
    save_tiny_model(tmp_path / "chmv1-huge.safetensors")
    assert {row.name: row.state for row in list_models()}["chmv1-huge"] == "fetched"


def test_a_damaged_bundle_is_not_called_fetched(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    bundle = save_tiny_model(tmp_path / "chmv1-huge.safetensors")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert {row.name: row.state for row in list_models()}["chmv1-huge"] == "damaged"
    assert not find_checkpoint("chmv1-huge").is_fetched()
    with pytest.raises(ModelError, match="or a damaged one"):
        describe_model("chmv1-huge")


def test_a_public_model_is_described_with_its_card_once_fetched(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    entry = describe_model("chmv1-huge")
    assert entry["urls"][0].endswith("/saved_checkpoints/SSLhuge_satellite.pth")
    assert (entry["family"], entry["gsd_m"]) == ("chmv1", 0.597)
    assert "card" not in entry
    bundle = save_tiny_model(tmp_path / "chmv1-huge.safetensors")
    entry = describe_model("chmv1-huge")
    assert (entry["bundle"], entry["card"]["name"]) == (str(bundle), "tiny")
    assert describe_model("canopy-small")["family"] == "dpt"


def test_unknown_names_are_refused_with_the_known_ones(tmp_path, monkeypatch) -> None:
    with pytest.raises(ModelError, match="chmv1-huge"):
        find_checkpoint("chmv9")
    with pytest.raises(ModelError, match="no model 'chmv9'"):
        describe_model("chmv9")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=lambda checkpoint: checkpoint.name)
def test_entries_name_a_page_a_licence_and_files_by_https(checkpoint) -> None:
    addresses = (*checkpoint.urls, checkpoint.page, checkpoint.licence_url)
    assert all(address.startswith("https://") for address in addresses)
    assert re.fullmatch("[a-z0-9-]+", checkpoint.name)
    assert checkpoint.urls[-1].endswith((".pth", ".safetensors")), "the weights are last"
