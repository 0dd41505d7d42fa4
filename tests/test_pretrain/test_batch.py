"""Batches by number: the order of tiles, the crops of a step, and what of a store is read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pretraining import tiny_config, tiny_tiles

from canopy.errors import TrainingError
from pretrain import batch as batches
from pretrain.augment import Draws
from pretrain.batch import crops_at, draw_batch, draw_rows, permute, rank_rows, tile_number
from pretrain.data import StoredTiles


@given(length=st.integers(1, 300), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_epoch_has_every_tile_once(length: int, seed: int, epoch: int) -> None:
    numbers = [tile_number(epoch * length + i, length, seed) for i in range(length)]
    assert sorted(numbers) == list(range(length))


@given(length=st.integers(1, 300), key=st.integers(-(2**40), 2**40))
def test_a_permutation_takes_every_number_once(length: int, key: int) -> None:
    assert sorted(permute(number, length, key) for number in range(length)) == list(range(length))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [[tile_number(first + i, 100, seed) for i in range(100)] for first, seed in ((0, 0), (100, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    steps = np.abs(np.diff(orders[0]))
    assert steps.mean() == pytest.approx(33, abs=8), "neighbours of a random order are a third of the range apart"
    assert 0 <= tile_number(10**12 + 7, 500_000_000, 3) < 500_000_000


class MemoryPart:
    """A part of a chip store in memory that lists the chips that were read."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.attributes: dict[str, Any] = {"gsd_m": 0.6}
        self._images, self.chips_read = images, list[int]()

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        self.chips_read += [int(row) for row in rows]
        return self._images[list(rows)]

    def column(self, name: str) -> NDArray[Any]:
        return np.array([name] * len(self._images))


def test_only_the_chips_of_a_batch_are_read() -> None:
    part = MemoryPart(tiny_tiles().images)
    tiles = StoredTiles([part], np.array([(0, chip, 0, 0) for chip in range(12)]), 32, "0")
    batch = draw_batch(1, tiles, tiny_config(), 8)
    assert batch.gsd_m.tolist() == pytest.approx([0.6] * 4)
    assert part.chips_read == [tile_number(4 + row, 12, 0) for row in range(4)]
    assert torch.equal(batch.tiles, draw_batch(1, tiny_tiles(), tiny_config(), 8).tiles)


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    config = tiny_config()
    first, again, next_one = (draw_batch(n, tiny_tiles(), config, 8) for n in (3, 3, 4))
    other_seed = draw_batch(3, tiny_tiles(), tiny_config(loop={"seed": 1}), 8)
    assert torch.equal(first.global_draws.turn, again.global_draws.turn)
    assert torch.equal(first.masks, again.masks)
    for other in (next_one, other_seed):
        assert not torch.equal(first.global_draws.turn, other.global_draws.turn)
        assert not torch.equal(first.tiles, other.tiles)


def test_masks_cover_global_crops_and_are_counted() -> None:
    batch = draw_batch(0, tiny_tiles(), tiny_config(), 8)
    assert batch.masks.shape == (2, 4, 4, 4)
    masked = int(batch.masks.flatten(2).any(dim=2).sum())
    assert masked == 4, "half of 8 crops"
    without = draw_batch(0, tiny_tiles(), tiny_config(terms={"ibot": 0}), 8)
    assert not without.masks.any()


def test_crops_grow_in_the_last_phase() -> None:
    config = tiny_config(high_resolution={"start": 0.75, "global_px": 64, "local_px": 24})
    sides = [[crops.px for crops in crops_at(step, config)] for step in (0, 14, 15, 20)]
    assert sides == [[32, 16], [32, 16], [64, 24], [64, 24]]
    assert crops_at(15, config)[0].count == 2


def test_the_last_phase_begins_at_its_step_where_batches_accumulate() -> None:
    config = tiny_config(
        high_resolution={"start": 0.5, "global_px": 64, "local_px": 24}, loop={"steps": 4, "accumulate": 3}
    )
    assert [draw_batch(n, tiny_tiles(), config, 8).global_px for n in (5, 6)] == [32, 64]


def test_ranks_share_a_batch_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_rows(6) == range(6)
    monkeypatch.setattr(batches, "ranks", lambda: 3)
    monkeypatch.setattr(batches, "rank", lambda: 2)
    assert rank_rows(6) == range(4, 6)
    with pytest.raises(TrainingError, match="batch 7 over 3 ranks"):
        rank_rows(7)


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_ranks_are_the_whole_batch(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_batch(2, tiny_tiles(), tiny_config(), 8)
    monkeypatch.setattr(batches, "ranks", lambda: world)
    shares = []
    for number in range(world):
        monkeypatch.setattr(batches, "rank", lambda number=number: number)
        shares.append(draw_batch(2, tiny_tiles(), tiny_config(), 8))
    assert torch.equal(torch.cat([share.tiles for share in shares]), whole.tiles)
    assert torch.equal(torch.cat([share.masks for share in shares], dim=1), whole.masks)
    for field in fields(Draws):
        for kind in ("global_draws", "local_draws"):
            parts = [getattr(getattr(share, kind), field.name) for share in shares]
            assert torch.equal(torch.cat(parts, dim=1), getattr(getattr(whole, kind), field.name))


def test_a_rank_draws_nothing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of 64 does what a rank alone does for as many rows: one generator and two masks a row."""
    calls = Counter[str]()
    for name in ("draw_mask", "tile_number"):
        function = getattr(batches, name)
        monkeypatch.setattr(batches, name, lambda *a, n=name, f=function: calls.update([n]) or f(*a))
    create = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda *a: calls.update(["generator"]) or create(*a))
    by_batch = []
    tiles = tiny_tiles()
    for batch in (8, 512):
        calls.clear()
        draw_rows(1, range(8), tiles, tiny_config(batch=batch), 8)
        by_batch.append(dict(calls))
    assert by_batch[0] == by_batch[1] == {"draw_mask": 16, "tile_number": 8, "generator": 8}


@pytest.mark.parametrize("batch", [4, 6, 31])
def test_exactly_the_share_of_a_batch_is_masked_whatever_its_number(batch: int) -> None:
    config = tiny_config(batch=batch, masks={"share": 0.3, "ratio": [0.2, 0.5]})
    for number in range(3):
        masks = draw_batch(number, tiny_tiles(), config, 8).masks.flatten(2)
        counts = masks.sum(dim=2).flatten()
        assert int((counts > 0).sum()) == round(2 * batch * 0.3)
        assert counts[counts > 0].min() >= round(0.2 * 16)
        assert counts.max() <= round(0.5 * 16)


def test_a_seed_may_be_negative() -> None:
    assert draw_batch(0, tiny_tiles(), tiny_config(loop={"seed": -1}), 8).tiles.shape == (4, 3, 32, 32)
