"""Public checkpoints with random weights: files as their publishers release them, and independent forwards."""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = torch.tensor((0.420, 0.411, 0.296)).view(1, 3, 1, 1)
STD = torch.tensor((0.213, 0.156, 0.143)).view(1, 3, 1, 1)
LARGE = {"width": 1024, "channels": (128, 256, 512, 1024), "fused": 256, "bins": 256}
NARROW = {"width": 128, "channels": (8, 12, 16, 24), "fused": 16, "bins": 256}
THIN = {"width": 64, "channels": (4, 6, 8, 12), "fused": 8, "bins": 16}
"""Shapes of the released files' size, of two heads of attention, and of one."""


def released_state(
    depth: int = 24, *, width: int, channels: tuple[int, ...], fused: int, bins: int, prefix: str = ""
) -> dict[str, Tensor]:
    """Return random weights under the names and shapes of the released files."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 0.0, offset: float = 0.0) -> None:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        state[prefix + name] = offset + (scale or fan**-0.5) * torch.randn(shape, generator=generator)

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
    """Return metres of a square image: a plain forward after the paper and the released files, without our code."""
    x = (image - MEAN) / STD
    width = state["backbone.cls_token"].shape[-1]
    heads, side = width // 64, image.shape[-1] // 16
    x = F.conv2d(x, state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"], stride=16)
    x = torch.cat([state["backbone.cls_token"].expand(len(image), 1, width), x.flatten(2).transpose(1, 2)], 1)
    positions = state["backbone.pos_embed"]
    if side != 14:
        grid = positions[:, 1:].reshape(1, 14, 14, width).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, scale_factor=(side + 0.1) / 14, mode="bicubic", align_corners=True, recompute_scale_factor=True
        )
        positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)], 1)
    x = x + positions
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


def packed(state: dict[str, Tensor]) -> OrderedDict[str, Any]:
    """Return the state dict of torch's dynamic quantisation: linear layers with packed int8 weights.

    As torch's own do, it has the versions of these layers with it, without which torch expects an older format.
    """
    small: OrderedDict[str, Any] = OrderedDict(state)
    versions: dict[str, dict[str, int]] = {}
    for name in [name for name in state if name.endswith(".weight") and state[name].ndim == 2]:
        layer = name.removesuffix(".weight")
        weight, bias = small.pop(name), small.pop(f"{layer}.bias")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch will drop these tensors; the published files contain them
            quantised = torch.quantize_per_tensor(weight, float(weight.abs().max() / 127), 0, torch.qint8)
        small |= {
            f"{layer}.scale": torch.tensor(1.0), f"{layer}.zero_point": torch.tensor(0),
            f"{layer}._packed_params.dtype": torch.qint8,
            f"{layer}._packed_params._packed_params": (quantised, torch.nn.Parameter(bias)),
        }  # fmt: skip
        versions |= {layer: {"version": 4}, f"{layer}._packed_params": {"version": 3}}
    small._metadata = versions  # type: ignore[attr-defined]
    return small


def released_colours() -> dict[str, Tensor]:
    """Return random weights under the names and shapes of the released network that predicts percentiles."""
    generator = torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        fan = int(np.prod(shape[1:]))
        state[f"backbone.{name}.weight"] = (2 / fan) ** 0.5 * torch.randn(shape, generator=generator)
        state[f"backbone.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    width_in = 3
    for index, width in enumerate((8, 16, 32, 64, 64, 128)):
        name = f"conv_block{index}" if index else "input_layer"
        layer(f"{name}.0", width, width_in, 1, 1)
        for part, low in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 0.5)):
            state[f"backbone.{name}.1.{part}"] = low + torch.rand(width, generator=generator)
        state[f"backbone.{name}.1.num_batches_tracked"] = torch.tensor(100)
        layer(f"{name}.3", width, width, 3, 3)
        width_in = width
    for name, width, wide in (("fc1.0", 64, 128 * 8 * 8), ("fc2.0", 64, 64), ("fc3.0", 32, 64), ("fc4", 6, 32)):
        layer(name, width, wide)
    state["backbone.fc4.weight"] *= 0.01
    state["backbone.fc4.bias"] = torch.tensor((0.12, 0.15, 0.1, 0.6, 0.55, 0.5))
    return state


def released_matching(state: dict[str, Tensor], image: Tensor) -> np.ndarray:
    """Match a chip (3, 256, 256) after the released files, percentiles and stretch by numpy."""
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


def tiny_chmv2(folder: Path) -> Any:
    """Save a tiny CHMv2 model as its publisher does, and return it."""
    import transformers  # takes seconds, and only some tests need it

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
    """Save a tiny Depth Any Canopy model as its publisher does, and return it."""
    import transformers  # takes seconds, and only some tests need it

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
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone"):
                fan = parameter[0].numel()
                parameter.copy_(1.5 * fan**-0.5 * torch.randn(parameter.shape, generator=generator))
    net.eval().save_pretrained(folder)
    return net
