"""CHMv2 as Meta sends it, a head and a backbone: the heights of transformers' own network with the same weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.bundle import read_card
from canopy.models.model import load_model
from canopy.models.public.conversion import convert

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.chmv2")


@pytest.fixture(scope="module")
def net() -> Any:
    """The library's network, thin, with random weights."""
    backbone = {
        "model_type": "dinov3_vit", "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1,
        "num_hidden_layers": 24, "num_register_tokens": 4, "key_bias": False, "out_indices": [6, 12, 18, 24],
        "reshape_hidden_states": True, "apply_layernorm": True, "return_class_token": True,
    }  # fmt: skip
    config = transformers.CHMv2Config(
        backbone_config=backbone, post_process_channels=[4, 6, 8, 12], fusion_hidden_size=8, head_hidden_size=8,
        number_output_channels=16,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.CHMv2ForDepthEstimation(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and name.startswith("head"):
                fan = parameter[0].numel()
                parameter.copy_(1.5 * fan**-0.5 * torch.randn(parameter.shape, generator=generator))
    return net


def released(net: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return head and backbone of a network under the names of Meta's files."""
    state = {name.replace("backbone.model.", "backbone."): value for name, value in net.state_dict().items()}
    head: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {"rope_embed.periods": torch.zeros(16), "local_cls_norm.weight": torch.ones(64)}
    plain = {
        "embeddings.register_tokens": "storage_tokens", "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
    }  # fmt: skip
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "head":
            rest = re.sub(r"reassemble_stage\.layers\.(\d)\.projection", r"reassemble_blocks.projects.\1.conv", rest)
            rest = re.sub(r"reassemble_stage\.layers\.(\d)\.resize", r"reassemble_blocks.resize_layers.\1", rest)
            rest = rest.replace("reassemble_stage.readout_projects", "reassemble_blocks.readout_projects")
            rest = re.sub(r"^convs\.(\d)\.", r"convs.\1.conv.", rest)
            rest = rest.replace("fusion_layers", "fusion_blocks").replace("residual_layer", "res_conv_unit")
            rest = re.sub(r"\.convolution(\d)\.", r".conv\1.conv.", rest)
            head[rest.replace(".projection.", ".project.conv.")] = value
        elif rest in plain:
            backbone[plain[rest]] = value[0] if rest.endswith("mask_token") else value
        elif "_proj." in rest and ".attention." in rest and ".o_proj." not in rest:
            continue
        else:
            rest = rest.replace("embeddings.patch_embeddings", "patch_embed.proj").replace("layer.", "blocks.")
            rest = rest.replace("attention.o_proj", "attn.proj").replace("up_proj", "fc1").replace("down_proj", "fc2")
            backbone[re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", rest)] = value
    for index in range(24):
        block = f"backbone.layer.{index}.attention"
        weights = [state[f"{block}.{part}_proj.weight"] for part in "qkv"]
        biases = [state[f"{block}.q_proj.bias"], torch.zeros(64), state[f"{block}.v_proj.bias"]]
        backbone[f"blocks.{index}.attn.qkv.weight"] = torch.cat(weights)
        backbone[f"blocks.{index}.attn.qkv.bias"] = torch.cat(biases)
        backbone[f"blocks.{index}.attn.qkv.bias_mask"] = torch.ones(192)
    return head, backbone


@pytest.fixture(scope="module")
def files(net: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("meta")
    head, backbone = released(net)
    torch.save(head, folder / "dinov3_vitl16_chmv2_dpt_head.pth")
    torch.save(backbone, folder / "dinov3_vitl16_pretrain_sat493m.pth")
    torch.save(head | {f"backbone.{name}": value for name, value in backbone.items()}, folder / "both.pth")
    return folder / "dinov3_vitl16_chmv2_dpt_head.pth", folder / "dinov3_vitl16_pretrain_sat493m.pth"


def test_head_and_backbone_have_the_heights_of_the_library(canopy, net, files, tmp_path: Path) -> None:
    out = tmp_path / "chmv2.safetensors"
    code, _, err = canopy("models", "convert", files[0], "--backbone", files[1], "--out", out)
    assert code == 0, err
    card = read_card(out)
    assert (card.family, card.head.max_m, card.training["backbone_from"]) == ("chmv2", 96.0, files[1].name)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    with torch.inference_mode():
        expected = net(pixel_values=(image - mean) / std).predicted_depth
    assert expected.std() > 0.1
    torch.testing.assert_close(load_model(out, "cpu").predict(image), expected, atol=1e-4, rtol=0)
    both = load_model(files[0].with_name("both.pth"), "cpu")
    torch.testing.assert_close(both.predict(image), expected, atol=1e-4, rtol=0)


def test_what_does_not_belong_together_is_one_line(files, tmp_path: Path) -> None:
    head, backbone = files
    out = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match=r"head alone: canopy models convert .* --backbone"):
        convert(head, out)
    with pytest.raises(ModelError, match="is not CHMv2's head"):
        convert(backbone, out, backbone=head)
    with pytest.raises(ModelError, match="is no DINOv3 backbone"):
        convert(head, out, backbone=head)
    cut = torch.load(head)
    del cut["convs.0.conv.weight"]
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="are not whole"):
        convert(tmp_path / "cut.pth", out, backbone=backbone)
    torch.save(torch.load(head) | {"reassemble_blocks.batchnorm_layers.0.weight": torch.ones(4)}, tmp_path / "bn.pth")
    with pytest.raises(ModelError, match=r"are not the CHMv2 that this version knows: .*batchnorm_layers"):
        convert(tmp_path / "bn.pth", out, backbone=backbone)
    assert not out.exists()
