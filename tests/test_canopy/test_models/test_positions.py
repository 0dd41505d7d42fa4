"""Positions on the ground: their formula, and the networks that have them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny_models import ARCHITECTURE, random_image, save_tiny_model, tiny_card, tiny_net

from canopy.errors import ConfigError
from canopy.models.bundle import Architecture, Card, read_card
from canopy.models.model import load_model
from canopy.models.positions import ground_positions, set_positions

ON_GROUND = ARCHITECTURE.model_copy(update={"positions": "gsd", "reference_gsd_m": 1.0})


def test_positions_follow_the_formula_of_scale_mae() -> None:
    gsds_m, reference_m, width = [0.5, 0.6, 2.0], 0.75, 16
    positions = ground_positions((3, 5), width, torch.tensor(gsds_m) / reference_m)
    assert (positions.shape, positions.dtype) == ((3, 3, 5, 16), torch.float32)
    half = width // 2  # of the values is for columns, the other for rows
    for image, row, col in np.ndindex(3, 3, 5):
        expected = []
        for position in (col, row):
            phases = [
                gsds_m[image] / reference_m * position / 10000 ** (2 * i / half) for i in range(half // 2)
            ]  # fmt: skip
            expected += [math.sin(phase) for phase in phases] + [math.cos(phase) for phase in phases]
        assert positions[image, row, col].tolist() == pytest.approx(expected, abs=1e-5)


def test_patches_of_twice_the_gsd_are_twice_as_far_apart() -> None:
    fine, coarse = (ground_positions((9, 9), 32, torch.tensor([gsd_m / 1.0]))[0] for gsd_m in (0.5, 1.0))
    torch.testing.assert_close(coarse[:5, :5], fine[::2, ::2])
    assert (coarse[:5, :5] - fine[:5, :5]).abs().max() > 0.1


def test_networks_without_learned_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="take the place of learned ones"):
        set_positions(timm.create_model("vit_small_patch16_dinov3", depth=1, dynamic_img_size=True), 1.0, 0.5)
    with pytest.raises(ConfigError, match="takes images of any size"):
        set_positions(timm.create_model("test_vit", dynamic_img_size=False), 1.0, 0.5)
    narrow = timm.create_model("test_vit", embed_dim=18, num_heads=1, dynamic_img_size=True)
    with pytest.raises(ConfigError, match="a multiple of 4 values, these have 18"):
        set_positions(narrow, 1.0, 0.5)


@pytest.mark.parametrize("changes", [{"positions": "gsd"}, {"reference_gsd_m": 1.0}])
def test_a_reference_and_positions_on_the_ground_come_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positions: gsd need a reference_gsd_m"):
        Architecture(**changes)
    with pytest.raises(ValueError, match="stem and positions of ours in a network of the family chmv2"):
        Card.model_validate({**tiny_card(architecture=ON_GROUND).model_dump(), "family": "chmv2"})


@pytest.mark.parametrize("backend", ["openvino", "int8"])
def test_a_height_model_knows_the_gsd_of_its_card(tmp_path: Path, backend: str) -> None:
    path = save_tiny_model(tmp_path / "ground.safetensors", architecture=ON_GROUND)
    assert read_card(path).architecture == ON_GROUND
    model, image = load_model(path, device="cpu", backend="eager"), random_image(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.predict(image), tiny_net(model.card).height_m(image))
        assert "pos_embed" not in tiny_net(model.card).dpt.encoder.model.state_dict()
    other = load_model(path, device="cpu", backend=backend)
    tolerance_m = 1e-2 if backend == "openvino" else 2.0
    torch.testing.assert_close(other.predict(image), model.predict(image), atol=tolerance_m, rtol=0)


def test_a_card_of_another_gsd_gives_other_tokens_and_enlarging_divides_it() -> None:
    image = random_image(1, 3, 64, 64)
    enlarged = ON_GROUND.model_copy(update={"enlarge": 2})
    cards = {gsd_m: tiny_card(architecture=ON_GROUND, gsd_m=gsd_m) for gsd_m in (0.5, 1.0)}
    nets = {gsd_m: tiny_net(card) for gsd_m, card in cards.items()}
    with torch.inference_mode():
        assert (nets[0.5].tokens(image) - nets[1.0].tokens(image)).abs().max() > 1e-2
        encoder = tiny_net(tiny_card(architecture=enlarged, gsd_m=1.0)).dpt.encoder
        whole = nets[0.5].dpt.encoder
        encoder.load_state_dict(whole.state_dict())
        assert torch.equal(encoder(image)[0][-1], whole(image)[0][-1]), (
            "an image of 1 m enlarged twofold is one of 0.5 m"
        )
