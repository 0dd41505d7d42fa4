"""From a name to a bundle: the licence is accepted, the download is verified, converted and removed."""

import hashlib
import sys
from dataclasses import replace

import pytest
import torch
from checkpoints import THIN, released_colours, released_state, tiny_chmv2
from publisher import serve

from canopy.errors import ModelError, OutputBusyError, OutputError
from canopy.http import HttpClient, Retry
from canopy.models.bundle import read_card
from canopy.models.model import load_model
from canopy.models.public import conversion, fetching
from canopy.models.public.fetching import fetch, hub_token
from canopy.models.public.registry import CHECKPOINTS, Checkpoint, list_models
from canopy.prediction.default_model import default_model
from tiles.locks import hold


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("released") / "SSLtiny.pth"
    torch.save(released_state(**THIN), path)
    return path.read_bytes()


@pytest.fixture
def publisher(monkeypatch, released):
    monkeypatch.setattr(fetching, "new_client", lambda: HttpClient(retry=Retry(5, 0.0), timeout_s=2.0))
    with serve(released) as server:
        yield server


@pytest.fixture
def checkpoint(publisher, monkeypatch, tmp_path) -> Checkpoint:
    """Entry of a public model on the test's server, whose bundles lie in `tmp_path`."""
    entry = Checkpoint(
        "chmv1-tiny", "chmv1", (publisher.url(),), "9 MB", 0.6, "Apache-2.0", "https://licence", "https://page", "tiny",
        blocks=24, width=64, gflop=1,
    )  # fmt: skip
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


# --- the recommended model


@pytest.fixture
def recommended(checkpoint, monkeypatch, tmp_path) -> Checkpoint:
    """The recommended model of aerial imagery, on the test's server."""
    entry = replace(checkpoint, name="chmv1-huge-aerial")
    monkeypatch.setitem(CHECKPOINTS, entry.name, entry)
    monkeypatch.setenv("CANOPY_CONFIG", str(tmp_path / "config.yaml"))
    return entry


def test_without_a_name_the_recommended_model_is_fetched_and_the_reason_said(recommended, tmp_path, canopy) -> None:
    code, out, err = canopy("models", "fetch", "--accept-licence")
    assert (code, out.strip()) == (0, str(tmp_path / "chmv1-huge-aerial.safetensors")), err
    assert "recommended for aerial imagery: chmv1-huge-aerial: its decoder was trained on aerial imagery" in err
    assert "--imagery satellite" in err and "canopy models fetch chmv1-large" in err
    assert "canopy models fetch chmv1-huge-aerial --default" in err
    assert not (tmp_path / "config.yaml").exists(), "the configuration is written on request alone"


def test_the_default_is_written_where_it_is_asked_for_and_said(recommended, tmp_path, canopy) -> None:
    (tmp_path / "config.yaml").write_text("auto: false  # no services\n")
    code, _, err = canopy("models", "fetch", "--default", "--accept-licence")
    assert code == 0, err
    assert f"model: chmv1-huge-aerial is written to {tmp_path / 'config.yaml'}" in err
    assert (tmp_path / "config.yaml").read_text() == "auto: false  # no services\nmodel: chmv1-huge-aerial\n"
    assert default_model() == "chmv1-huge-aerial"
    code, _, err = canopy("models", "fetch", "--default", "--accept-licence", "--out", tmp_path / "other")
    assert code == 2 and "--default and --out" in err


# --- what came is not what was asked for


def test_a_page_with_status_200_blocks_no_retry(publisher, checkpoint, tmp_path, released) -> None:
    publisher.content = b"<html>Sign in</html>"
    with pytest.raises(ModelError, match="a web page came"):
        fetch(checkpoint, accept=lambda _: True)
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.glob("*.safetensors"))
    publisher.content, publisher.etag = released, '"two"'
    assert load_model(fetch(checkpoint, accept=lambda _: True)).card.name == "chmv1-tiny"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (released_state(depth=32, **THIN), "family chmv1, 32 blocks, 64 wide, came; chmv1, 24 blocks, 64 wide, exp"),
        ({"fc1.weight": torch.zeros(2)}, "none of the checkpoints we know"),
        (released_colours(), "colour matching, no height model"),
    ],
)
def test_another_model_is_refused_and_blocks_no_retry(
    publisher, checkpoint, tmp_path, released, content, message
) -> None:
    torch.save(content, tmp_path / "other")
    publisher.content = (tmp_path / "other").read_bytes()
    with pytest.raises(ModelError, match=f"{message}.*the download was removed, run the same command"):
        fetch(checkpoint, accept=lambda _: True)
    assert not (tmp_path / "chmv1-tiny.safetensors").exists()
    publisher.content, publisher.etag = released, '"two"'
    assert fetch(checkpoint, accept=lambda _: True).is_file()


def test_a_damaged_bundle_is_fetched_again(checkpoint, tmp_path, caplog) -> None:
    bundle = tmp_path / "chmv1-tiny.safetensors"
    bundle.write_bytes(b"<html>")
    fetch(checkpoint, accept=lambda _: True)
    assert "it is fetched again" in caplog.text
    assert read_card(bundle).name == "chmv1-tiny"


def test_an_interrupted_conversion_goes_on_without_a_download(publisher, checkpoint, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OutputError, match="no space left"):
        patched.setattr(conversion, "save_bundle", full)
        fetch(checkpoint, accept=lambda _: True)
    assert (tmp_path / "downloads" / "chmv1-tiny" / "SSLtiny.pth").is_file()
    fetch(checkpoint, accept=lambda _: True)
    assert len(publisher.requests) == 1


def test_a_second_run_waits_its_turn(publisher, checkpoint, tmp_path) -> None:
    (tmp_path / "downloads").mkdir()
    lock = tmp_path / "downloads" / ".chmv1-tiny.lock"
    with hold(lock, "busy"), pytest.raises(OutputBusyError, match="another run fetches chmv1-tiny"):
        fetch(checkpoint, accept=lambda _: True)
    assert publisher.requests == []


# --- models of the hub


@pytest.fixture
def hub(publisher, monkeypatch, tmp_path) -> Checkpoint:
    """Entry of a model of the transformers library on the test's server."""
    tiny_chmv2(tmp_path / "published")
    (tmp_path / "published" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}'
    )
    publisher.files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    publisher.revision = "a" * 40
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "models"))
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    urls = tuple(publisher.url(f"someone/model/resolve/main/{name}") for name in names)
    return Checkpoint(
        "chmv2-tiny", "chmv2", urls, "", 0.6, "licence", "https://licence", "https://page", "tiny", blocks=4, width=32,
        gflop=1,
    )  # fmt: skip


def paths(publisher) -> list[str]:
    return [request["path"].removeprefix("/someone/model/resolve/") for request in publisher.requests]


def test_all_files_are_of_one_revision_which_the_card_states(publisher, hub) -> None:
    card = read_card(fetch(hub, accept=lambda _: True))
    others = [f"{'a' * 40}/preprocessor_config.json", f"{'a' * 40}/model.safetensors"]
    assert paths(publisher) == ["main/config.json", *others]
    assert card.training["converted_revision"] == "a" * 40
    assert card.mean == (0.4, 0.4, 0.4)


def test_an_interrupted_download_goes_on_with_its_revision(publisher, hub) -> None:
    weights = publisher.files.pop("model.safetensors")
    publisher.content = b"<html>"
    with pytest.raises(ModelError, match="a web page came"):
        fetch(hub, accept=lambda _: True)
    publisher.files["model.safetensors"], publisher.revision = weights, "b" * 40
    publisher.requests.clear()
    card = read_card(fetch(hub, accept=lambda _: True))
    assert paths(publisher) == [f"{'a' * 40}/model.safetensors"]
    assert card.training["converted_revision"] == "a" * 40


def test_a_pinned_revision_and_digest_are_asked_for(publisher, hub) -> None:
    pinned = replace(hub, revision="c" * 40, sha256="0" * 64)
    with pytest.raises(ModelError, match=f"{'0' * 64} expected"):
        fetch(pinned, accept=lambda _: True)
    assert {path.partition("/")[0] for path in paths(publisher)} == {"c" * 40}
    digest = hashlib.sha256(publisher.files["model.safetensors"]).hexdigest()
    assert fetch(replace(pinned, sha256=digest), accept=lambda _: True).is_file()


def test_another_size_of_the_same_family_is_refused(publisher, hub) -> None:
    with pytest.raises(ModelError, match="chmv2, 4 blocks, 32 wide, came; chmv2, 24 blocks, 1024 wide, expected"):
        fetch(replace(hub, blocks=24, width=1024), accept=lambda _: True)


def test_an_absent_library_is_said_before_the_download(publisher, hub, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="pip install transformers"):
        fetch(hub, accept=lambda _: True)
    assert publisher.requests == []


def test_the_token_of_the_environment_comes_first(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert hub_token() == "mine"
