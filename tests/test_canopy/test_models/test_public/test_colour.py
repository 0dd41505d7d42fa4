"""Colours of aerial imagery, matched by a predicted stretch of each band."""

import numpy as np
import torch
from checkpoints import released_colours, released_matching
from tiny_models import random_image

from canopy.models.public.chmv1_files import _COLOUR_NAMES, _renamed
from canopy.models.public.colour import ColourMatching


def test_each_chip_is_stretched_by_the_published_formula() -> None:
    state = released_colours()
    net = ColourMatching().eval()
    net.load_state_dict({_renamed(name, _COLOUR_NAMES): value for name, value in state.items()})
    image = random_image(2, 3, 256, 256)
    image[1] = 0.2 + 0.3 * image[1] ** 2
    expected = np.stack([released_matching(state, chip) for chip in image])
    assert np.abs(expected[0] - expected[1]).mean() > 0.05
    with torch.inference_mode():
        np.testing.assert_allclose(net(image).numpy(), expected, atol=1e-4)


def test_images_of_any_size_and_of_a_single_colour_are_matched() -> None:
    net = ColourMatching().eval()
    torch.nn.init.constant_(net.regress[-1].bias[3:], 0.6)  # the 95th percentile above the 5th, as a trained network's
    image = random_image(2, 3, 300, 200)
    with torch.inference_mode():
        matched, expected = net(image).numpy(), net.expected(image)[..., 0, 0].numpy()
        np.testing.assert_allclose(np.percentile(matched, (5, 95), axis=(2, 3)), expected, atol=1e-5)
        single = torch.full((1, 3, 256, 256), 0.4)
        assert torch.equal(net(single), net.expected(single)[0].expand_as(single))
