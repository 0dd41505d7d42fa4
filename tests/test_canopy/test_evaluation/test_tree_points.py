"""Trees from tables and vector files."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine

from canopy.errors import EvaluationError
from canopy.evaluation.tree_points import read_tree_points

UTM = "EPSG:32611"
TRANSFORM = Affine(0.5, 0, 320_000, 0, -0.5, 4_100_000)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_in_pixels_names_the_end_of_an_image_path(tmp_path: Path) -> None:
    table = write(tmp_path / "trees.csv", "crop,col,row\na_2018_0,3,4\npairs/b/rgb.tif,1,2\nc,7,8\n")
    points = read_tree_points(table)
    for image, expected in (("x/a_2018_0.tif", [(4, 3)]), ("x/pairs/b/rgb.tif", [(2, 1)]), ("x/d.tif", [])):
        own = points.on_image(tmp_path / image, TRANSFORM, UTM)
        assert list(zip(own.row, own.col, strict=True)) == expected
    assert np.isnan(points.height_m).all()


def test_rows_that_may_not_be_used_are_left_out(tmp_path: Path) -> None:
    rows = "a,1,1,9.5,True,True\na,2,2,8,False,True\na,3,3,7,True,False\na,4,4,6,True,\n"
    points = read_tree_points(write(tmp_path / "stems.csv", "image,col,row,height_m,top,plausible\n" + rows))
    assert points.height_m.tolist() == [9.5, 6.0]


def test_points_of_a_vector_file_and_degrees_of_a_table_are_the_same_trees(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(
        {"height_m": [12.0, np.nan]}, geometry=[shapely.Point(320_010, 4_099_990), shapely.Point(320_020, 4_099_980)],
        crs=UTM,
    )  # fmt: skip
    frame.to_file(tmp_path / "trees.gpkg")
    degrees = frame.to_crs("OGC:CRS84")
    table = write(
        tmp_path / "trees.csv",
        "lon,lat\n" + "".join(f"{point.x!r},{point.y!r}\n" for point in degrees.geometry),
    )
    for path in (tmp_path / "trees.gpkg", table):
        own = read_tree_points(path).on_image(tmp_path / "any.tif", TRANSFORM, UTM)
        np.testing.assert_allclose(own.col, [20, 40], atol=1e-3)
        np.testing.assert_allclose(own.row, [20, 40], atol=1e-3)
    assert read_tree_points(tmp_path / "trees.gpkg").height_m.tolist()[0] == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "has the columns x, y: lon,lat or image,col,row expected"),
        ("lon,lat\n", "has no tree that may be used"),
        ("lon,lat\n1,north\n", "column lat is not all numbers"),
        ("lon,lat\n1,\n", "a tree without coordinates"),
        ("lon,lat,height_m\n1,2,950\n", "height_m from 950 to 950: metres expected"),
    ],
)
def test_a_faulty_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_tree_points(write(tmp_path / "trees.csv", text))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_tree_points(tmp_path / "absent.gpkg")
    with pytest.raises(EvaluationError, match="is no file of tree points"):
        read_tree_points(write(tmp_path / "trees.gpkg", "no database"))
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=UTM).to_file(tmp_path / "crowns.gpkg")
    with pytest.raises(EvaluationError, match="has Polygon: points expected"):
        read_tree_points(tmp_path / "crowns.gpkg")
