"""The U-Net: what it sees, what its card says, which encoders it takes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from tiny_models import random_image, tiny_card
from torch import Tensor

from canopy.calibration.curves import FeatureGain
from canopy.errors import ModelError
from canopy.models.bundle import Architecture, Card, read_card, save_bundle
from canopy.models.dpt import load_stages
from canopy.models.families import build_net
from canopy.models.model import CanopyModel, load_model
from canopy.models.unet import UNetHeights, create_stages
from canopy.prediction.layers import Layers
from canopy.prediction.trial import has_choice

SHAPE = Architecture(kind="unet", encoder="test_efficientnet", decoder_channels=(4, 8, 8, 8))
PYRAMID = (2, 4, 8, 16, 32)


def unet_card(**changes: Any) -> Card:
    return tiny_card(**{"family": "unet", "architecture": SHAPE, **changes})


def unet(**changes: Any) -> UNetHeights:
    """A network with random weights, whose heights vary by metres over random images."""
    torch.manual_seed(0)
    net = UNetHeights(unet_card(**changes)).eval()
    with torch.no_grad():
        net.head[-1].weight.mul_(30)
    return net


def save(path: Path, **changes: Any) -> Path:
    weights = {name: tensor.numpy() for name, tensor in unet(**changes).state_dict().items()}
    save_bundle(path, unet_card(**changes), weights)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("unet") / "unet.safetensors")


@pytest.fixture(scope="module")
def model(bundle: Path) -> CanopyModel:
    return load_model(bundle, device="cpu", backend="eager")


def test_heights_are_decoded_at_half_of_the_resolution() -> None:
    net = unet()
    with torch.inference_mode():
        assert net(random_image(2, 3, 64, 96)).shape == (2, 16, 32, 48)
        assert net.height_m(random_image(2, 3, 50, 70)).shape == (2, 50, 70)


def test_features_are_the_level_of_patches_of_16_px() -> None:
    net = unet()
    image = random_image(2, 3, 64, 96)
    with torch.inference_mode():
        levels = net.encoder(net.normalise(image))
        assert [64 // level.shape[2] for level in levels] == list(PYRAMID)
        assert torch.equal(net.tokens(image), levels[3])
        assert net.tokens(random_image(1, 3, 50, 70)).shape[2:] == (4, 6)


def test_each_level_of_the_encoder_reaches_the_heights() -> None:
    net = unet()
    image = random_image(1, 3, 64, 64)
    levels: list[Tensor] = [level.detach().requires_grad_() for level in net.encoder(net.normalise(image))]
    net.encoder.forward = lambda image: levels
    net(image).square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


def test_a_small_change_is_seen_where_it_is() -> None:
    net = unet()
    image = random_image(1, 3, 64, 64)
    changed = image.clone()
    changed[:, :, 30:32, 30:32] = 0
    with torch.inference_mode():
        change = (net(changed) - net(image)).abs().amax(dim=1)[0]
    assert change[14:17, 14:17].mean() > 2 * change.mean()


def test_fixed_statistics_stay_while_scales_learn() -> None:
    net = unet()
    net.fix_statistics()
    net.train()
    before = {name: value.clone() for name, value in net.named_buffers() if "running" in name}
    net(random_image(2, 3, 64, 64)).sum().backward()
    assert len(before) > 10
    assert all(torch.equal(dict(net.named_buffers())[name], value) for name, value in before.items())
    assert net.expansions[0].convolutions[1].weight.grad is not None


def test_weights_of_a_classifier_are_those_of_the_encoder(tmp_path: Path) -> None:
    classifier = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    net = unet()
    load_stages(net.encoder, tmp_path / "weights.pth")
    assert torch.equal(net.encoder.conv_stem.weight, classifier.conv_stem.weight)
    torch.save({"one": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="does not contain the weights of the network that is expected") as error:
        load_stages(net.encoder, tmp_path / "other.pth")
    assert "\n" not in str(error.value)


def test_the_rate_of_stochastic_depth_reaches_the_encoder() -> None:
    rates = [module.drop_prob for module in create_stages("tf_efficientnet_lite0", 0.2).modules()
             if type(module).__name__ == "DropPath"]  # fmt: skip
    assert 0.1 < max(rates) <= 0.2
    assert not any(type(module).__name__ == "DropPath" for module in create_stages("tf_efficientnet_lite0").modules())


@pytest.mark.parametrize(("network", "message"), [
    ("network_of_no_one", "timm gives no levels of network_of_no_one"),
    ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ("convnext_atto", r"convnext_atto has levels of strides \(4, 8, 16, 32\)"),
])  # fmt: skip
def test_an_encoder_that_is_no_pyramid_is_a_clear_error(network: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        build_net(unet_card(architecture=SHAPE.model_copy(update={"encoder": network})))
    assert "\n" not in str(error.value)


# --- its card


def test_a_card_lists_the_settings_that_a_unet_has(bundle: Path) -> None:
    written = json.loads(unet_card().model_dump_json())
    assert (written["family"], written["architecture"]) == ("unet", {
        "kind": "unet", "encoder": "test_efficientnet", "decoder_channels": [4, 8, 8, 8]
    })  # fmt: skip
    assert read_card(bundle) == unet_card()
    assert "kind" not in tiny_card().model_dump()["architecture"], "cards of other networks stay as they are"


def test_a_unet_without_a_named_encoder_has_efficientnet_lite() -> None:
    assert Architecture(kind="unet").encoder == "tf_efficientnet_lite0"
    assert Architecture().encoder == "vit_tiny_patch16_224"


@pytest.mark.parametrize("setting", [
    {"taps": (2, 5, 8, 11)}, {"enlarge": 2}, {"normed": True}, {"detail": "tf_efficientnet_lite0"}, {"stem": "conv"},
    {"fusion_channels": 32}, {"encoder_args": {"embed_dim": 16}}, {"colour_matching": True}, {"detail_channels": 8},
])  # fmt: skip
def test_settings_of_other_networks_are_refused(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValidationError, match=rf"a U-Net \(kind: unet\) has no {name}: leave it out"):
        Architecture(kind="unet", **setting)


@pytest.mark.parametrize("changes", [{"architecture": SHAPE}, {"family": "unet"}, {"family": "encoder"}])
def test_family_and_kind_agree(changes: dict[str, Any]) -> None:
    card = {**unet_card().model_dump(), "family": "dpt", **tiny_card(intervals=None).model_dump(), **changes}
    if changes == {"family": "encoder"}:
        card["architecture"] = SHAPE
    with pytest.raises(ValidationError, match=r"a network of the kind (dpt|unet) in the family (dpt|unet|encoder)"):
        Card.model_validate(card)


# --- through the interface of every model


def test_a_bundle_predicts_heights_intervals_and_features(model: CanopyModel) -> None:
    image = random_image(2, 3, 64, 64)
    height_m, interval_m = model.predict(image), model.predict_interval(image)
    assert height_m.std() > 1
    assert torch.equal(interval_m[:, 0], height_m)
    assert (interval_m[:, 1] <= height_m).all() and (height_m <= interval_m[:, 2]).all()
    assert model.features(image).shape[2:] == (4, 4)


def test_the_decoder_is_the_cards_or_the_users(bundle: Path, model: CanopyModel) -> None:
    image = random_image(1, 3, 64, 64)
    median = load_model(bundle, device="cpu", backend="eager", decode="median")
    assert (model.decode, median.decode) == ("mean", "median")
    assert (median.predict(image) - model.predict(image)).abs().mean() > 0.1


def test_a_gain_is_predicted_from_its_features(model: CanopyModel) -> None:
    image = random_image(1, 3, 64, 64)
    features = model.features(image)
    gain = FeatureGain(
        model_sha256=model.sha256, weights=(0.5,) + (0.0,) * (features.shape[1] - 1), bias=0.1, sigma_m=6
    )
    layers = Layers(model, uncertainty=True, gain=gain)(image)
    assert layers.shape == (1, 4, 64, 64)
    expected = 0.1 + 0.5 * features[0, 0].mean()
    assert layers[0, 3].mean().item() == pytest.approx(expected.item(), abs=0.2 * features[0, 0].std().item())


def test_openvino_gives_the_heights_of_torch(
    bundle: Path, model: CanopyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    image = random_image(2, 3, 64, 64)
    compiled = load_model(bundle, device="cpu", backend="openvino")
    for function in ("predict", "predict_interval", "features"):
        torch.testing.assert_close(
            getattr(compiled, function)(image), getattr(model, function)(image), atol=2e-3, rtol=1e-3
        )
    assert len(list((tmp_path / "compiled").iterdir())) == 3


def test_it_runs_as_our_own_networks_do(model: CanopyModel) -> None:
    assert (model.backend, model.chip_by_chip) == ("eager on cpu", False), "a batch at once, as small networks"
    assert not has_choice(model), "no backends are tried on the first chips"


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    weights = {name: tensor.numpy() for name, tensor in unet().state_dict().items()}
    save_bundle(tmp_path / "x.safetensors", unet_card(architecture=Architecture(kind="unet")), weights)
    with pytest.raises(ModelError, match="weights do not fit the card's architecture"):
        load_model(tmp_path / "x.safetensors", device="cpu", backend="eager")
