"""Matching of trees with the truth, one to one, and what is counted of it."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

from canopy.errors import CanopyError, ProductError
from canopy.products.tree_scores import MappedTrees, match, score, score_files

CRS = "EPSG:32633"


def mapped(points: list[tuple[float, float]], heights: list[float], radius: float | None = None) -> MappedTrees:
    places = np.array(points, float).reshape(-1, 2)
    crowns = None if radius is None else np.asarray(shapely.buffer(shapely.points(places), radius), object)
    return MappedTrees(places, np.array(heights, float), crowns)


def test_the_nearest_pairs_match_first_and_once() -> None:
    trees = mapped([(0, 0), (1.5, 0), (50, 0)], [10, 12, 14])
    truth = mapped([(1, 0), (100, 0)], [11, 9])
    tree, actual = match(trees, truth, 3)
    assert (tree.tolist(), actual.tolist()) == ([1], [0])


def test_the_highest_tree_of_a_crown_matches() -> None:
    trees = mapped([(0, 0), (2, 0)], [10, 12], 1)
    tree, actual = match(trees, mapped([(0, 0)], [np.nan], 3), 0)
    assert (tree.tolist(), actual.tolist()) == ([1], [0])


def test_scores_by_height() -> None:
    trees = mapped([(0, 0), (10, 0), (20, 0), (30, 0)], [12, 12, 22, 3])
    truth = mapped([(0, 1), (10, 1), (40, 0)], [11, 14, 25])
    result = score(trees, truth, within_m=2)
    assert (result.scores.truth, result.scores.trees) == (3, 4)
    assert (result.scores.recall, result.scores.precision) == (pytest.approx(2 / 3), 0.5)
    assert result.scores.f1 == pytest.approx(4 / 7)
    assert (result.scores.bias_m, result.scores.mae_m) == (-0.5, 1.5)
    assert result.by_height["10-15"].recall == 1
    assert (result.by_height["20-30"].recall, result.by_height["20-30"].precision) == (0, 0)
    assert (result.by_height["2-5"].recall, result.by_height["2-5"].precision) == (None, 0)
    assert result.to_json()["by_height"]["30+"]["truth"] == 0


def test_without_heights_classes_have_precision_alone() -> None:
    result = score(mapped([(0, 0)], [12]), mapped([(0, 1), (9, 9)], [np.nan, np.nan]))
    assert not result.has_heights
    assert result.scores.recall == 0.5
    assert (result.by_height["10-15"].recall, result.by_height["10-15"].precision) == (None, 1)
    assert result.scores.bias_m is None


def test_the_edge_of_the_area_cuts_no_pair() -> None:
    """Tops lie off their stems: of the three pairs one runs over each side of the edge at x = 10."""
    trees = mapped([(0, 0), (10.5, 0), (9.5, 50)], [10, 12, 14], 1)
    truth = mapped([(0, 0), (9.5, 0), (10.5, 50)], [10, 13, 14], 1)
    result = score(trees, truth, within_m=2, area=shapely.box(-10, -10, 10, 100))
    assert (result.scores.truth, result.scores.recall) == (2, 1)
    assert (result.scores.trees, result.scores.precision) == (2, 1)
    assert result.scores.bias_m == -0.5


def test_a_perfect_map_is_perfect_on_the_hull_of_the_truth(files: Path) -> None:
    """Corners of the hull are stems; their tops, brought to another CRS and back, lie a rounding off."""
    tops = gpd.read_parquet(files / "trees.parquet")
    tops = tops.set_geometry(gpd.points_from_xy(tops.top_x, tops.top_y + 0.5), crs=CRS).to_crs(4326)
    tops.to_file(files / "stems.geojson")
    assert score_files(files / "trees.parquet", files / "stems.geojson").scores.recall == 1


def test_trees_elsewhere_are_refused(files: Path) -> None:
    truth = gpd.read_file(files / "crowns.gpkg")
    truth.assign(geometry=truth.translate(5000)).to_file(files / "far.gpkg")
    with pytest.raises(ProductError, match=r"far\.gpkg and .*trees\.gpkg have no ground in common"):
        score_files(files / "trees.gpkg", files / "far.gpkg")
    with pytest.raises(ProductError, match="no ground in common"):
        score_files(files / "trees.gpkg", files / "truth.geojson", area=files / "far.gpkg")


def test_overlap_of_crowns() -> None:
    result = score(mapped([(0, 0)], [12], 2), mapped([(0, 0)], [np.nan], 4))
    assert result.crown_iou == pytest.approx(0.25)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    points = [(500_000, 5_000_000), (500_010, 5_000_000), (500_100, 5_000_000)]
    trees = gpd.GeoDataFrame(
        {"height_m": [10.0, 20.0, 15.0], "top_x": [x for x, _ in points], "top_y": [y for _, y in points]},
        geometry=[shapely.Point(point).buffer(2) for point in points],
        crs=CRS,
    )
    trees.to_parquet(folder / "trees.parquet")
    trees.to_file(folder / "trees.gpkg", layer="crowns")
    trees.iloc[:0].to_parquet(folder / "none.parquet")
    truth = gpd.GeoDataFrame(
        {"h": [11.0, 19.0], "who": ["a", "b"]}, geometry=gpd.points_from_xy(*zip(*points[:2], strict=True)), crs=CRS
    )
    area = gpd.GeoDataFrame(geometry=[shapely.box(499_990, 4_999_990, 500_020, 5_000_010)], crs=CRS)
    area.to_file(folder / "area.gpkg")
    truth.to_crs(4326).to_file(folder / "truth.geojson")
    truth.assign(geometry=truth.buffer(3)).to_file(folder / "crowns.gpkg")
    truth.assign(geometry=[shapely.LineString([(0, 0), (1, 1)])] * 2).to_file(folder / "lines.gpkg")
    return folder


def test_files_are_scored_in_the_crs_of_the_trees(files: Path) -> None:
    result = score_files(files / "trees.parquet", files / "truth.geojson", height_field="h", area=files / "area.gpkg")
    assert (result.scores.recall, result.scores.precision, result.scores.bias_m) == (1, 1, 0)
    result = score_files(files / "trees.gpkg", files / "crowns.gpkg")
    assert (result.scores.trees, result.scores.precision) == (2, 1)  # the third lies off the hull of the truth
    assert result.crown_iou == pytest.approx(4 / 9, rel=0.01)


def test_trees_of_another_map_are_a_truth(files: Path) -> None:
    """Crowns and tops are layers of one file: the layer of areas is taken, for geometries and heights."""
    crowns = gpd.read_parquet(files / "trees.parquet")
    crowns.to_file(files / "lidar.gpkg", layer="crowns")
    crowns.iloc[:1].set_geometry(crowns.iloc[:1].centroid).to_file(files / "lidar.gpkg", layer="tops")
    result = score_files(files / "trees.gpkg", files / "lidar.gpkg", height_field="height_m")
    assert (result.scores.truth, result.scores.recall, result.scores.mae_m, result.crown_iou) == (3, 1, 0, 1)
    tops = score_files(files / "trees.gpkg", files / "lidar.gpkg", layer="tops", area=files / "area.gpkg")
    assert tops.scores.truth == 1


@pytest.mark.parametrize(
    ("trees", "truth", "field", "words"),
    [
        ("none.parquet", "truth.geojson", None, "has no trees"),
        ("truth.geojson", "truth.geojson", None, r"trees in \.gpkg or \.parquet expected"),
        ("crowns.gpkg", "truth.geojson", None, "a file of canopy derive trees expected"),
        ("trees.parquet", "truth.geojson", "height", "no field 'height': one of h, who expected"),
        ("trees.parquet", "truth.geojson", "who", "heights in metres expected"),
        ("trees.parquet", "lines.gpkg", None, "points or polygons of trees expected"),
        ("trees.parquet", "missing.gpkg", None, "no such file"),
    ],
)
def test_what_cannot_be_scored_is_refused(files: Path, trees: str, truth: str, field: str | None, words: str) -> None:
    with pytest.raises(CanopyError, match=words) as error:
        score_files(files / trees, files / truth, height_field=field)
    assert isinstance(error.value, ProductError) or "no such file" in words
    assert "\n" not in str(error.value)
