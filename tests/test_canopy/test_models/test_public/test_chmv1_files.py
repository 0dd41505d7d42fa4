"""CHMv1's published files: recognised, named as ours, and joined with the network that matches colours."""

import hashlib

import numpy as np
import pytest
import torch
from checkpoints import NARROW, THIN, packed, released_colours, released_forward, released_matching, released_state
from tiny_models import random_image

from canopy.errors import ModelError
from canopy.models.bundle import read_card
from canopy.models.model import load_model
from canopy.models.public.chmv1_files import read_chmv1
from canopy.models.public.conversion import convert


@pytest.fixture
def colours(tmp_path):
    """The publisher's file of the network that matches colours."""
    path = tmp_path / "aerial_normalization_quantiles_predictor.ckpt"
    torch.save({"state_dict": released_colours()}, path)
    return path


@pytest.fixture
def thin(tmp_path):
    """A height model in the publisher's format."""
    path = tmp_path / "SSLlarge.pth"
    torch.save(released_state(**THIN), path)
    return path


def test_weights_of_eight_bits_give_nearly_the_heights_of_the_whole(tmp_path) -> None:
    state = released_state(**NARROW)
    path = tmp_path / "compressed_SSLlarge.pth"
    small = packed(state)
    torch.save(small, path)
    weights = read_chmv1(path).weights
    name = "backbone.blocks.3.mlp.fc1"
    integers = small[f"{name}._packed_params._packed_params"][0].int_repr().numpy()
    step = float(state[f"{name}.weight"].abs().max() / 127)
    np.testing.assert_array_equal(weights["encoder.blocks.3.mlp.fc1.weight"], integers)
    np.testing.assert_allclose(weights["encoder.blocks.3.mlp.fc1.step"], step, rtol=1e-6)
    np.testing.assert_array_equal(weights["encoder.blocks.3.mlp.fc1.bias"], state[f"{name}.bias"])
    image = random_image(1, 3, 128, 128)
    whole = released_forward(state, image, (4, 11, 17, 23))
    assert (load_model(path).predict(image) - whole).abs().mean() < 0.1 * whole.std()


def test_colour_matching_becomes_part_of_the_bundle(tmp_path, thin, colours) -> None:
    card = convert(thin, tmp_path / "matched.safetensors", colour_matching=colours)
    assert card.architecture.colour_matching
    assert card.training["converted_from"] == "SSLlarge.pth"
    assert card.training["colour_matching_sha256"] == hashlib.sha256(colours.read_bytes()).hexdigest()
    assert read_card(tmp_path / "matched.safetensors") == card
    # The same from a fetched bundle, whose download is gone.
    convert(thin, tmp_path / "fetched.safetensors", gsd_m=0.6)
    again = convert(tmp_path / "fetched.safetensors", tmp_path / "again.safetensors", colour_matching=colours)
    assert (again.training, again.gsd_m) == (card.training, 0.6)
    image = random_image(1, 3, 256, 256)
    matched = torch.from_numpy(released_matching(released_colours(), image[0])).float()
    plain = load_model(thin)
    heights = load_model(tmp_path / "matched.safetensors").predict(image)
    torch.testing.assert_close(heights, plain.predict(matched[None]), atol=2e-3, rtol=0)
    assert (plain.predict(image) - heights).abs().mean() > 0.1


def test_colour_matching_is_refused_where_it_does_not_belong(tmp_path, thin, colours) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="no height model: give it to one by --colour-matching"):
        convert(colours, out)
    with pytest.raises(ModelError, match="is not CHMv1's colour matching"):
        convert(thin, out, colour_matching=thin)
    with pytest.raises(ModelError, match="no file"):
        convert(thin, out, colour_matching=tmp_path / "absent.ckpt")
    with pytest.raises(ModelError, match="canopy-small is of the family dpt"):
        convert("canopy-small", out, colour_matching=colours)
    colours.write_bytes(colours.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a whole one"):
        convert(thin, out, colour_matching=colours)
    assert not out.exists()


def test_colour_matching_of_a_model_of_aerial_imagery_is_warned_of(tmp_path, thin, colours, caplog) -> None:
    aerial = thin.rename(tmp_path / "SSLlarge_aerial.pth")
    convert(aerial, tmp_path / "out.safetensors", colour_matching=colours)
    assert "SSLlarge_aerial was trained on aerial imagery" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc1.weight": torch.zeros(2)}, "first keys: fc1.weight"),
        (
            {"backbone.cls_token": torch.zeros(1, 1, 64), "decode_head.conv_depth.head.4.weight": torch.zeros(2)},
            "not a whole one",
        ),
        (released_state(depth=3, **THIN), "an encoder of 3 blocks, 64 wide; 24 or 32 blocks"),
        (released_state(depth=24, **{**THIN, "width": 48}), "24 blocks, 48 wide; .* a multiple of 64 expected"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=message):
        read_chmv1(tmp_path / "other.pth")
