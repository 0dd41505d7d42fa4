"""The chip store: what was written is read."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import zarr
from chip_stores import forest_config, write_small_forests
from forest import make_forest

from canopy.dataset.build import build
from canopy.dataset.records import ChipRecord
from canopy.dataset.store import (
    INDEX,
    SHARD_CHIPS,
    STORE,
    CategoryBatches,
    ChipStore,
    PartWriter,
    longest_prefix,
    read_index,
    read_records,
)
from canopy.errors import DatasetError

OLD_STORE = Path(__file__).parents[2] / "data" / "old" / "chip_store"
"""Written before the code was moved into folders: two forests cut into chips of 32 px, and a map tile."""


def test_every_chip_is_its_window_of_the_scene(forests: Path, store: ChipStore) -> None:
    scenes = {}
    for name in ("a_1", "a_2", "b_1", "b_2"):
        pair = forests / "data" / "pairs" / name
        with rasterio.open(pair / "rgb.tif") as image, rasterio.open(pair / "chm_cm.tif") as heights:
            scenes[name] = image.read(), image.transform, heights.read(1) / 100
    for number in range(len(store)):
        chip = store[number]
        image, transform, heights = scenes[chip.record.scene]
        row, col = (int(part) for part in chip.record.chip.split("/")[-1].split("_"))
        rows, cols = chip.record.real_rows or 0, chip.record.real_cols or 0
        assert (chip.record.x, chip.record.y) == transform @ (col, row)
        np.testing.assert_array_equal(chip.image[:, :rows, :cols], image[:, row : row + rows, col : col + cols])
        assert chip.height_m is not None
        expected = heights[row // 2 : (row + rows) // 2, col // 2 : (col + cols) // 2]
        np.testing.assert_allclose(chip.height_m[: rows // 2, : cols // 2], expected, atol=1e-5)


def test_columns_rows_and_corners_are_those_of_the_records(store: ChipStore) -> None:
    records = [ChipRecord.of(row) for row in store.index.to_pylist()]
    assert store.column("scene").tolist() == [record.scene for record in records]
    for split in ("train", "test"):
        assert store.rows(split).tolist() == [n for n, record in enumerate(records) if record.split == split]
    assert store.corner(3) == ("EPSG:32611", records[3].x, records[3].y)
    assert (store.corner(3).crs, store.corner(3).x) == ("EPSG:32611", records[3].x)
    assert [store[number].record for number in (0, -1, len(store) - 1)] == [records[0], records[-1], records[-1]]
    with pytest.raises(IndexError):
        store[len(store)]


def test_heights_and_images_are_read_by_number(store: ChipStore) -> None:
    np.testing.assert_array_equal(store.images([4, 1]), np.stack([store[4].image, store[1].image]))
    np.testing.assert_array_equal(store.heights_m([4, 1]), np.stack([store[4].height_m, store[1].height_m]))


def test_reading_needs_no_gdal_and_no_torch(small_forests: Path) -> None:
    code = (
        "import sys; from canopy.dataset.store import ChipStore;"
        f"ChipStore.open({str(small_forests / 'store')!r})[0];"
        "print(sorted({'rasterio', 'geopandas', 'pyogrio', 'odc', 'shapely', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_written_by_the_old_code_opens(tmp_path: Path) -> None:
    """The truth is the forest that it was built from, and its index as it was written."""
    store, tiles = ChipStore.open(OLD_STORE), ChipStore.open(OLD_STORE, "unlabelled")
    assert (len(store), len(tiles), store.attributes["name"]) == (8, 1, "old")
    forests = {"a_1": make_forest(32, seed=1), "b_1": make_forest(24, seed=3)}
    for number in range(len(store)):
        chip = store[number]
        row, col = (int(part) for part in chip.record.chip.split("/")[-1].split("_"))
        truth = forests[chip.record.scene]
        np.testing.assert_array_equal(chip.image, truth.rgb[:, row : row + 32, col : col + 32])
        height_m = truth.chm_m[row // 2 : row // 2 + 16, col // 2 : col // 2 + 16]
        np.testing.assert_allclose(chip.height_m, np.round(height_m, 2), atol=1e-5)
    first = store[0].record
    assert first == ChipRecord(
        chip="a/a_1/0_0", part="labelled", decision="keep", split="train", block="a/4122/-10512", source="a",
        scene="a_1", site="a", licence="CC0-1.0", credit="synthetic forest", crs="EPSG:32611", date="2020",
        height_date="2021", hash="7b3b7d3b3baf13bf0bef57fb3bff7bfefbbff5befe3cea7c7b78f170f470be70", row=0,
        real_rows=32, real_cols=32, weight=0.25, gsd_m=0.5, x=320000.0, y=4100000.0, date_gap_years=1.0,
        blank_share=0.0, white_share=0.0, contrast=32.025197319331475, known_share=1.0,
        height_mean_m=7.248672008514404, height_max_m=36.310001373291016, short_share=0.59375, tall_share=0.11328125,
        building_share=0.0, floor_m=0.0, shift_x_m=0.016752859694443067, shift_y_m=-0.04832887125472496,
        shift_correlation=0.683772161868961, unshifted_correlation=0.683772161868961, shift_confidence=0.5,
        shift_distinctness=0.9865508403234957, geometry=first.geometry,
    )  # fmt: skip
    tile = tiles[0]
    assert (tile.record.chip, tile.record.gsd_m, tile.record.licence) == (
        "city/17_20000_45000/0_0",
        6.26556,
        "CC-BY-4.0",
    )
    assert tile.height_m is None
    generator = np.random.default_rng(1)
    squares = np.kron(generator.integers(40, 200, (4, 4, 3)), np.ones((8, 8, 1)))
    np.testing.assert_array_equal(tile.image, (squares + generator.integers(0, 30, (32, 32, 3))).transpose(2, 0, 1))
    batches = CategoryBatches.of(store, store.rows("train"), 4)
    assert set(batches(0)) <= {0, 1, 2, 3}
    assert [record.part for record in read_records(OLD_STORE)] == ["labelled"] * 8 + ["unlabelled"]


def test_batches_have_short_and_tall_trees_and_follow_their_number() -> None:
    share = np.arange(100)
    batches = CategoryBatches(share, np.ones(100), (share < 3) * 0.5, (share > 97) * 0.1, batch=20, seed=1)
    for number in range(20):
        batch = batches(number)
        assert len(batch) == 20
        assert (batch[:3] > 97).all()
        assert (batch[3:5] < 3).all()
        np.testing.assert_array_equal(batch, batches(number))
    assert not np.array_equal(batches(0), batches(1))
    rest = np.concatenate([batches(number)[5:] for number in range(200)])
    assert len(set(rest.tolist())) == 100


def test_batches_without_tall_trees_are_still_full() -> None:
    batches = CategoryBatches(np.arange(5), np.ones(5), np.zeros(5), np.zeros(5), batch=8)
    assert len(batches(0)) == 8


def test_weights_decide_how_often_a_chip_comes() -> None:
    batches = CategoryBatches(np.array([7, 9]), np.array([3.0, 1.0]), np.zeros(2), np.zeros(2), batch=50)
    chips = np.concatenate([batches(number) for number in range(40)])
    assert (chips == 7).mean() == pytest.approx(0.75, abs=0.03)


def test_a_split_without_chips_is_an_error(store: ChipStore) -> None:
    with pytest.raises(DatasetError, match="no chip to draw from"):
        CategoryBatches.of(store, store.rows("val"), 8)


@pytest.mark.parametrize("part", ["labelled", "unlabelled"])
def test_a_folder_without_a_store_is_an_error(tmp_path: Path, part: str) -> None:
    with pytest.raises(DatasetError, match="canopy dataset build makes one"):
        ChipStore.open(tmp_path, part)
    with pytest.raises(DatasetError, match="canopy dataset build makes one"):
        read_index(tmp_path)


def test_an_unknown_part_is_an_error(small_forests: Path) -> None:
    with pytest.raises(DatasetError, match="no part 'labeled' in a chip store: labelled, unlabelled or weak expected"):
        ChipStore.open(small_forests / "store", "labeled")


def test_unlabelled_chips_have_no_heights(small_forests: Path) -> None:
    store = ChipStore.open(small_forests / "store", "unlabelled")
    assert len(store) == 0
    with pytest.raises(DatasetError, match="unlabelled chips have no heights"):
        store.heights_m([0])


def test_damage_is_named(tmp_path: Path) -> None:
    build(forest_config(write_small_forests(tmp_path / "data")), tmp_path / "store")
    shard = next((tmp_path / "store" / STORE / "labelled" / "image" / "c").rglob("0"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(b"\0" * 100 + whole[100:])
    store = ChipStore.open(tmp_path / "store")
    with pytest.raises(DatasetError, match=r"chips\.zarr: chip 0 cannot be read .*rebuild the store"):
        store.images([0])
    index = (tmp_path / "store" / INDEX).read_bytes()
    (tmp_path / "store" / INDEX).write_bytes(index[:-10])
    with pytest.raises(DatasetError, match="is no chip index"):
        read_records(tmp_path / "store")
    header = tmp_path / "store" / STORE / "zarr.json"
    header.write_text(header.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(DatasetError, match=r"canopy-chips 99, .*version.* expected"):
        ChipStore.open(tmp_path / "store")


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


ARRAY = "chips.zarr/labelled/{}/zarr.json"
DAMAGE = {
    "a chip of all memory": (ARRAY.format("height"), '"shape": [\n    8,\n    16', '"shape": [\n    8,\n    999999999'),
    "other chunks": (ARRAY.format("image"), '"chunk_shape": [\n          1,\n          3',
                     '"chunk_shape": [\n          1,\n          1'),
    "other values": (ARRAY.format("height"), '"data_type": "uint16"', '"data_type": "float32"'),
    "an unknown codec": (ARRAY.format("image"), '"blosc"', '"blosd"'),
    "a group for an array": (ARRAY.format("image"), '"node_type": "array"', '"node_type": "group"'),
    "no JSON": (ARRAY.format("image"), "{", "["),
    "a setting that is no number": ("chips.zarr/zarr.json", '"gsd_m": 0.5', '"gsd_m": "0.5"'),
    "a setting that is missing": ("chips.zarr/zarr.json", '"height_cell_m"', '"height_cell"'),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_metadata_are_one_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    path, old, new = DAMAGE[name]
    file = tmp_path / "store" / path
    file.write_text(edited(file.read_text(), old, new))
    with pytest.raises(DatasetError) as caught:
        ChipStore.open(tmp_path / "store")
    assert "\n" not in str(caught.value) and str(tmp_path / "store") in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_table_without_the_columns_of_an_index_is_refused(tmp_path: Path) -> None:
    pq.write_table(read_index(OLD_STORE).drop_columns(["site"]), tmp_path / INDEX)
    with pytest.raises(DatasetError, match="column site is missing"):
        read_records(tmp_path)


def test_an_index_of_other_chips_is_refused(tmp_path: Path, small_forests: Path, forests: Path) -> None:
    (tmp_path / STORE).symlink_to(small_forests / "store" / STORE)
    (tmp_path / INDEX).symlink_to(forests / "store" / INDEX)
    with pytest.raises(DatasetError, match=r"\d+ labelled chips, the index lists \d+; rebuild it"):
        ChipStore.open(tmp_path)


def test_parts_of_more_than_a_shard_are_written_in_order(tmp_path: Path) -> None:
    count = SHARD_CHIPS + 3
    group = zarr.open_group(tmp_path / STORE, mode="w", zarr_format=3)
    writer = PartWriter(group, "labelled", count, chip_px=4, height_px=2)
    for number in range(count):
        writer.append(np.full((3, 4, 4), number, np.uint8), np.full((2, 2), 100 * number, np.uint16))
    writer.flush()
    arrays = dict(zarr.open_group(tmp_path / STORE, mode="r")["labelled"].arrays())
    assert arrays["image"][:, 0, 0, 0].tolist() == list(range(count))
    assert arrays["height"][:, 1, 1].tolist() == [100 * number for number in range(count)]


def test_the_longest_prefix_fits() -> None:
    assert longest_prefix("osbs_1ha", ("osbs", "osbs_1", "teak")) == "osbs_1"
    assert longest_prefix("bart", ("osbs",)) is None
    assert longest_prefix("bart", ("",)) == ""
