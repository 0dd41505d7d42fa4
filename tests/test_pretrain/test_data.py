"""Tiles from files, and the order in which they are seen."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chip_stores import build_forests
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pretraining import tiny_config, tiny_tiles
from pydantic import ValidationError
from rasters import make_raster

from canopy.dataset.store import ChipStore
from canopy.errors import TrainingError
from pretrain.batch import crops_at, draw_batch, shuffled
from pretrain.config import TilesConfig
from pretrain.data import StoredTiles, choose, open_stored, read_tiles, share_out


def tiles_config(**values: object) -> TilesConfig:
    return TilesConfig.model_validate({"tile_px": 32, **values})


@given(length=st.integers(1, 300), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_epoch_sees_every_tile_once(length: int, seed: int, epoch: int) -> None:
    seen = [shuffled(epoch * length + i, length, seed) for i in range(length)]
    assert sorted(seen) == list(range(length))


def test_epochs_and_seeds_are_shuffled_anew() -> None:
    orders = [[shuffled(first + i, 100, seed) for i in range(100)] for first, seed in ((0, 0), (100, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    moved = np.abs(np.diff(orders[0]))
    assert moved.mean() == pytest.approx(33, abs=8), "neighbours of a random order are a third of the range apart"
    assert 0 <= shuffled(10**12 + 7, 500_000_000, 3) < 500_000_000


def test_images_are_cut_padded_and_filtered(tmp_path: Path) -> None:
    known = np.ones((70, 40), bool)
    known[:40] = False
    make_raster(tmp_path / "a.tif", shape=(70, 40), pattern="noise", mask=known)
    make_raster(tmp_path / "b.tif", shape=(20, 32), pattern="noise", resolution=0.6)
    tiles = read_tiles(tiles_config(sources=[{"path": tmp_path}], empty=0.3))
    # rows from 0 are unknown, from 32 a quarter, from 38 a sixteenth; columns from 0 and 8
    assert [round(tiles.gsd_m(i), 3) for i in range(len(tiles))] == [0.5] * 4 + [0.6]
    assert {tiles[i].shape for i in range(5)} == {(3, 32, 32)}
    np.testing.assert_array_equal(tiles[0][:, :, 8:], tiles[1][:, :, :24])
    np.testing.assert_array_equal(tiles[0][:, 6:], tiles[2][:, :26])
    np.testing.assert_array_equal(tiles[4][:, 20:], tiles[4][:, 8:20][:, ::-1])


def test_imagery_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no imagery at"):
        read_tiles(tiles_config(sources=[{"path": tmp_path}]))
    make_raster(tmp_path / "deep.tif", dtype="uint16")
    with pytest.raises(TrainingError, match="uint16; RGB uint8 expected"):
        read_tiles(tiles_config(sources=[{"path": tmp_path / "deep.tif"}]))
    make_raster(tmp_path / "degrees.tif", crs="EPSG:4326", origin=(3, 45), resolution=1e-5)
    with pytest.raises(TrainingError, match="give gsd_m"):
        read_tiles(tiles_config(sources=[{"path": tmp_path / "degrees.tif"}]))
    given_m = read_tiles(tiles_config(sources=[{"path": tmp_path / "degrees.tif", "gsd_m": 0.8}]))
    assert given_m.gsd_m(0) == 0.8
    make_raster(tmp_path / "empty.tif", mask=np.zeros((96, 128), bool))
    with pytest.raises(TrainingError, match="empty"):
        read_tiles(tiles_config(sources=[{"path": tmp_path / "empty.tif"}]))
    (tmp_path / "broken.tif").write_bytes(b"II*\0garbage")
    with pytest.raises(TrainingError, match=r"broken\.tif"):
        read_tiles(tiles_config(sources=[{"path": tmp_path / "broken.tif"}]))


def test_a_batch_depends_on_its_number_alone() -> None:
    config = tiny_config()
    first, again, next_ = (draw_batch(n, tiny_tiles(), config, 8) for n in (3, 3, 4))
    assert torch.equal(first.tiles, again.tiles)
    assert torch.equal(first.global_draws.turn, again.global_draws.turn)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.global_draws.turn, next_.global_draws.turn)
    assert first.masks.shape == (2, 4, 4, 4)
    assert first.masked_images == 4


def test_the_last_phase_has_larger_crops() -> None:
    config = tiny_config(high_resolution={"start": 0.5, "global_px": 64, "local_px": 32})
    assert [tuple(c.px for c in crops_at(step, config)) for step in (9, 10)] == [(32, 16), (64, 32)]
    assert draw_batch(10, tiny_tiles(side=64), config, 8).masks.shape[2:] == (8, 8)


class MemoryStore:
    """A part of a chip store, in memory; counts what is read."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.attributes: dict[str, Any] = {"gsd_m": 0.6}
        self._images, self.read = images, list[int]()

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        self.read += [int(row) for row in rows]
        return self._images[list(rows)]


def test_a_store_is_read_only_where_a_batch_needs_it() -> None:
    store = MemoryStore(tiny_tiles().images)
    tiles = StoredTiles([store], np.array([(0, chip, 0, 0) for chip in range(12)]), 32, "0")
    made = draw_batch(1, tiles, tiny_config(), 8)
    assert made.gsd_m.tolist() == pytest.approx([0.6] * 4)
    assert store.read == [shuffled(4 + row, 12, 0) for row in range(4)]
    assert torch.equal(made.tiles, draw_batch(1, tiny_tiles(), tiny_config(), 8).tiles)


def test_tiles_of_a_store_lie_within_its_training_ground(tmp_path: Path) -> None:
    build_forests(tmp_path)
    store = ChipStore.open(tmp_path / "store")
    tiles = open_stored(tmp_path / "store", 32)
    held = {row["chip"] for row in store.index.to_pylist() if row["split"] != "train"}
    seen = {store[int(chip)].row["chip"] for _, chip, _, _ in tiles.places}
    assert seen and not seen & held
    np.testing.assert_array_equal(tiles.loaded().images, np.stack([tiles[n] for n in range(len(tiles))]))
    for number, (_, chip, row, col) in enumerate(tiles.places):
        np.testing.assert_array_equal(tiles[number], store[int(chip)].image[:, row : row + 32, col : col + 32])
    config = tiles_config(store=tmp_path / "store")
    assert read_tiles(config).sha256 == tiles.sha256
    with pytest.raises(TrainingError, match="tiles of 128"):
        open_stored(tmp_path / "store", 128)
    for both in ({}, {"store": tmp_path, "sources": [{"path": tmp_path}]}):
        with pytest.raises(ValidationError, match="not both"):
            TilesConfig.model_validate(both)


@given(
    counts=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    parts=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_shares_of_sources_are_drawn(counts: list[int], parts: list[int]) -> None:
    sources = [name for name, count in zip(("park", "park_north", "wood"), counts, strict=True) for _ in range(count)]
    shares = {name: part / sum(parts) for name, part in zip(("park", "park_n", "wood"), parts, strict=True)}
    tiles = share_out(tiny_tiles(len(sources)), sources, shares)
    drawn = Counter(sources[number] for number in tiles.numbers)
    for name, share in zip(("park", "park_north", "wood"), shares.values(), strict=True):
        assert drawn[name] == pytest.approx(share * len(tiles), abs=1.5)
    assert set(tiles.numbers) == set(range(len(sources))), "each tile is seen"
    each = [count for count in Counter(tiles.numbers.tolist()).items() if sources[count[0]] == "wood"]
    assert max(count for _, count in each) - min(count for _, count in each) <= 1, "tiles of a source alike"


def test_shares_need_a_store_that_has_such_sources(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'sea': the store has tiles of park, wood"):
        share_out(tiny_tiles(2), ["park", "wood"], {"park": 0.5, "sea": 0.5})
    assert len(share_out(tiny_tiles(3), ["park", "wood", "wood"], {"park": 1.0, "wood": 0.0})) == 1
    with pytest.raises(ValidationError, match="in place of an index"):
        tiles_config(store=tmp_path, index=tmp_path / "index.parquet", shares={"park": 1.0})
    build_forests(tmp_path)
    tiles = read_tiles(tiles_config(store=tmp_path / "store", shares={"a": 1.0}))
    assert len(tiles) == len(open_stored(tmp_path / "store", 32))


def test_an_index_chooses_tiles_and_refuses_another_pool(tmp_path: Path) -> None:
    tiles = tiny_tiles()
    table = pa.table({"tile": [3, 3, 7]}).replace_schema_metadata({"tiles_sha256": tiles.sha256})
    pq.write_table(table, tmp_path / "index.parquet")
    chosen = choose(tiles, tmp_path / "index.parquet")
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen[2], tiles[7])
    with pytest.raises(TrainingError, match="was made for tiles"):
        choose(tiny_tiles(side=48), tmp_path / "index.parquet")
    with pytest.raises(TrainingError, match="not an index"):
        choose(tiles, tmp_path / "none.parquet")
