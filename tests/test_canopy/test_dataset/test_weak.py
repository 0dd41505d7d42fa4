"""Weak labels in a chip store: from images, near-infrared and points to labels on the cells of labelled chips."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from chip_stores import forest_config, write_small_forests
from pydantic import ValidationError
from rasters import make_raster
from towns import SITES, build_town, write_town

from canopy.dataset.build import build
from canopy.dataset.config import SourceConfig
from canopy.dataset.report import contact_sheet, describe_dataset
from canopy.dataset.scene_files import list_scenes
from canopy.dataset.store import ChipStore, decode_labels, encode_labels, has_part
from canopy.errors import DatasetError
from canopy.evaluation.weak_ground import BARE, FAR, TREE


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_town(tmp_path_factory.mktemp("town"))


def test_the_sites_of_weak_labels_are_listed(town: Path) -> None:
    index = ChipStore.open(town, "weak").index.to_pylist()
    expected = {site: sum(row["site"] == site for row in index) for site in {row["site"] for row in index}}
    assert describe_dataset(town).sites["weak"] == expected
    assert sum(expected.values()) == describe_dataset(town).chips["weak"].chips > 0


def test_labels_lie_on_the_cells_of_labelled_chips(town: Path) -> None:
    store = ChipStore.open(town, "weak")
    names = {row["chip"]: number for number, row in enumerate(store.index.to_pylist())}
    labels = store.labels([names["t/t/0_0"]])[0]
    # 40 m of imagery are 80 pixels of 0.5 m and 40 cells of 1 m; the point at pixel 50 is 20 m in
    assert np.argwhere(labels == TREE).tolist() == [[20, 20]]
    assert np.isnan(labels[40:]).all() and np.isnan(labels[:, 40:]).all(), "the mirrored border has no label"
    assert (labels[9:11, 9:11] == BARE).all()
    assert labels[30, 10] == FAR and np.isnan(labels[20, 24]) and np.isnan(labels[2, 2])
    record = store[names["t/t/0_0"]].record
    assert (record.real_rows, record.gsd_m, record.weight, record.floor_m) == (80, 0.5, 0.5, None)


def test_green_and_rough_ground_is_labelled_as_other_ground(tmp_path: Path) -> None:
    config = write_town(tmp_path / "data")
    path = tmp_path / "data" / "town" / "t.tif"
    image = np.full((3, 100, 100), 110, np.uint8)
    image[:, :20] += (30 * (np.indices((20, 100)).sum(axis=0) // 3 % 2)).astype(np.uint8)  # stripes of a cell and more
    make_raster(path, values=image, resolution=0.4, origin=SITES["t"], crs="EPSG:32611")
    build(config, tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "weak")
    names = {row["chip"]: number for number, row in enumerate(store.index.to_pylist())}
    labels = store.labels([names["t/t/0_0"]])[0]
    assert (labels[8, 12:32] == FAR).all() and (labels[14:18, 29:32] == FAR).all()


def test_stems_are_labels_of_single_cells(town: Path) -> None:
    store = ChipStore.open(town, "weak")
    (row,) = np.flatnonzero(store.column("source") == "stems")
    labels = store.labels([row])[0]
    assert {(int(y), int(x)): float(labels[y, x]) for y, x in np.argwhere(labels > 0)} == {
        (12, 8): pytest.approx(14.25), (24, 24): pytest.approx(8.0),
    }  # fmt: skip
    assert np.isfinite(labels).sum() == 2


def test_a_meadow_needs_no_points(tmp_path: Path) -> None:
    root = write_small_forests(tmp_path / "data")
    image = np.full((3, 100, 100), 120, np.uint8) + np.random.default_rng(0).integers(0, 5, (3, 100, 100), np.uint8)
    image[:, 40:60, 40:50] = 40
    make_raster(root / "grass.tif", values=image, resolution=0.5, origin=(500_000, 4_100_000), crs="EPSG:32611")
    config = forest_config(root, chip_px=96)
    sources = {name: source.model_dump() for name, source in config.sources.items()}
    grass = {"images": "grass.tif", "kind": "meadow", "site": "grass", "licence": "CC0-1.0"}
    build(forest_config(root, chip_px=96, sources={**sources, "grass": grass}), tmp_path / "store")
    store = ChipStore.open(tmp_path / "store", "weak")
    labels = store.labels([0])[0]
    assert labels[5, 5] == BARE and np.isnan(labels[22:28, 21:24]).all()
    assert set(np.unique(labels[np.isfinite(labels)])) == {BARE}


def test_weak_chips_are_held_out_with_their_site_alone(town: Path) -> None:
    store = ChipStore.open(town, "weak")
    splits = dict(zip(store.column("source"), store.column("split"), strict=True))
    assert splits == {"t": "train", "u": "test", "stems": "train"}


def test_parts_do_not_take_each_others_labels(town: Path) -> None:
    weak, labelled = ChipStore.open(town, "weak"), ChipStore.open(town)
    with pytest.raises(DatasetError, match="weak chips have no heights"):
        weak.heights_m([0])
    with pytest.raises(DatasetError, match="labelled chips have no weak labels"):
        labelled.labels([0])
    assert weak[0].height_m is None


def test_a_store_is_described_and_drawn_with_its_weak_part(town: Path, tmp_path: Path) -> None:
    assert describe_dataset(town).chips["weak"].chips == 3
    assert contact_sheet(town, tmp_path / "sheet.png").stat().st_size > 0


def test_a_store_without_points_has_no_weak_part(tmp_path: Path) -> None:
    build(forest_config(write_small_forests(tmp_path / "data")), tmp_path / "store")
    assert not has_part(tmp_path / "store", "weak")
    assert "weak" not in describe_dataset(tmp_path / "store").chips


def test_labels_survive_their_codes() -> None:
    labels = np.array([[TREE, FAR, BARE, np.nan, 0.25, 61.0]], np.float32)
    np.testing.assert_array_equal(decode_labels(encode_labels(labels)), labels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "weak"}, "set kind and points together"),
        ({"points": "trees.csv"}, "set kind and points together"),
        ({"kind": "meadow", "points": "trees.csv"}, "set kind and points together"),
        ({"kind": "meadow", "heights": "chm.tif"}, "leave heights, clouds and exclude out"),
        ({"kind": "stems", "points": "p.csv", "nir": "n.tif"}, "nir shows what is bare"),
        ({"kind": "weak", "points": "p.csv", "heights": "chm.tif"}, "leave heights, clouds and exclude out"),
    ],
)
def test_a_source_has_the_files_of_its_kind(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate({"images": "*.tif", "site": "s", "licence": "none", **values})


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("weak", "crop,col,row\nT,50,50\n", r"source t: no tree of .*trees\.csv lies in the 1 images: check the CRS"),
        ("weak", "lon,lat\n-3,40\n", r"no tree of .*trees\.csv lies in"),
        ("stems", "crop,col,row,height_m\nt,50,50,\nu,50,50,8\n", r"no tree of .*trees\.csv with height_m lies in"),
    ],
)
def test_trees_that_lie_in_no_image_stop_the_build_before_it_writes(
    tmp_path: Path, kind: str, text: str, message: str
) -> None:
    config = write_town(tmp_path / "data")
    (tmp_path / "data" / "town" / "trees.csv").write_text(text)
    source = config.sources["t"].model_copy(update={"kind": kind, "nir": None})
    with pytest.raises(DatasetError, match=message):
        build(config.model_copy(update={"sources": {"t": source}}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_imagery_whose_pixels_are_not_placed_squarely_is_dropped_with_its_reason(tmp_path: Path) -> None:
    config = write_town(tmp_path / "data")
    town = tmp_path / "data" / "town"
    points = {"crs": "EPSG:32611", "origin": SITES["t"], "resolution": 0.4, "shape": (100, 100)}
    make_raster(town / "points.tif", gcps=True, **points)
    make_raster(town / "degrees.tif", crs="EPSG:4326", origin=(-118.0, 37.0), resolution=4e-6, shape=(120, 120))
    meadow = {"images": "town/*s.tif", "kind": "meadow", "points": None, "nir": None}
    sources = {"t": config.sources["t"], "odd": config.sources["t"].model_copy(update=meadow)}
    summary = build(config.model_copy(update={"sources": sources}), tmp_path / "store")
    reasons = dict(reason.split(": ", 1) for reason in summary.damaged)
    assert summary.chips == 1
    assert "square ones expected" in reasons["odd/degrees"]
    assert "control points" in reasons["odd/points"]


def test_near_infrared_may_be_declared_as_alpha(tmp_path: Path) -> None:
    config = write_town(tmp_path / "data")
    town = tmp_path / "data" / "town"
    only = {"t": config.sources["t"]}
    build(config.model_copy(update={"sources": only}), tmp_path / "own")
    bands = []
    for name in ("t.tif", "t_nir.tif"):
        with rasterio.open(town / name) as opened:
            bands.append(opened.read())
    # GDAL declares the fourth of four bands as alpha
    make_raster(town / "t.tif", values=np.concatenate(bands), resolution=0.4, origin=SITES["t"], crs="EPSG:32611")
    only = {"t": only["t"].model_copy(update={"nir": "town/{image}.tif"})}
    assert not build(config.model_copy(update={"sources": only}), tmp_path / "fourth").damaged
    own, fourth = (ChipStore.open(tmp_path / name, "weak") for name in ("own", "fourth"))
    np.testing.assert_array_equal(own.labels([0]), fourth.labels([0]))


def test_a_missing_file_of_points_or_near_infrared_is_named(tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif")
    values = {"images": "a.tif", "site": "s", "licence": "none", "kind": "weak", "points": "trees.csv"}
    with pytest.raises(DatasetError, match=r"source s: .*trees\.csv is missing, tree points expected"):
        list_scenes("s", SourceConfig.model_validate(values), tmp_path)
    (tmp_path / "trees.csv").touch()
    source = SourceConfig.model_validate({**values, "nir": "{image}_4.tif"})
    with pytest.raises(DatasetError, match=r"a_4\.tif is missing, near-infrared of .*a\.tif expected"):
        list_scenes("s", source, tmp_path)
