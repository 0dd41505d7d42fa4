"""Networks by the family of a card."""

import pytest
from checkpoints import THIN, released_state
from tiny_models import tiny_card

from canopy.errors import ModelError
from canopy.models.bundle import Architecture, HeightHead
from canopy.models.dpt import DPTHeights
from canopy.models.families import build_net
from canopy.models.public.chmv1 import CHMv1


def test_each_family_has_its_network() -> None:
    assert isinstance(build_net(tiny_card()), DPTHeights)
    arch = Architecture(
        encoder_args={"embed_dim": 64, "depth": 24, "num_heads": 1}, taps=(4, 11, 17, 23),
        decoder_channels=THIN["channels"], fusion_channels=THIN["fused"],
    )  # fmt: skip
    net = build_net(tiny_card(family="chmv1", architecture=arch, head=HeightHead(bins=16, spacing="linear")))
    assert isinstance(net, CHMv1)
    shapes = sorted(tuple(value.shape) for value in net.state_dict().values())
    unused = ("backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias")
    released = released_state(**THIN)
    assert shapes == sorted(tuple(value.shape) for name, value in released.items() if name not in unused)


def test_an_encoder_is_no_height_model() -> None:
    with pytest.raises(ModelError, match=r"tiny is of the family encoder: a height model \(dpt, unet, chmv1, "):
        build_net(tiny_card(family="encoder"))
