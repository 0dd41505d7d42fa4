"""Bundles: cards and weights come back as they were written, and those of earlier versions still open."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model, tiny_card

from canopy.errors import ModelError
from canopy.models.bundle import (
    BUNDLED,
    CARD_KEY,
    Architecture,
    Card,
    find_bundle,
    models_folder,
    read_bundle,
    read_card,
    save_bundle,
)
from canopy.models.model import load_model

OLD = Path(__file__).parents[2] / "data" / "old" / "models"


def test_a_bundle_keeps_card_and_weights(tmp_path: Path) -> None:
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.count": np.array(3)}
    path = tmp_path / "tiny.safetensors"
    save_bundle(path, tiny_card(notes="Höhe in m"), weights)
    bundle = read_bundle(path)
    assert bundle.card == read_card(path) == tiny_card(notes="Höhe in m")
    assert bundle.weights.keys() == weights.keys()
    assert all(np.array_equal(bundle.weights[name], weights[name]) for name in weights)
    assert bundle.weights["a.count"].dtype == weights["a.count"].dtype
    assert len(bundle.sha256) == 64
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode, "as readable as any file"


def test_a_large_bundle_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "m.safetensors", {name: np.full(5, ord(name), np.float32) for name in "dacb"}
    save_bundle(path, tiny_card(), weights)
    monkeypatch.setattr("canopy.models.bundle.MAPPED_BYTES", 30)
    read = read_bundle(path).weights
    assert read.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(read[name], array)

    def replaced(_: Path) -> int:
        return next(identities)

    identities = iter((1, 2))
    monkeypatch.setattr("canopy.models.bundle._identity", replaced)
    with pytest.raises(ModelError, match="was replaced while it was read"):
        read_bundle(path)


def test_the_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    for name, notes in (("a", ""), ("b", ""), ("c", "other")):
        save_bundle(tmp_path / name, tiny_card(notes=notes), {"x": np.zeros(2)})
    a, b, c = (read_bundle(tmp_path / name).sha256 for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_foreign_files_are_no_bundles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a model bundle"):
        read_card(tmp_path / "x.safetensors")


def test_a_safetensors_file_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"has no '{CARD_KEY}' in its header"):
        read_card(tmp_path / "x.safetensors")


def test_models_are_found_by_path_then_bundled_then_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    fetched = save_tiny_model(tmp_path / "models" / "mine.safetensors")
    assert models_folder() == tmp_path / "models"
    assert find_bundle("mine") == fetched
    assert find_bundle("canopy-small") == BUNDLED / "canopy-small.safetensors"
    save_tiny_model(tmp_path / "canopy-small")
    assert find_bundle("canopy-small") == Path("canopy-small"), "a file of that name in the working folder is meant"
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").touch()
    assert find_bundle("published") == Path("published")
    with pytest.raises(ModelError, match=r"no model 'canopy-huge': .*bundled: canopy-small, .*canopy models list"):
        find_bundle("canopy-huge")


# --- what earlier versions wrote


def test_a_bundle_of_an_earlier_version_gives_the_same_heights() -> None:
    model = load_model(OLD / "tiny.safetensors", backend="eager")
    assert (model.card.name, model.card.family, model.card.architecture.enlarge) == ("old-tiny", "dpt", 2)
    assert model.card.coverage["by_height"]["0-0.5"]["n_px"] == 1000
    image = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 96), np.float32))
    expected = np.load(OLD / "tiny.npz")
    interval_m = model.predict_interval(image).numpy()
    assert expected["interval_m"][:, 0].std() > 1
    np.testing.assert_allclose(interval_m[:, :, ::4, ::4], expected["interval_m"], atol=1e-3)
    np.testing.assert_allclose(model.features(image).numpy(), expected["features"], atol=1e-4)
    np.testing.assert_allclose(model.predict(image).numpy(), interval_m[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", ["encoder", "chmv1", "chmv2", "depth-any-canopy"])
def test_a_card_of_an_earlier_version_is_read_and_written_unchanged(family: str) -> None:
    text = json.loads((OLD / "cards.json").read_text())[family]
    card = Card.model_validate(text)
    assert card.family == family
    # a card from before there was a choice of decoder means the mean
    assert json.loads(card.model_dump_json()) == {**text, "decode": "mean"}


def test_keys_of_a_card_stay() -> None:
    """Programs read these keys; a new one may come, none may go."""
    assert set(json.loads(tiny_card().model_dump_json())) == {
        "name", "family", "architecture", "head", "bands", "gsd_m", "chip_px", "mean", "std", "units", "canopy_version",
        "licence", "provisional", "notes", "intervals", "coverage", "domain", "training", "metrics", "decode",
    }  # fmt: skip
    assert set(tiny_card().model_dump()["architecture"]) == {
        "encoder", "encoder_args", "taps", "enlarge", "normed", "decoder_channels", "fusion_channels", "detail",
        "detail_channels", "colour_matching", "config",
    }  # fmt: skip
    assert set(Architecture(stem="conv").model_dump()) - set(Architecture().model_dump()) == {"stem"}, "where it is on"


def test_bundled_models_open() -> None:
    for path in BUNDLED.glob("*.safetensors"):
        assert read_card(path).name == path.stem
