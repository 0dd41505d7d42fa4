"""Trees of a map: the same through one tile and many, cut maps and killed runs, with all that is said of them."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from product_maps import height_map, read_rows
from rasters import make_raster
from scipy import ndimage

from canopy.errors import CanopyError, EvaluationError, OutputError, ProductError
from canopy.example.stand import Stand, make_stand
from canopy.products import trees as module
from canopy.products.reading import open_map
from canopy.products.trees import TreeOptions, derive_trees, find_trees, halo
from canopy.products.treetops import WindowLine

SMALL = TreeOptions(WindowLine(2.5, 0, 0.009, max_m=5), max_radius_m=4)


@pytest.fixture(scope="module")
def stand() -> Stand:
    return make_stand(60, seed=3)


@pytest.fixture(scope="module")
def map_path(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heights = stand.observe(0.3, seed=1)
    heights[40:50, 60:80] = np.nan
    return height_map(tmp_path_factory.mktemp("trees") / "map.tif", heights, half_m=2.0, crs=stand.crs, **placed(stand))


@pytest.fixture(scope="module")
def rows(map_path: Path) -> Any:
    summary = derive_trees(map_path, map_path.with_name("trees.parquet"), SMALL)
    rows = by_id(summary.path)
    assert summary.trees == len(rows) > 30
    assert summary.median_height_m == pytest.approx(rows["height_m"].median(), abs=0.1)
    assert summary.has_intervals
    return rows


def placed(stand: Stand) -> dict[str, Any]:
    return {"origin": stand.origin, "resolution": stand.gsd_m}


def by_id(path: Path) -> Any:
    return read_rows(path).sort_values("tree_id").reset_index(drop=True)


@pytest.mark.parametrize("tile_px", [37, 60])
def test_tiles_give_the_trees_of_the_whole(map_path: Path, rows: Any, tmp_path: Path, tile_px: int) -> None:
    tiled = by_id(derive_trees(map_path, tmp_path / "trees.parquet", SMALL, tile_px=tile_px).path)
    pd.testing.assert_frame_equal(pd.DataFrame(tiled), pd.DataFrame(rows))


def test_a_cut_map_gives_the_same_trees_away_from_its_edge(map_path: Path, rows: Any, tmp_path: Path) -> None:
    with open_map(map_path) as source:
        heights = source.read(source.whole)
        x, y = source.transform @ (25, 31)
    cut = height_map(tmp_path / "cut.tif", heights[31:, 25:], crs="EPSG:32611", origin=(x, y), resolution=0.5)
    part = by_id(derive_trees(cut, tmp_path / "trees.parquet", SMALL).path)
    far = shapely.box(x, 0, 1e7, y).buffer(-0.5 * halo(SMALL, 0.5))
    inside, expected = (each[shapely.contains_xy(far, each.top_x, each.top_y)] for each in (part, rows))
    columns = ["tree_id", "height_m", "crown_area_m2", "confidence"]
    assert len(inside) > 10
    np.testing.assert_array_equal(inside[columns], expected[columns])
    assert (inside.geometry.to_numpy() == expected.geometry.to_numpy()).all()


def test_columns_say_what_the_map_says(map_path: Path, rows: Any) -> None:
    with rasterio.open(map_path) as dataset:
        heights = dataset.read(1)
        at_tops = np.array([value[0] for value in dataset.sample(rows[["top_x", "top_y"]].to_numpy())])
    valid = ~np.isnan(heights)
    highest = ndimage.maximum_filter(np.where(valid, heights, -1), 3)
    with rasterio.open(map_path) as dataset:
        cells = [dataset.index(x, y) for x, y in zip(rows.top_x, rows.top_y, strict=True)]
    np.testing.assert_array_equal(rows.height_m, [highest[cell] for cell in cells])
    assert (rows.height_m >= at_tops).all()
    np.testing.assert_allclose(rows.height_p05_m, rows.height_m - 2, atol=1e-5)
    np.testing.assert_allclose(rows.height_p95_m, rows.height_m + 2, atol=1e-5)
    np.testing.assert_allclose(rows.crown_area_m2, rows.geometry.area, rtol=1e-6)
    np.testing.assert_allclose(rows.crown_diameter_m**2 * np.pi / 4, rows.geometry.area, rtol=1e-5)
    assert rows.geometry.contains(gpd.GeoSeries(gpd.points_from_xy(rows.top_x, rows.top_y), crs=rows.crs)).all()
    assert rows.confidence.between(0, 1).all()
    assert rows.tree_id.is_unique
    names = [f"t{int(x // 0.5)}_{int(y // 0.5)}" for x, y in zip(rows.top_x, rows.top_y, strict=True)]
    assert rows.tree_id.tolist() == names
    # Crowns at the edge of the map and along the hole, and no others.
    touched = ndimage.binary_dilation(np.pad(~valid, 1, constant_values=True))[1:-1, 1:-1]
    for crown, touches in zip(rows.geometry, rows.touches_unknown, strict=True):
        with rasterio.open(map_path) as dataset:
            mask = rasterio.features.geometry_mask([crown], valid.shape, dataset.transform, invert=True)
        assert touched[mask].any() == touches


def test_a_lone_tree_is_certain_and_a_bump_is_not() -> None:
    rows, cols = np.ogrid[:80, :80]
    cone = np.maximum(15 - 2 * np.hypot(rows - 40, cols - 25), 0)
    twins = [12 - 0.02 * np.hypot(rows - 40, cols - col) ** 2 for col in (50, 58)]
    heights = np.maximum(cone, np.where((abs(rows - 40) < 8) & (cols > 44) & (cols < 64), np.maximum(*twins), 0))
    options = TreeOptions(WindowLine(3, 0, 0), smooth_m=0.5, max_radius_m=8)
    trees = find_trees(heights.astype(np.float32), np.s_[0:80, 0:80], 1.0, options)
    assert (trees.tops % 80).tolist() == [25, 50, 58]
    assert trees.confidence[0] > 0.95
    assert (trees.confidence[1:] < 0.1).all()
    assert trees.low_m is None


def test_masked_cells_have_no_trees(map_path: Path, rows: Any, stand: Stand, tmp_path: Path) -> None:
    excluded = np.zeros((1, 60, 60), np.uint8)
    excluded[:, :, 30:] = 1
    mask = make_raster(tmp_path / "mask.tif", crs=stand.crs, origin=stand.origin, resolution=1.0, values=excluded)
    part = by_id(derive_trees(map_path, tmp_path / "trees.parquet", SMALL, mask=mask).path)
    middle = stand.origin[0] + 30
    assert 0 < len(part) < len(rows)
    assert part.geometry.bounds.maxx.max() <= middle
    assert part[part.geometry.bounds.maxx == middle].touches_unknown.all()
    with pytest.raises(EvaluationError, match="one expected"):
        bands = make_raster(tmp_path / "bands.tif")
        derive_trees(map_path, tmp_path / "more.parquet", SMALL, mask=bands)


def test_formats_have_crowns_and_tops(map_path: Path, rows: Any, tmp_path: Path) -> None:
    package = derive_trees(map_path, tmp_path / "trees.gpkg", SMALL).path
    crowns, tops = (gpd.read_file(package, layer=name).sort_values("tree_id") for name in ("crowns", "tops"))
    assert crowns.geometry.geom_type.unique().tolist() == ["Polygon"]
    assert tops.geometry.geom_type.unique().tolist() == ["Point"]
    np.testing.assert_array_equal(tops.geometry.x, rows.top_x)
    np.testing.assert_array_equal(crowns.tree_id, rows.tree_id)
    (style,) = gpd.read_file(package, layer="layer_styles")["styleQML"]
    assert 'attr="height_m"' in style
    table = by_id(derive_trees(map_path, tmp_path / "trees.csv", SMALL).path)
    np.testing.assert_array_equal(table.x, rows.top_x)
    with pytest.raises(OutputError, match=r"a name ending in \.gpkg"):
        derive_trees(map_path, tmp_path / "trees.shp")
    with pytest.raises(OutputError, match="exists"):
        derive_trees(map_path, tmp_path / "trees.csv", SMALL)


def test_a_killed_run_goes_on(map_path: Path, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, tile_trees = tmp_path / "trees.parquet", module.tile_trees
    calls = []

    def fail_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tile_trees(*arguments)

    monkeypatch.setattr(module, "tile_trees", fail_third)
    with pytest.raises(KeyboardInterrupt):
        derive_trees(map_path, out, SMALL, tile_px=60)
    assert not out.exists()
    states = []
    derive_trees(map_path, out, SMALL, tile_px=60, report=states.append)
    assert len(calls) == 3 + 2  # of four tiles two were done
    assert (states[-1].done, states[-1].total, states[-1].resumed) == (4, 4, 2)
    pd.testing.assert_frame_equal(pd.DataFrame(by_id(out)), pd.DataFrame(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trees.parquet"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 1.2}, "cells of 1.20 m: at most 1 m expected"),
        ({"crs": "EPSG:4326", "origin": (15, 45), "resolution": 1e-5}, "in degrees"),
        ({"crs": None}, "no CRS"),
    ],
)
def test_maps_without_trees_to_find_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = height_map(tmp_path / "map.tif", np.full((5, 5), 9.0), **options)
    with pytest.raises(CanopyError, match=words):
        derive_trees(path, tmp_path / "trees.gpkg")
    assert not (tmp_path / "trees.gpkg").exists()


@pytest.mark.parametrize(
    "values", [{"smooth_m": 6}, {"lowest_m": -1}, {"crown_share": 1}, {"max_radius_m": 0}, {"smooth_m": np.nan}]
)
def test_options_that_no_forest_has_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ProductError, match="expected"):
        TreeOptions(**values)


def test_a_map_without_canopy_gives_an_empty_file_of_all_columns(tmp_path: Path) -> None:
    path = height_map(tmp_path / "map.tif", np.zeros((20, 20)))
    for name in ("trees.gpkg", "trees.parquet", "trees.csv"):
        summary = derive_trees(path, tmp_path / name)
        assert (summary.trees, summary.median_height_m) == (0, None)
        if name == "trees.gpkg":
            assert gpd.list_layers(summary.path)["name"].tolist() == ["crowns", "tops", "layer_styles"]
        else:
            assert "crown_area_m2" in read_rows(summary.path).columns


def test_the_commands(map_path: Path, rows: Any, stand: Stand, tmp_path: Path, canopy: Any) -> None:
    out = tmp_path / "trees.gpkg"
    arguments = ("--window", "2.5,0,0.009", "--window-max", 5, "--max-radius", 4, "--json")
    status, output, errors = canopy("derive", "trees", "--map", map_path, "--out", out, *arguments)
    assert status == 0
    assert json.loads(output)["trees"] == len(rows)
    assert f"{len(rows)} trees, median height" in errors
    seen = stand.seen_share > 0.3
    truth = gpd.GeoDataFrame({"h": stand.trees[seen, 2]}, geometry=stand.tops()[seen], crs=stand.crs)
    truth.to_file(tmp_path / "truth.gpkg")
    status, output, _ = canopy("derive", "score", out, "--truth", tmp_path / "truth.gpkg", "--height-field", "h")
    assert status == 0
    assert "precision" in output
    status, _, errors = canopy("derive", "trees", "--map", map_path, "--out", out)
    assert (status, "exists" in errors) == (1, True)
    status, _, errors = canopy("derive", "trees", "--map", map_path, "--out", out, "--window", "1,2")
    assert status == 2
