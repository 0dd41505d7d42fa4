"""Public checkpoints: conversion against an independent forward, heads against their formulas, downloads that break."""

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.errors import ModelError, OutputError
from canopy.models.bundle import Architecture, Card, HeightHead, read_card, save_bundle
from canopy.models.heads import LinearBins
from canopy.models.model import load_model
from canopy.models.public import download as downloads
from canopy.models.public.colour import ColourMatching
from canopy.models.public.conversion import convert, read_published
from canopy.models.public.download import download
from canopy.models.public.fetching import fetch
from canopy.models.public.registry import CHECKPOINTS, Checkpoint, find_checkpoint, list_models
from tiles.cog import validate

REGION = Path(__file__).parents[2] / "samples" / "region.geojson"
MEAN = torch.tensor((0.420, 0.411, 0.296)).view(1, 3, 1, 1)
STD = torch.tensor((0.213, 0.156, 0.143)).view(1, 3, 1, 1)
LARGE = {"width": 1024, "channels": (128, 256, 512, 1024), "fused": 256, "bins": 256}
NARROW = {"width": 128, "channels": (8, 12, 16, 24), "fused": 16, "bins": 256}


def released_state(
    depth: int = 24, *, width: int, channels: tuple[int, ...], fused: int, bins: int, prefix: str = ""
) -> dict[str, Tensor]:
    """Random weights under the names and shapes of the released files."""
    made = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 0.0, offset: float = 0.0) -> None:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        state[prefix + name] = offset + (scale or fan**-0.5) * torch.randn(shape, generator=made)

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0] if bias is None else bias, scale=0.1)

    def norm(name: str) -> None:
        put(f"{name}.weight", width, scale=0.1, offset=1)
        put(f"{name}.bias", width, scale=0.1)

    put("backbone.cls_token", 1, 1, width, scale=1)
    put("backbone.pos_embed", 1, 1 + 14 * 14, width, scale=1)
    put("backbone.mask_token", 1, width)
    layer("backbone.patch_embed.proj", width, 3, 16, 16)
    norm("backbone.norm")
    for index in range(depth):
        block = f"backbone.blocks.{index}"
        for part in ("norm1", "norm2"):
            norm(f"{block}.{part}")
        layer(f"{block}.attn.qkv", 3 * width, width)
        layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.mlp.fc1", 4 * width, width)
        layer(f"{block}.mlp.fc2", width, 4 * width)
        put(f"{block}.ls1.gamma", width, scale=0.1, offset=0.5)
        put(f"{block}.ls2.gamma", width, scale=0.1, offset=0.5)
    head, blocks = "decode_head", "decode_head.reassemble_blocks"
    for level, out in enumerate(channels):
        layer(f"{blocks}.projects.{level}.conv", out, width, 1, 1)
        layer(f"{blocks}.readout_projects.{level}.0", width, 2 * width)
        put(f"{head}.convs.{level}.conv.weight", fused, out, 3, 3)
        layer(f"{head}.fusion_blocks.{level}.project.conv", fused, fused, 1, 1)
        for unit in (1, 2) if level else (2,):
            for conv in (1, 2):
                put(f"{head}.fusion_blocks.{level}.res_conv_unit{unit}.conv{conv}.conv.weight", fused, fused, 3, 3)
    layer(f"{blocks}.resize_layers.0", channels[0], channels[0], 4, 4)
    layer(f"{blocks}.resize_layers.1", channels[1], channels[1], 2, 2)
    layer(f"{blocks}.resize_layers.3", channels[3], channels[3], 3, 3)
    layer(f"{head}.project.conv", fused, fused, 3, 3)
    layer(f"{head}.conv_depth.head.0", fused // 2, fused, 3, 3)
    layer(f"{head}.conv_depth.head.2", 32, fused // 2, 3, 3)
    put(f"{head}.conv_depth.head.4.weight", bins, 32, 1, 1, scale=3)
    put(f"{head}.conv_depth.head.4.bias", bins, scale=1)
    return state


def released_forward(state: dict[str, Tensor], image: Tensor, taps: tuple[int, ...]) -> Tensor:
    """Metres of a square image: a plain forward after the paper and the released files, sharing nothing with ours."""
    x = (image - MEAN) / STD
    width = state["backbone.cls_token"].shape[-1]
    heads, side = width // 64, image.shape[-1] // 16
    x = F.conv2d(x, state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"], stride=16)
    x = torch.cat([state["backbone.cls_token"].expand(len(image), 1, width), x.flatten(2).transpose(1, 2)], 1)
    places = state["backbone.pos_embed"]
    if side != 14:
        grid = places[:, 1:].reshape(1, 14, 14, width).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, scale_factor=(side + 0.1) / 14, mode="bicubic", align_corners=True, recompute_scale_factor=True
        )
        places = torch.cat([places[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)], 1)
    x = x + places
    tapped = []
    for index in range(1 + max(taps)):
        x = _block(state, f"backbone.blocks.{index}", x, heads)
        if index in taps:
            tapped.append(x)
    return _released_head(state, tapped, side)


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _block(state: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    def norm(part: str, y: Tensor) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.{part}.weight"] + state[f"{name}.{part}.bias"]

    count, tokens, width = x.shape
    packed = _linear(state, f"{name}.attn.qkv", norm("norm1", x)).reshape(count, tokens, 3, heads, width // heads)
    q, k, v = (packed[:, :, part].transpose(1, 2) for part in range(3))
    mixed = ((q @ k.transpose(-1, -2)) / (width // heads) ** 0.5).softmax(-1) @ v
    x = x + state[f"{name}.ls1.gamma"] * _linear(
        state, f"{name}.attn.proj", mixed.transpose(1, 2).reshape(count, tokens, width)
    )
    hidden = F.gelu(_linear(state, f"{name}.mlp.fc1", norm("norm2", x)))
    return x + state[f"{name}.ls2.gamma"] * _linear(state, f"{name}.mlp.fc2", hidden)


def _released_head(state: dict[str, Tensor], tapped: list[Tensor], side: int) -> Tensor:
    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def unit(name: str, x: Tensor) -> Tensor:
        return x + conv(f"{name}.conv2.conv", conv(f"{name}.conv1.conv", x.relu(), padding=1).relu(), padding=1)

    head, blocks = "decode_head", "decode_head.reassemble_blocks"
    levels = []
    for level, x in enumerate(tapped):
        both = torch.cat([x[:, 1:], x[:, :1].repeat(1, side * side, 1)], -1)
        y = F.gelu(_linear(state, f"{blocks}.readout_projects.{level}.0", both))
        y = conv(f"{blocks}.projects.{level}.conv", y.transpose(1, 2).reshape(len(x), -1, side, side))
        name = f"{blocks}.resize_layers.{level}"
        if level < 2:
            y = F.conv_transpose2d(y, state[f"{name}.weight"], state[f"{name}.bias"], stride=4 - 2 * level)
        elif level == 3:
            y = conv(name, y, stride=2, padding=1)
        levels.append(conv(f"{head}.convs.{level}.conv", y, padding=1))
    out = levels[3]
    for level in range(4):
        name = f"{head}.fusion_blocks.{level}"
        if level:
            out = out + unit(f"{name}.res_conv_unit1", levels[3 - level])
        out = unit(f"{name}.res_conv_unit2", out)
        out = conv(f"{name}.project.conv", F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=True))
    out = conv(f"{head}.conv_depth.head.0", conv(f"{head}.project.conv", out, padding=1).relu(), padding=1)
    out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=True)
    logits = conv(f"{head}.conv_depth.head.4", conv(f"{head}.conv_depth.head.2", out, padding=1).relu())
    weights = logits.relu() + 0.1
    bins = torch.linspace(0.001, 10, logits.shape[1]).view(1, -1, 1, 1)
    return 10 * (weights / weights.sum(1, keepdim=True) * bins).sum(1)


def packed(state: dict[str, Tensor]) -> dict[str, Any]:
    """The state dict that torch's dynamic quantisation makes: linear layers hold packed int8 weights."""
    small: dict[str, Any] = dict(state)
    for name in [name for name in state if name.endswith(".weight") and state[name].ndim == 2]:
        layer = name.removesuffix(".weight")
        weight, bias = small.pop(name), small.pop(f"{layer}.bias")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to drop these tensors; the published files hold them
            quantised = torch.quantize_per_tensor(weight, float(weight.abs().max() / 127), 0, torch.qint8)
        small |= {
            f"{layer}.scale": torch.tensor(1.0), f"{layer}.zero_point": torch.tensor(0),
            f"{layer}._packed_params.dtype": torch.qint8,
            f"{layer}._packed_params._packed_params": (quantised, torch.nn.Parameter(bias)),
        }  # fmt: skip
    return small


@pytest.mark.parametrize(("depth", "taps"), [(24, (4, 11, 17, 23)), (32, (9, 16, 22, 29))])
@pytest.mark.parametrize("side", [224, 256])
def test_chmv1_equals_an_independent_forward(tmp_path, depth, taps, side) -> None:
    state = released_state(depth, **NARROW)
    path = tmp_path / "SSLlarge.pth"
    torch.save({"state_dict": {f"chm_module_.{name}": value for name, value in state.items()}}, path)
    card = convert(path, tmp_path / "chmv1.safetensors")
    assert (card.family, card.chip_px, card.gsd_m, card.architecture.taps) == ("chmv1", 256, 0.597, taps)
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    made = load_model(tmp_path / "chmv1.safetensors").predict(image)
    expected = released_forward(state, image, taps)
    assert expected.std() > 0.5
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=0)
    # the publisher's own file, unconverted
    assert torch.equal(load_model(path).predict(image), made)


def test_chmv1_crops_its_padding(tmp_path) -> None:
    path = tmp_path / "SSLlarge.pth"
    torch.save(released_state(**NARROW), path)
    model = load_model(path)
    image = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(1))
    padded = F.pad(image, (0, 26, 0, 14), mode="replicate")
    assert torch.equal(model.predict(image), model.predict(padded)[:, :50, :70])


def test_chmv1_offers_tokens_but_no_intervals(tmp_path) -> None:
    path = tmp_path / "SSLlarge.pth"
    torch.save(released_state(**NARROW), path)
    model = load_model(path)
    image = torch.rand(1, 3, 100, 64, generator=torch.Generator().manual_seed(1))
    assert model.features(image).shape == (1, 128, 8, 4)
    moved = image.clone()
    moved[:, :, :32] = 0
    change = (model.features(moved) - model.features(image)).abs().mean((0, 1, 3))
    assert change[:2].min() > change[2:].max()
    with pytest.raises(ModelError, match="no calibrated interval"):
        model.predict_interval(image)


def test_chmv1_of_eight_bits_holds_the_dequantised_weights(tmp_path) -> None:
    state = released_state(**NARROW)
    path = tmp_path / "compressed_SSLlarge.pth"
    small = packed(state)
    torch.save(small, path)
    weights = read_published(path)[1]
    name = "backbone.blocks.3.mlp.fc1"
    integers = small[f"{name}._packed_params._packed_params"][0].int_repr().numpy()
    step = float(state[f"{name}.weight"].abs().max() / 127)
    np.testing.assert_allclose(weights["encoder.blocks.3.mlp.fc1.weight"], integers * step, rtol=1e-6)
    np.testing.assert_array_equal(weights["encoder.blocks.3.mlp.fc1.bias"], state[f"{name}.bias"])
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    whole = released_forward(state, image, (4, 11, 17, 23))
    assert (load_model(path).predict(image) - whole).abs().mean() < 0.1 * whole.std()


def test_chmv1_head_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 256, 3, 5)).astype(np.float32)
    weights = np.maximum(logits, 0).astype(np.float64) + 0.1
    bins = np.linspace(0.001, 10, 256).reshape(1, 256, 1, 1)
    expected = 10 * (weights / weights.sum(1, keepdims=True) * bins).sum(1)
    made = LinearBins(256, 100.0).height_m(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-6)
    nothing = LinearBins(256, 100.0).height_m(torch.full((1, 256, 1, 1), -5.0))
    assert nothing.item() == pytest.approx(10 * (0.001 + 10) / 2, rel=1e-6)


# --- colour matching of aerial imagery


def released_colours() -> dict[str, Tensor]:
    """Random weights under the names and shapes of the released network that predicts percentiles."""
    made = torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        fan = int(np.prod(shape[1:]))
        state[f"backbone.{name}.weight"] = (2 / fan) ** 0.5 * torch.randn(shape, generator=made)
        state[f"backbone.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=made)

    given = 3
    for index, width in enumerate((8, 16, 32, 64, 64, 128)):
        name = f"conv_block{index}" if index else "input_layer"
        layer(f"{name}.0", width, given, 1, 1)
        for part, low in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 0.5)):
            state[f"backbone.{name}.1.{part}"] = low + torch.rand(width, generator=made)
        state[f"backbone.{name}.1.num_batches_tracked"] = torch.tensor(100)
        layer(f"{name}.3", width, width, 3, 3)
        given = width
    for name, width, wide in (("fc1.0", 64, 128 * 8 * 8), ("fc2.0", 64, 64), ("fc3.0", 32, 64), ("fc4", 6, 32)):
        layer(name, width, wide)
    state["backbone.fc4.weight"] *= 0.01
    state["backbone.fc4.bias"] = torch.tensor((0.12, 0.15, 0.1, 0.6, 0.55, 0.5))
    return state


def released_matching(state: dict[str, Tensor], image: Tensor) -> np.ndarray:
    """A chip (3, 256, 256) matched after the released files, percentiles and stretch by numpy."""
    weights = {name.removeprefix("backbone."): value for name, value in state.items()}
    x = image[None]
    for index in range(6):
        name = f"conv_block{index}" if index else "input_layer"
        x = F.conv2d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"])
        scale = weights[f"{name}.1.weight"] / (weights[f"{name}.1.running_var"] + 1e-5).sqrt()
        x = (x - weights[f"{name}.1.running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1)
        x = (x + weights[f"{name}.1.bias"].view(-1, 1, 1)).relu()
        x = F.conv2d(x, weights[f"{name}.3.weight"], weights[f"{name}.3.bias"], padding=1)
        x = F.max_pool2d(x, 2) if index < 5 else x
    y = x.flatten().numpy().astype(np.float64)
    for name in ("fc1.0", "fc2.0", "fc3.0"):
        y = np.maximum(weights[f"{name}.weight"].numpy() @ y + weights[f"{name}.bias"].numpy(), 0)
    y = weights["fc4.weight"].numpy() @ y + weights["fc4.bias"].numpy()
    matched = []
    for band, low, high in zip(image.numpy().astype(np.float64), y[:3], y[3:], strict=True):
        p5, p95 = np.percentile(band, (5, 95))
        matched.append((band - p5) * (high - low) / (p95 - p5) + low)
    return np.stack(matched)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """The file that predicts percentiles, as a training leaves it."""
    path = tmp_path / "aerial_normalization_quantiles_predictor.ckpt"
    torch.save({"state_dict": released_colours(), "hyper_parameters": {"backbone_cls": Publishers}}, path)
    return path


def test_colour_matching_equals_the_published_formula(tmp_path, colours) -> None:
    state = released_state(**NARROW)
    torch.save(state, tmp_path / "SSLlarge.pth")
    card = convert(tmp_path / "SSLlarge.pth", tmp_path / "matched.safetensors", colour_matching=colours)
    assert card.architecture.colour_matching
    assert card.training["converted_from"] == "SSLlarge.pth"
    assert card.training["colour_matching_sha256"] == hashlib.sha256(colours.read_bytes()).hexdigest()
    assert read_card(tmp_path / "matched.safetensors") == card
    # a fetched bundle, whose download is gone
    convert(tmp_path / "SSLlarge.pth", tmp_path / "fetched.safetensors", gsd_m=0.6)
    again = convert(tmp_path / "fetched.safetensors", tmp_path / "again.safetensors", colour_matching=colours)
    assert (again.training, again.gsd_m) == (card.training, 0.6)
    # two chips of different colours: each is matched by its own percentiles
    image = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    image[1] = 0.2 + 0.3 * image[1] ** 2
    expected = torch.from_numpy(np.stack([released_matching(released_colours(), chip) for chip in image])).float()
    assert (expected[0] - expected[1]).abs().mean() > 0.05
    made = load_model(tmp_path / "matched.safetensors").predict(image)
    heights = released_forward(state, expected, (4, 11, 17, 23))
    torch.testing.assert_close(made, heights, atol=2e-3, rtol=0)
    assert (load_model(tmp_path / "SSLlarge.pth").predict(image) - heights).abs().mean() > 0.1


def test_colours_of_any_size_and_of_a_single_colour_are_matched() -> None:
    net = ColourMatching().eval()
    torch.nn.init.constant_(net.regress[-1].bias[3:], 0.6)  # the 95th above the 5th, as a trained network says
    image = torch.rand(2, 3, 300, 200, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        made, expected = net(image).numpy(), net.expected(image)[..., 0, 0].numpy()
        np.testing.assert_allclose(np.percentile(made, (5, 95), axis=(2, 3)), expected, atol=1e-5)
        single = torch.full((1, 3, 256, 256), 0.4)
        assert torch.equal(net(single), net.expected(single)[0].expand_as(single))


def test_colour_matching_is_refused_where_it_does_not_belong(tmp_path, colours, canopy) -> None:
    large, out = tmp_path / "SSLlarge_aerial.pth", tmp_path / "out.safetensors"
    torch.save(released_state(**NARROW), large)
    with pytest.raises(ModelError, match="no height model: give it to one by --colour-matching"):
        convert(colours, out)
    with pytest.raises(ModelError, match="is not CHMv1's colour matching"):
        convert(large, out, colour_matching=large)
    with pytest.raises(ModelError, match="no file"):
        convert(large, out, colour_matching=tmp_path / "absent.ckpt")
    assert not out.exists()
    code, _, err = canopy("models", "convert", large, "--out", out, "--colour-matching", colours)
    assert code == 0
    assert "SSLlarge_aerial was trained on aerial imagery" in err
    colours.write_bytes(colours.read_bytes()[:-1000])
    code, _, err = canopy("models", "convert", large, "--out", out, "--overwrite", "--colour-matching", colours)
    assert code == 1
    assert "not a whole one" in err
    assert read_card(out).architecture.colour_matching


def test_colour_matching_of_another_family_is_refused(tmp_path, colours) -> None:
    tiny_chmv2(tmp_path / "published")
    with pytest.raises(ModelError, match="published is of the family chmv2"):
        convert(tmp_path / "published", tmp_path / "out.safetensors", colour_matching=colours)


# --- files that are not what they should be


def test_file_of_a_whole_training_gives_its_weights_and_runs_nothing(tmp_path, monkeypatch) -> None:
    """As pytorch-lightning writes them: the publisher's classes, functions and optimiser beside the weights."""
    monkeypatch.chdir(tmp_path)
    state = released_state(**NARROW)
    given = {"backbone_cls": Publishers, "loss": set_trap, "opt": partial(torch.optim.Adam, lr=1e-3)}
    given |= {"made": Publishers()}
    kept = {"state_dict": state, "hyper_parameters": given, "optimizer_states": [{"state": {}}]}
    torch.save(kept, tmp_path / "SSLhuge.pth")
    weights = read_published(tmp_path / "SSLhuge.pth")[1]
    np.testing.assert_array_equal(weights["encoder.cls_token"], state["backbone.cls_token"])
    assert [path.name for path in tmp_path.iterdir()] == ["SSLhuge.pth"]
    # what was let in for this file is not let in for the next
    assert not [name for name in torch.serialization.get_safe_globals() if isinstance(name, tuple)]


def set_trap() -> None:
    Path("trapped").touch()


class Publishers:
    """Reading this back would run `set_trap`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (set_trap, (), {"width": 8})


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trap": _Trap()}, "without running its code"),
        ({"fc1.weight": torch.zeros(2)}, "first keys: fc1.weight"),
        (
            {"backbone.cls_token": torch.zeros(1, 1, 64), "decode_head.conv_depth.head.4.weight": torch.zeros(2)},
            "whole",
        ),
        ([1, 2], "without running its code"),
    ],
)
def test_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch, content, said) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ModelError, match=said):
        convert(tmp_path / "foreign.pth", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.pth"]


def test_truncated_file_and_wrong_outputs_are_refused(tmp_path) -> None:
    path = tmp_path / "SSLlarge.pth"
    torch.save(released_state(**NARROW), path)
    with pytest.raises(OutputError, match="a name ending in"):
        convert(path, tmp_path / "out.pth")
    (tmp_path / "out.safetensors").touch()
    with pytest.raises(OutputError, match="exists"):
        convert(path, tmp_path / "out.safetensors")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="not a whole one"):
        convert(path, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    for read in (load_model, read_published):
        with pytest.raises(ModelError, match=r"no config\.json in it"):
            read(tmp_path / "empty")
    with pytest.raises(ModelError, match="neither a file nor"):
        convert(tmp_path / "absent.pth", tmp_path / "other.safetensors")


def test_bundles_of_before_keep_their_family() -> None:
    model = load_model("canopy-small")
    assert (model.card.family, model.card.architecture.config) == ("dpt", {})
    assert model.predict(torch.full((1, 3, 40, 72), 0.3)).shape == (1, 40, 72)


# --- models that the transformers library runs


def tiny_chmv2(folder: Path) -> Any:
    import transformers  # takes seconds: not for those who test something else

    backbone = {
        "model_type": "dinov3_vit", "image_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 2, "num_hidden_layers": 4, "num_register_tokens": 4, "key_bias": True,
        "out_indices": [1, 2, 3, 4], "reshape_hidden_states": True, "apply_layernorm": True,
        "return_class_token": True,
    }  # fmt: skip
    config = transformers.CHMv2Config(
        backbone_config=backbone, post_process_channels=[8, 16, 16, 32], fusion_hidden_size=16, head_hidden_size=8
    )
    torch.manual_seed(0)
    return _saved(transformers.CHMv2ForDepthEstimation(config), folder)


def tiny_depth_any_canopy(folder: Path) -> Any:
    import transformers  # takes seconds: not for those who test something else

    backbone = {
        "model_type": "dinov2", "image_size": 56, "patch_size": 14, "hidden_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, "apply_layernorm": True,
    }  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8, 16, 16, 32], fusion_hidden_size=16,
        head_hidden_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    return _saved(transformers.DepthAnythingForDepthEstimation(config), folder)


def _saved(net: Any, folder: Path) -> Any:
    """Save with weights large enough for heights that vary."""
    made = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone"):
                fan = parameter[0].numel()
                parameter.copy_(1.5 * fan**-0.5 * torch.randn(parameter.shape, generator=made))
    net.eval().save_pretrained(folder)
    return net


def test_chmv2_equals_the_library_and_crops_elsewhere(tmp_path) -> None:
    net = tiny_chmv2(tmp_path / "published")
    card = convert(tmp_path / "published", tmp_path / "chmv2.safetensors")
    assert (card.family, card.chip_px, card.head.bins, card.head.max_m) == ("chmv2", 448, 256, 96.0)
    model = load_model(tmp_path / "chmv2.safetensors")
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = net(pixel_values=(image - MEAN) / STD).predicted_depth
    assert expected.std() > 0.05
    torch.testing.assert_close(model.predict(image), expected, atol=1e-4, rtol=0)
    odd = image[:, :, :50, :70]
    whole = model.predict(F.pad(odd, (0, 26, 0, 14), mode="replicate"))
    assert torch.equal(model.predict(odd), whole[:, :50, :70])
    assert torch.equal(load_model(tmp_path / "published").predict(image), model.predict(image))


def test_chmv2_where_the_library_would_stretch(tmp_path) -> None:
    """An odd number of patches comes out of the library a patch larger than the image; ours keeps every pixel."""
    net = tiny_chmv2(tmp_path / "published")
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert net(pixel_values=(image - MEAN) / STD).predicted_depth.shape == (1, 64, 64)
    model = load_model(tmp_path / "published")
    assert model.predict(image).shape == (1, 48, 64)
    with pytest.raises(ModelError, match="gives no features"):
        model.features(image)


def test_chmv2_head_is_the_published_formula(tmp_path) -> None:
    net = tiny_chmv2(tmp_path / "published")
    logits = np.random.default_rng(0).normal(0, 2, (1, 256, 4, 3)).astype(np.float32)
    logits[0, :, 0, 0] = -1
    linear, log = np.linspace(0.001, 12, 256), np.exp(np.linspace(np.log(0.001), np.log(12), 256))
    share = np.linspace(1, 0, 256)
    bins = (share * log + (1 - share) * linear).reshape(1, 256, 1, 1)
    y = np.maximum(logits, 0).astype(np.float64)
    weights = y + np.clip(-y.min(1, keepdims=True), 0, 1e-4) + 1e-8
    expected = 8 * (weights / weights.sum(1, keepdims=True) * bins).sum(1)
    made = net.features_to_depth(torch.from_numpy(logits))[:, 0].numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_depth_any_canopy_equals_the_library(tmp_path) -> None:
    published = tmp_path / "published"
    net = tiny_depth_any_canopy(published)
    with pytest.raises(ModelError, match="how imagery is normalised"):
        convert(published, tmp_path / "dac.safetensors")
    # a processor that does not rescale: the network was fed values up to 255
    processor = {"image_mean": [100.0, 90.0, 80.0], "image_std": [50.0, 60.0, 70.0], "do_rescale": False}
    (published / "preprocessor_config.json").write_text(json.dumps(processor))
    card = convert(published, tmp_path / "dac.safetensors", gsd_m=0.5)
    assert (card.family, card.gsd_m, card.chip_px) == ("depth-any-canopy", 0.5, 512)
    model = load_model(tmp_path / "dac.safetensors")
    image = torch.rand(1, 3, 70, 56, generator=torch.Generator().manual_seed(1))
    fed = (255 * image - torch.tensor((100.0, 90, 80)).view(3, 1, 1)) / torch.tensor((50.0, 60, 70)).view(3, 1, 1)
    with torch.inference_mode():
        expected = 255 * net(pixel_values=fed).predicted_depth.clamp(0, 1)
    assert expected.std() > 1
    torch.testing.assert_close(model.predict(image), expected, atol=0.02, rtol=0)
    assert model.predict(image[:, :, :50, :51]).shape == (1, 50, 51)


def test_library_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    published = tmp_path / "published"
    tiny_chmv2(published)
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ModelError, match="model_type 'vit'"):
        convert(published, tmp_path / "out.safetensors")
    (published / "config.json").write_text(json.dumps(config | {"number_output_channels": 64}))
    with pytest.raises(ModelError, match=r"cannot read it|do not fit"):
        convert(published, tmp_path / "out.safetensors")
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gsd_m -1: Input should be greater than 0"):
        convert(published, tmp_path / "out.safetensors", gsd_m=-1)
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="transformers cannot read it"):
        load_model(published)
    assert not (tmp_path / "out.safetensors").exists()


def test_absent_library_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    card = Card(
        name="chmv2", family="chmv2", architecture=Architecture(encoder="transformers", config={"patch_size": 16}),
        head=HeightHead(bins=256, max_m=96, spacing="mixlog"), gsd_m=0.6, chip_px=448, mean=(0, 0, 0), std=(1, 1, 1),
        canopy_version="0", licence="none", provisional=False,
    )  # fmt: skip
    save_bundle(tmp_path / "chmv2.safetensors", card, {})
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'canopy-chm\[meta\]'"):
        load_model(tmp_path / "chmv2.safetensors")


# --- maps


def mapped(canopy: Callable[..., tuple[int, str, str]], model: Path, out: Path) -> np.ndarray:
    code, _, err = canopy("predict", "--aoi", REGION, "--model", model, "--out", out)
    assert code == 0, err
    assert validate(out) == ()
    with rasterio.open(out) as opened:
        heights: np.ndarray = opened.read(1)
        assert opened.tags()["CANOPY_MODEL"] == model.stem
    return heights


def test_sample_is_mapped_with_a_tiny_chmv2(tmp_path, canopy) -> None:
    tiny_chmv2(tmp_path / "published")
    code, out, err = canopy("models", "convert", tmp_path / "published", "--out", tmp_path / "tiny.safetensors")
    assert (code, out.strip()) == (0, str(tmp_path / "tiny.safetensors")), err
    heights = mapped(canopy, tmp_path / "tiny.safetensors", tmp_path / "map.tif")
    assert 0.5 < np.isfinite(heights).mean() < 0.9
    assert np.nanmax(heights) <= 96
    assert np.nanstd(heights) > 0.05


def test_sample_is_mapped_with_a_narrow_chmv1(tmp_path, canopy) -> None:
    torch.save({"state_dict": released_state(**NARROW)}, tmp_path / "SSLlarge.pth")
    heights = mapped(canopy, tmp_path / "SSLlarge.pth", tmp_path / "map.tif")
    assert 0.5 < np.isfinite(heights).mean() < 0.9
    assert np.nanstd(heights) > 0.05


def test_sample_is_mapped_with_matched_colours(tmp_path, canopy, colours) -> None:
    torch.save({"state_dict": released_state(**NARROW)}, tmp_path / "SSLlarge.pth")
    bundle = tmp_path / "matched.safetensors"
    code, _, err = canopy("models", "convert", tmp_path / "SSLlarge.pth", "--out", bundle, "--colour-matching", colours)
    assert code == 0, err
    plain = mapped(canopy, tmp_path / "SSLlarge.pth", tmp_path / "plain.tif")
    matched = mapped(canopy, bundle, tmp_path / "matched.tif")
    np.testing.assert_array_equal(np.isnan(matched), np.isnan(plain))
    assert np.nanmean(np.abs(matched - plain)) > 0.05


@pytest.mark.slow
def test_sample_is_mapped_with_a_checkpoint_of_the_large_format(tmp_path, canopy) -> None:
    state = released_state(**LARGE)
    torch.save(state, tmp_path / "SSLlarge.pth")
    assert canopy("models", "convert", tmp_path / "SSLlarge.pth", "--out", tmp_path / "large.safetensors")[0] == 0
    assert read_card(tmp_path / "large.safetensors").architecture.encoder_args["num_heads"] == 16
    heights = mapped(canopy, tmp_path / "large.safetensors", tmp_path / "map.tif")
    assert 0.5 < np.isfinite(heights).mean() < 0.9
    assert np.nanstd(heights) > 0.05


# --- downloads


class Publisher(ThreadingHTTPServer):
    """A server of one file, which can break, change or refuse; it records what it was asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.etag, self.status = content, '"one"', 200
        self.cuts: list[int] = []
        """Bytes after which the next connections break."""
        self.asked: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/SSLtiny.pth"


class _Handler(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
            self.send_header("Location", self.server.url)
            self.end_headers()
        elif self.server.status != 200:
            self.send_error(self.server.status)
        else:
            self._send()

    def _send(self) -> None:
        content, start = self.server.content, 0
        if "Range" in self.headers and self.headers.get("If-Range") == self.server.etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: Any) -> None:
        pass


CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with Publisher(CONTENT) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_goes_on_after_a_break(publisher, tmp_path) -> None:
    publisher.cuts = [1_000_000, 500_000]
    told: list[tuple[int, int]] = []
    path = tmp_path / "SSLtiny.pth"
    assert download(publisher.url, path, report=lambda done, total: told.append((done, total))) == DIGEST
    assert path.read_bytes() == CONTENT
    assert [asked.get("range") for asked in publisher.asked] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert told[-1] == (3_000_000, 3_000_000)
    assert [left.name for left in tmp_path.iterdir()] == ["SSLtiny.pth"]
    download(publisher.url, path)
    assert len(publisher.asked) == 3


def test_interrupted_download_leaves_no_file_of_that_name_and_resumes(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    publisher.cuts = [1_000_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(ModelError, match="1000000 bytes are kept, the same command goes on"):
        download(publisher.url, path)
    assert not path.exists()
    publisher.cuts, publisher.asked = [], []
    assert download(publisher.url, path, sha256=DIGEST) == DIGEST
    assert [asked.get("range") for asked in publisher.asked] == ["bytes=1000000-"]


def test_whole_part_is_not_downloaded_again(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    (tmp_path / "SSLtiny.pth.part").write_bytes(CONTENT)
    (tmp_path / "SSLtiny.pth.part.json").write_text(json.dumps({"url": publisher.url, "etag": '"one"'}))
    publisher.cuts = [0] * 9
    assert download(publisher.url, path, sha256=DIGEST) == DIGEST
    assert len(publisher.asked) == 1


def test_changed_file_is_downloaded_from_its_start(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    publisher.cuts = [1_000_000] + [0] * downloads.ATTEMPTS
    with pytest.raises(ModelError):
        download(publisher.url, path)
    publisher.cuts, publisher.content, publisher.etag = [], CONTENT[::-1], '"two"'
    assert download(publisher.url, path) == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert path.read_bytes() == CONTENT[::-1]


def test_wrong_digest_is_refused_and_removed(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    with pytest.raises(ModelError, match=f"sha256 {DIGEST} came, {'0' * 64} expected"):
        download(publisher.url, path, sha256="0" * 64)
    assert not path.exists()
    assert not (tmp_path / "SSLtiny.pth.part").exists()


@pytest.mark.parametrize(("status", "said"), [(401, "HF_TOKEN"), (403, "gates this file"), (404, "HTTP 404")])
def test_refusals_say_what_to_do_at_once(publisher, tmp_path, status, said) -> None:
    publisher.status = status
    with pytest.raises(ModelError, match=said):
        download(publisher.url, tmp_path / "SSLtiny.pth")
    assert len(publisher.asked) == 1
    assert not (tmp_path / "SSLtiny.pth").exists()


def test_server_in_trouble_is_asked_again(publisher, tmp_path) -> None:
    publisher.status = 503
    with pytest.raises(ModelError, match="HTTP 503"):
        download(publisher.url, tmp_path / "SSLtiny.pth")
    assert len(publisher.asked) == downloads.ATTEMPTS


def test_token_is_not_handed_on_and_stated_digest_holds(publisher, tmp_path) -> None:
    moved = publisher.url.replace("SSLtiny.pth", "moved")
    assert download(moved, tmp_path / "a.pth", token="secret") == DIGEST
    assert [asked.get("authorization") for asked in publisher.asked] == ["Bearer secret", None]
    publisher.cuts = [10] + [0] * downloads.ATTEMPTS
    with pytest.raises(ModelError):
        download(moved, tmp_path / "b.pth")
    (tmp_path / "b.pth.part").write_bytes(b"x" * 10)
    publisher.cuts = []
    with pytest.raises(ModelError, match="expected; what came was removed"):
        download(moved, tmp_path / "b.pth")


def test_fetch_asks_for_the_licence_then_makes_a_bundle(publisher, tmp_path, monkeypatch, canopy) -> None:
    torch.save(released_state(**NARROW), tmp_path / "published.pth")
    publisher.content = (tmp_path / "published.pth").read_bytes()
    entry = Checkpoint(
        "chmv1-tiny", "chmv1", (publisher.url,), "9 MB", 0.6, "Apache-2.0", "https://licence", "https://page", "tiny"
    )
    monkeypatch.setitem(CHECKPOINTS, "chmv1-tiny", entry)
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "models"))
    code, _, err = canopy("models", "fetch", "chmv1-tiny")
    assert code == 1
    assert "Apache-2.0, https://licence" in err and "--accept-licence" in err
    assert publisher.asked == []
    code, out, err = canopy("models", "fetch", "chmv1-tiny", "--accept-licence")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "models" / "chmv1-tiny.safetensors")
    assert "MB" in err
    model = load_model("chmv1-tiny")
    assert (model.card.name, model.card.gsd_m) == ("chmv1-tiny", 0.6)
    assert model.card.training["converted_sha256"] == hashlib.sha256(publisher.content).hexdigest()
    assert not list((tmp_path / "models").rglob("*.pth*"))
    assert fetch(entry, accept=lambda _: False) == tmp_path / "models" / "chmv1-tiny.safetensors"
    assert len(publisher.asked) == 1
    assert {row["name"]: row["state"] for row in list_models()}["chmv1-tiny"] == "fetched"


def test_registry_lists_and_shows(canopy, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(canopy("models", "list", "--json")[1])}
    assert rows["canopy-small"]["state"] == "bundled"
    assert (rows["chmv2"]["state"], rows["chmv2"]["licence"]) == ("gated", "DINOv3 License")
    shown = json.loads(canopy("models", "show", "chmv1-huge", "--json")[1])
    assert shown["urls"][0].endswith("/saved_checkpoints/SSLhuge_satellite.pth")
    assert (shown["family"], shown["gsd_m"]) == ("chmv1", 0.597)
    assert json.loads(canopy("models", "show", "canopy-small", "--json")[1])["family"] == "dpt"
    assert "chmv2" in canopy("models", "list")[1]
    assert canopy("models", "show", "chmv9")[0] == 1
    with pytest.raises(ModelError, match="chmv1-huge"):
        find_checkpoint("chmv9")
