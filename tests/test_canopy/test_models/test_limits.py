"""Limits of a card: names, arguments and numbers that a stranger may choose."""

import json
from pathlib import Path

import pytest

from canopy.models.limits import (
    ENCODER_ARGS,
    check_encoder_args,
    check_name,
    check_network,
    check_taps,
    listed_config,
)

OLD_CARDS = json.loads((Path(__file__).parents[2] / "data" / "old" / "models" / "cards.json").read_text())


@pytest.mark.parametrize("name", ["canopy-small", "Höhen 2024", "vit_small_patch14_dinov2.lvd142m", "a" * 200])
def test_names_that_people_give_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "../../x", "a/b", "a\\b", ".", "..", "a\nb", "a\x1b[2J", "a\0b", "a" * 201])
def test_names_that_leave_a_folder_or_a_line_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a model: 1 to 200 printable characters"):
        check_name(name)


def test_every_name_of_timm_has_the_expected_form() -> None:
    import timm

    for name in (*timm.list_models(), *timm.list_pretrained(), "", "VisionTransformer", "transformers"):
        assert check_network(name) == name


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/etc", "timm/x", "vit.a.b", "VIT", "vit tiny", "vit@main", "../x"]
)
def test_names_that_reach_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a network of timm"):
        check_network(name)


def test_arguments_of_published_recipes_pass() -> None:
    for args in (
        {"depth": 4, "reg_tokens": 4, "init_values": 1e-5, "patch_size": 8, "mlp_layer": "swiglu", "mlp_ratio": 2.5},
        {"embed_dim": 32, "num_heads": 2, "qkv_bias": False, "rope_temperature": 100},
    ):
        assert check_encoder_args(args) == args


@pytest.mark.parametrize(
    "name",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only",
     "weight_init", "block_fn", "attn_layer", "embed_layer", "device", "dtype", "in_chans", "num_classes"],
)  # fmt: skip
def test_arguments_off_the_list_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no argument that an encoder may be given here"):
        check_encoder_args({name: 1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("depth", 10**9, "a whole number from 1 to 128"),
        ("depth", 1.0, "a whole number"),
        ("depth", True, "a whole number"),
        ("embed_dim", 0, "a whole number from 1 to 4096"),
        ("mlp_ratio", float("inf"), "a number from 0.01 to 16"),
        ("mlp_ratio", float("nan"), "a number"),
        ("drop_rate", 2, "a number from 0 to 1"),
        ("qk_norm", "yes", "true or false"),
        ("act_layer", "os.system", "one of gelu, "),
        ("pos_embed", 3, "one of nothing, none, learn"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '.*': {expected}"):
        check_encoder_args({name: value})


def test_every_argument_is_one_of_timms() -> None:
    import inspect

    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    parameters = {*inspect.signature(VisionTransformer).parameters, *inspect.signature(Eva).parameters}
    assert set(ENCODER_ARGS) <= parameters


def test_taps_rise_below_the_deepest_encoder() -> None:
    assert check_taps((0, 1, 2, 127)) == (0, 1, 2, 127)
    for taps in ((-1, 1, 2, 3), (1, 1, 2, 3), (3, 2, 1, 0), (1, 2, 3, 128)):
        with pytest.raises(ValueError, match="four rising numbers of blocks below 128"):
            check_taps(taps)


# --- configurations of the transformers library


@pytest.mark.parametrize("family", ["chmv2", "depth-any-canopy"])
def test_a_configuration_keeps_what_shapes_its_network(family: str) -> None:
    config = OLD_CARDS[family]["architecture"]["config"]
    listed = listed_config(config)
    assert listed["backbone_config"]["hidden_size"] == 32
    assert "transformers_version" not in listed and "_name_or_path" not in listed["backbone_config"]
    # Off is off: publishers list keys that their models do not use.
    assert listed_config(config | {"backbone": None, "use_pretrained_backbone": False, "auto_map": {}}) == listed


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "facebook/dinov3"},
        {"use_pretrained_backbone": True},
        {"use_timm_backbone": True},
        {"auto_map": {"AutoModel": "code.Model"}},
        {"_attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "x"}},
        {"number_output_channels": 10**9},
        {"readout_type": "../../x"},
        {"post_process_channels": [[1]]},
        {"reassemble_factors": [1] * 1000},
        {"max_depth": float("inf")},
    ],
)
def test_keys_that_reach_elsewhere_and_values_out_of_range_are_refused(changes: dict[str, object]) -> None:
    config = OLD_CARDS["chmv2"]["architecture"]["config"]
    with pytest.raises(ValueError, match=f"config: {next(iter(changes))} is "):
        listed_config(config | changes)
    backbone = config["backbone_config"] | {"use_pretrained_backbone": True}
    with pytest.raises(ValueError, match="use_pretrained_backbone"):
        listed_config(config | {"backbone_config": backbone})


@pytest.mark.parametrize("backbone", [None, "dinov2", {}, {"model_type": "llama"}, {"model_type": ["dinov2"]}])
def test_other_backbones_are_refused(backbone: object) -> None:
    with pytest.raises(ValueError, match="a configuration of dinov2 or dinov3_vit expected"):
        listed_config({"backbone_config": backbone})


def test_depth_is_bounded() -> None:
    config = OLD_CARDS["chmv2"]["architecture"]["config"]
    backbone = config["backbone_config"] | {"num_hidden_layers": 60_000}
    with pytest.raises(ValueError, match="num_hidden_layers is '60000', which is out of range"):
        listed_config(config | {"backbone_config": backbone})
