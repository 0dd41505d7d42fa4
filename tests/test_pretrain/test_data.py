"""Tiles in memory, in a store, and chosen from a pool."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chip_stores import forest, forest_config
from forest import write_pair
from hypothesis import given
from hypothesis import strategies as st
from pretraining import tiny_tiles
from pydantic import ValidationError

from canopy.dataset.build import build
from canopy.dataset.store import ChipStore
from canopy.errors import DatasetError, TrainingError
from pretrain import data
from pretrain.config import TilesConfig
from pretrain.data import choose, open_stored, read_tiles, share_out

POOL = tiny_tiles(1)
"""Shares count tiles and read none."""


def tiles_config(**values: object) -> TilesConfig:
    return TilesConfig.model_validate({"tile_px": 32, **values})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one scene to learn from and one that is held out."""
    root = tmp_path_factory.mktemp("forests")
    for name, ground in {"a_1": (64, 1, (320_000, 4_100_000)), "b_1": (40, 3, (330_000, 4_100_000))}.items():
        write_pair(forest(*ground), root / "data" / "pairs" / name)
    build(forest_config(root / "data"), root / "store")
    return root / "store"


def test_tiles_of_a_store_lie_within_its_training_ground(store: Path) -> None:
    chips, tiles = ChipStore.open(store), open_stored(store, 32)
    held_out = {row["chip"] for row in chips.index.to_pylist() if row["split"] != "train"}
    used = {chips[int(chip)].record.chip for _, chip, _, _ in tiles.origins}
    assert held_out and used and not used & held_out
    assert set(tiles.sources()) == {"a"}
    for number, (_, chip, row, col) in enumerate(tiles.origins):
        np.testing.assert_array_equal(tiles[number], chips[int(chip)].image[:, row : row + 32, col : col + 32])


def test_a_small_store_is_read_into_memory_and_a_large_one_is_not(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, config = open_stored(store, 32), tiles_config(store=store)
    in_memory = read_tiles(config)
    assert isinstance(in_memory, data.ArrayTiles)
    np.testing.assert_array_equal(in_memory.images, np.stack([tiles[n] for n in range(len(tiles))]))
    assert [in_memory.gsd_m(n) for n in range(len(tiles))] == [tiles.gsd_m(n) for n in range(len(tiles))]
    assert in_memory.sha256 == tiles.sha256
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", len(tiles) * 3 * 32**2 - 1)
    assert isinstance(read_tiles(config), data.StoredTiles)


def test_a_store_that_does_not_fit_is_a_clear_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="tiles of 128"):
        open_stored(store, 128)
    with pytest.raises(DatasetError):
        open_stored(tmp_path, 32)


@pytest.mark.parametrize("origins", [{}, {"store": "a", "sources": [{"path": "b"}]}])
def test_tiles_come_from_sources_or_from_a_store(origins: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="must be given"):
        TilesConfig.model_validate(origins)


@given(
    counts=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    parts=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_every_source_gets_its_share(counts: list[int], parts: list[int]) -> None:
    sources = [name for name, count in zip(("park", "park_north", "wood"), counts, strict=True) for _ in range(count)]
    shares = {name: part / sum(parts) for name, part in zip(("park", "park_n", "wood"), parts, strict=True)}
    tiles = share_out(POOL, sources, shares)
    by_source = Counter(sources[number] for number in tiles.numbers)
    for name, share in zip(("park", "park_north", "wood"), shares.values(), strict=True):
        assert by_source[name] == pytest.approx(share * len(tiles), abs=1.5)
    assert set(tiles.numbers) == set(range(len(sources))), "each tile comes"
    repeats = [count for number, count in Counter(tiles.numbers.tolist()).items() if sources[number] == "wood"]
    assert max(repeats) - min(repeats) <= 1, "tiles of a source come equally often"


def test_shares_need_sources_that_the_store_contains(store: Path) -> None:
    with pytest.raises(TrainingError, match="'sea': the store has tiles of park, wood"):
        share_out(POOL, ["park", "wood"], {"park": 0.5, "sea": 0.5})
    assert len(share_out(POOL, ["park", "wood", "wood"], {"park": 1.0, "wood": 0.0})) == 1
    tiles = read_tiles(tiles_config(store=store, shares={"a": 1.0}))
    assert len(tiles) == len(open_stored(store, 32))


def test_shares_stand_in_place_of_an_index(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"tiles\.shares need tiles\.store"):
        tiles_config(store=tmp_path, index=tmp_path / "index.parquet", shares={"park": 1.0})
    with pytest.raises(ValidationError, match=r"tiles\.shares need tiles\.store"):
        tiles_config(sources=[{"path": tmp_path}], shares={"park": 1.0})


def test_an_index_chooses_tiles_and_refuses_another_pool(tmp_path: Path) -> None:
    tiles = tiny_tiles()
    table = pa.table({"tile": [3, 3, 7]}).replace_schema_metadata({"tiles_sha256": tiles.sha256})
    pq.write_table(table, tmp_path / "index.parquet")
    chosen = choose(tiles, tmp_path / "index.parquet")
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen[2], tiles[7])
    assert chosen.gsd_m(0) == 0.5
    with pytest.raises(TrainingError, match="was made for tiles"):
        choose(tiny_tiles(side=48), tmp_path / "index.parquet")
    with pytest.raises(TrainingError, match="not an index"):
        choose(tiles, tmp_path / "none.parquet")


def test_without_gdal_geotiffs_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "pretrain.geotiff", raising=False)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(TrainingError, match=r"rasterio is missing: install it, or give a chip store as tiles\.store"):
        read_tiles(tiles_config(sources=[{"path": tmp_path}]))
