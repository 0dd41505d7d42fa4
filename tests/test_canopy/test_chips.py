"""The chip store and its splits: what was written is read, and no ground is on both sides."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from chip_stores import build_forests
from hypothesis import given, settings
from hypothesis import strategies as st

from canopy.dataset.config import SplitConfig
from canopy.dataset.splits import Ground, assign_splits
from canopy.dataset.store import STORE, CategoryBatches, ChipStore, HeightChips, ImageChips, read_index
from canopy.errors import DatasetError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("store")
    build_forests(made)
    return made


@pytest.fixture(scope="module")
def store(folder: Path) -> ChipStore:
    return ChipStore.open(folder / "store")


def test_every_chip_is_its_window_of_the_scene(folder: Path, store: ChipStore) -> None:
    for number in range(len(store)):
        chip = store[number]
        pair = folder / "data" / "pairs" / chip.row["scene"]
        row, col = (int(part) for part in chip.row["chip"].split("/")[-1].split("_"))
        rows, cols = chip.row["real_rows"], chip.row["real_cols"]
        with rasterio.open(pair / "rgb.tif") as opened:
            image = opened.read()[:, row : row + rows, col : col + cols]
            assert (chip.row["x"], chip.row["y"]) == opened.transform @ (col, row)
        with rasterio.open(pair / "chm_cm.tif") as opened:
            heights = opened.read(1)[row // 2 : (row + rows) // 2, col // 2 : (col + cols) // 2]
        np.testing.assert_array_equal(chip.image[:, :rows, :cols], image)
        assert chip.height_m is not None
        np.testing.assert_allclose(chip.height_m[: rows // 2, : cols // 2], heights / 100, atol=1e-5)


def test_small_scenes_are_mirrored_and_their_border_has_no_height(store: ChipStore) -> None:
    small = next(store[n] for n in range(len(store)) if store[n].row["scene"] == "b_1")
    assert (small.row["real_rows"], small.row["real_cols"]) == (48, 48)
    assert small.height_m is not None
    assert np.isfinite(small.height_m[:24, :24]).all()
    assert np.isnan(small.height_m[24:]).all()
    assert np.isnan(small.height_m[:, 24:]).all()
    np.testing.assert_array_equal(small.image[:, 48:], small.image[:, 47:31:-1])


def test_datasets_give_what_training_takes(store: ChipStore) -> None:
    heights, images = HeightChips(store, "test"), ImageChips(store, "test")
    image, height_m = heights[0]
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    assert (height_m.shape, height_m.dtype) == ((32, 32), torch.float32)
    assert 0 <= image.min() < image.max() <= 1
    assert {tuple(images[n].shape) for n in range(len(images))} == {(3, 48, 48), (3, 60, 60), (3, 64, 64)}
    assert torch.equal(images[0], image[:, : images[0].shape[1], : images[0].shape[2]])


def test_reading_needs_no_gdal(folder: Path) -> None:
    code = (
        "import sys; from canopy.chips import ChipStore;"
        f"ChipStore.open({str(folder / 'store')!r})[0];"
        "print(sorted({'rasterio', 'geopandas', 'pyogrio', 'odc', 'shapely'} & set(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_no_ground_is_shared_between_splits(folder: Path) -> None:
    rows = read_index(folder / "store").to_pylist()
    kept = [row for row in rows if row["decision"] == "keep"]
    ground = {
        split: shapely.unary_union([shapely.from_wkb(row["geometry"]) for row in kept if row["split"] == split])
        for split in ("train", "test")
    }
    assert not ground["train"].is_empty
    assert not ground["test"].is_empty
    # One chip is 32 m: about 0.00029 degrees of latitude, and more of longitude.
    assert ground["train"].distance(ground["test"]) > 0.00028
    assert {row["split"] for row in kept if row["site"] == "b"} == {"test"}
    buffered = [row for row in rows if row["split"] == "buffer"]
    assert buffered
    assert all(row["decision"] == "drop" and row["reason"] and row["row"] == -1 for row in buffered)


def chip_at(x_m: float, y_m: float, side_m: float, *, site: str = "s", labelled: bool = True) -> Ground:
    east, north = x_m / 78_715, y_m / 111_319.49
    width, height = side_m / 78_715, side_m / 111_319.49
    return Ground(site, shapely.box(8 + east, 45 + north, 8 + east + width, 45 + north + height), side_m, labelled)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 900), st.sampled_from([20, 39, 100]), st.sampled_from("st"),
                  st.booleans()), min_size=2, max_size=60),
    st.integers(0, 5),
)  # fmt: skip
def test_splits_are_a_chip_apart_whatever_the_ground(places: list[tuple[int, int, int, str, bool]], seed: int) -> None:
    chips = [chip_at(x, y, side, site=site, labelled=labelled) for x, y, side, site, labelled in places]
    config = SplitConfig(block_m=150, test_share=0.3, val_share=0.2, seed=seed)
    made = assign_splits(chips, config)
    assert len(made) == len(chips)
    assert all(bool(at.reason) == (at.split == "buffer") for at in made)
    scale = np.array([78_715, 111_319.49])
    outlines = [shapely.transform(chip.outline, lambda points: points * scale) for chip in chips]
    for one, other in itertools.combinations(range(len(chips)), 2):
        splits = {made[one].split, made[other].split}
        if len(splits) == 2 and "buffer" not in splits:
            apart = outlines[one].distance(outlines[other])
            assert apart > 0.99 * max(chips[one].side_m, chips[other].side_m)
    order = np.random.default_rng(seed).permutation(len(chips))
    again = assign_splits([chips[n] for n in order], config)
    assert [made[n] for n in order] == again


def test_unlabelled_chips_of_held_out_ground_are_dropped() -> None:
    chips = [chip_at(0, 0, 40, site="held"), chip_at(10, 10, 40, site="x", labelled=False),
             chip_at(500, 0, 40, site="held", labelled=False)]  # fmt: skip
    made = assign_splits(chips, SplitConfig(test_sites=("held",)))
    assert [at.split for at in made] == ["test", "buffer", "train"]


def test_batches_hold_short_and_tall_trees_and_follow_their_number() -> None:
    share = np.arange(100)
    batches = CategoryBatches(share, np.ones(100), (share < 3) * 0.5, (share > 97) * 0.1, batch=20, seed=1)
    for number in range(20):
        batch = batches(number)
        assert len(batch) == 20
        assert (batch[:3] > 97).all()
        assert (batch[3:5] < 3).all()
        np.testing.assert_array_equal(batch, batches(number))
    assert not np.array_equal(batches(0), batches(1))
    assert next(iter(batches)) == batches(0).tolist()
    drawn = np.concatenate([batches(number)[5:] for number in range(200)])
    assert len(set(drawn.tolist())) == 100


def test_batches_without_tall_trees_are_still_full() -> None:
    batches = CategoryBatches(np.arange(5), np.ones(5), np.zeros(5), np.zeros(5), batch=8)
    assert len(batches(0)) == 8


def test_a_split_without_chips_is_an_error(store: ChipStore) -> None:
    with pytest.raises(DatasetError, match="no chip to draw from"):
        CategoryBatches.of(store, store.rows("val"), 8)


@pytest.mark.parametrize("part", ["labelled", "unlabelled"])
def test_a_folder_without_a_store_is_an_error(tmp_path: Path, part: str) -> None:
    with pytest.raises(DatasetError, match="canopy dataset build"):
        ChipStore.open(tmp_path, part)
    with pytest.raises(DatasetError, match="canopy dataset build"):
        read_index(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    build_forests(tmp_path)
    header = tmp_path / "store" / STORE / "zarr.json"
    header.write_text(header.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(DatasetError, match="version"):
        ChipStore.open(tmp_path / "store")
