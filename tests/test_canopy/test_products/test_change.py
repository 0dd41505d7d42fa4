"""Change between two dates: what is found, what is not, and what cannot be judged."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from product_maps import height_map, read_rows

from canopy.errors import CanopyError, OutputError, ProductError
from canopy.example.stand import Stand, fell, make_stand
from canopy.products import change as module
from canopy.products.change import ChangeOptions, code_cells, detect_change
from tiles.files import rename

DAYS = ("2018-07-01", "2022-07-01")
HALF_M = 1.645
OPTIONS = ChangeOptions(search_m=0)


@pytest.fixture(scope="module")
def before() -> Stand:
    return make_stand(80, seed=2)


@pytest.fixture(scope="module")
def after(before: Stand) -> Stand:
    return fell(before, 0.08, growth_m=1, patches=1, seed=5)


@pytest.fixture(scope="module")
def maps(before: Stand, after: Stand, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("change")
    second = after.observe(1.0, 2)
    second[10:20, 30:40] = np.nan
    return write(folder / "a.tif", before, before.observe(1.0, 1), DAYS[0]), write(
        folder / "b.tif", before, second, DAYS[1]
    )


@pytest.fixture(scope="module")
def result(maps: tuple[Path, Path]) -> Any:
    summary = detect_change(*maps, maps[0].with_name("change.tif"), OPTIONS)
    return summary, read(summary.path)


def write(path: Path, stand: Stand, heights: np.ndarray, day: str | None, half_m: float | None = HALF_M) -> Path:
    tags = {"CANOPY_ACQUISITION_DATETIME": day} if day else {}
    return height_map(path, heights, half_m=half_m, crs=stand.crs, origin=stand.origin, resolution=0.5, tags=tags)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read())


def test_felled_trees_are_loss_and_little_else(before: Stand, after: Stand, result: Any) -> None:
    summary, (change, difference, low, high) = result
    lost = before.chm_m - after.chm_m
    found_loss = change == -1
    assert (found_loss & (lost > 4)).sum() > 0.8 * ((lost > 4) & ~np.isnan(change)).sum()
    assert (found_loss & (lost > 2)).sum() > 0.97 * found_loss.sum()
    assert ((change == 1) & (lost > 0)).sum() < 0.001 * change.size
    cells = summary.loss_m2 / 0.25, summary.gain_m2 / 0.25, summary.unchanged_m2 / 0.25, summary.unknown_m2 / 0.25
    assert cells == (*((change == code).sum() for code in (-1, 1, 0)), np.isnan(change).sum())
    assert np.isnan(change[10:20, 30:40]).all()
    assert summary.unknown_m2 == 25
    assert summary.years == pytest.approx(4, abs=0.01)
    valid = ~np.isnan(difference)
    np.testing.assert_allclose((difference - low)[valid], np.sqrt(2) * HALF_M, rtol=1e-4)
    np.testing.assert_allclose((high - difference)[valid], np.sqrt(2) * HALF_M, rtol=1e-4)


def test_tiles_give_the_change_of_the_whole(maps: tuple[Path, Path], result: Any, tmp_path: Path) -> None:
    tiled = detect_change(*maps, tmp_path / "change.tif", OPTIONS, tile_px=60)
    np.testing.assert_array_equal(read(tiled.path), result[1])
    assert tiled.loss_m2 == result[0].loss_m2


def test_what_the_file_says(maps: tuple[Path, Path], result: Any) -> None:
    with rasterio.open(result[0].path) as dataset:
        assert dataset.descriptions == module.BANDS
        about = json.loads(dataset.tags()["CANOPY_PROVENANCE"])
    assert about["maps"]["first"]["acquisition"] == [DAYS[0], DAYS[0]]
    assert about["maps"]["second"]["name"] == "b.tif"
    assert about["options"]["min_area_m2"] == 15
    style = result[0].path.with_suffix(".qml").read_text(encoding="utf-8")
    assert [label in style for label in ('label="loss"', 'label="no detectable change"', 'label="gain"')] == [True] * 3


def test_the_null_has_hardly_a_change(before: Stand, maps: tuple[Path, Path], tmp_path: Path) -> None:
    """Two maps of one canopy with errors of their own, one of them a cell off: false alarms, measured."""
    again = before.observe(1.0, 9)
    moved = np.roll(again, 1, axis=1)
    second = write(tmp_path / "b.tif", before, moved, DAYS[1])
    ground = gpd.GeoDataFrame(geometry=[shapely.box(500_000, 4_099_920, 500_060, 4_099_990)], crs=before.crs)
    ground.to_file(tmp_path / "ground.gpkg")
    summary = detect_change(maps[0], second, tmp_path / "change.tif", OPTIONS, unchanged=tmp_path / "ground.gpkg")
    false_alarms = summary.false_alarms
    assert false_alarms is not None
    assert false_alarms.area_m2 == 60 * 70
    change = read(summary.path)[0][20:160, :120]
    assert false_alarms.loss_share == pytest.approx((change == -1).mean())
    assert false_alarms.loss_share + false_alarms.gain_share < 0.01
    assert "false alarms on 0.42 ha of unchanged ground" in "".join(summary.remarks())
    loose = detect_change(
        maps[0], second, tmp_path / "loose.tif", ChangeOptions(min_area_m2=0, tolerance_px=0, search_m=0)
    )
    assert loose.loss_m2 > 10 * max(summary.loss_m2, 25)


def test_without_intervals_all_is_unknown_until_an_error_is_stated(
    before: Stand, after: Stand, maps: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = write(tmp_path / "b.tif", before, after.observe(1.0, 2), DAYS[1], half_m=None)
    summary = detect_change(maps[0], plain, tmp_path / "unknown.tif", OPTIONS)
    assert (summary.has_intervals, summary.unknown_m2, summary.impossible_share) == (False, 6400, None)
    change, difference, low, high = read(summary.path)
    assert np.isnan([change, low, high]).all()
    assert not np.isnan(difference).any()
    assert any("--error-m A B" in line for line in summary.remarks())
    stated = detect_change(maps[0], plain, tmp_path / "stated.tif", OPTIONS, error_m=(None, 1.0))
    assert stated.has_intervals
    assert stated.loss_m2 > 0


def test_a_gain_that_no_forest_makes_is_counted_as_an_error(before: Stand, tmp_path: Path) -> None:
    first = write(tmp_path / "a.tif", before, np.full((160, 160), 3), DAYS[0])
    heights = np.full((160, 160), 3.0)
    heights[:, 80:] = 30
    second = write(tmp_path / "b.tif", before, heights, DAYS[1])
    summary = detect_change(first, second, tmp_path / "change.tif", OPTIONS)
    assert summary.impossible_share == 0.5
    assert "at least 50.00% of the known area" in summary.remarks()[-1]


def test_cells_change_where_intervals_are_apart() -> None:
    low1 = np.array([[5, 5, 5, 5, np.nan, 9]], float)
    high1 = low1 + 2
    low2 = np.array([[8, 6, 1, 7, 8, 1]], float)
    code = code_cells((low1, high1), (low2, low2 + 2), 0)
    assert code.tolist() == [[2, 0, -2, 0, 0, -2]]
    tolerant = code_cells((low1, high1), (low2, low2 + 2), 1)
    assert tolerant.tolist() == [[2, 0, -2, 0, 0, -2]]
    higher = code_cells(
        (np.array([[5.0, 1.0]]), np.array([[7.0, 3.0]])), (np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]])), 1
    )
    assert higher.tolist() == [[-1, 0]]  # its neighbour was as low before


def test_stands_have_their_areas(before: Stand, maps: tuple[Path, Path], result: Any, tmp_path: Path) -> None:
    boxes = [shapely.box(500_000, 4_099_920, 500_040, 4_100_000), shapely.box(500_010.2, 4_099_950, 500_030, 4_099_999)]
    gpd.GeoDataFrame({"name": ["west", "part"]}, geometry=boxes, crs=before.crs).to_file(tmp_path / "p.gpkg")
    # A table of styles next to the layer, as QGIS and stands of `canopy derive` have it.
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["a"]}), tmp_path / "p.gpkg", layer="layer_styles")
    table = tmp_path / "stands.parquet"
    detect_change(*maps, tmp_path / "change.tif", OPTIONS, polygons=tmp_path / "p.gpkg", stands=table, field="name")
    rows = read_rows(table)
    assert rows.id.tolist() == ["west", "part"]
    change, difference = result[1][:2]
    # Areas are those on the ellipsoid, .04 % from those of the cells.
    np.testing.assert_allclose(rows.loss_m2[0], (change[:, :80] == -1).sum() / 4, rtol=2e-3)
    np.testing.assert_allclose(rows.unknown_m2[0], 25, rtol=0.05)
    np.testing.assert_allclose(rows.height_difference_m[0], np.nanmean(difference[:, :80]), rtol=1e-5)
    parts = rows.loss_m2 + rows.gain_m2 + rows.unchanged_m2 + rows.unknown_m2
    np.testing.assert_allclose(parts, rows.area_m2)
    with pytest.raises(OutputError, match="exists"):
        detect_change(*maps, tmp_path / "new.tif", OPTIONS, polygons=tmp_path / "p.gpkg", stands=table)
    assert not (tmp_path / "new.tif").exists()


def test_stands_that_lie_elsewhere_are_refused(before: Stand, maps: tuple[Path, Path], tmp_path: Path) -> None:
    far = gpd.GeoDataFrame(geometry=[shapely.box(600_000, 4_099_920, 600_040, 4_100_000)], crs=before.crs)
    far.to_file(tmp_path / "p.gpkg")
    with pytest.raises(ProductError, match=r"p\.gpkg and .* have no ground in common"):
        detect_change(
            *maps, tmp_path / "change.tif", OPTIONS, polygons=tmp_path / "p.gpkg", stands=tmp_path / "stands.csv"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["p.gpkg"]


def test_a_run_killed_at_its_stands_goes_on(
    maps: tuple[Path, Path], result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raster and table are one publication: the same command finishes both, and neither is there alone."""
    out, table = tmp_path / "change.tif", tmp_path / "stands.csv"
    with rasterio.open(maps[0]) as src:
        zone = shapely.box(*src.bounds).buffer(-5)
        gpd.GeoDataFrame(geometry=[zone], crs=src.crs).to_file(tmp_path / "p.gpkg")

    def run() -> None:
        detect_change(*maps, out, OPTIONS, polygons=tmp_path / "p.gpkg", stands=table)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def name_the_table_alone(draft: Path, path: Path) -> None:
        if path == out:
            raise KeyboardInterrupt
        rename(draft, path)

    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("canopy.products.change_stands.draft_table", die)
        run()
    assert not out.exists() and not table.exists()
    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("tiles.publish.rename", name_the_table_alone)
        run()
    assert table.exists() and not out.exists()
    run()
    np.testing.assert_array_equal(read(out), result[1])
    assert len(table.read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_run_goes_on(
    maps: tuple[Path, Path], result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, judge_tile, calls = tmp_path / "change.tif", module.judge_tile, []

    def fail_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge_tile(*arguments)

    monkeypatch.setattr(module, "judge_tile", fail_third)
    with pytest.raises(KeyboardInterrupt):
        detect_change(*maps, out, OPTIONS, tile_px=80)
    assert not out.exists()
    states: list[Any] = []
    again = detect_change(*maps, out, OPTIONS, tile_px=80, report=states.append)
    assert (states[-1].done, states[-1].total, states[-1].resumed) == (8, 8, 6)
    np.testing.assert_array_equal(read(out), result[1])
    assert again.to_json() == {**result[0].to_json(), "path": str(out)}


@pytest.mark.parametrize(
    ("days", "options", "words"),
    [
        ((None, DAYS[1]), {}, "has no acquisition date: one expected"),
        ((DAYS[1], DAYS[0]), {}, "the earlier map first expected, swap the two"),
        (DAYS, {"dates": ("yesterday", None)}, "a date such as 2020-07-01"),
        (DAYS, {"polygons": Path("p.gpkg")}, "both or none"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(
    tmp_path: Path, days: Any, options: dict[str, Any], words: str
) -> None:
    paths = [
        height_map(tmp_path / name, np.ones((9, 9)), tags={"CANOPY_ACQUISITION_DATETIME": day} if day else {})
        for name, day in zip(("a.tif", "b.tif"), days, strict=True)
    ]
    with pytest.raises(CanopyError, match=words) as error:
        detect_change(*paths, tmp_path / "change.tif", **options)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]
    with pytest.raises(ProductError, match="is named twice"):
        detect_change(paths[0], paths[0], tmp_path / "change.tif")


@pytest.mark.parametrize("values", [{"min_area_m2": -1}, {"tolerance_px": 11}, {"search_m": -1}, {"max_growth_m": 0}])
def test_options_without_meaning_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ProductError, match="expected"):
        ChangeOptions(**values)


def test_the_command(before: Stand, maps: tuple[Path, Path], tmp_path: Path, canopy: Any) -> None:
    undated = write(tmp_path / "b.tif", before, before.observe(1.0, 3), None, half_m=None)
    arguments = ("change", maps[0], undated, "--out", tmp_path / "change.tif", "--search", 0)
    status, _, errors = canopy(*arguments)
    assert (status, "has no acquisition date" in errors) == (1, True)
    status, output, errors = canopy(*arguments, "--dates", "own", "2022", "--error-m", "own", "1.0", "--json")
    assert status == 0
    assert json.loads(output)["years"] == pytest.approx(4, abs=0.01)
    assert "false alarms: not measured" in errors
    status, _, _ = canopy(*arguments, "--error-m", "own", "big")
    assert status == 2
