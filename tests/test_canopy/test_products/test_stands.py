"""Stands have the figures that a person computes by hand, whatever the grouping, and intervals that cover the truth."""

import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from forests import canopy as grow
from forests import noisy
from product_maps import UTM, X, Y, blobs, height_map, read_rows, write_polygons

from canopy.errors import CanopyError, ProductError
from canopy.products import cells, measuring, zones
from canopy.products.cells import OpeningRule, openings, surface_ratio
from canopy.products.measuring import STATISTICS
from canopy.products.stand_table import print_calibration, summary_json
from canopy.products.stands import StandOptions, derive_stands
from tiles import zonal

GRID = StandOptions(grid_ha=0.36)
"""Squares of 60 m."""


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Map with intervals and its truth, 400 x 600 m in cells of 2 m, and 20 polygons on them, one off the map."""
    folder = tmp_path_factory.mktemp("forest")
    truth_m = grow((200, 300), 2.0)
    map_m, _ = noisy(truth_m, 2.0)
    shapes = [*blobs(19, (80, 80, 520, 320), (0.05, 1)), shapely.box(X + 5000, Y, X + 5100, Y + 100)]
    return (
        height_map(folder / "map.tif", map_m, half_m=4.0, resolution=2.0),
        height_map(folder / "truth.tif", truth_m, resolution=2.0),
        write_polygons(folder / "stands.gpkg", shapes),
    )


def test_figures_of_a_square_are_those_of_its_cells(tmp_path: Path) -> None:
    """20 x 20 m: a row of 4 m of bare ground, then 3 m, 8 m, 15 m and 35 m, a tall tree, and one unknown row."""
    heights = np.repeat([0.0, 3.0, 8.0, 15.0, 35.0], 4)[:, None] * np.ones((1, 20))
    heights[17, 5], heights[10] = 40.0, np.nan
    path = height_map(tmp_path / "map.tif", heights)
    derive_stands(path, tmp_path / "out.parquet", StandOptions(grid_ha=0.04, fao=True))
    (row,) = read_rows(tmp_path / "out.parquet").to_dict("records")
    known = heights[~np.isnan(heights)]
    assert row["area_ha"] == pytest.approx(0.04, rel=1e-3)
    assert row["known_share"] == pytest.approx(0.95)
    assert row["mean_m"] == pytest.approx(known.mean())
    assert (row["p95_m"], row["max_m"]) == (35, 40)
    # Squares of 10 m: the two to the south are 35 and 40 at most, those to the north 8.
    assert row["h100_m"] == pytest.approx((8 + 8 + 40 + 35) / 4)
    assert row["cover_2m"] == pytest.approx(1 - 80 / 380)
    assert row["cover_5m"] == pytest.approx(1 - 160 / 380)
    assert row["gap_share"] == pytest.approx(80 / 380)
    strata = [80, 80, 60 + 20 * 0, 80, 0, 80]
    strata[2] = int(known.size - sum(strata) + strata[2])
    names = measuring.stratum_names()
    np.testing.assert_allclose([row[name] for name in names], np.array(strata) / 380, atol=1e-9)
    assert row["layers"] == 4
    assert row["mean_m_low"] is None or math.isnan(row["mean_m_low"])  # the map says nothing of its errors
    assert row["fao_forest"] == "other"  # too small


def test_rumple_is_the_surface_over_the_ground() -> None:
    ramp = np.tile(np.arange(6.0, dtype=np.float32), (5, 1))
    np.testing.assert_allclose(surface_ratio(ramp * 0, (1, 1))[:-1, :-1], 1)
    np.testing.assert_allclose(surface_ratio(ramp, (1, 1))[:-1, :-1], math.sqrt(2))
    np.testing.assert_allclose(surface_ratio(ramp, (2, 2))[:-1, :-1], math.sqrt(1 + 0.25))


def test_openings_are_joined_by_sides_and_have_a_smallest_area() -> None:
    heights = np.full((6, 6), 9.0, np.float32)
    heights[0, :3] = 1  # 3 cells
    heights[1, 3] = 1  # touches them at a corner only
    heights[3:5, 3:5] = 0  # 4 cells
    heights[5, 5] = np.nan
    expected = np.zeros((6, 6), bool)
    expected[3:5, 3:5] = True
    np.testing.assert_array_equal(openings(heights, (1, 1), OpeningRule(2, 4)), expected)
    assert openings(heights, (1, 1), OpeningRule(2, 3)).sum() == 7
    assert openings(heights, (2, 2), OpeningRule(2, 4)).sum() == 8


def test_groups_and_strips_change_nothing(
    forest: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_path, _, polygons = forest
    tables = []
    for group_px, strip_cells in ((1024, 2**20), (64, 2**20), (16, 700)):
        monkeypatch.setattr(zones, "GROUP_PX", group_px)
        monkeypatch.setattr(zonal, "_STRIP_CELLS", strip_cells)
        out = tmp_path / f"{group_px}.parquet"
        derive_stands(map_path, out, StandOptions(id_field="name"), polygons=polygons)
        tables.append(read_rows(out))
    first = tables[0]
    assert first["id"].tolist() == [f"stand {n}" for n in range(20)]
    numbers = first.select_dtypes("number").columns
    for other in tables[1:]:
        assert other["id"].tolist() == first["id"].tolist()
        np.testing.assert_allclose(other[numbers], first[numbers], rtol=1e-9, atol=1e-12)
    assert first["known_share"].iloc[19] == 0
    assert first["mean_m"].isna().sum() == 1


def test_bounds_without_calibration_are_the_figures_of_all_ends_at_once(
    forest: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    map_path, _, polygons = forest
    stands = derive_stands(map_path, tmp_path / "out.csv", StandOptions(), polygons=polygons)
    rows = read_rows(stands.path).iloc[:19]
    assert stands.intervals == "bounds"
    np.testing.assert_allclose(rows["mean_m_high"] - rows["mean_m"], 4, atol=1e-4)
    assert (rows["cover_5m_low"] <= rows["cover_5m"]).all()
    assert "the widest" in print_calibration(stands)[0]
    assert summary_json(stands)["stands"] == 20


def test_a_calibration_is_written_used_and_says_how_often_it_covers(
    forest: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    map_path, truth, polygons = forest
    options, path = StandOptions(block_m=100), tmp_path / "stands.json"
    fitted = derive_stands(map_path, tmp_path / "a.parquet", options, polygons=polygons, truth=truth, calibration=path)
    used = derive_stands(map_path, tmp_path / "b.parquet", options, polygons=polygons, calibration=path)
    first, second = (read_rows(stands.path) for stands in (fitted, used))
    for end in ("low", "high", "coverage"):
        np.testing.assert_array_equal(first[f"mean_m_{end}"], second[f"mean_m_{end}"])
    assert used.calibration is not None
    assert set(used.calibration.statistics) == set(STATISTICS)
    scales = used.calibration.statistics["mean_m"].scales
    assert [round(scale.area_m2) for scale in scales] == [156, 625, 2500, 10_000]
    assert scales[0].quantile > scales[-1].quantile  # errors of cells partly cancel
    assert len(print_calibration(used)) == 1 + len(STATISTICS)
    with pytest.raises(CanopyError, match="relative to the intervals of a map"):
        derive_stands(truth, tmp_path / "c.csv", options, polygons=polygons, calibration=path)


def test_a_killed_run_goes_on(forest: tuple[Path, Path, Path], tmp_path: Path) -> None:
    map_path, _, _ = forest
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    derive_stands(map_path, whole, GRID)
    seen = []

    def report(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_stands(map_path, out, GRID, report=report)
    derive_stands(map_path, out, GRID, report=report)
    assert seen[-1].resumed >= 1
    assert out.read_text() == whole.read_text()
    assert len(read_rows(out)) == len(read_rows(whole)) > 50


def test_what_is_of_no_use_is_one_line_and_nothing_is_written(forest: tuple[Path, Path, Path], tmp_path: Path) -> None:
    map_path, _, polygons = forest
    folder = tmp_path / "out"
    folder.mkdir()
    empty = write_polygons(tmp_path / "empty.geojson", [shapely.box(X, Y - 9, X + 9, Y), shapely.Polygon()])
    points = write_polygons(tmp_path / "points.gpkg", [shapely.Point(X, Y)])
    far = write_polygons(tmp_path / "far.gpkg", [shapely.box(X - 900, Y, X - 800, Y + 100)])
    (tmp_path / "bad.json").write_text("{}")
    for options, inputs, words in (
        ({}, {"polygons": empty}, r"is empty or has no area \(1 of 2"),
        ({}, {"polygons": points}, "is no polygon"),
        ({}, {"polygons": far}, "no ground in common"),
        ({"id_field": "nr"}, {"polygons": polygons}, "has no field 'nr': one of name expected"),
        ({}, {"polygons": tmp_path / "none.gpkg"}, "no such file"),
        ({}, {"polygons": polygons, "calibration": tmp_path / "bad.json"}, "no calibration of stands"),
        ({"block_m": 200}, {"polygons": polygons, "truth": map_path}, "too few are known"),
        ({}, {}, "one of the two expected"),
    ):
        with pytest.raises(CanopyError, match=words) as error:
            derive_stands(map_path, folder / "a.gpkg", StandOptions(**options), **inputs)
        assert "\n" not in str(error.value)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("values", [(math.nan, 10), (math.inf, 10), (-1, 10), (2, math.inf), (2, math.nan), (2, -1)])
def test_openings_without_meaning_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(ProductError, match="a height above 0 and an area of 0 or more expected"):
        OpeningRule(*values)


def test_a_smallest_opening_costs_no_more_memory_than_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is 24 x 24 m, all bare: openings up to 576 m2 are found, and larger ones need no halo wider than that."""
    path = height_map(tmp_path / "map.tif", np.zeros((24, 24)))
    for min_m2, share in ((576, 1), (1e12, 0)):
        out = tmp_path / f"{share}.parquet"
        derive_stands(path, out, StandOptions(grid_ha=0.01, rule=OpeningRule(2, min_m2)))
        assert (read_rows(out)["gap_share"] == share).all()
    monkeypatch.setattr(cells, "MAX_HALO_PX", 20)
    with pytest.raises(ProductError, match="at most 19 m2 expected"):
        derive_stands(path, tmp_path / "a.parquet", StandOptions(grid_ha=0.01, rule=OpeningRule(2, 20)))
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("hole", [False, True])
def test_a_grid_without_a_stand_is_refused(tmp_path: Path, hole: bool) -> None:
    """The middle of the only square lies on unknown ground, or no square has its middle on the map."""
    heights = np.full((20, 20), 5.0)
    heights[10:, 10:] = np.nan if hole else 5
    path = height_map(tmp_path / "map.tif", heights if hole else heights[:6, :6])
    source = path if not hole else height_map(tmp_path / "cut.tif", heights[9:, 9:], origin=(X + 9, Y - 9))
    with pytest.raises(ProductError, match=r"no square of 0\.0[14] ha has its middle on .* smaller squares expected"):
        derive_stands(source, tmp_path / "a.csv", StandOptions(grid_ha=0.01 if hole else 0.04))
    assert not list(tmp_path.glob("a.*"))


def test_loops_count_as_areas_and_missing_names_stay_missing(tmp_path: Path) -> None:
    """The loops of a figure of eight cancel each other in its signed area, whatever the CRS of the file."""
    path = height_map(tmp_path / "map.tif", np.full((20, 20), 5.0))
    eight = shapely.Polygon([(X, Y), (X + 20, Y - 20), (X + 20, Y), (X, Y - 20)])
    frame = geopandas.GeoDataFrame({"nr": [7, None]}, geometry=[eight, shapely.box(X, Y - 9, X + 9, Y)], crs=UTM)
    frame["nr"] = frame["nr"].astype("Int64")
    for name, crs in (("utm.gpkg", UTM), ("degrees.geojson", 4326), ("utm.parquet", UTM)):
        polygons, out = tmp_path / name, tmp_path / f"{name}.out.parquet"
        frame.to_crs(crs).to_parquet(polygons) if name.endswith("parquet") else frame.to_crs(crs).to_file(polygons)
        derive_stands(path, out, StandOptions(id_field="nr"), polygons=polygons)
        rows = read_rows(out)
        assert (rows["id"][0], rows["id"].isna().tolist()) == ("7", [False, True])
        assert rows["area_ha"].tolist() == pytest.approx([0.02, 0.0081], rel=1e-3)
        assert rows["known_share"].tolist() == pytest.approx([1, 1], abs=1e-6)


def test_the_command_writes_a_styled_layer(forest: tuple[Path, Path, Path], tmp_path: Path, canopy: Any) -> None:
    out = tmp_path / "stands.gpkg"
    code, printed, error = canopy("derive", "stands", "--map", forest[0], "--grid", "1ha", "--out", out, "--json")
    assert code == 0, error
    assert json.loads(printed)["stands"] == 24
    assert geopandas.read_file(out, layer="stands").crs == UTM
    assert "h100_m" in str(geopandas.read_file(out, layer="layer_styles")["styleQML"].iloc[0])


@pytest.mark.slow
def test_intervals_cover_2000_synthetic_stands(tmp_path: Path) -> None:
    """Calibrated on the western half; stands of 0.1 to 4 ha, of another shape than the squares, on the eastern."""
    truth_m = grow((2400, 2400), 2.0)
    map_m, spread_m = noisy(truth_m, 2.0)
    map_path = height_map(tmp_path / "map.tif", map_m, half_m=1.645 * spread_m, resolution=2.0)
    truth = height_map(tmp_path / "truth.tif", truth_m, resolution=2.0)
    west = height_map(tmp_path / "west.tif", truth_m[:, :1200], resolution=2.0)
    polygons = write_polygons(tmp_path / "stands.gpkg", blobs(2000, (2550, 150, 4650, 4650), (0.1, 4), seed=5))
    mapped = derive_stands(map_path, tmp_path / "map.parquet", StandOptions(), polygons=polygons, truth=west)
    true = derive_stands(truth, tmp_path / "truth.parquet", StandOptions(), polygons=polygons)
    rows, expected = read_rows(mapped.path), read_rows(true.path)
    for name in STATISTICS:
        covered = (expected[name] >= rows[f"{name}_low"]) & (expected[name] <= rows[f"{name}_high"])
        assert 0.88 <= covered.mean() <= 0.93, (name, covered.mean())
