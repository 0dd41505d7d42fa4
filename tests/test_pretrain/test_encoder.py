"""Encoders: masks, timm's variants, bundles, starts from other weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pretraining import CPU, tiny_config
from safetensors.torch import save_file
from timm.layers.patch_embed import resample_patch_embed

from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import Architecture, Card
from pretrain.dinov2 import SelfDistillation
from pretrain.encoder import Encoder, from_card, load_encoder, save_encoder

GREY: tuple[tuple[float, ...], tuple[float, ...]] = (0.5,) * 3, (0.2,) * 3
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def test_masked_patches_are_hidden() -> None:
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", {**SMALL, "patch_size": 8}, 16, *GREY)
    image, mask = torch.rand(1, 3, 16, 16), torch.tensor([[[True, False], [False, False]]])
    other = image.clone()
    other[:, :, :8, :8] = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image, mask)[1], encoder(other, mask)[1])
        assert (encoder(image)[1] - encoder(other)[1]).abs().max() > 1e-3
        encoder.mask_token.fill_(3.0)
        assert (encoder(image, mask)[1] - encoder(image)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("patch_px", [8, 14])
def test_masked_patches_are_hidden_from_a_convolutional_stem(patch_px: int) -> None:
    """Its convolutions overlap: the tokens next to a masked patch, and the class token, would see it."""
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", {**SMALL, "patch_size": patch_px}, 4 * patch_px, *GREY, stem="conv")
    image = torch.rand(2, 3, 4 * patch_px, 4 * patch_px)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 1:3] = mask[1, 0, 2] = True
    hidden = mask.repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)[:, None]
    other = torch.where(hidden, torch.rand_like(image), image)
    with torch.no_grad():
        for own, changed in zip(encoder(image, mask), encoder(other, mask), strict=True):
            assert torch.equal(own, changed)
        assert (encoder(image)[1] - encoder(other)[1]).abs().max() > 1e-3, "the mask of a call ends with it"


@pytest.mark.parametrize("args", [
    {"reg_tokens": 4}, {"init_values": 1e-5}, {"mlp_layer": "swiglu"}, {"patch_size": 16},
])  # fmt: skip
def test_timm_variants_give_class_token_and_patches_at_any_size(args: dict[str, Any]) -> None:
    encoder = Encoder("vit_tiny_patch16_224", {**SMALL, **args}, 64, *GREY)
    for px in (64, 32):
        cls, patches = encoder(torch.rand(2, 3, px, px), torch.ones(2, px // 16, px // 16, dtype=torch.bool))
        assert cls.shape == (2, 32)
        assert patches.shape == (2, (px // 16) ** 2, 32)


def test_rotary_positions_work_through_timm() -> None:
    encoder = Encoder("vit_small_patch16_dinov3", {"depth": 1}, 64, *GREY)
    encoder.watch_relations(-1)
    cls, patches = encoder(torch.rand(2, 3, 32, 48), torch.zeros(2, 2, 3, dtype=torch.bool))
    assert (cls.shape, patches.shape) == ((2, 384), (2, 6, 384))
    assert encoder.take_relations().shape == (2, 1 + 6, 3 * 384)
    with pytest.raises(ConfigError, match="does not call its layer"):
        encoder.take_relations()


@pytest.mark.parametrize(("name", "args", "message"), [
    ("no_such_model", {}, "no_such_model"), ("resnet18", {}, "resnet18"),
    ("vit_tiny_patch16_224", {"colour": 3}, "colour"), ("vit_tiny_patch16_224", {"mlp_layer": "kan"}, "kan"),
])  # fmt: skip
def test_an_encoder_that_timm_does_not_know_is_a_clear_error(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Encoder(name, args, 64, *GREY)


def small_card(px: int = 64) -> Card:
    """Card of a small encoder."""
    return Card(
        name="small", family="encoder", gsd_m=0.5, chip_px=px, mean=(0.4, 0.5, 0.3), std=(0.2, 0.2, 0.1),
        architecture=Architecture(encoder="vit_tiny_patch16_224", encoder_args=SMALL),
        canopy_version="0", licence="CC0-1.0", provisional=True,
    )  # fmt: skip


def test_a_saved_encoder_is_read_again_frozen_and_in_half_precision(tmp_path: Path) -> None:
    card = small_card()
    encoder = from_card(card)
    path = tmp_path / "small.safetensors"
    save_encoder(path, card, encoder.vit.state_dict())
    again_card, again = load_encoder(path)
    assert again_card == card
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert again.mean.flatten().tolist() == pytest.approx(card.mean)
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(image)[1], encoder.eval()(image)[1], atol=2e-2, rtol=2e-2)


def test_the_encoder_of_a_height_model_is_read() -> None:
    card, encoder = load_encoder(Path("canopy-small"))
    assert (card.family, encoder.width) == ("dpt", 192)


def test_a_height_model_without_encoder_is_a_clear_error(tmp_path: Path) -> None:
    card = small_card().model_copy(update={"family": "dpt"})
    save_encoder(tmp_path / "a.safetensors", card, {"head.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match="no weights under"):
        load_encoder(tmp_path / "a.safetensors")
    public = card.model_copy(update={"family": "chmv1"})
    save_encoder(tmp_path / "b.safetensors", public, {"head.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match="of the family chmv1"):
        load_encoder(tmp_path / "b.safetensors")


def test_pretrained_encoders_of_timm_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    torch.manual_seed(0)
    vit = create("vit_tiny_patch16_224", num_classes=0, img_size=128, patch_size=16, dynamic_img_size=True)

    def online(name: str, *, pretrained: bool = False, **args: object) -> torch.nn.Module:
        return vit if pretrained else create(name, **args)

    def offline(name: str, *, pretrained: bool = False, **args: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(name, **args)

    monkeypatch.setattr(timm, "create_model", online)
    card, encoder = load_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))
    assert card.mean == (0.5, 0.5, 0.5)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(image)[1], vit.forward_features((image - 0.5) / 0.5)[:, 1:])
    with pytest.raises(ModelError, match="knows no pretrained"):
        load_encoder(Path("timm:vit_tiny_patch16_224.nothing"))
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match="vit_tiny"):
        load_encoder(Path("timm:vit_tiny_patch16_224.augreg_in21k"))


def test_pretraining_starts_from_an_encoder_of_its_kind(tmp_path: Path) -> None:
    first = SelfDistillation(tiny_config(global_crops={"px": 64}, loop={"seed": 1}), CPU)
    arch = Architecture(encoder=first.config.encoder, encoder_args=first.config.encoder_args)
    path = tmp_path / "first.safetensors"
    save_encoder(
        path, small_card().model_copy(update={"architecture": arch}), first.student.encoder.vit.state_dict()
    )  # fmt: skip
    second = SelfDistillation(tiny_config(start=path), CPU)
    saved, loaded = (learner.student.encoder.vit.state_dict() for learner in (first, second))
    for name, value in saved.items():
        if name != "pos_embed":
            torch.testing.assert_close(loaded[name], value, atol=1e-3, rtol=1e-3)
    assert loaded["pos_embed"].shape[1] < saved["pos_embed"].shape[1], "of crops of 32 px"
    average = second.average.encoder.vit.state_dict()
    assert all(torch.equal(average[name], value) for name, value in loaded.items())
    for other in ({"encoder_args": {"embed_dim": 48}}, {"stem": "conv"}):
        with pytest.raises(TrainingError, match="another network"):
            SelfDistillation(tiny_config(start=path, **other), CPU)


def test_published_weights_start_an_encoder_of_other_patches_positions_and_registers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"embed_dim": 32, "num_heads": 2, "depth": 2, "init_values": 1e-5}
    published = timm.create_model("vit_small_patch14_dinov2", img_size=70, num_classes=0, **shape)
    path = tmp_path / "published.safetensors"
    save_file({**published.state_dict(), "mask_token": torch.zeros(1, 32)}, path)
    args = {**shape, "patch_size": 8, "reg_tokens": 2}
    config = tiny_config(init=path, encoder="vit_small_patch14_dinov2", encoder_args=args)
    assert config.start == path
    vit = SelfDistillation(config, CPU).student.encoder.vit
    assert torch.equal(vit.blocks[1].attn.qkv.weight, published.blocks[1].attn.qkv.weight)
    assert (vit.patch_embed.proj.weight.shape, vit.pos_embed.shape) == ((32, 3, 8, 8), (1, 3 + 16, 32))
    assert torch.equal(vit.pos_embed[:, :1], published.pos_embed[:, :1]), "of the class token"
    assert not vit.pos_embed[:, 1:3].any(), "registers are new"
    kernel = resample_patch_embed(published.patch_embed.proj.weight, [8, 8])
    torch.testing.assert_close(vit.patch_embed.proj.weight, kernel)
    with pytest.raises(TrainingError, match="is another network"):
        SelfDistillation(tiny_config(init=path), CPU)
