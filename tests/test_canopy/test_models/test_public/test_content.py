"""Downloaded files, by what they contain rather than by what a server says of them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from canopy.models.public.content import content_fault

PAGE = b"\n <!DOCTYPE html><html><body>Sign in to the hotel's network</body></html>"


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Path]:
    """A file of each kind, as it should be."""
    files = {name: tmp_path / name for name in ("a.pth", "old.pth", "a.ckpt", "a.safetensors", "config.json")}
    torch.save({"a": torch.zeros(1000)}, files["a.pth"])
    torch.save({"a": torch.zeros(1000)}, files["a.ckpt"])
    files["old.pth"].write_bytes(pickle.dumps({"a": 1}))
    save_file({"a": np.zeros(1000)}, files["a.safetensors"])
    files["config.json"].write_text(json.dumps({"model_type": "chmv2"}))
    return files


def test_files_of_their_kind_pass(whole: dict[str, Path]) -> None:
    assert {name: content_fault(path, name) for name, path in whole.items()} == dict.fromkeys(whole)
    assert content_fault(whole["a.pth"], "README") is None, "nothing is known of other names"


@pytest.mark.parametrize("name", ["a.pth", "a.ckpt", "a.safetensors", "config.json", "README"])
def test_pages_and_empty_files_are_faults_under_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(PAGE)
    assert content_fault(path, name) == f"a web page came, {name} expected"
    path.write_bytes(b"")
    assert content_fault(path, name) == f"nothing came, {name} expected"


@pytest.mark.parametrize(
    ("name", "fault"),
    [("a.pth", "no torch file"), ("a.safetensors", "no safetensors file"), ("config.json", "no JSON came")],
)
def test_a_file_that_is_cut_is_a_fault(whole: dict[str, Path], name: str, fault: str) -> None:
    path = whole[name]
    path.write_bytes(path.read_bytes()[:-5])
    assert fault in (content_fault(path, name) or "")


@pytest.mark.parametrize("text", ["[1]", "3", "null"])
def test_json_that_is_no_object_is_a_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert content_fault(tmp_path / "config.json", "config.json") == "JSON that is no object came"


def test_json_without_end_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "no JSON came" in (content_fault(tmp_path / "config.json", "config.json") or "")
