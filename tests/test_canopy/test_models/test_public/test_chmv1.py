"""CHMv1's network against an independent forward."""

import pytest
import torch
import torch.nn.functional as F
from checkpoints import NARROW, THIN, released_forward, released_state
from tiny_models import random_image

from canopy.models.model import load_model
from canopy.models.public.conversion import convert


@pytest.mark.parametrize(("depth", "taps"), [(24, (4, 11, 17, 23)), (32, (9, 16, 22, 29))])
@pytest.mark.parametrize(("count", "side"), [(1, 224), (2, 96)])
def test_heights_equal_an_independent_forward(tmp_path, depth, taps, count, side) -> None:
    state = released_state(depth, **NARROW)
    path = tmp_path / "SSLlarge.pth"
    torch.save({"state_dict": {f"chm_module_.{name}": value for name, value in state.items()}}, path)
    card = convert(path, tmp_path / "chmv1.safetensors")
    assert (card.family, card.chip_px, card.gsd_m, card.architecture.taps) == ("chmv1", 256, 0.597, taps)
    image = random_image(count, 3, side, side)
    heights = load_model(tmp_path / "chmv1.safetensors").predict(image)
    expected = released_forward(state, image, taps)
    assert expected.std() > 0.5
    torch.testing.assert_close(heights, expected, atol=2e-3, rtol=0)
    assert torch.equal(load_model(path).predict(image), heights), "the publisher's own file, unconverted"


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    path = tmp_path_factory.mktemp("chmv1") / "SSLlarge.pth"
    torch.save(released_state(**THIN), path)
    return load_model(path)


def test_padding_is_cropped(thin) -> None:
    image = random_image(1, 3, 50, 70)
    padded = F.pad(image, (0, 26, 0, 14), mode="replicate")
    assert torch.equal(thin.predict(image), thin.predict(padded)[:, :50, :70])


def test_tokens_follow_the_image_from_top_to_bottom(thin) -> None:
    image = random_image(1, 3, 100, 64)
    assert thin.features(image).shape == (1, 64, 8, 4)
    changed = image.clone()
    changed[:, :, :32] = 0
    change = (thin.features(changed) - thin.features(image)).abs().mean((0, 1, 3))
    assert change[:2].min() > change[2:].max()


def test_image_of_the_learned_size_takes_positions_as_they_are(thin) -> None:
    net = thin._net
    assert torch.equal(net._positions(14, 14), net.encoder.pos_embed[:, 1:])
    finer = net._positions(27, 27).mT.reshape(1, -1, 27, 27)
    square = net.encoder.pos_embed[:, 1:].mT.reshape(1, -1, 14, 14)
    # Corners are aligned, so every second position of a grid of 27 is one of the 14.
    torch.testing.assert_close(finer[..., ::2, ::2], square, atol=1e-4, rtol=0)
