"""Layers of features: an answer has the features of its view, all of them or none, in longitude and latitude."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from map_server import UTM, X, Y, lonlat, make_map
from shapely.geometry import shape
from starlette.testclient import TestClient

from tiles.errors import CanopyError, RasterError, VectorError
from tiles.server import feature_queries, feature_tables
from tiles.server.app import create_app
from tiles.server.catalog import open_catalog
from tiles.server.feature_queries import clip_box, simplify
from tiles.server.fields import describe_field

ALL = "bbox=14,44,16,46&zoom=18"


def squares(count: int = 6) -> geopandas.GeoDataFrame:
    """Return squares of 4 m in a row, 10 m apart from west to east, with a height each and one that is unknown."""
    boxes = [shapely.box(X + 10 * n, Y - 14, X + 10 * n + 4, Y - 10) for n in range(count)]
    heights = np.arange(count, dtype=float) + 10
    heights[-1] = np.nan
    names = [f"t{n}" for n in range(count)]
    columns = {"tree_id": names, "height_m": heights, "crown_area_m2": 16.0, "is_cut": [n == 1 for n in range(count)]}
    return geopandas.GeoDataFrame(columns, geometry=boxes, crs=UTM)


def write(path: Path, table: geopandas.GeoDataFrame | None = None, **options: Any) -> Path:
    """Write features in the format that the name ends in."""
    table = squares() if table is None else table
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, **options)
    else:
        table.to_file(path, **options)
    return path


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Open a server of a map and of files of features."""
    clients: list[TestClient] = []

    def open_one(*paths: Path) -> TestClient:
        catalog = open_catalog(make_map(tmp_path / "map" / "map.tif"), others=paths)
        clients.append(TestClient(create_app(catalog), base_url="http://127.0.0.1:8000"))
        return clients[-1]

    yield open_one
    for one in clients:
        one.close()


def box_of(first: int, last: int) -> str:
    """Return a bbox in degrees that contains squares from one number to another and nothing of others."""
    west, south = lonlat(10 * first - 2, 20)
    east, north = lonlat(10 * last + 6, 5)
    return f"bbox={west},{south},{east},{north}&zoom=18"


def names(answer: Any) -> list[str]:
    return [feature["properties"]["tree_id"] for feature in answer.json()["features"]]


FORMATS = {
    "GeoPackage": ("a.gpkg", {}),
    "GeoPackage without index": ("a.gpkg", {"layer_options": {"SPATIAL_INDEX": "NO"}}),
    "FlatGeobuf": ("a.fgb", {}),
    "shapefile": ("a.shp", {}),
    "GeoParquet": ("a.parquet", {}),
    "GeoParquet with boxes": ("a.parquet", {"write_covering_bbox": True, "row_group_size": 2}),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:.*(Normalized|laundered)")
def test_features_of_a_view(tmp_path: Path, client: Callable[..., TestClient], kind: str) -> None:
    name, options = FORMATS[kind]
    table = squares().rename(columns={"crown_area_m2": "area_m2"})
    served = client(write(tmp_path / name, table, **options))
    (vector,) = served.get("/vectors").json()["vectors"]
    assert (vector["id"], vector["geometry"], vector["features"], vector["crs"]) == ("a", "polygon", 6, UTM)
    answer = served.get(f"/vectors/a/features?{box_of(2, 3)}")
    assert answer.headers["content-type"] == "application/geo+json"
    assert sorted(names(answer)) == ["t2", "t3"]
    assert answer.json()["complete"] is True
    # A number names the same feature whatever the view.
    everything = {f["properties"]["tree_id"]: f for f in served.get(f"/vectors/a/features?{ALL}").json()["features"]}
    assert len(everything) == len({feature["id"] for feature in everything.values()}) == 6
    for feature in answer.json()["features"]:
        assert feature == everything[feature["properties"]["tree_id"]]
    assert everything["t5"]["properties"]["height_m"] is None
    assert everything["t3"]["properties"]["height_m"] == 13
    assert served.get("/vectors/a/features?bbox=1,2,3,4&zoom=18").json()["features"] == []


def test_features_lie_where_the_file_says(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    served = client(write(tmp_path / "trees.gpkg"))
    (feature,) = served.get(f"/vectors/trees/features?{box_of(3, 3)}").json()["features"]
    to_utm = pyproj.Transformer.from_crs("OGC:CRS84", UTM, always_xy=True)
    corners = to_utm.transform(*shapely.get_coordinates(shape(feature["geometry"])).T)
    expected = squares().geometry[3].bounds
    assert (min(corners[0]), min(corners[1]), max(corners[0]), max(corners[1])) == pytest.approx(expected, abs=0.02)


def test_lonlat_files_need_no_projection(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    served = client(write(tmp_path / "trees.geojson", squares().to_crs("OGC:CRS84")))
    assert names(served.get(f"/vectors/trees/features?{box_of(0, 1)}")) == ["t0", "t1"]


def test_a_view_of_too_many_features_has_none(
    tmp_path: Path, client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = client(write(tmp_path / "trees.gpkg"))
    monkeypatch.setattr(feature_queries, "MAX_FEATURES", 3)
    assert names(served.get(f"/vectors/trees/features?{box_of(1, 3)}")) == ["t1", "t2", "t3"]
    answer = served.get(f"/vectors/trees/features?{box_of(1, 4)}").json()
    assert answer == {"type": "FeatureCollection", "complete": False, "limit": 3, "features": []}
    monkeypatch.setattr(feature_queries, "MAX_VERTICES", 9)
    assert served.get(f"/vectors/trees/features?{box_of(1, 1)}").json()["complete"] is True
    assert served.get(f"/vectors/trees/features?{box_of(1, 2)}").json()["complete"] is False


def test_outlines_are_as_fine_as_the_zoom(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    disc = shapely.Point(X + 30, Y - 30).buffer(20, quad_segs=400)
    served = client(write(tmp_path / "gaps.gpkg", geopandas.GeoDataFrame({"id": ["a"]}, geometry=[disc], crs=UTM)))
    corners = []
    for zoom in (12, 16, 20):
        (feature,) = served.get(f"/vectors/gaps/features?bbox=14,44,16,46&zoom={zoom}").json()["features"]
        outline = shapely.transform(shape(feature["geometry"]), lambda xy: np.column_stack(_utm(xy)))
        px_m = 40_075_017 * np.cos(np.radians(45)) / 512 / 2**zoom
        assert shapely.hausdorff_distance(outline, disc) < 0.5 * px_m / np.cos(np.radians(45)) + 0.02
        corners.append(shapely.get_num_coordinates(outline))
    assert corners[0] < corners[1] < corners[2] < 1601


def _utm(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pyproj.Transformer.from_crs("OGC:CRS84", UTM, always_xy=True).transform(*xy.T)


def test_simplified_features_do_not_vanish() -> None:
    tiny = np.array([shapely.box(15, 45, 15.00001, 45.00001), shapely.Point(15, 45)])
    assert not shapely.is_empty(simplify(tiny, 3)).any()


@pytest.mark.parametrize(
    ("view", "bounds", "expected"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), (1, 1, 2, 2)),
        ((0, 0, 1, 1), (2, 2, 3, 3), None),
        ((170, 0, 180, 1), (179, 0, -179, 1), (179, 0, 180, 1)),
        ((-180, 0, -170, 1), (179, 0, -179, 1), (-180, 0, -179, 1)),
        ((0, 0, 1, 1), (179, 0, -179, 1), None),
    ],
)
def test_views_are_clipped(view: Any, bounds: Any, expected: Any) -> None:
    assert clip_box(view, bounds) == expected


def test_tables_of_a_file_are_layers(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    path = write(tmp_path / "trees.gpkg", layer="crowns")
    tops = squares().assign(top_x=1.0)
    tops.geometry = tops.centroid
    write(path, tops, layer="tops", mode="a")
    served = client(path, write(tmp_path / "gaps.gpkg"), write(tmp_path / "later" / "gaps.parquet"))
    vectors = served.get("/vectors").json()["vectors"]
    assert [(v["id"], v["title"], v["content"], v["geometry"], v["shown"]) for v in vectors] == [
        ("trees-crowns", "trees: crowns", "trees", "polygon", True),
        ("trees-tops", "trees: tops", "treetops", "point", False),
        ("gaps", "gaps", "gaps", "polygon", True),
        ("gaps-2", "gaps", "gaps", "polygon", True),
    ]
    assert len({v["colour"] for v in vectors}) == 4
    assert [field["name"] for field in vectors[1]["fields"]] == ["tree_id", "height_m", "crown_area_m2", "is_cut"]
    point = served.get(f"/vectors/trees-tops/features?{box_of(0, 0)}").json()["features"][0]["geometry"]
    assert (point["type"], point["coordinates"]) == ("Point", pytest.approx(lonlat(2, 12), abs=1e-6))
    one = served.get("/vectors/gaps").json()
    assert one == vectors[2]
    assert one["links"]["features"] == "http://127.0.0.1:8000/vectors/gaps/features"


def test_parquet_says_what_its_product_is(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    import pyarrow.parquet as pq

    path = write(tmp_path / "site 7.parquet")
    table = pq.read_table(path)
    about = {b"canopy": json.dumps({"product": "trees"}).encode()}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **about}), path)
    (vector,) = client(path).get("/vectors").json()["vectors"]
    assert (vector["id"], vector["title"], vector["content"]) == ("site-7", "site 7", "trees")


@pytest.mark.parametrize(
    ("name", "title", "unit"),
    [
        ("height_m", "Height", "m"),
        ("height_p05_m", "Height, 5th percentile", "m"),
        ("height_p95_m", "Height, 95th percentile", "m"),
        ("height_difference_p05_m", "Height difference, 5th percentile", "m"),
        ("crown_diameter_m", "Crown diameter", "m"),
        ("crown_area_m2", "Crown area", "m²"),
        ("area_ha", "Area", "ha"),
        ("cover_5m", "Cover above 5 m", "1"),
        ("cover_5m_low", "Cover above 5 m, low end", "1"),
        ("mean_m_coverage", "Mean height, coverage of the interval", "1"),
        ("share_2_5m", "Share from 2 to 5 m", "1"),
        ("share_above_30m", "Share above 30 m", "1"),
        ("p95_m", "95th percentile of height", "m"),
        ("owner", "Owner", None),
        ("m", "M", None),
        ("_", "_", None),
    ],
)
def test_columns_have_names_and_units_for_people(name: str, title: str, unit: str | None) -> None:
    field = describe_field(name)
    assert (field.title, field.unit) == (title, unit)


def lines() -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.LineString([(X, Y), (X + 9, Y)])], crs=UTM)


def _write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD = {
    "without CRS": (lambda f: write(f / "a.gpkg", squares().set_crs(None, allow_override=True)), "has no CRS"),
    "Parquet without CRS": (
        lambda f: write(f / "a.parquet", squares().set_crs(None, allow_override=True)),
        "has no CRS",
    ),
    "lines": (lambda f: write(f / "a.gpkg", lines()), "of the type LineString; expected polygons or points"),
    "lines in Parquet": (lambda f: write(f / "a.parquet", lines()), "of the type LineString; expected polygons"),
    "no features": (lambda f: write(f / "a.gpkg", squares().iloc[:0]), "has no features; expected polygons"),
    "no features in Parquet": (lambda f: write(f / "a.parquet", squares().iloc[:0]), "has no features"),
    "no geometry": (lambda f: _table(f / "a.parquet"), "has no geometry"),
    "missing": (lambda f: f / "a.gpkg", "no such file"),
    "empty file": (lambda f: _write_bytes(f / "a.gpkg", b""), "cannot be read"),
    "damaged": (lambda f: _write_bytes(f / "a.gpkg", b"no database" * 99), "cannot be read"),
    "damaged Parquet": (lambda f: _write_bytes(f / "a.parquet", b"PAR1" + bytes(40)), "cannot be read"),
    "CSV": (lambda f: _write_bytes(f / "a.csv", b"tree_id,x,y\n"), "without CRS; expected a GeoPackage"),
    "pointer": (lambda f: _write_bytes(f / "a.geojson", b"<OGRVRTDataSource/>"), "points to other data"),
}


def _table(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), path)
    return path


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_bad_files_are_one_line_before_the_server_starts(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(CanopyError, match=message) as error:
        open_catalog(make_map(tmp_path / "map.tif"), others=[path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_features_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="has only features; expected GeoTIFFs with a CRS, name a height map first"):
        open_catalog(write(tmp_path / "a.gpkg"))


def test_large_files_without_index_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(path: Path) -> int:
        return len(open_catalog(tmp_path / "map.tif", others=[path]).vectors)

    make_map(tmp_path / "map.tif")
    monkeypatch.setattr(feature_tables, "MAX_IN_MEMORY", 5)
    monkeypatch.setattr(feature_tables, "MAX_BOXES", 5)
    with pytest.raises(VectorError, match="6 features without a spatial index; expected at most 5, write them to"):
        serve(write(tmp_path / "a.geojson", squares().to_crs("OGC:CRS84")))
    with pytest.raises(VectorError, match=r"6 features without a column of boxes \(bbox\); expected at most 5"):
        serve(write(tmp_path / "a.parquet"))
    assert serve(write(tmp_path / "b.parquet", write_covering_bbox=True)) == 1
    assert serve(write(tmp_path / "a.gpkg")) == 1
    monkeypatch.setattr(feature_tables, "MAX_BYTES", 100)
    with pytest.raises(VectorError, match="0 MiB without a spatial index"):
        serve(write(tmp_path / "c.geojson", squares(5).to_crs("OGC:CRS84")))


def test_parquet_is_read_by_batches(
    tmp_path: Path, client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_tables, "BATCH", 2)
    table = squares(9)
    table.loc[4, "geometry"] = None
    served = client(write(tmp_path / "trees.parquet", table, row_group_size=5))
    assert names(served.get(f"/vectors/trees/features?{box_of(3, 6)}")) == ["t3", "t5", "t6"]
    assert len(names(served.get(f"/vectors/trees/features?{ALL}"))) == 8


def test_products_of_a_folder_are_listed_and_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_map(tmp_path / "maps" / "map.tif")
    write(tmp_path / "maps" / "products" / "gaps.gpkg")
    write(tmp_path / "maps" / "products" / "roads.gpkg", lines())
    write(tmp_path / "maps" / "run.partial" / "a.gpkg")
    (tmp_path / "maps" / "link.gpkg").symlink_to(write(tmp_path / "outside.gpkg"))
    with caplog.at_level(logging.WARNING):
        (vector,) = open_catalog(tmp_path / "maps").vectors
    assert (vector.id, vector.is_shown) == ("gaps", False)
    for name, reason in (("link.gpkg", "lies outside"), ("roads.gpkg", "polygons or points")):
        assert any(name in line and reason in line for line in caplog.messages), name


def test_a_replaced_file_is_read_again(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    path = write(tmp_path / "trees.parquet")
    served = client(path)
    before = served.get("/vectors/trees").json()
    write(tmp_path / "new.parquet", squares(9)).replace(path)
    after = served.get("/vectors/trees").json()
    assert (before["features"], after["features"], after["colour"]) == (6, 9, before["colour"])
    assert len(names(served.get(f"/vectors/trees/features?{ALL}"))) == 9


@pytest.mark.parametrize("content", [None, b"broken", b"PAR1" + bytes(40)])
def test_no_answer_names_a_folder_of_this_machine(
    tmp_path: Path, client: Callable[..., TestClient], content: bytes | None
) -> None:
    path = write(tmp_path / "trees.parquet")
    served = client(path)
    assert str(tmp_path) not in served.get("/vectors").text + served.get("/openapi.json").text
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    answer = served.get(f"/vectors/trees/features?{ALL}")
    assert (answer.status_code, str(tmp_path) in answer.text) == (500, False)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/vectors/none", 404, "no layer of features 'none'"),
        ("/vectors/map/features?bbox=0,0,1,1&zoom=3", 404, "no layer of features 'map'"),
        ("/vectors/..%2Ftrees/features?bbox=0,0,1,1&zoom=3", 404, ""),
        ("/vectors/trees/features?zoom=3", 422, "bbox"),
        ("/vectors/trees/features?bbox=0,0,1,1", 422, "zoom"),
        ("/vectors/trees/features?bbox=0,0,1,1&zoom=25", 422, "zoom"),
        ("/vectors/trees/features?bbox=0,0,1,1&zoom=nan", 422, "zoom"),
        ("/vectors/trees/features?bbox=1,0,0,1&zoom=3", 400, "increasing degrees"),
        ("/vectors/trees/features?bbox=nan,0,0,1&zoom=3", 400, "increasing degrees"),
        ("/vectors/trees/features?bbox=0,0,1,1&zoom=3&limit=9", 400, "unknown parameter 'limit'"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, client: Callable[..., TestClient], path: str, status: int, text: str
) -> None:
    answer = client(write(tmp_path / "trees.gpkg")).get(path)
    assert answer.status_code == status
    assert text in answer.json()["detail"]


def test_values_are_json(tmp_path: Path, client: Callable[..., TestClient]) -> None:
    table = squares(2).assign(day=np.array(["2021-07-01", "NaT"], "datetime64[ms]"), note=["x" * 500, None], n=[1, 2])
    for name in ("a.gpkg", "b.parquet"):
        write(tmp_path / name, table)
        served = client(tmp_path / name)
        first, second = (f["properties"] for f in served.get(f"/vectors/{name[0]}/features?{ALL}").json()["features"])
        assert first["day"].startswith("2021-07-01T00:00:00")
        assert (len(first["note"]), first["is_cut"], first["n"]) == (200, False, 1)
        assert (second["day"], second["note"], second["is_cut"]) == (None, None, True)
