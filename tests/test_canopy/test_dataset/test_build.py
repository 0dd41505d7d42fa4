"""Building a chip store: whole, resumable, and clear about what is wrong."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from chip_stores import (
    digests,
    forest,
    forest_config,
    imagery_config,
    picture,
    save_picture,
    write_small_forests,
)
from forest import FLOWN, make_forest, write_laz, write_pair
from rasters import make_raster

from canopy.config import load_config
from canopy.dataset import build as build_module
from canopy.dataset import candidates
from canopy.dataset.build import build, price
from canopy.dataset.config import DatasetConfig
from canopy.dataset.report import describe_dataset
from canopy.dataset.scene_files import SceneFiles
from canopy.dataset.store import INDEX, ChipStore, read_records
from canopy.errors import DatasetError, OutputBusyError, OutputError
from tiles.locks import hold

CONFIG = Path(__file__).parents[3] / "configs" / "dataset.yaml"
STORED = [".lock", "chips.parquet", "chips.zarr", "config.yaml"]
"""All that a finished build leaves in its folder."""


def build_until_the_third_scene(config: DatasetConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Interrupt a build at its third scene, and return the list to which the name of every scene is added."""
    cut, scenes = build_module.cut_scene, list[str]()

    def stop_at_the_third(scene: SceneFiles, *rest: Any) -> Any:
        scenes.append(scene.name)
        if len(scenes) == 3:
            raise KeyboardInterrupt
        return cut(scene, *rest)

    monkeypatch.setattr(build_module, "cut_scene", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(config, out)
    return scenes


def test_a_build_cut_short_goes_on_to_the_same_bytes(
    small_forests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = forest_config(small_forests / "data")
    scenes = build_until_the_third_scene(config, tmp_path / "cut", monkeypatch)
    assert not (tmp_path / "cut" / INDEX).exists()
    with pytest.raises(DatasetError, match="canopy dataset build"):
        ChipStore.open(tmp_path / "cut")
    scenes.append("go on")
    build(config, tmp_path / "cut")
    assert scenes == ["a_1", "a_2", "b_1", "go on", "b_1"]
    assert digests(tmp_path / "cut") == digests(small_forests / "store")


def test_a_price_cuts_one_scene_and_leaves_nothing(small_forests: Path, tmp_path: Path) -> None:
    config = forest_config(small_forests / "data")
    cost = price(config, tmp_path / "new")
    assert (cost.scenes, cost.scenes_left) == (3, 3)
    files = [path for path in (small_forests / "data").rglob("*.tif") if not path.name.startswith("mask")]
    assert cost.input_mb == pytest.approx(sum(path.stat().st_size for path in files) / 1e6, rel=0.01)
    assert cost.seconds > 0
    assert not (tmp_path / "new").exists()
    with pytest.raises(DatasetError, match="canopy dataset info"):
        price(config, small_forests / "store")


def test_the_price_of_an_interrupted_build_is_that_of_the_scenes_left(
    small_forests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = forest_config(small_forests / "data")
    build_until_the_third_scene(config, tmp_path / "cut", monkeypatch)
    before = digests(tmp_path / "cut")
    cost = price(config, tmp_path / "cut")
    assert (cost.scenes, cost.scenes_left) == (3, 1)
    assert "3 scenes, 2 of them cut" in str(cost)
    assert digests(tmp_path / "cut") == before


def test_several_processes_make_the_same_bytes(small_forests: Path, tmp_path: Path) -> None:
    done: list[tuple[float, float]] = []
    build(forest_config(small_forests / "data"), tmp_path / "two", jobs=2,
          report=lambda now: done.append((now.done, now.total)))  # fmt: skip
    assert digests(tmp_path / "two") == digests(small_forests / "store")
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_finished_store_is_left_alone_and_another_is_not_overwritten(small_forests: Path, tmp_path: Path) -> None:
    config = forest_config(small_forests / "data")
    out = shutil.copytree(small_forests / "store", tmp_path / "store")
    before = digests(out)
    summary = build(config, out)
    assert (summary.folder, summary.chips, summary.damaged) == (out, len(ChipStore.open(out)), ())
    assert digests(out) == before
    other = forest_config(small_forests / "data", stride_px=64)
    with pytest.raises(DatasetError, match="--overwrite"):
        build(other, out)
    assert digests(out) == before
    build(other, out, overwrite=True)
    assert digests(out) != before
    build(config, out, overwrite=True)
    assert digests(out) == before


@pytest.mark.parametrize("name", ["config.yaml", "chips.parquet", "chips.zarr/zarr.json", "chips.zarr/own/0"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_user_are_never_replaced(small_forests: Path, tmp_path: Path, name: str, overwrite: bool) -> None:
    """A configuration lies in the output folder, or someone's own Zarr: no flag means them."""
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(DatasetError, match=r"is no part of a chip store and would be replaced: name another --out"):
        build(forest_config(small_forests / "data"), tmp_path, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("step", ["unlink", "rename"])
def test_a_kill_while_a_store_is_cleared_away_loses_nothing_of_the_next(
    small_forests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    config = forest_config(small_forests / "data")
    out = shutil.copytree(small_forests / "store", tmp_path / "store")

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(*((Path, "unlink") if step == "unlink" else (build_module, "rename")), killed)
        build(forest_config(small_forests / "data", stride_px=64), out, overwrite=True)
    build(config, out)
    assert digests(out) == digests(small_forests / "store")
    assert sorted(path.name for path in out.iterdir()) == STORED


def test_two_builds_of_one_folder_do_not_mix(small_forests: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with hold(tmp_path / "store" / ".lock", "held by the test"), pytest.raises(OutputBusyError, match="another build"):
        build(forest_config(small_forests / "data"), tmp_path / "store")


def test_a_damaged_scene_is_recorded_and_the_build_goes_on(tmp_path: Path) -> None:
    root = write_small_forests(tmp_path / "data")
    whole = (root / "pairs" / "a_1" / "chm_cm.tif").read_bytes()
    (root / "pairs" / "a_1" / "chm_cm.tif").write_bytes(whole[: len(whole) // 2])
    (root / "pairs" / "b_1" / "rgb.tif").write_bytes(b"")
    summary = build(forest_config(root), tmp_path / "store")
    assert [line.split(":")[0] for line in summary.damaged] == ["a/a_1", "b/b_1"]
    assert set(ChipStore.open(tmp_path / "store").column("scene")) == {"a_2"}
    damaged = [record for record in read_records(tmp_path / "store") if record.damaged]
    assert [(one.chip, one.decision, one.reason.split(":")[0]) for one in damaged] == [
        ("a/a_1", "drop", "damaged"), ("b/b_1", "drop", "damaged"),
    ]  # fmt: skip
    assert {one.part for one in damaged} == {"labelled"}


def test_damage_after_the_first_chips_leaves_none_of_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenes after it have the pixels that they have without it."""
    for name in ("a", "b", "c"):
        make_raster(tmp_path / "images" / f"{name}.tif", values=picture(ord(name)).transpose(2, 0, 1))
    config = imagery_config(tmp_path, "images/*.tif")
    cut = candidates._cut

    def fail_in_the_middle(gridded: Any, window: Any, side: int, cell_px: int, record: Any) -> Any:
        if record.chip == "i/b/128_0":
            raise DatasetError("a torn block")
        return cut(gridded, window, side, cell_px, record)

    monkeypatch.setattr(candidates, "_cut", fail_in_the_middle)
    summary = build(config, tmp_path / "store")
    assert summary.damaged == ("i/b: damaged: a torn block",)
    store = ChipStore.open(tmp_path / "store", "unlabelled")
    assert store.column("scene").tolist() == ["a"] * 4 + ["c"] * 4
    np.testing.assert_array_equal(store.images([7])[0], picture(ord("c")).transpose(2, 0, 1)[:, 128:, 128:])


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["_pixels_of", "_write_index", "dump_config", "replacing", "PartWriter", "rename"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    small_forests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    config, out = forest_config(small_forests / "data"), tmp_path / "store"
    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(build_module, writer, full)
        build(config, out)
    message = rf"cannot write {out}: No space left on device \(\d+\.\d MB free in {out}\); make room .* run again"
    assert re.fullmatch(message, str(caught.value))
    assert not (out / INDEX).exists()
    build(config, out)
    assert digests(out) == digests(small_forests / "store")
    assert sorted(path.name for path in out.iterdir()) == STORED


def test_a_disk_that_fills_while_a_height_model_is_written_damages_no_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build stops, where it would store the scene as damaged for good."""
    truth = forest(64, 7, (320_000, 4_100_000))
    write_pair(truth, tmp_path / "pairs" / "s")
    write_laz(truth, tmp_path / "lidar" / "s_1.laz", density=1)

    def no_room(*_: Any, **__: Any) -> None:
        raise OutputError("cannot write the height model: no space")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="no space"):
        patch.setattr("canopy.lidar.build_chm", no_room)
        build(cloud_config(tmp_path), tmp_path / "store")
    assert build(cloud_config(tmp_path), tmp_path / "store").damaged == ()


@pytest.mark.parametrize("out", ["file", "file/inside"])
def test_a_folder_that_cannot_be_made_is_one_line(small_forests: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file.*: (Not a directory|File exists)"):
        build(forest_config(small_forests / "data"), tmp_path / out)


@pytest.mark.parametrize(("step", "number"), [("rename", 0), ("rename", 1), ("rename", 2), ("_sweep", 0)])
def test_a_kill_between_the_last_steps_ends_in_the_same_store(
    small_forests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Chips, configuration and index get their names one after another, and the folders of the work go last."""
    config, out = forest_config(small_forests / "data"), tmp_path / "store"
    whole, calls = getattr(build_module, step), list[Path]()

    def killed(path: Path, *rest: Path) -> None:
        calls.append(path)
        if len(calls) > number:
            raise SystemExit
        whole(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(build_module, step, killed)
        build(config, out)
    assert (out / INDEX).exists() == (step == "_sweep")
    build(config, out)
    assert digests(out) == digests(small_forests / "store")
    assert sorted(path.name for path in out.iterdir()) == STORED


@pytest.mark.parametrize("left", [".draft", ".work", "config.yaml"])
def test_what_a_killed_build_left_goes_with_the_next(small_forests: Path, tmp_path: Path, left: str) -> None:
    """A kill after the index had its name leaves folders; one before it, pieces of a store."""
    out = shutil.copytree(small_forests / "store", tmp_path / "store")
    (out / ".work").mkdir()
    (out / ".draft").mkdir()
    (out / ".draft" / "chips.parquet").touch()
    (out / ".work" / ".half.json.1-2.tmp").touch()
    if left == "config.yaml":
        (out / INDEX).unlink()
    build(forest_config(small_forests / "data"), out)
    assert sorted(path.name for path in out.iterdir()) == STORED
    assert digests(out) == digests(small_forests / "store")


def test_scenes_rejected_by_hand_stay_in_the_index(small_forests: Path, tmp_path: Path) -> None:
    config = forest_config(small_forests / "data")
    source = config.sources["a"].model_copy(update={"reject": {"a_2": "dead trees"}})
    summary = build(config.model_copy(update={"sources": {**config.sources, "a": source}}), tmp_path / "store")
    records = [record for record in read_records(tmp_path / "store") if record.scene == "a_2"]
    assert {record.reason for record in records} == {"rejected by hand: dead trees"}
    assert summary.dropped >= len(records) > 1


def test_a_rejected_scene_that_is_none_is_said(
    small_forests: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = forest_config(small_forests / "data")
    source = config.sources["a"].model_copy(update={"reject": {"a_1": "blurred", "a_9": "blurred"}})
    price(config.model_copy(update={"sources": {"a": source}}), tmp_path / "out")
    assert [record.message for record in caplog.records] == ["source a: reject names a_9, which is none of its scenes"]


def test_a_shifted_scene_is_moved_and_says_so(tmp_path: Path) -> None:
    """Heights 2 m west and 3 m south of the image."""
    folder = write_pair(forest(200, 1, (320_000, 4_100_000)), tmp_path / "data" / "pairs" / "a_1")
    with rasterio.open(folder / "chm_cm.tif", "r+") as opened:
        heights = opened.read(1)
        opened.write(np.roll(heights, (3, -2), axis=(0, 1)), 1)
    write_pair(forest(48, 2, (320_500, 4_100_000)), tmp_path / "data" / "pairs" / "a_2")
    config = forest_config(tmp_path / "data")
    build(config.model_copy(update={"sources": {"a": config.sources["a"]}}), tmp_path / "store")
    shifts = describe_dataset(tmp_path / "store").shifts
    assert shifts["a/a_1"].applied
    assert shifts["a/a_1"].shift_x_m == pytest.approx(2, abs=0.5)
    assert shifts["a/a_1"].shift_y_m == pytest.approx(3, abs=0.5)
    assert not shifts["a/a_2"].applied
    store = ChipStore.open(tmp_path / "store")
    compared = 0
    for number in np.flatnonzero(store.column("scene") == "a_1"):
        row, col = (int(part) // 2 for part in store.column("chip")[number].split("/")[-1].split("_"))
        if 3 < row < 160 and 3 < col < 160:
            np.testing.assert_allclose(store.heights_m([number])[0], heights[row : row + 32, col : col + 32] / 100)
            compared += 1
    assert compared > 4


def test_tile_trees_become_unlabelled_chips_without_blanks_and_duplicates(tmp_path: Path) -> None:
    tree = tmp_path / "xyz"
    save_picture(picture(1), tree / "17" / "20000" / "45000.png")
    save_picture(picture(2), tree / "17" / "20001" / "45000.png")
    save_picture(picture(1), tree / "17" / "20005" / "45000.png")
    save_picture(np.zeros((256, 256, 3), np.uint8), tree / "17" / "20006" / "45000.png")
    save_picture(np.full((256, 256, 3), 252, np.uint8), tree / "17" / "20007" / "45000.png")
    save_picture(picture(3), tmp_path / "quadkeys" / "02301022313300131.jpg")
    common = {"site": "city", "licence": "CC-BY-4.0"}
    config = DatasetConfig(
        name="t", root=tmp_path, sources={"xyz": {"images": "xyz", **common}, "qk": {"images": "quadkeys", **common}}
    )
    summary = build(config, tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "unlabelled")
    assert (summary.chips, summary.dropped) == (3, 3)
    assert store.column("scene").tolist() == ["17_20000_45000", "17_20001_45000", "02301022313300131"]
    np.testing.assert_array_equal(store.images([0])[0], picture(1).transpose(2, 0, 1))
    reasons = [record.reason for record in read_records(tmp_path / "store") if record.decision == "drop"]
    assert any(reason == "near-duplicate of xyz/17_20000_45000/0_0" for reason in reasons)
    assert sum("without image" in reason for reason in reasons) == 1
    assert sum("near white" in reason for reason in reasons) == 1


def test_geotiffs_without_heights_keep_their_own_gsd(tmp_path: Path) -> None:
    values = picture(5, 256).transpose(2, 0, 1)
    make_raster(tmp_path / "images" / "place_2018_1.tif", values=values, resolution=0.6)
    make_raster(tmp_path / "images" / "place_2020_1.tif", values=values, resolution=0.6)
    build(imagery_config(tmp_path, "images/*.tif", image_date="{year}"), tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "unlabelled")
    assert len(store) == 8
    np.testing.assert_allclose(store.column("gsd_m"), 0.6, rtol=2e-3)
    assert store.column("date").tolist() == ["2018"] * 4 + ["2020"] * 4
    np.testing.assert_array_equal(store.images([3])[0], values[:, 128:, 128:])


def test_the_commands_build_describe_and_draw(tmp_path: Path, canopy: Any) -> None:
    root = write_small_forests(tmp_path / "data")
    (root / "pairs" / "a_2" / "rgb.tif").write_bytes(b"II*")
    config, out, sheet = tmp_path / "forests.yaml", tmp_path / "store", tmp_path / "sheet.png"
    config.write_text(yaml.safe_dump(forest_config(root).model_dump(mode="json")))
    code, printed, remarks = canopy("dataset", "build", config, "--out", out)
    assert code == 1
    assert "canopy: dropped a/a_2: damaged" in remarks
    assert printed.strip() == str(out)
    code, printed, _ = canopy("dataset", "info", out, "--json", "--sheet", sheet)
    facts = json.loads(printed)
    assert (code, facts["dropped"]["damaged"]) == (0, 1)
    assert facts["licences"] == {"CC0-1.0: synthetic forest": {"chips": facts["chips"]["labelled"]["chips"]}}
    assert sheet.read_bytes().startswith(b"\x89PNG")


def cloud_config(root: Path, **source: Any) -> DatasetConfig:
    common = {"images": "pairs/*/rgb.tif", "clouds": "lidar/{scene}_*.laz", "site": "a", "licence": "CC0-1.0"}
    return DatasetConfig(name="clouds", root=root, sources={"a": {**common, **source}}, chip_px=64, stride_px=64)


def test_point_clouds_take_the_place_of_heights(tmp_path: Path) -> None:
    """Two files make one scene; the unit of stored heights and the grid of the mask are not those of the clouds."""
    truth = make_forest(64, seed=7, buildings=0, trees_per_ha=250)
    root = tmp_path / "data"
    write_pair(truth, root / "pairs" / "s")
    for number in (1, 2):
        write_laz(truth, root / "lidar" / f"s_{number}.laz", density=4, seed=number, crs=None)
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, :10] = 2
    make_raster(root / "pairs/s/mask.tif", values=mask, dtype="uint8", crs=truth.crs, resolution=1.0, nodata=None,
                origin=(truth.transform.c + 5, truth.transform.f - 5))  # fmt: skip
    source = {"height_unit_m": 0.01, "exclude": "mask.tif", "cloud_crs": truth.crs}
    summary = build(cloud_config(root, **source), tmp_path / "store")
    assert (summary.chips, summary.damaged) == (4, ())
    assert set(ChipStore.open(tmp_path / "store").column("height_date")) == {FLOWN.isoformat()}
    heights = ChipStore.open(tmp_path / "store").heights_m(range(4))
    whole = np.block([[heights[0], heights[1]], [heights[2], heights[3]]])
    unknown = np.zeros((64, 64), bool)
    unknown[5:15, 5:25] = True
    np.testing.assert_array_equal(np.isnan(whole), unknown)
    error = np.abs(whole - truth.chm_m)[~unknown]
    assert np.quantile(error, 0.95) < 0.05
    assert np.median(error[truth.chm_m[~unknown] > 2]) < 0.02


def test_heights_from_clouds_stay_inside_the_store(tmp_path: Path) -> None:
    """The name of a source or scene is no part of the path of a file that a build writes."""
    truth = forest(64, 7, (320_000, 4_100_000))
    write_pair(truth, tmp_path / "data" / "pairs" / "..s")
    write_laz(truth, tmp_path / "data" / "lidar" / "..s_1.laz", density=4)
    build(cloud_config(tmp_path / "data"), tmp_path / "out" / "store")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
    assert sorted(path.name for path in (tmp_path / "out" / "store").iterdir()) == STORED


def test_a_scene_without_its_clouds_is_an_error_and_a_broken_cloud_is_recorded(tmp_path: Path) -> None:
    write_pair(forest(64, 7, (320_000, 4_100_000)), tmp_path / "pairs" / "s")
    with pytest.raises(DatasetError, match=r"no point cloud at .* for scene s"):
        build(cloud_config(tmp_path), tmp_path / "store")
    cloud = write_laz(forest(64, 7, (320_000, 4_100_000)), tmp_path / "lidar" / "s_1.laz")
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


def test_a_build_is_named_by_what_its_files_contain(small_forests: Path, tmp_path: Path) -> None:
    """A copy elsewhere, written later, is the same data; other bytes of the same size and time are not."""
    out = shutil.copytree(small_forests / "store", tmp_path / "store")
    copy = shutil.copytree(small_forests / "data", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    build(forest_config(copy), out)
    assert digests(out) == digests(small_forests / "store")
    image = copy / "pairs" / "b_1" / "rgb.tif"
    stamp, raw = image.stat(), bytearray(image.read_bytes())
    raw[-100] ^= 1
    image.write_bytes(raw)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DatasetError, match="other inputs"):
        build(forest_config(copy), out)


def test_scenes_of_the_same_bytes_stay_two_scenes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_pair(forest(64, 7, (320_000, 4_100_000)), tmp_path / "pairs" / name)
    source = {"images": "pairs/*/rgb.tif", "heights": "chm_cm.tif", "height_unit_m": 0.01, "site": "a",
              "licence": "CC0-1.0"}  # fmt: skip
    summary = build(DatasetConfig(name="x", root=tmp_path, sources={"a": source}, chip_px=64), tmp_path / "store")
    assert {record.scene for record in read_records(summary.folder)} == {"one", "two"}


SPLITS = {"test_sites": ["b"], "block_m": 100, "test_share": 0.2, "val_share": 0.2}


@pytest.fixture(scope="module")
def three_splits(forests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with training, validation and test ground."""
    out = tmp_path_factory.mktemp("splits") / "store"
    build(forest_config(forests / "data", splits=SPLITS), out)
    return out


def test_a_weak_model_drops_training_chips_only(
    forests: Path, three_splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the chips that a model finds hard, the test would be easier than the ground."""
    monkeypatch.setattr(candidates, "disagreement_m", lambda images, *_: [99.0] * len(images))
    strict = {"weak_model": "any", "max_disagreement_m": 15}
    build(forest_config(forests / "data", splits=SPLITS, curation=strict), tmp_path / "strict")
    stored = [record for record in read_records(three_splits) if record.decision == "keep"]
    records = read_records(tmp_path / "strict")
    held_out = {record.chip: record.split for record in stored if record.split != "train"}
    assert {record.chip: record.split for record in records if record.decision == "keep"} == held_out
    assert set(held_out.values()) == {"val", "test"}
    disputed = [record for record in records if record.reason == "label and weak model 99.0 m apart, 15 allowed"]
    assert len(disputed) == len(stored) - len(held_out) > 0
    assert all(record.split is None and record.row == -1 for record in disputed)


def test_validation_blocks_lie_between_training_and_test(three_splits: Path) -> None:
    stored = [record for record in read_records(three_splits) if record.decision == "keep"]
    ground = {
        split: shapely.unary_union([shapely.from_wkb(one.geometry) for one in stored if one.split == split])
        for split in ("train", "val", "test")
    }
    # One chip is 32 m: about 0.00029 degrees of latitude, and more of longitude.
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert ground[one].area > 0 and ground[one].distance(ground[other]) > 0.00028
    assert len(ChipStore.open(three_splits).rows("val")) == sum(record.split == "val" for record in stored)


@pytest.mark.slow
def test_the_committed_configuration_builds_the_training_set(shared_data: Path, tmp_path: Path) -> None:
    config = load_config(CONFIG, DatasetConfig, (f"root={shared_data}", "curation.weak_model=null"))
    build(config, tmp_path / "store", jobs=2)
    facts = describe_dataset(tmp_path / "store")
    applied = {scene for scene, shift in facts.shifts.items() if shift.applied}
    assert applied == {"osbs/osbs_006", "bart/bart_041"}
    assert facts.sites["test"]["mlbs"] == 46
    assert "mlbs" not in facts.sites["train"]
    assert facts.dropped["rejected by hand"] == 9
