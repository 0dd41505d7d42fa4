"""What patches tell of other networks: each patch gets its own features, and tokens learn them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pretraining import tiny_config, tiny_tiles

from canopy.errors import ConfigError, ModelError, TrainingError
from canopy.models.bundle import Architecture, Card
from pretrain.batch import draw_batch
from pretrain.config import FeaturesConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.encoder import save_encoder
from pretrain.targets import NetworkFeatures, levels_loss, target_levels

CPU = torch.device("cpu")
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
    made = network(image)
    rows, cols = 64 * shrink // patch_px, 32 * shrink // patch_px
    recipe = tiny_config(terms={"features": 1}, features=config.model_dump())
    assert made.shape == (2, rows * cols, sum(target_levels(recipe, patch_px)["features"]))
    mean, std = (torch.tensor(network.stages.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    seen = image.unflatten(2, (-1, shrink)).unflatten(4, (-1, shrink)).mean(dim=(3, 5))
    first, *_, last = network.stages((seen - mean) / std)
    side = patch_px // shrink // 2  # of a patch in the first level, whose stride is 2
    row, col = rows - 1, 1
    patch = first[1, :, side * row : side * (row + 1), side * col : side * (col + 1)]
    expected = patch.flatten() if side > 1 else patch[:, 0, 0]
    torch.testing.assert_close(made[1, row * cols + col, : len(expected)], expected)
    assert last.shape[-1] == 1, "coarser than the patches"
    coarse = made[1, :, -last.shape[1] :].view(rows, cols, -1)
    torch.testing.assert_close(coarse[0, 0], last[1, :, 0, 0])
    torch.testing.assert_close(coarse[-1, -1], last[1, :, -1, 0])


def test_levels_count_alike() -> None:
    told, truth = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    truth[..., 4] = 1.0
    assert levels_loss(told, truth, [4, 1]).item() == pytest.approx(0.25)
    truth[..., :4] = 0.5
    assert levels_loss(told, truth, [4, 1]).item() == pytest.approx((0.125 + 0.5) / 2)


def test_weights_of_another_network_and_unknown_names_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not hold the weights"):
        NetworkFeatures(FeaturesConfig(network="resnet18", weights=weights), 16)
    with pytest.raises(ModelError, match=r"none\.pth"):
        NetworkFeatures(FeaturesConfig(network=NETWORK, weights=tmp_path / "none.pth"), 16)
    with pytest.raises(ConfigError, match="patches of 14 px do not fit"):
        target_levels(tiny_config(terms={"features": 1}, features={"network": NETWORK}), 14)
    with pytest.raises(ConfigError, match="no_such_network"):
        NetworkFeatures(FeaturesConfig(network="no_such_network", weights=weights), 16)


def test_the_term_teaches_tokens_what_the_network_says(weights: Path) -> None:
    only = {"dino": 0, "ibot": 0, "koleo": 0, "features": 1}
    config = tiny_config(
        terms=only, local_crops={"count": 0}, global_crops={"count": 1}, loop={"steps": 60},
        features={"network": NETWORK, "weights": weights},
    )  # fmt: skip
    learner = SelfDistillation(config, CPU)
    before = {name: value.clone() for name, value in learner.targets.features.state_dict().items()}
    losses = []
    for step in range(60):
        batch = draw_batch(step, tiny_tiles(), config, patch_px=8)
        learner.schedule(step)
        loss = learner.loss(batch, step)
        loss.backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        assert set(learner.update(step)) >= {"features"}
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert all(torch.equal(value, before[name]) for name, value in learner.targets.features.state_dict().items())


def test_pretraining_starts_from_an_encoder_of_its_kind(tmp_path: Path) -> None:
    first = SelfDistillation(tiny_config(global_crops={"px": 64}, loop={"seed": 1}), CPU)
    card = Card(
        name="first", family="encoder", gsd_m=0.5, chip_px=64, mean=first.config.mean, std=first.config.std,
        architecture=Architecture(encoder=first.config.encoder, encoder_args=first.config.encoder_args),
        canopy_version="0", licence="CC0-1.0", provisional=True,
    )  # fmt: skip
    path = tmp_path / "first.safetensors"
    save_encoder(path, card, first.student.encoder.vit.state_dict())
    second = SelfDistillation(tiny_config(start=path), CPU)
    given, taken = (learner.student.encoder.vit.state_dict() for learner in (first, second))
    for name, value in given.items():
        if name != "pos_embed":
            torch.testing.assert_close(taken[name], value, atol=1e-3, rtol=1e-3)
    assert taken["pos_embed"].shape[1] < given["pos_embed"].shape[1], "of crops of 32 px"
    average = second.average.encoder.vit.state_dict()
    assert all(torch.equal(average[name], value) for name, value in taken.items())
    with pytest.raises(TrainingError, match="another network"):
        SelfDistillation(tiny_config(start=path, encoder_args={"embed_dim": 48}), CPU)
