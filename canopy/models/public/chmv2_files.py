"""CHMv2 as Meta sends it: a file of the head and a file of the DINOv3 backbone, brought to transformers' own files.

The names on the left are those of the released files; a head file may contain the backbone too.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.bundle import PUBLISHED_CONFIG, Bundle, Weights
from canopy.models.public.depth import library_classes
from canopy.models.public.library_folders import read_library_folder
from canopy.models.public.torch_files import State, read_state
from tiles.files import file_sha256

HEAD_KEY = re.compile(r"^(head\.)?reassemble_blocks\.projects\.0\.conv\.weight$")
"""Weight by which a head is recognised; CHMv1's whole model has it under another name."""
BACKBONE_KEYS = ("storage_tokens", "blocks.0.attn.qkv.weight")
"""Weights by which a DINOv3 backbone is recognised."""
HEAD_DIM = 64
"""Channels of an attention head."""
TAPS = {24: (6, 12, 18, 24)}
"""Blocks, counted from 1, that the head reads, by the number of blocks of the backbone."""
MIN_M, MAX_M = 0.001, 96.0
"""Range of the bins, metres."""

Patterns = tuple[tuple[str, str], ...]
_BLOCK = r"^blocks\.(\d+)\."
_BACKBONE_NAMES: Patterns = (
    (r"^storage_tokens$", "embeddings.register_tokens"),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (_BLOCK + r"attn\.proj\.", r"layer.\1.attention.o_proj."),
    (_BLOCK + r"attn\.([qkv]_proj)\.", r"layer.\1.attention.\2."),
    (_BLOCK + r"ls([12])\.gamma$", r"layer.\1.layer_scale\2.lambda1"),
    (_BLOCK + r"mlp\.fc1\.", r"layer.\1.mlp.up_proj."),
    (_BLOCK + r"mlp\.fc2\.", r"layer.\1.mlp.down_proj."),
    (_BLOCK + r"norm([12])\.", r"layer.\1.norm\2."),
)
_HEAD_NAMES: Patterns = (
    (r"^head\.(?=reassemble|convs|fusion|conv_depth)", ""),
    (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"head.reassemble_stage.layers.\1.projection."),
    (r"^reassemble_blocks\.resize_layers\.(\d)\.", r"head.reassemble_stage.layers.\1.resize."),
    (r"^reassemble_blocks\.readout_projects\.(\d)\.0\.", r"head.reassemble_stage.readout_projects.\1.0."),
    (r"^convs\.(\d)\.conv\.", r"head.convs.\1."),
    (r"^fusion_blocks\.(\d)\.res_conv_unit([12])\.conv([12])\.conv\.",
     r"head.fusion_layers.\1.residual_layer\2.convolution\3."),
    (r"^fusion_blocks\.(\d)\.project\.conv\.", r"head.fusion_layers.\1.projection."),
    (r"^conv_depth\.head\.", "head.conv_depth.head."),
)  # fmt: skip
_UNUSED = re.compile(r"bias_mask$|^rope_embed\.|^local_cls_norm\.")
"""Weights of the backbone that are constants, or are used in training alone."""


def is_chmv2_head(state: Mapping[str, Any]) -> bool:
    """Return whether the tensors of a file are those of CHMv2's head, with its backbone or without."""
    return any(HEAD_KEY.match(name) for name in state)


def read_chmv2(head: Path, backbone: Path | None) -> Bundle:
    """Read the height model of a head and the backbone that it was trained on.

    Args:
        head: File of the head.
        backbone: File of the backbone (DINOv3 ViT-L/16, SAT-493M); None where the head's file contains it.

    Raises:
        ModelError: A file is another one, or the two do not fit each other.
    """
    head_state = read_state(head)
    if not is_chmv2_head(head_state):
        raise ModelError(f"{head} is not CHMv2's head: dinov3_vitl16_chmv2_dpt_head*.pth expected")
    inside = {
        name.removeprefix("backbone."): value for name, value in head_state.items() if name.startswith("backbone.")
    }
    if backbone is None and not inside:
        raise ModelError(
            f"{head} is CHMv2's head alone: canopy models convert {head.name} --backbone "
            "dinov3_vitl16_pretrain_sat493m.pth --out chmv2.safetensors"
        )
    backbone_state = read_state(backbone) if backbone is not None else State(inside)
    if not all(key in backbone_state for key in BACKBONE_KEYS):
        raise ModelError(f"{backbone or head} is no DINOv3 backbone: dinov3_vitl16_pretrain_sat493m*.pth expected")
    try:
        weights = _backbone_weights(backbone_state) | _head_weights(head_state)
        config = _config(backbone_state, head_state)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ModelError(f"{head} and its backbone are not whole: {error!r}") from error
    # The library itself reads what it would have saved: names of weights in memory change from version to version.
    with tempfile.TemporaryDirectory(prefix="canopy-chmv2-") as folder:
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / PUBLISHED_CONFIG).write_text(config, encoding="utf-8")
        try:
            bundle = read_library_folder(Path(folder))
        except ModelError as error:
            reason = str(error).replace(folder, "")
            raise ModelError(f"{head} and its backbone are not the CHMv2 that this version knows: {reason}") from error
    sha256 = file_sha256(head)
    origin = {"converted_from": head.name, "converted_sha256": sha256}
    if backbone is not None:
        origin |= {"backbone_from": backbone.name, "backbone_sha256": file_sha256(backbone)}
    card = bundle.card.model_copy(update={"name": head.stem, "training": bundle.card.training | origin})
    return Bundle(card, bundle.weights, sha256)


def _backbone_weights(state: State) -> Weights:
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if _UNUSED.search(name):
            continue
        if ".attn.qkv." in name:
            # One layer for queries, keys and values: transformers has three, and no bias of keys, which is 0 here.
            for part, third in zip("qkv", value.chunk(3), strict=True):
                if (part, name.endswith("bias")) != ("k", True):
                    weights[name.replace("qkv", f"{part}_proj")] = third
        else:
            weights[name] = value.unsqueeze(1) if name == "mask_token" and value.ndim == 2 else value
    return {f"backbone.{_renamed(name, _BACKBONE_NAMES)}": _array(value) for name, value in weights.items()}


def _head_weights(state: State) -> Weights:
    return {
        _renamed(name, _HEAD_NAMES): _array(value) for name, value in state.items() if not name.startswith("backbone.")
    }


def _array(value: Tensor) -> Any:
    return value.detach().float().contiguous().numpy()


def _renamed(name: str, patterns: Patterns) -> str:
    """Return transformers' name of a released parameter: every pattern is applied, in order."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _config(encoder: State, decoder: State) -> str:
    """Return transformers' configuration of the model, whose shape is read from the shapes of its weights.

    Raises:
        ModelError: The backbone is another one than the head's.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks."))
    width = int(encoder["cls_token"].shape[-1])
    if depth not in TAPS or width % HEAD_DIM:
        raise ModelError(f"a backbone of {depth} blocks, {width} wide: DINOv3 ViT-L/16 expected")
    shapes = {name.removeprefix("head."): value.shape for name, value in decoder.items()}
    config_class, _ = library_classes("chmv2")
    config = config_class(
        backbone_config={
            "model_type": "dinov3_vit", "hidden_size": width, "num_hidden_layers": depth,
            "intermediate_size": encoder["blocks.0.mlp.fc1.weight"].shape[0], "num_attention_heads": width // HEAD_DIM,
            "num_register_tokens": encoder["storage_tokens"].shape[1], "key_bias": False,
            "out_indices": list(TAPS[depth]), "reshape_hidden_states": True, "apply_layernorm": True,
            "return_class_token": True,
        },
        post_process_channels=[shapes[f"reassemble_blocks.projects.{level}.conv.weight"][0] for level in range(4)],
        fusion_hidden_size=shapes["convs.0.conv.weight"][0],
        head_hidden_size=shapes["conv_depth.head.2.weight"][0],
        number_output_channels=shapes["conv_depth.head.4.weight"][0],
        min_depth=MIN_M, max_depth=MAX_M, bins_strategy="chmv2_mixlog", norm_strategy="chmv2_mixlog",
    )  # fmt: skip
    text: str = config.to_json_string(use_diff=False)
    return text
