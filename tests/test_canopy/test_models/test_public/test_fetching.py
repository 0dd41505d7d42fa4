"""From a name to a bundle: the licence is accepted, the download is verified, converted and removed."""

import hashlib

import pytest
import torch
from checkpoints import THIN, released_state
from publisher import serve

from canopy.errors import ModelError
from canopy.models.model import load_model
from canopy.models.public import download as downloads
from canopy.models.public.fetching import fetch, hub_token
from canopy.models.public.registry import CHECKPOINTS, Checkpoint, list_models


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("released") / "SSLtiny.pth"
    torch.save(released_state(**THIN), path)
    return path.read_bytes()


@pytest.fixture
def publisher(monkeypatch, released):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with serve(released) as server:
        yield server


@pytest.fixture
def checkpoint(publisher, monkeypatch, tmp_path) -> Checkpoint:
    """Entry of a public model on the test's server, whose bundles lie in `tmp_path`."""
    entry = Checkpoint(
        "chmv1-tiny", "chmv1", (publisher.url(),), "9 MB", 0.6, "Apache-2.0", "https://licence", "https://page", "tiny"
    )
    monkeypatch.setitem(CHECKPOINTS, "chmv1-tiny", entry)
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    return entry


def test_nothing_is_downloaded_before_the_licence_is_accepted(publisher, checkpoint, canopy) -> None:
    with pytest.raises(ModelError, match=r"licence of chmv1-tiny \(Apache-2.0, https://licence\) is not accepted"):
        fetch(checkpoint, accept=lambda _: False)
    code, _, err = canopy("models", "fetch", "chmv1-tiny")
    assert code == 1
    assert "Apache-2.0, https://licence" in err and "--accept-licence" in err
    assert publisher.requests == []


def test_fetching_makes_a_bundle_and_removes_the_download(publisher, checkpoint, tmp_path, canopy) -> None:
    code, out, err = canopy("models", "fetch", "chmv1-tiny", "--accept-licence")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "chmv1-tiny.safetensors")
    assert "MB" in err
    card = load_model("chmv1-tiny").card
    assert (card.name, card.gsd_m) == ("chmv1-tiny", 0.6)
    assert card.training["converted_sha256"] == hashlib.sha256(publisher.content).hexdigest()
    assert not list(tmp_path.rglob("*.pth*"))
    assert fetch(checkpoint, accept=lambda _: False) == tmp_path / "chmv1-tiny.safetensors", "it is there already"
    assert len(publisher.requests) == 1
    assert {row.name: row.state for row in list_models()}["chmv1-tiny"] == "fetched"


def test_the_token_of_the_environment_comes_first(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert hub_token() == "mine"
