"""Building a chip store: whole, resumable, and clear about what is wrong."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from chip_stores import forest_config, write_forests
from forest import FLOWN, make_forest, write_laz, write_pair
from PIL import Image
from rasters import make_raster
from typer.testing import CliRunner

from canopy.cli.app import app
from canopy.config import load_config
from canopy.dataset import build as dataset
from canopy.dataset import candidates
from canopy.dataset.build import build
from canopy.dataset.config import DatasetConfig
from canopy.dataset.report import contact_sheet, describe_dataset
from canopy.dataset.store import INDEX, ChipStore, HeightChips, read_index
from canopy.dataset.tile_trees import from_quadkey, place_tile
from canopy.errors import ConfigError, DatasetError, OutputError

CONFIG = Path(__file__).parents[2] / "configs" / "dataset.yaml"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_build_cut_short_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = forest_config(write_forests(tmp_path / "data"))
    build(config, tmp_path / "whole")
    cut = dataset.cut_scene
    seen: list[str] = []

    def stop_at_the_third(scene: Any, *rest: Any) -> Any:
        seen.append(scene.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return cut(scene, *rest)

    monkeypatch.setattr(dataset, "cut_scene", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / INDEX).exists()
    with pytest.raises(DatasetError, match="canopy dataset build"):
        ChipStore.open(tmp_path / "cut")
    seen.append("go on")
    build(config, tmp_path / "cut")
    assert seen == ["a_1", "a_2", "b_1", "go on", "b_1", "b_2"]
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_several_processes_make_the_same_bytes(tmp_path: Path) -> None:
    config = forest_config(write_forests(tmp_path / "data"))
    done: list[tuple[int, int]] = []
    build(config, tmp_path / "one")
    build(config, tmp_path / "two", jobs=2, report=lambda now: done.append((now.tiles_done, now.tiles)))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert done == [(number, 4) for number in range(1, 5)]


def test_a_finished_store_is_left_alone_and_another_is_not_overwritten(tmp_path: Path) -> None:
    config = forest_config(write_forests(tmp_path / "data"))
    first = build(config, tmp_path / "store")
    before = digests(tmp_path / "store")
    assert build(config, tmp_path / "store") == first
    assert digests(tmp_path / "store") == before
    other = forest_config(tmp_path / "data", stride_px=64)
    with pytest.raises(DatasetError, match="--overwrite"):
        build(other, tmp_path / "store")
    assert digests(tmp_path / "store") == before
    build(other, tmp_path / "store", overwrite=True)
    assert digests(tmp_path / "store") != before


def test_a_damaged_scene_is_recorded_and_the_build_goes_on(tmp_path: Path) -> None:
    root = write_forests(tmp_path / "data")
    whole = (root / "pairs" / "a_1" / "chm_cm.tif").read_bytes()
    (root / "pairs" / "a_1" / "chm_cm.tif").write_bytes(whole[: len(whole) // 2])
    (root / "pairs" / "b_1" / "rgb.tif").write_bytes(b"")
    made = build(forest_config(root), tmp_path / "store")
    assert [line.split(":")[0] for line in made.damaged] == ["a/a_1", "b/b_1"]
    assert {row["scene"] for row in ChipStore.open(tmp_path / "store").index.to_pylist()} <= {"a_2", "b_2"}
    rows = [row for row in read_index(tmp_path / "store").to_pylist() if row["damaged"]]
    assert [(row["decision"], row["reason"].split(":")[0]) for row in rows] == [("drop", "damaged")] * 2


def one_scene(root: Path, **raster: Any) -> DatasetConfig:
    write_pair(make_forest(64, seed=7), root / "pairs" / "a_1")
    values = np.full((1, 64, 64), 10.0)
    options = {"origin": (320_000, 4_100_000), "crs": "EPSG:32611", "resolution": 1.0, "values": values,
               "dtype": "float32", "nodata": -9999.0}  # fmt: skip
    make_raster(root / "pairs" / "a_1" / "chm.tif", **{**options, **raster})
    source = {"images": "pairs/*/rgb.tif", "heights": "chm.tif", "site": "a", "licence": "CC0-1.0"}
    return DatasetConfig(name="one", root=root, sources={"a": source}, chip_px=64)


@pytest.mark.parametrize(
    ("raster", "message"),
    [
        ({"values": np.full((1, 64, 64), 190.0)}, "heights up to 190 m.*feet.*height_unit_m"),
        ({"values": np.full((1, 64, 64), -9999.0)}, "all heights are unknown"),
        ({"origin": (390_000, 4_100_000)}, "lie on different ground"),
        ({"resolution": 2.0}, "cells of 2 x 2 m"),
        ({"crs": "EPSG:4326", "origin": (-117.0, 37.0), "resolution": 1e-5}, "projected one in metres"),
        ({"crs": "EPSG:2994"}, "projected one in metres"),
    ],
)
def test_heights_that_cannot_be_right_are_named(tmp_path: Path, raster: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        build(one_scene(tmp_path, **raster), tmp_path / "store")


def test_feet_are_converted_when_told(tmp_path: Path) -> None:
    config = one_scene(tmp_path, values=np.full((1, 64, 64), 100.0))
    source = config.sources["a"].model_copy(update={"height_unit_m": 0.3048})
    build(config.model_copy(update={"sources": {"a": source}}), tmp_path / "store")
    heights = ChipStore.open(tmp_path / "store").heights_m([0])
    np.testing.assert_allclose(heights[np.isfinite(heights)], 30.48, atol=1e-4)


def test_faulty_configurations_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"source a: no scenes at .*check root"):
        build(forest_config(tmp_path), tmp_path / "store")
    for override, message in (
        ("sources.naip.licence=null", "sources.naip.licence"),
        ("curation.min_kown=1", "curation.min_kown"),
        ("splits.buffer_chips=0.5", "splits.buffer_chips"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(CONFIG, DatasetConfig, (override,))
    with pytest.raises(ConfigError, match="licence"):
        text = CONFIG.read_text().replace("licence: CC0-1.0", "")
        (tmp_path / "c.yaml").write_text(text.replace("licence: CC-BY-4.0", ""))
        load_config(tmp_path / "c.yaml", DatasetConfig)


def test_a_full_disk_is_an_output_error_and_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = forest_config(write_forests(tmp_path / "data"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left"):
        patch.setattr(dataset.np, "savez", full)
        build(config, tmp_path / "store")
    assert not (tmp_path / "store" / INDEX).exists()
    build(config, tmp_path / "store")
    assert (tmp_path / "store" / INDEX).exists()


def test_scenes_rejected_by_hand_stay_in_the_index(tmp_path: Path) -> None:
    root = write_forests(tmp_path / "data")
    config = forest_config(root)
    source = config.sources["a"].model_copy(update={"reject": {"a_2": "dead trees"}})
    made = build(config.model_copy(update={"sources": {**config.sources, "a": source}}), tmp_path / "store")
    rows = [row for row in read_index(tmp_path / "store").to_pylist() if row["scene"] == "a_2"]
    assert {row["reason"] for row in rows} == {"rejected by hand: dead trees"}
    assert made.dropped >= len(rows) > 1


def test_a_shifted_scene_is_moved_and_says_so(tmp_path: Path) -> None:
    root = write_forests(tmp_path / "data")
    path = root / "pairs" / "a_1" / "chm_cm.tif"
    with rasterio.open(path, "r+") as opened:
        heights = opened.read(1)
        opened.write(np.roll(heights, (3, -2), axis=(0, 1)), 1)
    build(forest_config(root), tmp_path / "store")
    shifts = describe_dataset(tmp_path / "store")["shifts"]
    assert shifts["a/a_1"]["applied"]
    assert shifts["a/a_1"]["shift_x_m"] == pytest.approx(2, abs=0.5)
    assert shifts["a/a_1"]["shift_y_m"] == pytest.approx(3, abs=0.5)
    assert not shifts["a/a_2"]["applied"]
    store = ChipStore.open(tmp_path / "store")
    for number in np.flatnonzero(store.column("scene") == "a_1"):
        row, col = (int(part) // 2 for part in store.column("chip")[number].split("/")[-1].split("_"))
        if 3 < row < 160 and 3 < col < 160:
            np.testing.assert_allclose(store.heights_m([number])[0], heights[row : row + 32, col : col + 32] / 100)


def picture(seed: int, side: int = 256) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 200, (side // 16, side // 16, 3))
    return (np.kron(coarse, np.ones((16, 16, 1))) + generator.integers(0, 30, (side, side, 3))).astype(np.uint8)


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_tile_trees_become_unlabelled_chips_without_blanks_and_duplicates(tmp_path: Path) -> None:
    tree = tmp_path / "xyz"
    save(picture(1), tree / "17" / "20000" / "45000.png")
    save(picture(2), tree / "17" / "20001" / "45000.png")
    save(picture(1), tree / "17" / "20005" / "45000.png")
    save(np.zeros((256, 256, 3), np.uint8), tree / "17" / "20006" / "45000.png")
    save(np.full((256, 256, 3), 252, np.uint8), tree / "17" / "20007" / "45000.png")
    save(picture(3), tmp_path / "quadkeys" / "02301022313300131.jpg")
    common = {"site": "city", "licence": "CC-BY-4.0"}
    config = DatasetConfig(
        name="t", root=tmp_path, sources={"xyz": {"images": "xyz", **common}, "qk": {"images": "quadkeys", **common}}
    )
    made = build(config, tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "unlabelled")
    assert (made.kept, made.dropped) == (3, 3)
    assert store.column("scene").tolist() == ["17_20000_45000", "17_20001_45000", "02301022313300131"]
    np.testing.assert_array_equal(store.images([0])[0], picture(1).transpose(2, 0, 1))
    # 156543.034 m at the equator, zoom 0, divided by 2^17 and shrunk by the cosine of the latitude.
    latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * 45000.5 / 2**17))))
    assert store.column("gsd_m")[0] == pytest.approx(156543.034 / 2**17 * np.cos(np.radians(latitude)), rel=1e-4)
    reasons = [row["reason"] for row in read_index(tmp_path / "store").to_pylist() if row["decision"] == "drop"]
    assert any(reason == "near-duplicate of xyz/17_20000_45000/0_0" for reason in reasons)
    assert sum("without image" in reason for reason in reasons) == 1
    assert sum("near white" in reason for reason in reasons) == 1


def test_tile_paths_are_placed() -> None:
    assert from_quadkey("213") == (3, 3, 5)  # the example of the tile system's own description
    whole = 2 * 20_037_508.342789244
    placed = place_tile(Path("a/1/1/0.png"))
    assert placed == ((whole / 2, 0, 0.0, 0, -whole / 2, whole / 2), "EPSG:3857")
    assert place_tile(Path("photos/2019.png")) is None
    assert place_tile(Path("a/3/9/0.png")) is None
    assert place_tile(Path("1/1/0.tif")) is None


def test_geotiffs_without_heights_keep_their_own_gsd(tmp_path: Path) -> None:
    values = picture(5, 256).transpose(2, 0, 1)
    make_raster(tmp_path / "images" / "place_2018_1.tif", values=values, resolution=0.6)
    make_raster(tmp_path / "images" / "place_2020_1.tif", values=values, resolution=0.6)
    source = {"images": "images/*.tif", "site": "s", "licence": "none", "image_date": "{year}"}
    build(DatasetConfig(name="t", root=tmp_path, sources={"i": source}, unlabelled_px=128), tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "unlabelled")
    assert len(store) == 8
    np.testing.assert_allclose(store.column("gsd_m"), 0.6, rtol=2e-3)
    assert store.column("date").tolist() == ["2018"] * 4 + ["2020"] * 4
    np.testing.assert_array_equal(store.images([3])[0], values[:, 128:, 128:])


def test_the_commands_build_describe_and_draw(tmp_path: Path) -> None:
    root = write_forests(tmp_path / "data")
    (root / "pairs" / "b_2" / "rgb.tif").write_bytes(b"II*")
    config = tmp_path / "forests.yaml"
    import yaml

    config.write_text(yaml.safe_dump(forest_config(root).model_dump(mode="json")))
    out = tmp_path / "store"
    made = CliRunner().invoke(app, ["dataset", "build", str(config), "--out", str(out)])
    assert made.exit_code == 1
    assert "canopy: dropped b/b_2: damaged" in made.stderr
    assert made.stdout.strip() == str(out)
    sheet = tmp_path / "sheet.png"
    shown = CliRunner().invoke(app, ["dataset", "info", str(out), "--json", "--sheet", str(sheet)])
    facts = json.loads(shown.stdout)
    index = read_index(out).to_pylist()
    assert facts["chips"]["labelled"]["chips"] == sum(row["decision"] == "keep" for row in index)
    assert sum(facts["heights_share"].values()) == pytest.approx(1, abs=1e-3)
    assert sum(facts["dropped"].values()) == sum(row["decision"] == "drop" for row in index)
    assert facts["dropped"]["damaged"] == 1
    assert facts["licences"] == {"CC0-1.0: nobody": {"chips": facts["chips"]["labelled"]["chips"]}}
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape[1] == 8 * 164
    assert drawn.std() > 20


def test_the_sheet_of_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="canopy dataset build"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")


def cloud_config(root: Path, **source: Any) -> DatasetConfig:
    common = {"images": "pairs/*/rgb.tif", "clouds": "lidar/{scene}_*.laz", "site": "a", "licence": "CC0-1.0"}
    return DatasetConfig(name="clouds", root=root, sources={"a": {**common, **source}}, chip_px=64, stride_px=64)


def test_point_clouds_take_the_place_of_heights(tmp_path: Path) -> None:
    """Two files make one scene; the unit of stored heights and the grid of the mask are not those of the clouds."""
    forest = make_forest(64, seed=7, buildings=0, trees_per_ha=250)
    root = tmp_path / "data"
    write_pair(forest, root / "pairs" / "s")
    for number in (1, 2):
        write_laz(forest, root / "lidar" / f"s_{number}.laz", density=4, seed=number, crs=None)
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, :10] = 2
    make_raster(root / "pairs/s/mask.tif", values=mask, dtype="uint8", crs=forest.crs, resolution=1.0, nodata=None,
                origin=(forest.transform.c + 5, forest.transform.f - 5))  # fmt: skip
    source = {"height_unit_m": 0.01, "exclude": "mask.tif", "cloud_crs": forest.crs}
    made = build(cloud_config(root, **source), tmp_path / "store")
    assert (made.kept, made.damaged) == (4, ())
    rows = ChipStore.open(tmp_path / "store").index.to_pylist()
    assert {row["height_date"] for row in rows} == {FLOWN.isoformat()}
    heights = ChipStore.open(tmp_path / "store").heights_m(range(4))
    found = np.block([[heights[0], heights[1]], [heights[2], heights[3]]])
    unknown = np.zeros((64, 64), bool)
    unknown[5:15, 5:25] = True
    np.testing.assert_array_equal(np.isnan(found), unknown)
    error = np.abs(found - forest.chm_m)[~unknown]
    assert np.quantile(error, 0.95) < 0.05
    assert np.median(error[forest.chm_m[~unknown] > 2]) < 0.02


def test_a_scene_without_its_clouds_is_an_error_and_a_broken_cloud_is_recorded(tmp_path: Path) -> None:
    write_pair(make_forest(64, seed=7), tmp_path / "pairs" / "s")
    with pytest.raises(DatasetError, match=r"no point cloud at .* for scene s"):
        build(cloud_config(tmp_path), tmp_path / "store")
    cloud = write_laz(make_forest(64, seed=7), tmp_path / "lidar" / "s_1.laz")
    cloud.write_bytes(cloud.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"none of 1 candidates is kept.*s_1\.laz"):
        build(cloud_config(tmp_path), tmp_path / "store")


def test_a_real_cloud_makes_the_chips_that_its_height_model_makes(shared_data: Path, tmp_path: Path) -> None:
    source = {
        "images": "pairs/neon_osbs_1ha/rgb.tif", "site": "osbs", "licence": "CC0-1.0", "cloud_crs": "EPSG:32617",
    }  # fmt: skip
    kinds = {
        "clouds": {"clouds": "lidar/neon_osbs_1ha_rgb.laz"}, "rasters": {"heights": "chm_cm.tif", "height_unit_m": 0.01}
    }  # fmt: skip
    heights = {}
    for name, kind in kinds.items():
        config = DatasetConfig(name=name, root=shared_data, sources={"osbs": {**source, **kind}}, chip_px=200)
        build(config, tmp_path / name)
        heights[name] = ChipStore.open(tmp_path / name).heights_m([0])
    assert heights["clouds"].shape == (1, 100, 100)
    assert np.nanmean(np.abs(heights["clouds"] - heights["rasters"])) < 0.3
    assert np.nanmax(heights["clouds"]) > 20


def test_a_build_is_named_by_what_its_files_hold(tmp_path: Path) -> None:
    """A copy elsewhere, written later, is the same data; other bytes of the same size and time are not."""
    root = write_forests(tmp_path / "data")
    build(forest_config(root), tmp_path / "store")
    before = digests(tmp_path / "store")
    copy = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    build(forest_config(copy), tmp_path / "store")
    assert digests(tmp_path / "store") == before
    image = copy / "pairs" / "b_1" / "rgb.tif"
    stamp, raw = image.stat(), bytearray(image.read_bytes())
    raw[-100] ^= 1
    image.write_bytes(raw)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DatasetError, match="other inputs"):
        build(forest_config(copy), tmp_path / "store")


def test_scenes_of_the_same_bytes_stay_two_scenes(tmp_path: Path) -> None:
    forest = make_forest(64, seed=7)
    for name in ("one", "two"):
        write_pair(forest, tmp_path / "pairs" / name)
    source = {"images": "pairs/*/rgb.tif", "heights": "chm_cm.tif", "height_unit_m": 0.01, "site": "a",
              "licence": "CC0-1.0"}  # fmt: skip
    made = build(DatasetConfig(name="x", root=tmp_path, sources={"a": source}, chip_px=64), tmp_path / "store")
    assert {row["scene"] for row in read_index(made.folder).to_pylist()} == {"one", "two"}


def test_a_weak_model_drops_training_chips_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the chips that a model finds hard, the test would be easier than the ground."""
    root = write_forests(tmp_path / "data")
    splits = {"test_sites": ["b"], "block_m": 100, "test_share": 0.2, "val_share": 0.2}
    plain = build(forest_config(root, splits=splits), tmp_path / "plain")
    monkeypatch.setattr(candidates, "disagreement_m", lambda images, *_: [99.0] * len(images))
    strict = {"weak_model": "any", "max_disagreement_m": 15}
    build(forest_config(root, splits=splits, curation=strict), tmp_path / "strict")
    kept = [row for row in read_index(tmp_path / "plain").to_pylist() if row["decision"] == "keep"]
    rows = read_index(tmp_path / "strict").to_pylist()
    held = {row["chip"]: row["split"] for row in kept if row["split"] != "train"}
    assert {row["chip"]: row["split"] for row in rows if row["decision"] == "keep"} == held
    assert set(held.values()) == {"val", "test"}
    disputed = [row for row in rows if row["reason"] == "label and weak model 99.0 m apart, 15 allowed"]
    assert len(disputed) == plain.kept - len(held) > 0
    assert all(row["split"] is None and row["row"] == -1 for row in disputed)
    none = r"none of \d+ candidates is kept; the first because: label and weak model 99\.0 m apart"
    with pytest.raises(DatasetError, match=none):
        build(forest_config(root, splits={"test_share": 0.0}, curation=strict), tmp_path / "none")


def test_validation_blocks_lie_beside_training_and_test(tmp_path: Path) -> None:
    splits = {"test_sites": ["b"], "block_m": 100, "test_share": 0.2, "val_share": 0.2}
    build(forest_config(write_forests(tmp_path / "data"), splits=splits), tmp_path / "store")
    rows = read_index(tmp_path / "store").to_pylist()
    kept = [row for row in rows if row["decision"] == "keep"]
    ground = {
        split: shapely.unary_union([shapely.from_wkb(row["geometry"]) for row in kept if row["split"] == split])
        for split in ("train", "val", "test")
    }
    # One chip is 32 m: about 0.00029 degrees of latitude, and more of longitude.
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert ground[one].area > 0 and ground[one].distance(ground[other]) > 0.00028
    store = ChipStore.open(tmp_path / "store")
    assert len(HeightChips(store, "val")) == sum(row["split"] == "val" for row in kept)


@pytest.mark.slow
def test_the_committed_configuration_builds_the_training_set(shared_data: Path, tmp_path: Path) -> None:
    config = load_config(CONFIG, DatasetConfig, (f"root={shared_data}", "curation.weak_model=null"))
    build(config, tmp_path / "store", jobs=2)
    facts = describe_dataset(tmp_path / "store")
    moved = {scene for scene, row in facts["shifts"].items() if row["applied"]}
    assert moved == {"osbs/osbs_006", "bart/bart_041"}
    assert facts["sites"]["test"]["mlbs"] == 46
    assert "mlbs" not in facts["sites"]["train"]
    assert facts["dropped"]["rejected by hand"] == 9
