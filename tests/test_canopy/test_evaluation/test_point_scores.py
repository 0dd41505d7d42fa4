"""Maps against trees: shares and errors counted by hand on a map of a few trees."""

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasters import ORIGIN, UTM, make_raster
from typer.testing import CliRunner

from canopy.cli.app import app
from canopy.errors import EvaluationError
from canopy.evaluation import point_scores
from canopy.evaluation.point_page import LEAFLESS_NOTE
from canopy.evaluation.point_scores import evaluate_points

SIDE = 100
"""Pixels of 0.5 m along a side of the map."""
TREES = {(40, 40): 12.0, (60, 60): 1.0}
"""Highest pixel near each tree, by its row and column; the second is missed."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map, its imagery with near-infrared, and its trees."""
    folder = tmp_path_factory.mktemp("points")
    heights = np.zeros((1, SIDE, SIDE), np.float32)
    heights[0, 40, 42] = 12.0  # 1 m from the first tree's point
    heights[0, 60, 60] = 1.0
    heights[0, 20:24, 70:74] = 5.0  # sixteen pixels of far ground
    heights[0, 80:82, 20:22] = 3.0  # four of bare ground
    make_raster(folder / "map.tif", values=heights, dtype="float32", nodata=np.nan)
    rgb = np.full((4, SIDE, SIDE), 120, np.uint8)
    rgb[3] = 200
    rgb[3, 78:84, 18:24] = 120  # 36 bare pixels
    make_raster(folder / "rgbn.tif", values=rgb, photometric="RGB", ALPHA="NO")
    make_raster(folder / "rgb.tif", values=rgb[:3])
    make_raster(folder / "nir.tif", values=rgb[3:])
    points = [shapely.Point(ORIGIN[0] + (col + 0.5) / 2, ORIGIN[1] - (row + 0.5) / 2) for row, col in TREES]
    gpd.GeoDataFrame({"height_m": [14.0, np.nan]}, geometry=points, crs=UTM).to_file(folder / "trees.gpkg")
    (folder / "trees.csv").write_text("image,col,row\n" + "".join(f"rgbn,{c + 0.5},{r + 0.5}\n" for r, c in TREES))
    return folder


def test_trees_ground_and_stems_are_counted(ground: Path) -> None:
    scores = evaluate_points([ground / "map.tif"], ground / "trees.gpkg", images=[ground / "rgbn.tif"]).pooled
    assert (scores.trees, scores.trees_tall) == (2, 0.5)
    rows, cols = (np.indices((SIDE, SIDE)) + 0.5) / 2
    distance = np.min([np.hypot(rows - (r + 0.5) / 2, cols - (c + 0.5) / 2) for r, c in TREES], axis=0)
    far = np.minimum(distance, np.minimum(np.minimum(rows, 50 - rows), np.minimum(cols, 50 - cols))) > 7.2
    assert (scores.bare_px, scores.bare_tall) == (36, pytest.approx(4 / 36))
    assert scores.far_px == far.sum() - 36
    assert scores.far_tall == pytest.approx(16 / (far.sum() - 36))
    assert (scores.stems, scores.stem_mae_m, scores.stem_bias_m) == (1, 2.0, -2.0)


def test_leaves_of_a_wide_crown_are_far_ground_and_not_open(ground: Path, tmp_path: Path) -> None:
    with rasterio.open(ground / "rgbn.tif") as opened:
        rgbn = opened.read()
    chess = np.indices((SIDE, SIDE)).sum(axis=0) % 2
    rgbn[:3, 14:30, 64:80] += (20 * chess).astype(np.uint8)[None, 14:30, 64:80]  # the tall patch, green and rough
    make_raster(tmp_path / "rgbn.tif", values=rgbn, photometric="RGB", ALPHA="NO")
    before, scores = (
        evaluate_points([ground / "map.tif"], ground / "trees.gpkg", images=[folder / "rgbn.tif"]).pooled
        for folder in (ground, tmp_path)
    )
    assert (before.open_px, before.open_tall) == (before.far_px, before.far_tall)
    assert scores.far_px == before.far_px and scores.far_tall == before.far_tall and scores.auc == before.auc
    # the first tree is as high as nothing else, the second as low as most of the ground: the tall patch is leafy
    assert scores.auc < scores.open_auc and before.auc == before.open_auc
    assert scores.open_tall == 0.0
    assert 0 < scores.open_px <= scores.far_px - 16 * 16


def test_a_map_without_near_infrared_says_nothing_of_open_ground(ground: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(ground / "map.tif", tmp_path))
    images = [ground / "rgbn.tif", ground / "rgb.tif"]
    both = evaluate_points([ground / "map.tif", other], ground / "trees.gpkg", images=images)
    one = both.maps[str(ground / "map.tif")]
    assert (both.pooled.open_px, both.pooled.open_tall) == (one.open_px, one.open_tall)
    assert both.pooled.open_auc == pytest.approx(one.open_auc, abs=1e-12)
    assert both.pooled.far_px > 2 * one.far_px, "bare ground of the map without near-infrared is far ground"


def test_ground_that_the_imagery_does_not_show_is_not_judged(ground: Path, tmp_path: Path) -> None:
    with rasterio.open(ground / "rgbn.tif") as opened:
        rgbn = opened.read()
    whole, half = rgbn, rgbn[:, :, :50]
    make_raster(tmp_path / "half.tif", values=half, photometric="RGB", ALPHA="NO")
    make_raster(tmp_path / "nir.tif", values=half[3:])
    maps, trees = [ground / "map.tif"], ground / "trees.gpkg"
    full = evaluate_points(maps, trees, images=[ground / "rgbn.tif"]).pooled
    part = evaluate_points(maps, trees, images=[tmp_path / "half.tif"]).pooled
    assert part.bare_px == full.bare_px == 36 and 0 < part.far_px < full.far_px
    assert part.far_tall == 0.0, "the tall patch of far ground lies in the other half"
    own = evaluate_points(maps, trees, images=[ground / "rgb.tif"], nirs=[tmp_path / "nir.tif"]).pooled
    assert own.far_px == full.far_px, "the colours are known everywhere"
    assert own.open_px == part.open_px, "no near-infrared, no word on leaves"
    make_raster(tmp_path / "declared.tif", values=whole)  # GDAL declares the fourth band as alpha
    assert evaluate_points(maps, trees, images=[tmp_path / "declared.tif"]).pooled == full


def test_auc_compares_each_tree_with_each_pixel_of_ground(ground: Path) -> None:
    scores = evaluate_points([ground / "map.tif"], ground / "trees.gpkg").pooled
    # within 1.5 m of a pixel: 2 or 3 rows on either side of the tall patches, by a disc of 3 pixels
    heights = np.zeros((SIDE, SIDE))
    heights[20:24, 70:74], heights[80:82, 20:22] = 5.0, 3.0
    near = np.zeros((SIDE, SIDE))
    for row in range(-3, 4):
        for col in range(-3, 4):
            if np.hypot(row, col) <= 3:
                near = np.maximum(near, np.roll(heights, (row, col), (0, 1)))
    rows, cols = (np.indices((SIDE, SIDE)) + 0.5) / 2
    distance = np.min([np.hypot(rows - (r + 0.5) / 2, cols - (c + 0.5) / 2) for r, c in TREES], axis=0)
    far = np.minimum(distance, np.minimum(np.minimum(rows, 50 - rows), np.minimum(cols, 50 - cols))) > 7.2
    wins = [(np.mean(near[far] < tree) + np.mean(near[far] == tree) / 2) for tree in TREES.values()]
    assert scores.auc == pytest.approx(np.mean(wins), rel=1e-9)
    assert (scores.bare_px, scores.bare_tall, scores.far_px) == (None, None, far.sum())
    assert (scores.open_px, scores.open_tall, scores.open_auc) == (None, None, None)


def test_near_infrared_of_its_own_and_a_table_in_pixels_score_the_same(ground: Path) -> None:
    maps = [ground / "map.tif"]
    fourth = evaluate_points(maps, ground / "trees.gpkg", images=[ground / "rgbn.tif"]).pooled
    own = evaluate_points(maps, ground / "trees.gpkg", images=[ground / "rgb.tif"], nirs=[ground / "nir.tif"]).pooled
    assert own == fourth
    table = evaluate_points(maps, ground / "trees.csv", images=[ground / "rgbn.tif"]).pooled
    assert (table.trees, table.auc, table.far_px, table.stems) == (2, fourth.auc, fourth.far_px, 0)


def test_windows_change_nothing(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [ground / "map.tif"], ground / "trees.gpkg"
    whole = evaluate_points(*arguments, images=[ground / "rgbn.tif"]).pooled
    monkeypatch.setattr(point_scores, "WINDOW_PX", 37)
    assert evaluate_points(*arguments, images=[ground / "rgbn.tif"]).pooled == whole


def test_an_area_bounds_what_is_scored(ground: Path) -> None:
    x, y = ORIGIN
    area = gpd.GeoDataFrame(geometry=[shapely.box(x, y - 25, x + 25, y)], crs=UTM)
    area.to_file(ground / "area.gpkg")
    scores = evaluate_points([ground / "map.tif"], ground / "trees.gpkg", area=ground / "area.gpkg").pooled
    assert (scores.trees, scores.trees_tall, scores.far_tall) == (1, 1.0, 0.0)


def test_maps_are_pooled_by_their_pixels_and_trees(ground: Path, tmp_path: Path) -> None:
    make_raster(tmp_path / "low.tif", values=np.zeros((1, SIDE, SIDE)), dtype="float32", nodata=np.nan)
    evaluation = evaluate_points([ground / "map.tif", tmp_path / "low.tif"], ground / "trees.gpkg")
    assert (evaluation.pooled.trees, evaluation.pooled.trees_tall) == (4, 0.25)
    assert set(evaluation.to_json()) == {"points", "maps"}
    assert evaluation.maps[str(tmp_path / "low.tif")].auc == 0.5


def test_what_cannot_be_scored_is_one_line(ground: Path) -> None:
    maps = [ground / "map.tif"]
    with pytest.raises(EvaluationError, match="are pixels of an image: name it with --image"):
        evaluate_points(maps, ground / "trees.csv")
    with pytest.raises(EvaluationError, match="2 of --image for 1 maps: none or one a map expected"):
        evaluate_points(maps, ground / "trees.gpkg", images=[ground / "rgb.tif"] * 2)
    with pytest.raises(EvaluationError, match="--nir needs --image"):
        evaluate_points(maps, ground / "trees.gpkg", nirs=[ground / "nir.tif"])
    with pytest.raises(EvaluationError, match="1 bands of float32; 3 or more of uint8 expected"):
        evaluate_points(maps, ground / "trees.gpkg", images=maps)
    with pytest.raises(EvaluationError, match=r"nothing to score: .* and lies in 1,1,2,2"):
        evaluate_points(maps, ground / "trees.gpkg", area="1,1,2,2")


def test_trees_that_lie_in_no_map_are_an_error_and_in_some_a_warning(
    ground: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.zeros((1, SIDE, SIDE), np.float32)
    far = make_raster(tmp_path / "far.tif", values=values, dtype="float32", origin=(ORIGIN[0] + 9_000, ORIGIN[1]))
    with pytest.raises(EvaluationError, match=r"no tree of .*trees\.gpkg lies in .*far\.tif: check the CRS"):
        evaluate_points([far], ground / "trees.gpkg")
    (tmp_path / "other.csv").write_text("image,col,row\nRGB,40,40\n")
    with pytest.raises(EvaluationError, match="or the images that the table names"):
        evaluate_points([ground / "map.tif"], tmp_path / "other.csv", images=[ground / "rgb.tif"])
    assert evaluate_points([ground / "map.tif", far], ground / "trees.gpkg").pooled.trees == 2
    assert "lies in 1 of 2 maps" in caplog.text


def test_pixels_that_are_not_square_on_the_ground_are_refused(ground: Path, tmp_path: Path) -> None:
    values = np.zeros((1, SIDE, SIDE), np.float32)
    degrees = make_raster(
        tmp_path / "degrees.tif", values=values, dtype="float32", crs="EPSG:4326", origin=(3.0, 45.15), resolution=5e-6
    )
    with pytest.raises(EvaluationError, match=r"has pixels of 0\.39\d x 0\.556 m: square ones expected"):
        evaluate_points([degrees], ground / "trees.gpkg")
    mercator = make_raster(
        tmp_path / "mercator.tif", values=values, dtype="float32", crs="EPSG:3857", origin=(334_000, 5_640_000)
    )
    with pytest.raises(EvaluationError, match="no tree"):
        evaluate_points([mercator], ground / "trees.gpkg")


def test_the_command_prints_a_document_and_writes_a_page(ground: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--pred", ground / "map.tif", "--points", ground / "trees.gpkg"]
    full = [*arguments, "--image", ground / "rgbn.tif", "--report", tmp_path, "--json"]
    result = CliRunner().invoke(app, [str(one) for one in full])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["points"]["trees_tall"] == 0.5
    page = (tmp_path / "points.html").read_text(encoding="utf-8")
    assert "50% of 2 trees stand above 2 m" in page and "trees.gpkg" in page
    assert "not leafy &gt; 2 m" in page and LEAFLESS_NOTE in page
    table = CliRunner().invoke(app, [str(one) for one in arguments])
    assert "far ground > 2 m" in table.stdout
    for wrong in (["--pred", "m.tif"], ["--pred", "m.tif", "--points", "p.csv", "--truth", "t.tif"],
                  ["--pred", "m.tif", "--points", "p.csv", "--truth-unit", "cm"]):  # fmt: skip
        assert CliRunner().invoke(app, ["evaluate", *wrong]).exit_code == 2
