"""The convolutional stem: its shapes, what masks hide of it, and the networks that have one."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_models import ARCHITECTURE, random_image, save_tiny_model, tiny_card, tiny_net
from torch import Tensor

from canopy.errors import ConfigError, ModelError
from canopy.models.bundle import Card, read_bundle, read_card, save_bundle
from canopy.models.encoders import rgb_only
from canopy.models.model import load_model
from canopy.models.stem import ConvStem, set_stem

CONV = ARCHITECTURE.model_copy(update={"stem": "conv"})


def stem(patch_px: int, bands: int = 3) -> ConvStem:
    torch.manual_seed(0)
    return ConvStem(bands, 32, patch_px).eval()


@pytest.mark.parametrize(("patch_px", "channels", "last_px"), [
    (16, [3, 4, 8, 16, 32], 1), (14, [3, 4], 7), (8, [3, 4, 8, 16], 1), (2, [3, 4], 1), (12, [3, 4, 8], 3),
])  # fmt: skip
def test_steps_of_two_reach_the_patch_and_a_last_one_takes_what_is_left(
    patch_px: int, channels: list[int], last_px: int
) -> None:
    net = stem(patch_px)
    convolutions = [step[0] for step in net.steps]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == list(pairwise(channels))
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((3, 3), (2, 2))}
    assert net.project.kernel_size == net.project.stride == (last_px, last_px)
    with torch.inference_mode():
        assert net(torch.rand(2, 3, 3 * patch_px, 5 * patch_px)).shape == (2, 32, 3, 5)


@pytest.mark.parametrize("patch_px", [16, 14])
def test_a_masked_patch_changes_no_visible_token(patch_px: int) -> None:
    net, image = stem(patch_px), random_image(1, 3, 4 * patch_px, 4 * patch_px)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 1:3] = mask[0, 3, 0] = True
    hidden = mask.repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)[:, None]
    other = torch.where(hidden, random_image(*image.shape, seed=2), image)
    with torch.inference_mode():
        without = net(image), net(other)
        assert (without[0] - without[1]).movedim(1, -1)[~mask].abs().max() > 1e-3, "convolutions overlap"
        net.mask = mask
        assert torch.equal(net(image), net(other))
        other[:, :, :patch_px, :patch_px] = 0  # a visible patch, next to none that is masked
        assert not torch.equal(net(image), net(other))


def sparse(net: ConvStem, image: Tensor, hidden: Tensor) -> Tensor:
    """The stem by sums over the positions that are visible alone, in float64."""
    features, side = image.double(), image.shape[-1]
    for convolution, norm, _ in net.steps:
        seen = ~hidden.repeat_interleave(side // hidden.shape[-1], 0).repeat_interleave(side // hidden.shape[-1], 1)
        side //= 2
        result = torch.zeros(1, convolution.out_channels, side, side, dtype=torch.float64)
        for row, col, i, j in np.ndindex(side, side, 3, 3):
            y, x = 2 * row + i - 1, 2 * col + j - 1
            if 0 <= y < 2 * side and 0 <= x < 2 * side and seen[y, x]:
                result[0, :, row, col] += convolution.weight[:, :, i, j].double() @ features[0, :, y, x]
        result = result + convolution.bias.double()[:, None, None]
        mean, variance = result.mean(1, keepdim=True), result.var(1, keepdim=True, correction=0)
        result = (result - mean) / (variance + norm.eps).sqrt()
        result = result * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
        features = 0.5 * result * (1 + torch.erf(result / 2**0.5))
    return (
        torch.einsum("oi,bihw->bohw", net.project.weight.double()[:, :, 0, 0], features)
        + (net.project.bias.double()[:, None, None])
    )


def test_the_masked_stem_is_one_of_sparse_convolutions() -> None:
    net, image = stem(8), random_image(1, 3, 32, 32)
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[1:3, 2] = hidden[0, 0] = True
    net.mask = hidden[None]
    with torch.inference_mode():
        own, expected = net(image)[0].double(), sparse(net, image, hidden)[0]
    torch.testing.assert_close(own[:, ~hidden], expected[:, ~hidden], atol=1e-5, rtol=1e-5)


def test_networks_without_a_linear_embedding_and_odd_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="patches of an even side, these have 7 px"):
        set_stem(timm.create_model("test_vit", img_size=28, patch_size=7), "conv", 3)
    with pytest.raises(ConfigError, match="a linear patch embedding, which ResNet lacks"):
        set_stem(timm.create_model("test_resnet"), "conv", 3)
    with pytest.raises(ValueError, match="stem and positions of ours in a network of the family chmv1"):
        Card.model_validate({**tiny_card(architecture=CONV).model_dump(), "family": "chmv1"})


def test_a_height_model_with_a_stem_is_saved_and_maps(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "conv.safetensors", architecture=CONV)
    model, image = load_model(path, device="cpu", backend="eager"), random_image(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.predict(image), tiny_net(model.card).height_m(image))
        embedding = tiny_net(model.card).dpt.encoder.model.patch_embed
        assert isinstance(embedding.proj, ConvStem)
    openvino = load_model(path, device="cpu", backend="openvino")
    torch.testing.assert_close(openvino.predict(image), model.predict(image), atol=1e-2, rtol=0)
    linear = save_tiny_model(tmp_path / "linear.safetensors")
    with pytest.raises(ModelError, match="do not fit the card's architecture"):
        load_model(_with_card_of(path, linear, tmp_path / "mixed.safetensors"), device="cpu", backend="eager")


def _with_card_of(card: Path, weights: Path, path: Path) -> Path:
    """Write a bundle of one's card and another's weights."""
    save_bundle(path, read_card(card), read_bundle(weights).weights)
    return path


def test_an_encoder_of_more_bands_with_a_stem_is_one_of_rgb() -> None:
    four, rgb = stem(16, bands=4), stem(16)
    card = tiny_card(family="encoder").model_copy(
        update={"bands": ("red", "green", "blue", "nir"), "mean": (0.5,) * 4, "std": (0.2,) * 4}
    )
    weights = {f"patch_embed.proj.{name}": value.numpy() for name, value in four.state_dict().items()}
    narrow = rgb_only(card, weights)[1]
    rgb.load_state_dict({name.removeprefix("patch_embed.proj."): torch.from_numpy(v) for name, v in narrow.items()})
    image = random_image(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(rgb(image), four(F.pad(image, (0, 0, 0, 0, 0, 1))), atol=1e-5, rtol=1e-5)
