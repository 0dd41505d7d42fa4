"""A trained network's features: each patch gets its own, and tokens learn to predict them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pretraining import CPU, run_steps, tiny_config

from canopy.errors import ConfigError, ModelError
from pretrain.config import FeaturesConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.targets import NetworkFeatures, levels_loss, target_levels

NETWORK = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's state dict, random, as its publisher would give it."""
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(timm.create_model(NETWORK, pretrained=False).state_dict(), path)
    return path


@pytest.mark.parametrize(("shrink", "patch_px"), [(1, 8), (2, 16), (1, 4)])
def test_patches_get_the_features_of_their_own_ground(weights: Path, shrink: int, patch_px: int) -> None:
    config = FeaturesConfig.model_validate({"network": NETWORK, "weights": weights, "shrink": shrink})
    network = NetworkFeatures(config, patch_px).eval()
    image = torch.rand(2, 3, 64 * shrink, 32 * shrink, generator=torch.Generator().manual_seed(0))
    features = network(image)
    rows, cols = 64 * shrink // patch_px, 32 * shrink // patch_px
    recipe = tiny_config(terms={"features": 1}, features=config.model_dump())
    assert features.shape == (2, rows * cols, sum(target_levels(recipe, patch_px)["features"]))
    mean, std = (torch.tensor(network.stages.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    shrunk = image.unflatten(2, (-1, shrink)).unflatten(4, (-1, shrink)).mean(dim=(3, 5))
    first, *_, last = network.stages((shrunk - mean) / std)
    side = patch_px // shrink // 2  # of a patch in the first level, whose stride is 2
    row, col = rows - 1, 1
    patch = first[1, :, side * row : side * (row + 1), side * col : side * (col + 1)]
    expected = patch.flatten() if side > 1 else patch[:, 0, 0]
    torch.testing.assert_close(features[1, row * cols + col, : len(expected)], expected)
    assert last.shape[-1] == 1, "coarser than the patches"
    coarse = features[1, :, -last.shape[1] :].view(rows, cols, -1)
    torch.testing.assert_close(coarse[0, 0], last[1, :, 0, 0])
    torch.testing.assert_close(coarse[-1, -1], last[1, :, -1, 0])


def test_levels_have_the_same_weight() -> None:
    predictions, truth = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    truth[..., 4] = 1.0
    assert levels_loss(predictions, truth, [4, 1]).item() == pytest.approx(0.25)
    truth[..., :4] = 0.5
    assert levels_loss(predictions, truth, [4, 1]).item() == pytest.approx((0.125 + 0.5) / 2)


def test_weights_of_another_network_and_unknown_names_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not contain the weights"):
        NetworkFeatures(FeaturesConfig(network="resnet18", weights=weights), 16)
    with pytest.raises(ModelError, match=r"none\.pth"):
        NetworkFeatures(FeaturesConfig(network=NETWORK, weights=tmp_path / "none.pth"), 16)
    with pytest.raises(ConfigError, match="patches of 14 px do not fit"):
        target_levels(tiny_config(terms={"features": 1}, features={"network": NETWORK}), 14)
    with pytest.raises(ConfigError, match="no_such_network"):
        NetworkFeatures(FeaturesConfig(network="no_such_network", weights=weights), 16)


def test_tokens_learn_the_features_of_the_network(weights: Path) -> None:
    only = {"dino": 0, "ibot": 0, "koleo": 0, "features": 1}
    config = tiny_config(
        terms=only, local_crops={"count": 0}, global_crops={"count": 1}, loop={"steps": 60}, batch=2,
        features={"network": NETWORK, "weights": weights},
    )  # fmt: skip
    learner = SelfDistillation(config, CPU)
    before = {name: value.clone() for name, value in learner.targets.features.state_dict().items()}
    losses = [entry["features"] for entry in run_steps(learner, 60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert all(torch.equal(value, before[name]) for name, value in learner.targets.features.state_dict().items())
