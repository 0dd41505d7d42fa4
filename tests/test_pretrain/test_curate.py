"""Hierarchical k-means and balanced choice; distillation."""

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

from canopy.errors import ConfigError, TrainingError
from pretrain.config import CurateConfig, DistillConfig
from pretrain.curate import assign, balanced_sample, curate, fill_evenly, flatten, grow_tree, kmeans
from pretrain.data import read_tiles
from pretrain.distill import distill, load_teacher
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


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one noisy scene of 8 tiles and one even one of 24."""
    folder = tmp_path_factory.mktemp("teacher")
    make_raster(folder / "imagery" / "a.tif", shape=(64, 128), pattern="noise")
    make_raster(folder / "imagery" / "b.tif", shape=(96, 256), pattern="constant")
    settings = tiny_config(tiles={"sources": [{"path": folder / "imagery"}]}, loop={"steps": 5})
    return pretrain(settings, folder / "run").parent


def test_curation_writes_an_index_that_pretraining_takes(teacher: Path, tmp_path: Path) -> None:
    tiles = {"sources": [{"path": teacher.parent / "imagery"}], "tile_px": 32}
    config = settings(tiles=tiles, encoder=teacher / "last.safetensors", clusters=[4, 2], choose=12)
    index = curate(config, tmp_path / "curated")
    pool, chosen = read_tiles(config.tiles), pq.read_table(index)["tile"].to_numpy()
    assert len(pool) == 32
    noisy = [i for i in range(32) if pool[i].std() > 60]
    assert len(set(chosen) & set(noisy)) >= 6, "half of the choice for a quarter of the pool"
    again = curate(config, tmp_path / "again")
    assert index.read_bytes() == again.read_bytes()
    with Image.open(tmp_path / "curated" / "clusters.png") as picture:
        assert picture.height == 2 * 96
    taken = pretrain(
        tiny_config(tiles={**tiles, "index": index}, loop={"steps": 1}), tmp_path / "run"
    )  # fmt: skip
    assert taken.is_file()
    with pytest.raises(ConfigError, match="40 chosen of 32 tiles"):
        curate(settings(tiles=tiles, encoder=teacher / "last.safetensors", choose=40), tmp_path / "none")


def student(teacher: Path, **changes: object) -> DistillConfig:
    base = tiny_config(
        tiles={"sources": [{"path": teacher.parent / "imagery"}]}, loop={"steps": 6},
        encoder_args={"embed_dim": 16, "num_heads": 1}, **changes,
    )  # fmt: skip
    return DistillConfig.model_validate(base.model_dump() | {"teacher": teacher})


def test_distillation_leaves_the_teacher_alone_and_resumes_to_the_bit(teacher: Path, tmp_path: Path) -> None:
    config = student(teacher)
    before = [p.clone() for p in load_teacher(config).parameters()]
    bundle = distill(config, tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(before, load_teacher(config).parameters(), strict=True))
    distill(config, tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "00000006.pt").unlink()
    (tmp_path / "cut" / "last.safetensors").unlink()
    resumed = distill(config, tmp_path / "cut", resume=True)
    assert resumed.read_bytes() == bundle.read_bytes()


def test_a_teacher_that_does_not_fit_is_a_clear_error(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(prototypes, untied, patch px\) are \(16, True, 8\)"):
        load_teacher(student(teacher, heads={"prototypes": 16}))
    (tmp_path / "config.yaml").write_text((teacher / "config.yaml").read_text())
    with pytest.raises(TrainingError, match="no checkpoint"):
        load_teacher(student(teacher).model_copy(update={"teacher": tmp_path}))
