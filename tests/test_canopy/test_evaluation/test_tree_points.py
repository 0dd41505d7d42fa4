"""Trees from tables and vector files."""

import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine

from canopy.errors import AOIError, EvaluationError
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("1,0,", [3, 5]),  # a gap makes integers floating point: 1.0
        ("T,no,", [3, 5]),
        ("TRUE,False,", [3, 5]),
        ("1,1,1", [3, 4, 5]),
    ],
)
def test_truth_values_are_read_however_they_are_stored(tmp_path: Path, values: str, expected: list[float]) -> None:
    rows = [f"1,2,{height},{value}\n" for height, value in zip((3, 4, 5), values.split(","), strict=True)]
    points = read_tree_points(write(tmp_path / "trees.csv", "lon,lat,height_m,top\n" + "".join(rows)))
    assert points.height_m.tolist() == expected


def test_names_of_images_stay_as_they_are_written(tmp_path: Path) -> None:
    points = read_tree_points(write(tmp_path / "trees.csv", "image,col,row\n007,3,4\nplots\\8.tif,5,6\n"))
    for image, expected in (("007.tif", [3]), ("7.tif", []), ("plots/8.tif", [5])):
        assert points.on_image(tmp_path / image, TRANSFORM, UTM).col.tolist() == expected


def test_heights_in_a_column_of_another_name_are_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = read_tree_points(write(tmp_path / "trees.csv", "lon,lat,HEIGHT_M\n1,2,9\n"))
    assert np.isnan(points.height_m).all()
    assert "column HEIGHT_M is not read: heights are read from height_m, metres" in caplog.text
    read_tree_points(write(tmp_path / "feet.csv", "lon,lat,height_m\n1,2,60\n1,2,70\n"))
    assert "half of the trees exceed 65 m; are these feet?" in caplog.text


def test_a_tree_beyond_the_reach_of_a_projection_is_in_no_image(tmp_path: Path) -> None:
    points = read_tree_points(write(tmp_path / "trees.csv", "lon,lat\n63,0\n-117,37\n"))
    own = points.on_image(tmp_path / "any.tif", TRANSFORM, UTM)
    assert np.isfinite(own.row).all() and len(own.row) == len(own.height_m) >= 1


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
    frame.to_parquet(tmp_path / "trees.parquet")
    frame.set_geometry(shapely.force_3d(frame.geometry, 250.0)).to_file(tmp_path / "z.geojson")
    frame.dissolve().to_file(tmp_path / "multi.shp")
    with zipfile.ZipFile(tmp_path / "trees.zip", "w") as archive:
        for part in tmp_path.glob("multi.*"):
            archive.write(part, part.name)
    others = [tmp_path / name for name in ("trees.parquet", "z.geojson", "multi.shp", "trees.zip")]
    for path in (tmp_path / "trees.gpkg", table, *others):
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
        ("lon,lat,height_m\n1,2,0\n1,3,9\n", "height_m from 0 to 9: .* empty where a tree was not measured"),
        ("lat,lon\n-121,39\n", "1 trees lie nowhere on earth, the first at 39, -121 in WGS 84"),
        ("lon,lat\n600260,4397170\n", "1 trees lie nowhere on earth"),
        ("lon,lat\n1,2,9\n", "is no table of tree points .*UTF-8 with commas between columns expected"),
        ("lon,lat,top\n1,2,maybe\n", "column top has 'maybe': true or false expected"),
        ("image,col,row\na,1,2\n,1,2\n", "a tree without its image"),
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
    frame = gpd.GeoDataFrame(geometry=[shapely.Point(320_010, 4_099_990), None], crs=UTM)
    frame.to_file(tmp_path / "gap.gpkg")
    with pytest.raises(EvaluationError, match="a tree without coordinates, 1 in all"):
        read_tree_points(tmp_path / "gap.gpkg")
    frame.set_crs(None, allow_override=True).to_parquet(tmp_path / "nowhere.parquet")
    with pytest.raises(AOIError, match="has no CRS; expected one, assign it"):
        read_tree_points(tmp_path / "nowhere.parquet")
    frame.assign(height_m=True).dropna().to_file(tmp_path / "flags.gpkg")
    with pytest.raises(EvaluationError, match="column height_m is not all numbers: bool values"):
        read_tree_points(tmp_path / "flags.gpkg")
    pd.DataFrame({"height_m": [2.0]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(EvaluationError, match="is no file of tree points: Missing geo metadata"):
        read_tree_points(tmp_path / "plain.parquet")


def test_a_file_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.Point(320_010, 4_099_990)], crs=UTM)
    frame.to_file(tmp_path / "trees.gpkg")
    source = f"<SrcDataSource>{tmp_path / 'trees.gpkg'}</SrcDataSource><SrcLayer>trees</SrcLayer>"
    text = f'<OGRVRTDataSource><OGRVRTLayer name="trees">{source}</OGRVRTLayer></OGRVRTDataSource>'
    with pytest.raises(AOIError, match="is an OGR virtual file, which points to other data"):
        read_tree_points(write(tmp_path / "trees.vrt", text))
    with zipfile.ZipFile(tmp_path / "trees.zip", "w") as archive:
        archive.writestr("trees.vrt", text)
    with pytest.raises(AOIError, match="is an OGR virtual file"):
        read_tree_points(tmp_path / "trees.zip")


def test_the_layer_of_points_is_read_and_several_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "city.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=UTM).to_file(path, layer="parcels")
    trees = gpd.GeoDataFrame(geometry=[shapely.Point(320_010, 4_099_990)], crs=UTM)
    trees.iloc[:0].to_file(path, layer="planned")
    trees.to_file(path, layer="trees")
    assert len(read_tree_points(path)) == 1
    trees.to_file(path, layer="trees_2024")
    with pytest.raises(EvaluationError, match=r"has several layers of points \(trees, trees_2024\): one expected"):
        read_tree_points(path)
