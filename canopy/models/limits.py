"""Limits of a card: what a bundle from a stranger may ask of the libraries that create its network. Needs no torch.

A card names a network of timm or transformers and its arguments. Neither library is made for arguments of strangers:
some read files (``checkpoint_path`` unpickles one, ``local-dir:`` reads a folder), some reach for the network
(``hf-hub:``, ``pretrained``, ``backbone``), some ask for any amount of memory. So names have one form, arguments stand
on a list, and every number has a range.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME_LENGTH = 200
CARD_BYTES = 16 * 2**20
"""Most bytes of a card; the longest of ours has 50 kB."""
CHIP_PX = 1024
"""Largest side of a chip, pixels: a batch of chips must fit into memory at the decoder's width."""
ENLARGED_PX = 4096
"""Largest side of the image that the encoder is given, pixels."""
CHANNELS = 4096
BINS = 1024
MAX_M = 1000.0
"""Largest height of a bin, metres; shares of other units are not heights."""
GSD_M = 100.0
BLOCKS = 128
STATISTICS = 8
"""Numbers that describe a chip in a domain: `canopy.models.domain.chip_statistics`."""

_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_OUR_NETWORKS = ("VisionTransformer", "transformers")
"""Encoders of public families, which no name of timm's describes."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers in a range."""

    low: int
    high: int

    def allows(self, value: object) -> bool:
        """Return whether a value is one of them; True and False are no numbers here."""
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    """Numbers in a range."""

    low: float
    high: float

    def allows(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return type(value) in (int, float) and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def allows(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return type(value) is bool

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Word:
    """One of a few words."""

    words: tuple[str, ...]

    def allows(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(word or 'nothing' for word in self.words)}"


Limit = Whole | Number | Flag | Word
_SHARE = Number(0, 1)

ENCODER_ARGS: dict[str, Limit] = {
    # Shape of a vision transformer.
    "img_size": Whole(16, ENLARGED_PX),
    "patch_size": Whole(1, 64),
    "embed_dim": Whole(1, CHANNELS),
    "depth": Whole(1, BLOCKS),
    "num_heads": Whole(1, 128),
    "mlp_ratio": Number(0.01, 16),
    "reg_tokens": Whole(0, 64),
    "num_reg_tokens": Whole(0, 64),
    "class_token": Flag(),
    "no_embed_class": Flag(),
    "pos_embed": Word(("", "none", "learn")),
    "global_pool": Word(("", "avg", "avgmax", "max", "token")),
    "dynamic_img_size": Flag(),
    "dynamic_img_pad": Flag(),
    # Layers.
    "mlp_layer": Word(("swiglu",)),
    "act_layer": Word(("gelu", "gelu_tanh", "relu", "silu", "quick_gelu")),
    "norm_layer": Word(("layernorm", "rmsnorm")),
    "init_values": Number(0, 10),
    "qkv_bias": Flag(),
    "qkv_fused": Flag(),
    "qk_norm": Flag(),
    "proj_bias": Flag(),
    "pre_norm": Flag(),
    "final_norm": Flag(),
    "fc_norm": Flag(),
    "scale_attn_norm": Flag(),
    "scale_mlp_norm": Flag(),
    "swiglu_mlp": Flag(),
    "swiglu_align_to": Whole(0, 1024),
    "scale_mlp": Flag(),
    "scale_attn_inner": Flag(),
    # Rotary positions.
    "use_abs_pos_emb": Flag(),
    "use_rot_pos_emb": Flag(),
    "rope_temperature": Number(1, 1e6),
    "rope_grid_offset": Number(-10, 10),
    "rope_rotate_half": Flag(),
    # Regularisation.
    "drop_rate": _SHARE,
    "pos_drop_rate": _SHARE,
    "patch_drop_rate": _SHARE,
    "proj_drop_rate": _SHARE,
    "attn_drop_rate": _SHARE,
    "drop_path_rate": _SHARE,
}
"""Arguments of timm's vision transformers that a card may give."""


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


LIBRARY_KEYS = _keys(
    """
    bins_strategy depth_estimation_type fusion_hidden_size head_hidden_size head_in_index initializer_range max_depth
    min_depth model_type neck_hidden_sizes norm_strategy number_output_channels patch_size post_process_channels
    readout_type reassemble_factors reassemble_hidden_size
    """
)
"""Keys of a transformers configuration that shape a height model."""
BACKBONE_KEYS = _keys(
    """
    apply_layernorm attention_dropout attention_probs_dropout_prob drop_path_rate hidden_act hidden_dropout_prob
    hidden_size image_size initializer_range intermediate_size key_bias layer_norm_eps layerscale_value mlp_bias
    mlp_ratio model_type num_attention_heads num_channels num_hidden_layers num_register_tokens out_features
    out_indices patch_size pos_embed_jitter pos_embed_rescale pos_embed_shift proj_bias qkv_bias query_bias
    reshape_hidden_states return_class_token rope_theta stage_names use_gated_mlp use_mask_token use_swiglu_ffn
    value_bias
    """
)
"""Keys of the configuration of its backbone that do."""
IDLE_KEYS = _keys(
    """
    _commit_hash _name_or_path architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id
    output_attentions output_hidden_states problem_type return_dict torch_dtype transformers_version
    """
)
"""Keys that every configuration has and no height depends on; they are not handed on."""
BACKBONES = ("dinov2", "dinov3_vit")


def check_name(name: str) -> str:
    """Return the name of a model.

    Raises:
        ValueError: The name is empty or long, or has a separator of paths or a character that cannot be printed.
    """
    if not 0 < len(name) <= NAME_LENGTH or not name.isprintable() or set(name) & set("/\\") or name in (".", ".."):
        raise ValueError(f"{name[:50]!r} is no name of a model: 1 to {NAME_LENGTH} printable characters but / and \\")
    return name


def check_network(name: str) -> str:
    """Return the name of a network of timm.

    Raises:
        ValueError: The name has another form: it may point to a folder or to a server.
    """
    if name and name not in _OUR_NETWORKS and not _TIMM_NAME.fullmatch(name):
        raise ValueError(f"{name[:50]!r} is no name of a network of timm, such as vit_tiny_patch16_224")
    return name


def check_encoder_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of an encoder.

    Raises:
        ValueError: An argument is not on the list, or its value is out of range.
    """
    for name, value in args.items():
        limit = ENCODER_ARGS.get(name)
        if limit is None:
            raise ValueError(f"{name[:50]} is no argument that an encoder may be given here")
        if not limit.allows(value):
            raise ValueError(f"{name} is {str(value)[:50]!r}: {limit} expected")
    return dict(args)


def check_taps(taps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the blocks that a decoder reads.

    Raises:
        ValueError: Their numbers do not rise, or no encoder has so many blocks.
    """
    if not all(low < high for low, high in zip((-1, *taps), (*taps, BLOCKS), strict=True)):
        raise ValueError(f"taps {taps}: four rising numbers of blocks below {BLOCKS} expected")
    return taps


def listed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a transformers configuration that may be handed to the library.

    Args:
        config: Configuration of a height model, as a publisher or a card states it.

    Raises:
        ValueError: A key is not on the list, or its value is out of range.
    """
    backbone = config.get("backbone_config")
    if not isinstance(backbone, Mapping) or backbone.get("model_type") not in BACKBONES:
        raise ValueError(f"backbone_config: a configuration of {' or '.join(BACKBONES)} expected")
    others = {key: value for key, value in config.items() if key != "backbone_config"}
    return _listed(others, LIBRARY_KEYS) | {"backbone_config": _listed(backbone, BACKBONE_KEYS)}


def _listed(config: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    listed = {}
    for key, value in config.items():
        if key in keys:
            if not _is_plain(value) or (key == "num_hidden_layers" and not Whole(1, BLOCKS).allows(value)):
                raise ValueError(f"config: {key} is {str(value)[:50]!r}, which is out of range")
            listed[key] = value
        # Keys off the list say nothing as long as they are off, as they are for every network that we run.
        elif key not in IDLE_KEYS and value not in (None, False, [], {}):
            raise ValueError(f"config: {key[:50]} is no key of a height model that this version runs")
    return listed


def _is_plain(value: object) -> bool:
    """Return whether a value is a number that is not large, a word, a flag, nothing, or a short list of these."""
    if isinstance(value, list):
        return len(value) <= BLOCKS and all(not isinstance(item, list) and _is_plain(item) for item in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= 2**16
    return value is None
