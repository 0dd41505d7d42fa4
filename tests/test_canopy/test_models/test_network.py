"""Padding and normalisation that every network shares."""

import pytest
import torch
from tiny_models import random_image, tiny_card
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.network import MULTIPLE_PX, PATCH_PX, HeightNet


class Red(HeightNet):
    """A network whose height is the normalised red band."""

    def whole_height_m(self, image: Tensor) -> Tensor:
        assert all(side % self.multiple_px == 0 for side in image.shape[-2:])
        return self.normalise(image)[:, 0]


def test_images_of_any_size_keep_their_size_and_values() -> None:
    net = Red(tiny_card(mean=(0.5, 0, 0), std=(0.25, 1, 1)), 32)
    for shape in ((1, 3, 32, 64), (2, 3, 1, 33), (1, 3, 31, 95)):
        image = random_image(*shape)
        torch.testing.assert_close(net.height_m(image), (image[:, 0] - 0.5) / 0.25)


def test_padding_repeats_the_last_row_and_column() -> None:
    net = Red(tiny_card(), 4)
    image = torch.arange(6.0).view(1, 1, 2, 3)
    rows = [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(net.padded(image), torch.tensor(rows).float()[None, None])
    whole = random_image(1, 3, 4, 8)
    assert net.padded(whole) is whole


def test_a_family_without_features_says_so() -> None:
    with pytest.raises(ModelError, match="a model of the kind Red gives no features"):
        Red(tiny_card(), 32).tokens(random_image(1, 3, 32, 32))


def test_a_patch_is_half_of_the_multiple() -> None:
    assert (PATCH_PX, MULTIPLE_PX) == (16, 32)
