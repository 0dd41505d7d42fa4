"""Encoders by name, and position embeddings for another number of patches."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import save_tiny_model, tiny_card

from canopy.errors import ModelError
from canopy.models.encoders import encoder_card, read_encoder, with_positions


def test_encoders_of_bundles_are_read_by_name_and_by_path(tmp_path: Path) -> None:
    card, weights = read_encoder(Path("canopy-ssl-tiny"))
    assert (card.name, card.family) == ("canopy-ssl-tiny", "encoder")
    assert "patch_embed.proj.weight" in weights
    assert encoder_card(Path("canopy-ssl-tiny")) == card
    assert read_encoder(save_tiny_model(tmp_path / "tiny.safetensors"))[0] == tiny_card()


def test_the_card_of_a_timm_encoder_states_its_normalisation_and_licence() -> None:
    card = encoder_card(Path("timm:vit_small_patch14_dinov2.lvd142m"))
    assert (card.family, card.chip_px, card.architecture.encoder_args) == ("encoder", 128, {"patch_size": 16})
    assert card.mean == pytest.approx((0.485, 0.456, 0.406))
    assert card.licence == "apache-2.0"


def test_weights_of_timm_are_named_as_timm_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, pretrained=False, **args))
    card, weights = read_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))
    assert card.name == "vit_tiny_patch16_224.augreg_in21k"
    assert weights["pos_embed"].shape == (1, 65, 192), "64 patches of an image of 128 px, and the class token"
    assert isinstance(weights["patch_embed.proj.weight"], np.ndarray)


def test_timm_without_such_weights_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"timm knows no pretrained weights 'vit_tiny_patch16_224\.unknown'"):
        read_encoder(Path("timm:vit_tiny_patch16_224.unknown"))

    def offline(*args: object, **options: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ModelError, match=r"^timm cannot download vit_tiny_patch16_224\.augreg_in21k: no network at all$"
    ):
        read_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))


def test_weights_of_timm_are_read_from_a_file_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, name = timm.create_model, "vit_tiny_patch16_224.augreg_in21k"
    own = create("vit_tiny_patch16_224", pretrained=False, num_classes=3)
    save_file(own.state_dict(), tmp_path / "weights.safetensors")
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")

    def offline(*args: object, pretrained: bool, **options: object) -> object:
        assert not pretrained, "a file is there"
        return create(*args, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    card, weights = read_encoder(Path(f"timm:{name}"), published=tmp_path / "weights.safetensors")
    assert card.name == name
    assert np.array_equal(weights["blocks.3.attn.qkv.weight"], own.state_dict()["blocks.3.attn.qkv.weight"].numpy())
    assert weights["pos_embed"].shape == (1, 65, 192), "64 patches of an image of 128 px, and the class token"
    with pytest.raises(ModelError, match=rf"other\.safetensors has no weights of {name}: Error") as error:
        read_encoder(Path(f"timm:{name}"), published=tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"none\.safetensors: no weights that can be read"):
        read_encoder(Path(f"timm:{name}"), published=tmp_path / "none.safetensors")


def test_positions_are_resampled_and_those_of_prefix_tokens_stay() -> None:
    small, large = (
        timm.create_model(
            "vit_tiny_patch16_224", img_size=px, embed_dim=16, num_heads=1, depth=1, reg_tokens=2, num_classes=0
        )
        for px in (64, 128)
    )
    state = small.state_dict()
    weights = with_positions(large, state)
    assert weights["pos_embed"].shape == (1, 3 + 64, 16)
    assert torch.equal(weights["pos_embed"][:, :3], state["pos_embed"][:, :3])
    assert torch.equal(weights["blocks.0.norm1.weight"], state["blocks.0.norm1.weight"])
    large.load_state_dict(weights)
    assert with_positions(small, state)["pos_embed"] is state["pos_embed"]


def test_models_without_position_embeddings_keep_their_weights() -> None:
    rotary = timm.create_model("vit_small_patch16_dinov3", img_size=64, embed_dim=32, num_heads=1, depth=1)
    state = {"x": torch.zeros(2)}
    assert with_positions(rotary, state) == state
