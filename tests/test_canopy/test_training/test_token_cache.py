"""A pool whose tokens are stored: the same bits as running the encoder, whatever happens to the files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from training import TINY, encoder_bundle, tiny_config, trained

from canopy.errors import OutputError, TrainingError
from canopy.models.bundle import read_bundle
from canopy.models.dpt import DPTHeights
from canopy.progress import Report
from canopy.training import decoder
from canopy.training.config import TrainConfig
from canopy.training.decoder import make_card, start_net, train, training_record
from canopy.training.sampling import ChipSampler, PoolSampler, pool_order, read_store
from canopy.training.token_cache import TokenCache

LARGER = TINY.model_copy(update={"enlarge": 2})


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return encoder_bundle(tmp_path / "encoder.safetensors")


def pool_config(encoder: Path, **changes: Any) -> TrainConfig:
    """A frozen encoder over a pool that is passed through twice and a half."""
    loop = {"steps": 5, "warmup_steps": 1, "amp": False, "checkpoint_every": 2, "evaluate_every": 5}
    values = {"encoder": str(encoder), "encoder_rate": 0, "pool": 8, "colour": 0.1, "loop": loop}
    return tiny_config(**{**values, **changes})


def pool_of(config: TrainConfig, folder: Path) -> tuple[DPTHeights, PoolSampler]:
    assert config.pool
    split = read_store(config.store, config.batch, config.loop.seed)
    net = start_net(config, make_card(config, training_record(config, split)), split).eval()
    sampler = ChipSampler(split, config.augmentation, config.batch, config.loop.seed)
    return net, PoolSampler(sampler, config.pool, TokenCache(net, folder, config.pool, config.chip_px))


def last_weights(run: Path) -> dict[str, np.ndarray]:
    return dict(read_bundle(run / "last.safetensors").weights)


def test_chips_of_a_pool_come_back_as_they_were(encoder: Path, tmp_path: Path) -> None:
    net, pool = pool_of(pool_config(encoder, shadows=0.5, mix=0.5), tmp_path / "tokens")
    chips: dict[int, Tensor] = {}
    for number in range(4):
        images, heights, taps = pool.draw_batch(number)
        assert heights.shape == (4, 16, 16)
        for chip, image in zip(pool_order(number, 8, 4, pool.sampler.seed), images, strict=True):
            assert torch.equal(chips.setdefault(int(chip), image), image)
        with torch.inference_mode():
            torch.testing.assert_close(net(images, taps), net(images), rtol=1e-4, atol=1e-4)
    assert len({image.numpy().tobytes() for image in chips.values()}) == 8


def test_learning_from_stored_tokens_ends_at_the_bits_of_running_the_encoder(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = LARGER.model_copy(update={"normed": True})
    config = pool_config(encoder, batch=1, chip_px=64, drop_path=0.5, architecture=shape)
    stored = last_weights(trained(config, tmp_path / "stored"))
    height_loss = decoder.height_loss
    monkeypatch.setattr(
        decoder, "height_loss", lambda net, batch, step, **weights: height_loss(net, batch[:2], step, **weights)
    )
    computed = last_weights(trained(config, tmp_path / "computed"))
    assert all(np.array_equal(stored[name], computed[name]) for name in stored)


def test_an_encoder_sees_each_chip_of_a_pool_once(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pool_config(encoder)
    _, pool = pool_of(config, tmp_path / "tokens")
    images = {image.numpy().tobytes() for number in (0, 1) for image in pool.draw_batch(number)[0]}
    encoded: list[bytes] = []
    tapped = DPTHeights.tapped

    def counted(net: DPTHeights, image: Tensor) -> list[Tensor]:
        encoded.append(image.numpy().tobytes())
        return tapped(net, image)

    monkeypatch.setattr(DPTHeights, "tapped", counted)
    train(config, tmp_path / "run")
    assert [encoded.count(image) for image in images] == [1] * 8
    assert not (tmp_path / "run" / "tokens").exists(), "a finished run needs them no more"


def test_a_killed_run_with_damaged_tokens_ends_at_the_bits_of_an_uninterrupted_one(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pool_config(encoder)
    whole = last_weights(trained(config, tmp_path / "whole"))

    def kill(entry: dict[str, Any], steps: int, report: Report) -> None:
        if entry["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(decoder, "report_entry", kill)
        train(config, tmp_path / "cut")
    files = sorted((tmp_path / "cut" / "tokens").iterdir())
    assert len(files) == 8
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(files[2].read_bytes())
    files[3].write_bytes(files[3].read_bytes()[:-4] + b"\0\0\x80\x3f")
    files[4].unlink()
    train(config, tmp_path / "cut", resume=True)
    resumed = last_weights(tmp_path / "cut")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_tokens_of_another_encoder_or_chip_are_never_used(encoder: Path, tmp_path: Path) -> None:
    first = pool_config(encoder)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    pool_of(first, tmp_path / "tokens")[1].tokens(0, image)
    other = first.model_copy(update={"encoder": None})
    finer = first.model_copy(update={"architecture": LARGER})
    for config in (other, finer, first):
        net, pool = pool_of(config, tmp_path / "tokens")
        for chip in (image, 1 - image):
            with torch.no_grad():
                assert torch.equal(pool.tokens(0, chip), torch.cat(net.tapped(chip[None])))


def test_a_pool_without_use_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs encoder_rate 0"):
        tiny_config(pool=8)
    with pytest.raises(ValidationError, match="multiple of the batch, which is 4"):
        tiny_config(pool=9, encoder_rate=0)


def test_a_pool_without_room_is_a_clear_error(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pool_config(encoder)
    _, pool = pool_of(config, tmp_path / "tokens")
    (tmp_path / "tokens" / "00000000").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*00000000: Is a directory \(.* --resume"):
        pool.tokens(0, torch.zeros(3, 32, 32))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(TrainingError, match=r"tokens of 8 chips take .* GB are free: .*smaller pool"):
        train(config, tmp_path / "run")
