"""The GSD of every crop reaches the positions of every network, in training and after it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from pretraining import CPU, tiny_config, tiny_tiles
from rasters import make_raster
from torch import Tensor, nn

from canopy.errors import TrainingError
from canopy.models.positions import ground_positions
from pretrain import curate
from pretrain.augment import NUMBERS, crop, crop_gsd_m, draw
from pretrain.batch import draw_batch
from pretrain.cells import Ground, encode
from pretrain.config import ColourConfig, CropConfig, DistillConfig, FeaturesConfig, PretrainConfig
from pretrain.dinov2 import SelfDistillation
from pretrain.distill import distill, load_teacher
from pretrain.encoder import Encoder, load_encoder
from pretrain.picture import patch_map
from pretrain.teachers import VitFeatures
from pretrain.training import pretrain

PLAIN = ColourConfig(brightness=0, contrast=0, saturation=0, hue=0, tint=0, gamma=0, haze=0, haze_share=0, blur_share=0)
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def on_ground(**changes: Any) -> PretrainConfig:
    return tiny_config(**{"positions": "gsd", "reference_gsd_m": 0.4, **changes})


def small_encoder(**how: Any) -> Encoder:
    torch.manual_seed(0)
    how = {"reference_gsd_m": 0.5, "gsd_m": 0.5, **how}
    return Encoder("vit_tiny_patch16_224", SMALL, 32, (0.5,) * 3, (0.2,) * 3, **how).eval()


def calls(net: nn.Module) -> list[dict[str, Any]]:
    """List the arguments with which the encoder of a network is called from now on."""
    names, heard = ("image", "mask", "gsd_m"), list[dict[str, Any]]()

    def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.append({**dict(zip(names, args, strict=False)), **kwargs})

    net.encoder.register_forward_pre_hook(hear, with_kwargs=True)  # type: ignore[union-attr, operator]
    return heard


def test_the_gsd_of_a_crop_is_the_slope_of_a_ramp_in_it() -> None:
    """A tile whose pixels brighten by 1 a pixel: a crop's slope is its pixel in pixels of the tile."""
    tiles = torch.arange(128, dtype=torch.uint8).expand(2, 3, 128, 128)
    tile_gsd_m = torch.tensor([0.5, 0.6])
    crops = CropConfig(count=8, px=64, gsd=(0.5, 2.0))
    draws = draw(crops, PLAIN, torch.rand(8, 2, NUMBERS, generator=torch.Generator().manual_seed(0)))
    images = crop(tiles, tile_gsd_m, draws, 64, 0.5)[:, :, 0] * 255
    across, down = images.diff(dim=-1)[..., :-1, :], images.diff(dim=-2)[..., :, :-1]
    slope = torch.hypot(across, down).flatten(2).median(dim=-1).values
    gsd_m = crop_gsd_m(tiles, tile_gsd_m, draws, 64, 0.5)
    torch.testing.assert_close(slope * tile_gsd_m, gsd_m, atol=0.02, rtol=0.02)
    assert gsd_m.max() / gsd_m.min() > 1.5
    short = crop_gsd_m(tiles[..., :32], tile_gsd_m, draws, 64, 0.5)
    torch.testing.assert_close(short, torch.minimum(gsd_m, 32 / 64 * tile_gsd_m), msg="crops are cut to their tile")


def test_the_encoder_adds_positions_of_each_image_and_masked_patches_have_one() -> None:
    encoder, image = small_encoder(), torch.rand(2, 3, 32, 32)
    tokens: list[Tensor] = []
    encoder.vit.patch_drop.register_forward_hook(lambda module, args, output: tokens.append(output))
    with torch.inference_mode():
        encoder(image, torch.ones(2, 4, 4, dtype=torch.bool), torch.tensor([0.5, 1.5]))
        positions = ground_positions((4, 4), 32, torch.tensor([1.0, 3.0])).flatten(1, 2)
        torch.testing.assert_close(tokens[0][:, 1:], encoder.mask_token + positions)
        assert torch.equal(tokens[0][:, 0], encoder.vit.cls_token[0].expand(2, -1)), "the class token has no position"
        one, other = (encoder(image, gsd_m=gsd_m)[1] for gsd_m in (0.5, 1.5))
        assert torch.equal(encoder(image)[1], one), "without a GSD, the encoder's own"
        both = encoder(image, gsd_m=torch.tensor([0.5, 1.5]))[1]
    torch.testing.assert_close(both, torch.stack([one[0], other[1]]))
    assert (one - other).abs().max() > 1e-2


def test_student_teacher_and_anchor_get_the_gsd_of_each_crop() -> None:
    config = on_ground(terms={"gram": 1.0}, gram={"start": 0.0})
    learner, batch = SelfDistillation(config, CPU), draw_batch(0, tiny_tiles(side=64), config, 8)
    assert learner.anchor is not None
    student, teacher = calls(learner.student), calls(learner.teacher)
    anchor = calls(nn.ModuleDict({"encoder": learner.anchor}))
    before = [p.clone() for p in learner.student.parameters()]
    learner.loss(batch, 0).backward()  # type: ignore[no-untyped-call]
    learner.schedule(1)
    learner.optimizer.step()
    drawn_m = [
        (px * draws.gsd * 0.5 / batch.gsd_m).clamp(max=64) * batch.gsd_m / px
        for draws, px in ((batch.global_draws, 32), (batch.local_draws, 16))
    ]
    expected = [drawn_m[0], drawn_m[1], drawn_m[0], drawn_m[0]]
    heard = [*student, *teacher, *anchor]
    assert [len(calls_) for calls_ in (student, teacher, anchor)] == [2, 1, 1]
    for call, gsd_m in zip(heard, expected, strict=True):
        torch.testing.assert_close(call["gsd_m"], gsd_m.flatten())
        assert len(call["gsd_m"].unique()) > 4
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.student.parameters(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on a scene of noise."""
    folder = tmp_path_factory.mktemp("ground")
    make_raster(folder / "imagery" / "a.tif", shape=(64, 128), pattern="noise")
    config = on_ground(tiles={"sources": [{"path": folder / "imagery"}]}, loop={"steps": 5}, monitor_every=100)
    return pretrain(config, folder / "run").parent


def test_the_bundle_of_a_run_gives_the_features_of_its_average(run: Path) -> None:
    card, encoder = load_encoder(run / "last.safetensors")
    assert (card.architecture.positions, card.architecture.reference_gsd_m) == ("gsd", 0.4)
    learner = SelfDistillation(on_ground(), CPU)
    state = torch.load(run / "checkpoints" / "00000005.pt", weights_only=True)
    learner.average.load_state_dict(state["average"])
    image, gsd_m = torch.rand(2, 3, 32, 32), torch.tensor([0.3, 0.8])
    for own, expected in zip(encoder(image, None, gsd_m), learner.average.encoder(image, None, gsd_m), strict=True):
        torch.testing.assert_close(own, expected, atol=5e-3, rtol=5e-3)  # half precision
    assert (encoder(image, None, gsd_m)[1] - encoder(image)[1]).abs().max() > 1e-2


def test_probe_and_picture_show_images_at_their_gsd() -> None:
    encoder = small_encoder()
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    with torch.inference_mode():
        pixels = torch.from_numpy(image)[None].float() / 255
        expected = encoder(pixels, gsd_m=0.9)[1].view(2, 4, 2, 4, 32).mean(dim=(1, 3))
        np.testing.assert_allclose(encode(encoder, image, 0.9), expected.numpy(), atol=1e-5)
        large = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
        expected = encoder(large, gsd_m=0.45)[1].view(2, 8, 2, 8, 32).mean(dim=(1, 3))
        np.testing.assert_allclose(encode(encoder, image, 0.9, enlarge=2), expected.numpy(), atol=1e-5)
    assert np.abs(patch_map(encoder, image, gsd_m=0.9) - patch_map(encoder, image)).max() > 1e-2
    assert Ground("utm", Affine(0.6, 0.8, 5.0, 0.8, -0.6, 7.0), "s").image_gsd_m == pytest.approx(0.5)


def test_patches_of_14_px_are_shown_ground_of_the_same_size() -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        "vit_tiny_patch16_224", {**SMALL, "patch_size": 14}, 28, (0.5,) * 3, (0.2,) * 3, reference_gsd_m=1.0, gsd_m=0.7
    ).eval()
    heard = calls(nn.ModuleDict({"encoder": encoder}))
    encoder.square_features(torch.rand(1, 3, 32, 32))
    encoder.square_features(torch.rand(1, 3, 32, 32), 1.4)
    assert [call["gsd_m"] for call in heard] == pytest.approx([0.7 * 16 / 14, 1.4 * 16 / 14])


def test_curation_shows_tiles_at_their_gsd(tmp_path: Path) -> None:
    encoder, tiles = small_encoder(), tiny_tiles(4)
    vectors = curate.embed(tiles, encoder, tmp_path / "a.npy", 2)
    coarse = type(tiles)(tiles.images, tiles.gsds_m * 3, tiles.sha256)
    assert np.abs(curate.embed(coarse, encoder, tmp_path / "b.npy", 2) - vectors).max() > 1e-3


def test_teachers_see_ground_at_the_gsd_of_their_own_patches(run: Path, tmp_path: Path) -> None:
    vit = VitFeatures(FeaturesConfig(network=str(run / "last.safetensors")), patch_px=16, grid=2)
    heard = calls(vit)
    vit(torch.rand(1, 3, 32, 32), torch.tensor([0.6]))
    assert heard[0]["image"].shape[-1] == 16
    torch.testing.assert_close(heard[0]["gsd_m"], torch.tensor([1.2]), msg="half the pixels, of twice the size")
    imagery = {"sources": [{"path": run.parent / "imagery"}]}
    base = on_ground(tiles=imagery, loop={"steps": 1}, encoder_args={"patch_size": 16}, monitor_every=100)
    config = DistillConfig.model_validate(base.model_dump() | {"teacher": run})
    learner = SelfDistillation(config, CPU, load_teacher(config))
    heard, batch = calls(learner.teacher), draw_batch(0, tiny_tiles(), config, 16)
    student = calls(learner.student)
    learner.loss(batch, 0)
    torch.testing.assert_close(heard[0]["gsd_m"], 2 * student[0]["gsd_m"])
    assert distill(config, tmp_path / "run").is_file()


def test_an_encoder_of_other_positions_starts_no_run(run: Path) -> None:
    start = run / "last.safetensors"
    SelfDistillation(on_ground(start=start), CPU)
    for config in (on_ground(start=start, reference_gsd_m=0.8), tiny_config(start=start)):
        with pytest.raises(TrainingError, match=r"reference_gsd_m of its positions is 0\.4, the configuration's"):
            SelfDistillation(config, CPU)
    with pytest.raises(ValueError, match="reference_gsd_m is that of positions: gsd"):
        tiny_config(reference_gsd_m=0.5)
    assert on_ground(reference_gsd_m=None, gsd_m=0.3).architecture.reference_gsd_m == 0.3
