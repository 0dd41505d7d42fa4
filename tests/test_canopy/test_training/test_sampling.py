"""Splits and batches from a store: what is in them, and that a batch is a function of its number."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chip_stores import build_forests
from pydantic import ValidationError
from training import tiny_config, write_scenes

from canopy.dataset.scene import Scene
from canopy.dataset.store import ChipStore
from canopy.errors import DatasetError, TrainingError
from canopy.training.config import Augmentation, StoreConfig
from canopy.training.sampling import ChipSampler, Split, pool_order, read_store


@pytest.fixture(scope="module")
def forests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two sites whose scenes overlap."""
    folder = tmp_path_factory.mktemp("chips")
    build_forests(folder)
    return folder / "store"


def split_of(path: Path, **settings: Any) -> Split:
    return read_store(StoreConfig.model_validate({"path": path, **settings}), batch=4, seed=0)


@pytest.fixture(scope="module")
def split(forests: Path) -> Split:
    return split_of(forests)


PLAIN = Augmentation(chip_px=32, zoom=1.25)


def test_a_store_trains_on_its_training_side_and_tests_on_the_other(forests: Path, split: Split) -> None:
    rows = ChipStore.open(forests).index.to_pylist()
    names = {side: {row["chip"] for row in rows if row["split"] == side} for side in ("train", "test")}
    assert {scene.name for scene in split.train} == names["train"]
    assert {scene.name for scene in split.test} <= names["test"]
    assert {scene.group for scene in split.test} == {"a", "b"}
    assert split.licences == ("CC0-1.0: synthetic forest",)


def test_no_cell_is_tested_twice(forests: Path, split: Split) -> None:
    store = ChipStore.open(forests)
    corners = {row["chip"]: (row["crs"], row["x"], row["y"]) for row in store.index.to_pylist()}
    cells = []
    for scene in split.test:
        crs, x, y = corners[scene.name]
        assert scene.image.shape[1:] == tuple(2 * side for side in scene.height_m.shape)
        cells += [(crs, x + col, y - row) for row, col in np.argwhere(~np.isnan(scene.height_m))]
    assert len(cells) == len(set(cells)) > 0
    with_overlap = store.heights_m(store.rows("test"))
    assert len(cells) < np.count_nonzero(~np.isnan(with_overlap)), "chips of the test side overlap"


def test_a_batch_is_a_function_of_its_number(split: Split) -> None:
    sampler = ChipSampler(split, replace(PLAIN, colour=0.2, shadows=0.5, mix=0.5), batch=4, seed=3)
    first, again, other = (sampler.draw_batch(number) for number in (0, 0, 1))
    assert first[0].shape == (4, 3, 32, 32)
    assert first[1].shape == (4, 16, 16)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], replace(sampler, seed=4).draw_batch(0)[0])


def test_sources_can_be_left_out(forests: Path, split: Split) -> None:
    without_b = split_of(forests, exclude=["b"])
    assert {scene.group for scene in (*without_b.train, *without_b.test)} == {"a"}
    assert without_b.sha256 != split.sha256
    with pytest.raises(DatasetError, match="no chip to draw from"):
        split_of(forests, exclude=["a", "b"])


def test_synthetic_scenes_are_trained_on_by_their_share_and_never_tested_on(
    forests: Path, split: Split, tmp_path: Path
) -> None:
    scenes, shares = write_scenes(tmp_path / "scenes"), {"a_": 0.25, "a": 0.75}
    mixed = split_of(forests, made=scenes, shares=shares, made_licences=["CC-BY-4.0: somebody"])
    assert {scene.group for scene in mixed.train} == {"a", "a_"}, "b has no share"
    assert {scene.name for scene in mixed.train if scene.pseudo} == {"a_1", "a_2"}
    for group, share in shares.items():
        members = np.array([scene.group == group for scene in mixed.train])
        assert mixed.chances[members].sum() == pytest.approx(share)
    assert [scene.name for scene in mixed.test] == [scene.name for scene in split.test]
    assert mixed.sha256 != split.sha256
    assert mixed.licences == ("CC-BY-4.0: somebody", "CC0-1.0: synthetic forest")
    assert ChipSampler(mixed, PLAIN, batch=4, seed=0).draw_batch(0)[0].shape == (4, 3, 32, 32)


def test_shares_that_nothing_fits_are_a_clear_error(forests: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"store\.made need a share"):
        tiny_config(store={"path": str(forests), "made": str(tmp_path)})
    with pytest.raises(TrainingError, match=r"no scene fits any of store\.shares: c"):
        split_of(forests, shares={"c": 1.0})


def test_names_that_are_no_source_are_said(forests: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingError, match=r"has no source c, which store\.exclude names"):
        split_of(forests, exclude=["c"])
    with pytest.raises(TrainingError, match="all scenes to train on have a share of 0: a, c"):
        split_of(forests, shares={"a": 0.0, "c": 1.0})
    caplog.clear()
    scenes = write_scenes(tmp_path / "scenes")
    split_of(forests, made=scenes, shares={"a_": 0.25, "a": 0.75}, exclude=["b"])
    assert not caplog.records
    split_of(forests, made=scenes, shares={"a_": 0.25, "a": 0.75, "c": 1.0}, weak_shares={"a": 1.0, "d": 1.0})
    assert [record.message.split(";")[0] for record in caplog.records] == [
        f"store.shares: nothing in {forests} begins with c", f"store.weak_shares: nothing in {forests} begins with d"
    ]  # fmt: skip


def test_a_group_shares_its_chance_by_area() -> None:
    def scene(name: str, side: int) -> Scene:
        return Scene(name, "a", np.zeros((3, 2 * side, 2 * side), np.uint8), np.zeros((side, side), np.float32), 1.0)

    split = Split((scene("small", 8), scene("large", 16)), (), np.array([0.2, 0.8]), "")
    sampler = ChipSampler(split, Augmentation(chip_px=8), batch=1, seed=0)
    assert sampler.draw_batch(0)[0].shape == (1, 3, 8, 8)


def test_a_pass_of_a_pool_takes_each_chip_once_at_its_position() -> None:
    passes = [np.stack([pool_order(number, 12, 3, seed=7) for number in range(start, start + 4)]) for start in (0, 4)]
    for batches in passes:
        assert sorted(batches.ravel()) == list(range(12))
        assert (batches % 3 == np.arange(3)).all()
    assert not np.array_equal(*passes)
    assert np.array_equal(passes[0][2], pool_order(2, 12, 3, seed=7))
