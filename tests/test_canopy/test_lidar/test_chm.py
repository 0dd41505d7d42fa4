"""Point clouds to canopy height models, against forests whose heights are known."""

import json
from pathlib import Path

import laspy
import numpy as np
import pytest
import rasterio
from forest import FLOWN, ROOF_M, Forest, make_forest, write_laz
from hypothesis import given, settings
from hypothesis import strategies as st
from laz import built, edited, header, heights, on_grid, with_points
from numpy.typing import NDArray
from rasterio.windows import from_bounds
from scipy import ndimage
from typer.testing import CliRunner

from canopy.cli.app import app
from canopy.errors import CanopyError, LidarError, OutputError
from canopy.lidar import build_chm
from tiles.validation import validate


def test_classified_forest_is_measured_to_centimetres(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    chm = build_chm([cloud], tmp_path / "chm.tif")
    error = on_grid(forest, chm.path) - forest.chm_m
    assert chm.method == "classified"
    assert np.nanquantile(np.abs(error), 0.99) < 0.03
    assert np.nanmedian(np.abs(error)) < 0.02
    assert chm.density == pytest.approx(8 * 1.1, rel=0.05)
    assert validate(chm.path) == ()


def test_holes_stay_unknown_and_bare_ground_is_zero(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    result = on_grid(forest, build_chm([cloud], tmp_path / "chm.tif").path)
    hole = np.isnan(forest.chm_m)
    assert np.isnan(result[hole]).mean() > 0.9
    assert not np.isnan(result[~hole]).any()
    assert (result[forest.chm_m == 0] < 0.2).mean() > 0.98
    assert np.nanmin(result) == 0


def test_unclassified_ground_is_found(tmp_path: Path) -> None:
    forest = make_forest(96, seed=5, slope=0.2, trees_per_ha=250, buildings=0)
    chm = build_chm([write_laz(forest, tmp_path / "f.laz", classified=False)], tmp_path / "chm.tif")
    error = np.abs(on_grid(forest, chm.path) - forest.chm_m)
    assert chm.method == "smrf"
    assert np.median(error[forest.chm_m > 2]) < 0.15
    assert (error[forest.chm_m == 0] < 0.5).mean() > 0.97


def test_noise_is_left_out_whether_classified_or_not(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    quiet = built(cloud, tmp_path)
    noisy = build_chm([write_laz(forest, tmp_path / "n.laz", noise=30)], tmp_path / "n.tif")
    np.testing.assert_array_equal(heights(noisy.path), quiet)
    plain = built(write_laz(forest, tmp_path / "u.laz", classified=False), tmp_path)
    stray = built(write_laz(forest, tmp_path / "un.laz", classified=False, noise=30), tmp_path)
    # A cell of the ground that noise has hidden is interpolated.
    np.testing.assert_array_equal(np.isnan(stray), np.isnan(plain))
    assert np.nanmax(np.abs(stray - plain)) < 1
    assert np.nanmean(np.abs(stray - plain) > 0.1) < 0.02


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), pieces=st.integers(2, 5), by_place=st.booleans())
@settings(max_examples=4)  # four canopy height models each
def test_cutting_the_cloud_into_files_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pieces: int, by_place: bool
) -> None:
    folder, rng = tmp_path_factory.mktemp("cut"), np.random.default_rng(seed)
    whole = write_laz(make_forest(32, seed=seed % 7, holes=1), folder / "whole.laz", density=3, noise=5)
    las = laspy.read(whole)
    at = np.asarray(las.x) if by_place else rng.random(len(las.points))
    part = np.searchsorted(np.sort(rng.uniform(at.min(), at.max(), pieces - 1)), at)
    files = []
    for number in rng.permutation(np.unique(part)):
        chosen = laspy.LasData(las.header)
        chosen.points = las.points[rng.permutation(np.flatnonzero(part == number))]
        files.append(folder / f"{number}.laz")
        chosen.write(files[-1])
    for classified in ("auto", "smrf"):
        one = build_chm([whole], folder / "one.tif", ground=classified, quality=True, overwrite=True)
        many = build_chm(files, folder / "many.tif", ground=classified, quality=True, overwrite=True)
        assert one.point_count == many.point_count
        for suffix in ("", "_quality"):
            with rasterio.open(folder / f"one{suffix}.tif") as a, rasterio.open(folder / f"many{suffix}.tif") as b:
                assert a.transform == b.transform
                np.testing.assert_array_equal(a.read(), b.read())


def test_buildings_and_water_carry_no_canopy_and_overhanging_crowns_do(tmp_path: Path) -> None:
    forest = make_forest(48, seed=1, trees_per_ha=0, buildings=1)
    path = write_laz(forest, tmp_path / "f.laz")
    result = on_grid(forest, build_chm([path], tmp_path / "a.tif").path)
    assert forest.building.sum() > 50
    assert np.abs(result[forest.building]).max() < 0.01
    row, col = np.argwhere(forest.building)[len(np.argwhere(forest.building)) // 2]
    crown = np.random.default_rng(0).uniform(0, 1, (40, 2)) * 3 - 1
    x, y = forest.transform.c + col + crown[:, 0], forest.transform.f - row - crown[:, 1]
    z = np.full(40, forest.ground_m[row, col] + 9.0)
    over = with_points(path, tmp_path / "over.laz", np.column_stack([x, y, z]), code=5)
    result = on_grid(forest, build_chm([over], tmp_path / "b.tif").path)
    assert result[row, col] == pytest.approx(9, abs=0.5)
    roofs = laspy.read(path)
    roofs.classification[np.asarray(roofs.classification) == 6] = 1
    roofs.write(tmp_path / "unclassified_roof.laz")
    result = on_grid(forest, build_chm([tmp_path / "unclassified_roof.laz"], tmp_path / "c.tif").path)
    assert np.median(result[forest.building]) == pytest.approx(ROOF_M, abs=0.2)


def test_height_normalised_clouds_are_recognised(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    las = laspy.read(cloud)
    row = np.floor(forest.transform.f - np.asarray(las.y)).astype(int)
    col = np.floor(np.asarray(las.x) - forest.transform.c).astype(int)
    canopy = np.where(forest.building, ROOF_M, np.nan_to_num(forest.chm_m))[row.clip(0), col]
    code = np.asarray(las.classification)
    flat = edited(cloud, tmp_path / "flat.laz", z=np.where(code == 2, 0, canopy))
    chm = build_chm([flat], tmp_path / "chm.tif")
    error = on_grid(forest, chm.path) - forest.chm_m
    assert chm.method == "normalised"
    assert np.nanquantile(np.abs(error), 0.98) < 0.002


def test_files_say_their_dates_points_and_method(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    chm = build_chm([cloud], tmp_path / "chm.tif", quality=True, ground_out=tmp_path / "dtm.tif")
    assert chm.acquisition == (FLOWN, FLOWN)
    with rasterio.open(chm.path) as opened:
        tags = opened.tags()
        assert (opened.descriptions, opened.units, opened.dtypes) == (("canopy_height",), ("m",), ("float32",))
    assert tags["CANOPY_LIDAR"] == "forest.laz"
    assert tags["CANOPY_ACQUISITION_DATETIME"] == FLOWN.isoformat()
    assert int(tags["CANOPY_LIDAR_POINTS"]) == chm.point_count == header(cloud).point_count
    assert tags["CANOPY_LIDAR_FILE_YEARS"] == str(FLOWN.year)
    with rasterio.open(tmp_path / "chm_quality.tif") as opened:
        assert (opened.descriptions, opened.units) == (("return_density", "ground_gap"), ("1/m2", "m"))
        density, gap_m = opened.read()
    assert density.sum() == chm.point_count
    assert np.array_equal(density == 0, np.isnan(forest.chm_m))
    assert gap_m.min() == 0 and 3 < gap_m.max() < 12
    error = on_grid(forest, tmp_path / "dtm.tif") - forest.ground_m
    assert np.abs(error).max() < 0.5 and np.median(np.abs(error)) < 0.03


def test_a_cell_far_from_any_ground_is_unknown(tmp_path: Path) -> None:
    forest = make_forest(160, trees_per_ha=0, buildings=0)
    las = laspy.read(write_laz(forest, tmp_path / "f.laz", density=2))
    far = np.asarray(las.x) > forest.transform.c + 80
    las.classification[far] = 1
    las.write(tmp_path / "half.laz")
    result = on_grid(forest, build_chm([tmp_path / "half.laz"], tmp_path / "chm.tif").path)
    assert np.isnan(result[:, 131:]).all()
    assert not np.isnan(result[:, 2:129]).any()


def test_resolution_sets_the_cells(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    fine = build_chm([cloud], tmp_path / "fine.tif", resolution_m=0.5)
    with rasterio.open(fine.path) as opened:
        assert opened.res == (0.5, 0.5)
        assert opened.shape == (128, 128)
    assert np.nanmax(heights(fine.path)) == pytest.approx(np.nanmax(forest.chm_m), abs=0.05)


def test_outputs_are_never_lost(cloud: Path, tmp_path: Path) -> None:
    kept = tmp_path / "chm.tif"
    kept.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        build_chm([cloud], kept)
    assert kept.read_text() == "mine"
    with pytest.raises(OutputError, match="no folder"):
        build_chm([cloud], tmp_path / "nowhere" / "chm.tif")
    with pytest.raises(OutputError, match="two outputs"):
        build_chm([cloud], tmp_path / "new.tif", ground_out=tmp_path / "new.tif")
    for options in ({"ground": "best"}, {"resolution_m": 0.01}, {"crs": "EPSG:0"}):
        with pytest.raises(CanopyError):
            build_chm([cloud], tmp_path / "new.tif", **options)


def test_the_command_prints_the_path_or_json(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    out = tmp_path / "chm.tif"
    plain = CliRunner().invoke(app, ["chm", str(cloud), "--out", str(out)])
    assert plain.exit_code == 0 and plain.stdout.splitlines() == [str(out)]
    assert "100% of returns read" in plain.stderr
    asked = CliRunner().invoke(app, ["chm", str(cloud), "--out", str(out), "--overwrite", "--json"])
    said = json.loads(asked.stdout)
    assert said["method"] == "classified" and said["path"] == str(out)
    assert said["acquisition"] == [FLOWN.isoformat()] * 2
    assert CliRunner().invoke(app, ["validate", str(out)]).exit_code == 0


def compare(chm: Path, scene: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Our heights and the reference where both are known and nothing is excluded."""
    with rasterio.open(scene / "chm_cm.tif") as opened:
        centimetres, bounds = opened.read(1), opened.bounds
    use = centimetres != 65535
    if (scene / "exclude_mask.tif").exists():
        use &= heights(scene / "exclude_mask.tif") == 0
    with rasterio.open(chm) as opened:
        ours = opened.read(1, window=from_bounds(*bounds, opened.transform), boundless=True, fill_value=np.nan)
    use &= ~np.isnan(ours)
    return ours[use].astype(np.float64), centimetres[use] / 100


def test_osbs_agrees_with_its_reference(shared_data: Path, tmp_path: Path) -> None:
    chm = build_chm([shared_data / "lidar/neon_osbs_1ha_rgb.laz"], tmp_path / "chm.tif", crs="EPSG:32617")
    ours, truth = compare(chm.path, shared_data / "pairs/neon_osbs_1ha")
    assert np.abs(ours - truth).mean() < 0.3
    assert ours.size > 9_900


def test_bart_is_height_normalised(shared_data: Path, tmp_path: Path) -> None:
    chm = build_chm([shared_data / "lidar/neon_bart_041.laz"], tmp_path / "chm.tif")
    assert chm.method == "normalised"


@pytest.mark.slow
def test_autzen_agrees_with_its_reference(shared_data: Path, tmp_path: Path) -> None:
    chm = build_chm([shared_data / "lidar/autzen_west_feet.laz"], tmp_path / "chm.tif")
    ours, truth = compare(chm.path, shared_data / "pairs/autzen_west")
    tall = np.maximum(ours, truth) > 2
    assert np.median(np.abs(ours - truth)[tall]) <= 0.5
    assert (ours[truth < 0.5] < 0.5).mean() >= 0.97
    with rasterio.open(chm.path) as opened:
        assert opened.crs.to_epsg() == 2993


def test_blocks_and_tables_in_files_change_nothing(
    forest: Forest, cloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 16 and 32 cells against one, tables in files against memory."""
    options = {"ground_out": tmp_path / "dtm.tif", "quality": True, "overwrite": True}
    names = ("chm.tif", "dtm.tif", "chm_quality.tif")
    build_chm([cloud], tmp_path / "chm.tif", **options)
    expected = [heights(tmp_path / name) for name in names]
    monkeypatch.setattr("canopy.lidar.tables.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("canopy.lidar.tables._PART_RETURNS", 777)
    monkeypatch.setattr("canopy.lidar.chm._SURFACE_CELLS", 16)
    monkeypatch.setattr("canopy.lidar.chm.BLOCK_CELLS", 32)
    reports: list[str] = []
    summary = build_chm([cloud], tmp_path / "chm.tif", report=lambda now: reports.append(now.detail), **options)
    for name, values in zip(names, expected, strict=True):
        np.testing.assert_array_equal(heights(tmp_path / name), values)
    assert summary.known_share == np.mean(~np.isnan(expected[0]))
    assert {"ground, block 4/4", "terrain, block 4/4", "surface, block 16/16"} <= set(reports)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chm.qml", "chm.tif", "chm_quality.tif", "dtm.tif"]


def reclassified(cloud: Path, out: Path, code: int, chosen: NDArray[np.bool_]) -> Path:
    """Write a copy of a cloud whose chosen returns have another class."""
    codes = np.asarray(laspy.read(cloud).classification).copy()
    codes[chosen] = code
    return edited(cloud, out, classification=codes)


@pytest.mark.parametrize("code", [19, 20, 17, 10, 11])
def test_structures_are_no_trees(forest: Forest, cloud: Path, tmp_path: Path, code: int) -> None:
    """A conveyor 15 m above the ground was a tree of 15 m; roofs show what happens to one."""
    roof = np.asarray(laspy.read(cloud).classification) == 6
    chm = on_grid(forest, build_chm([reclassified(cloud, tmp_path / "s.laz", code, roof)], tmp_path / "c.tif").path)
    assert forest.building.sum() > 50
    assert np.abs(chm[forest.building]).max() < 0.01


@pytest.mark.parametrize("code", [22, 40, 43, 44, 45, 30, 64, 200])
def test_what_is_no_canopy_is_left_out_and_unknown_classes_are_said(
    forest: Forest, cloud: Path, tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    roof = np.asarray(laspy.read(cloud).classification) == 6
    chm = build_chm([reclassified(cloud, tmp_path / "s.laz", code, roof)], tmp_path / "c.tif")
    inside = ndimage.binary_erosion(forest.building, np.ones((7, 7)))
    assert inside.any() and np.isnan(on_grid(forest, chm.path)[inside]).all()
    said = f"{roof.sum():,} of class {code} (" in caplog.text
    assert said == (code in (30, 64, 200))
    assert chm.point_count == header(cloud).point_count - roof.sum()


@pytest.mark.parametrize("code", [9, 21, 41, 42])
def test_water_and_snow_are_the_ground_from_which_trees_are_measured(
    forest: Forest, cloud: Path, tmp_path: Path, code: int
) -> None:
    ground = np.asarray(laspy.read(cloud).classification) == 2
    path = reclassified(cloud, tmp_path / "s.laz", code, ground)
    chm = build_chm([path], tmp_path / "c.tif")
    assert chm.method == "classified"
    error_m = on_grid(forest, chm.path) - forest.chm_m
    assert np.nanquantile(np.abs(error_m), 0.99) < 0.03
    assert (on_grid(forest, chm.path)[forest.chm_m == 0] == 0).mean() > 0.9


def test_clouds_of_nothing_but_unknown_classes_say_which(cloud: Path, tmp_path: Path) -> None:
    every = np.ones(header(cloud).point_count, bool)
    path = reclassified(cloud, tmp_path / "s.laz", 99, every)
    with pytest.raises(LidarError, match=r"count nowhere: .* of class 99 \(user-defined\)"):
        build_chm([path], tmp_path / "c.tif")


def test_patterns_are_expanded_and_one_without_a_match_is_said(cloud: Path, tmp_path: Path) -> None:
    (tmp_path / "site[1].laz").write_bytes(cloud.read_bytes())
    for pattern in ("*.laz", "site[1].laz"):
        assert build_chm([tmp_path / pattern], tmp_path / "c.tif", overwrite=True).point_count
    with pytest.raises(LidarError, match=r"none\*\.laz: no file matches"):
        build_chm([tmp_path / "none*.laz"], tmp_path / "d.tif")


def test_a_raster_of_too_many_cells_is_refused_before_work(cloud: Path, tmp_path: Path) -> None:
    raw = bytearray(cloud.read_bytes())
    raw[179:187] = np.float64(header(cloud).maxs[0] + 400_000).tobytes()
    raw[195:203] = np.float64(header(cloud).maxs[1] + 10_000).tobytes()
    (tmp_path / "wide.laz").write_bytes(raw)
    with pytest.raises(LidarError, match="at most 400,000,000 expected"):
        build_chm([tmp_path / "wide.laz"], tmp_path / "c.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.laz"]


@pytest.mark.parametrize("offset_m", [(900, 700), (0, -400)])
def test_a_stray_return_far_away_is_said(
    cloud: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, offset_m: tuple[int, int]
) -> None:
    first = header(cloud).mins[:2] + np.array([0.5, 0.5])
    xyz = np.array([[*(first + offset_m), header(cloud).mins[2]]])
    with_points(cloud, tmp_path / "stray.laz", xyz)
    wide = build_chm([tmp_path / "stray.laz"], tmp_path / "wide.tif")
    warnings = [record.message for record in caplog.records if "scattered clouds" in record.message]
    assert len(warnings) == 1, caplog.text
    with rasterio.open(wide.path) as opened:
        span = f"spans {opened.width} x {opened.height} m"
        data = np.argwhere(np.isfinite(opened.read(1)))
    assert span in warnings[0]
    share = float(warnings[0].split("at most ")[1].split(" %")[0])
    assert 100 * len(data) / (opened.width * opened.height) <= share < 20
    caplog.clear()
    # What the message proposes.
    with_points(cloud, tmp_path / "noise.laz", xyz, code=7)
    np.testing.assert_array_equal(built(tmp_path / "noise.laz", tmp_path), built(cloud, tmp_path))
    assert "scattered" not in caplog.text
