"""Hierarchical k-means and balanced choice."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pretraining import TINY, tiny_config
from rasters import make_raster

from canopy.errors import ConfigError
from pretrain.config import CurateConfig
from pretrain.curate import assign, balanced_sample, curate, fill_evenly, flatten, grow_tree, kmeans
from pretrain.data import read_tiles
from pretrain.training import pretrain


def blobs(sizes: list[int], spread: float = 0.05) -> np.ndarray:
    """Points (n, 2) about corners that lie in two far-apart groups."""
    generator = np.random.default_rng(0)
    corners = np.array([[0, 0], [0, 1], [1, 0], [50, 50], [50, 51], [51, 50]], np.float32)[: len(sizes)]
    points = np.repeat(corners, sizes, axis=0) + generator.normal(0, spread, (sum(sizes), 2))
    return points.astype(np.float32)


def settings(**changes: object) -> CurateConfig:
    values = {"tiles": TINY["tiles"], "encoder": "none", "clusters": [6, 2], "choose": 10, "resampled": 5}
    return CurateConfig.model_validate(values | changes)


def test_kmeans_finds_blobs_of_very_unequal_size() -> None:
    sizes = [500, 20, 20, 20, 20, 20]
    centres = kmeans(blobs(sizes), 6, 20, torch.Generator().manual_seed(0))
    label, distance = assign(blobs(sizes), centres)
    assert sorted(np.bincount(label)) == sorted(sizes)
    assert distance.max() < 0.2


def test_assignment_equals_brute_force() -> None:
    generator = np.random.default_rng(1)
    vectors, centres = (generator.normal(size=(n, 3)).astype(np.float32) for n in (50, 7))
    label, distance = assign(vectors, torch.from_numpy(centres))
    brute = np.square(vectors[:, None] - centres).sum(-1)
    np.testing.assert_array_equal(label, brute.argmin(1))
    np.testing.assert_allclose(distance, brute.min(1), rtol=1e-3, atol=1e-5)


def test_the_tree_groups_near_clusters_and_its_choice_is_balanced() -> None:
    sizes = [600, 30, 30, 30, 30, 30]
    tree = grow_tree(blobs(sizes), settings())
    near, far = flatten(tree)[1][:660], flatten(tree)[1][660:]
    assert len(set(near)) == len(set(far)) == 1
    assert near[0] != far[0]
    chosen = balanced_sample(tree, 60, np.random.default_rng(0))
    assert len(set(chosen)) == 60
    assert np.bincount(flatten(tree)[0][chosen]).tolist() == [10] * 6


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), count=st.integers(0, 200))
def test_filling_is_even_complete_and_within_sizes(sizes: list[int], count: int) -> None:
    shares = fill_evenly(np.array(sizes), count)
    assert shares.sum() == min(count, sum(sizes))
    assert (shares <= sizes).all()
    short = shares[shares < sizes]
    assert len(short) == 0 or shares.max() - short.min() <= 1


def test_curation_writes_an_index_that_pretraining_takes(tmp_path: Path) -> None:
    make_raster(tmp_path / "imagery" / "a.tif", shape=(64, 128), pattern="noise")
    make_raster(tmp_path / "imagery" / "b.tif", shape=(96, 256), pattern="constant")
    tiles = {"sources": [{"path": tmp_path / "imagery"}], "tile_px": 32}
    encoder = pretrain(tiny_config(tiles=tiles, loop={"steps": 1}), tmp_path / "run")
    config = settings(tiles=tiles, encoder=encoder, clusters=[4, 2], choose=12)
    index = curate(config, tmp_path / "curated")
    pool, chosen = read_tiles(config.tiles), pq.read_table(index)["tile"].to_numpy()
    assert len(pool) == 32
    noisy = [i for i in range(32) if pool[i].std() > 60]
    assert len(noisy) == 8
    assert len(set(chosen) & set(noisy)) >= 6, "half of the choice for a quarter of the pool"
    assert np.load(tmp_path / "curated" / "embeddings.npy").shape == (32, 32)
    with Image.open(tmp_path / "curated" / "clusters.png") as picture:
        assert picture.height == 2 * 96
    again = curate(config, tmp_path / "again")
    assert index.read_bytes() == again.read_bytes()
    assert pretrain(tiny_config(tiles={**tiles, "index": index}, loop={"steps": 1}), tmp_path / "second").is_file()


def test_a_pool_smaller_than_its_clusters_or_choice_is_a_clear_error(tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif", shape=(64, 128), pattern="noise")
    tiles = {"sources": [{"path": tmp_path / "a.tif"}], "tile_px": 32}
    with pytest.raises(ConfigError, match="6 clusters and 40 chosen of 8 tiles"):
        curate(settings(tiles=tiles, encoder="canopy-tiny", choose=40), tmp_path / "none")
    with pytest.raises(ConfigError, match="9 clusters and 2 chosen of 8 tiles"):
        curate(settings(tiles=tiles, encoder="canopy-tiny", clusters=[9], choose=2), tmp_path / "none")
