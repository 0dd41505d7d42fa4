"""The STAC item of a map is legal STAC 1.1 and says only what is known."""

import json
import math
import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pystac
import pystac.extensions.eo
import pytest
import rasterio
import shapely
import shapely.geometry
from affine import Affine
from jsonschema import Draft7Validator
from odc.geo.geom import Geometry
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.errors import RasterError
from tiles.files import file_sha256
from tiles.stac import footprint, height_item

CREATED = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
MODEL = {"name": "canopy-s", "sha256": "ab" * 32}
UTM = (Affine(2, 0, 500_000, 0, -2, 5_000_000), "EPSG:32633")
LOCAL_CRS = "+proj=tmerc +lat_0=10 +lon_0=20 +ellps=GRS80 +units=m +no_defs"


@pytest.fixture
def make_map(tmp_path):
    def make(transform=UTM[0], crs=UTM[1], shape=(40, 60), name="höhe 1.tif", values=None):
        path = tmp_path / name
        values = np.ones((1, *shape), np.float32) if values is None else values.astype(np.float32)
        profile = {"driver": "GTiff", "dtype": "float32", "count": len(values), "nodata": math.nan}
        height, width = values.shape[1:]
        with rasterio.open(path, "w", height=height, width=width, crs=crs, transform=transform, **profile) as out:
            out.write(values)
        return path

    return make


def item_of(path, **changes):
    arguments = {
        "acquisition": "2020-06-01T10:00:00Z",
        "created": CREATED,
        "model": MODEL,
        "imagery": ("ortho.tif",),
        "bands": BANDS,
        "version": "1.2.3",
    }
    return height_item(path, **(arguments | changes))


def core_errors(item):
    """Errors by the STAC 1.1 core schemas that pystac carries; extension schemas live on the network."""
    schemas = get_local_schema_cache()
    registry = Registry().with_resources((uri, Resource.from_contents(s)) for uri, s in schemas.items())
    schema = schemas["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"]
    return [error.message for error in Draft7Validator(schema, registry=registry).iter_errors(item)]


def times(item):
    return tuple(item["properties"].get(key) for key in ("datetime", "start_datetime", "end_datetime"))


@pytest.mark.parametrize("acquisition", [None, "unknown", "2019", "2020-06-01", "2020-06-01T10:00:00Z", "2019/2021-03"])
def test_item_is_legal_and_survives_pystac(make_map, acquisition):
    item = item_of(make_map(), acquisition=acquisition)
    assert core_errors(item) == []
    again = pystac.Item.from_dict(item).to_dict(include_self_link=False)
    assert again == item
    assert json.loads(json.dumps(item, allow_nan=False)) == item


def test_core_schemas_reject_a_broken_item(make_map):
    item = item_of(make_map(), acquisition=None)
    del item["properties"]["end_datetime"]
    assert core_errors(item)


@pytest.mark.parametrize(
    ("acquisition", "expected"),
    [
        (None, (None, "1900-01-01T00:00:00Z", "2026-03-04T05:06:07Z")),
        ("unknown", (None, "1900-01-01T00:00:00Z", "2026-03-04T05:06:07Z")),
        ("2020-06-01T12:00:00+02:00", ("2020-06-01T10:00:00Z", None, None)),
        ("2020-06-01T12:00:00", ("2020-06-01T12:00:00Z", None, None)),
        ("2020-06-01", ("2020-06-01T00:00:00Z", "2020-06-01T00:00:00Z", "2020-06-01T23:59:59Z")),
        ("2020-12", (None, "2020-12-01T00:00:00Z", "2020-12-31T23:59:59Z")),
        ("2020-02", (None, "2020-02-01T00:00:00Z", "2020-02-29T23:59:59Z")),
        ("2019", (None, "2019-01-01T00:00:00Z", "2019-12-31T23:59:59Z")),
        ("2017/2020-06-01", (None, "2017-01-01T00:00:00Z", "2020-06-01T23:59:59Z")),
        ("2020-06-01T10:00:00Z/2020-06-01T10:00:00Z", ("2020-06-01T10:00:00Z", None, None)),
    ],
)
def test_time_is_as_precise_as_known(make_map, acquisition, expected):
    item = item_of(make_map(), acquisition=acquisition)
    assert times(item) == expected
    assert item["properties"]["canopy:acquisition_datetime"] == (acquisition or "unknown")


@pytest.mark.parametrize("acquisition", ["summer", "2020-13", "2021/2020", "2020/..", "2020:05:17 10:00:00"])
def test_unclear_time_is_refused(make_map, acquisition):
    with pytest.raises(RasterError, match=r"acquisition is .* expected"):
        item_of(make_map(), acquisition=acquisition)


def test_created_is_utc(make_map):
    created = datetime(2026, 3, 4, 7, 6, 7, tzinfo=timezone(timedelta(hours=2)))
    assert item_of(make_map(), created=created)["properties"]["created"] == "2026-03-04T05:06:07Z"


def test_file_extension_holds_a_sha256_multihash_and_the_size(make_map):
    path = make_map()
    asset = item_of(path)["assets"]["canopy_height"]
    assert asset["file:size"] == path.stat().st_size
    assert asset["file:checksum"] == "1220" + file_sha256(path)
    assert re.fullmatch(r"1220[0-9a-f]{64}", asset["file:checksum"])


def test_hrefs_are_relative_and_escaped(make_map):
    path = make_map()
    assert set(item_of(path)["assets"]) == {"canopy_height"}
    path.with_suffix(".qml").write_text("<qgis/>")
    assets = item_of(path)["assets"]
    assert assets["canopy_height"]["href"] == "./h%C3%B6he%201.tif"
    assert assets["style"]["href"] == "./h%C3%B6he%201.qml"


def test_projection_extension(make_map):
    properties = item_of(make_map())["properties"]
    assert properties["proj:code"] == "EPSG:32633"
    assert properties["proj:shape"] == [40, 60]
    assert properties["proj:transform"] == [2, 0, 500_000, 0, -2, 5_000_000]
    assert properties["proj:bbox"] == [500_000, 4_999_920, 500_120, 5_000_000]
    assert "proj:wkt2" not in properties


def test_local_crs_has_null_code_and_wkt(make_map):
    properties = item_of(make_map(crs=LOCAL_CRS))["properties"]
    assert properties["proj:code"] is None
    assert "PROJCRS" in properties["proj:wkt2"]


def test_bands_carry_common_fields_and_one_raster_field(make_map):
    path = make_map(values=np.ones((3, 4, 4)))
    bands = item_of(path, bands=UNCERTAINTY_BANDS)["assets"]["canopy_height"]["bands"]
    assert [band["name"] for band in bands] == list(UNCERTAINTY_BANDS)
    for band in bands:
        assert (band["data_type"], band["nodata"], band["unit"]) == ("float32", "nan", "m")
        assert band["raster:sampling"] == "area"


def test_every_prefix_in_use_is_declared_or_our_own(make_map):
    item = item_of(make_map())
    asset = item["assets"]["canopy_height"]
    keys = {*item["properties"], *asset, *(key for band in asset["bands"] for key in band)}
    prefixes = {key.partition(":")[0] for key in keys if ":" in key}
    assert prefixes == {"canopy", "eo", "file", "proj", "processing", "raster"}
    declared = {re.search(r"github\.io/(\w+)/", uri)[1] for uri in item["stac_extensions"]}
    assert declared == {"eo", "file", "projection", "processing", "raster"}


def test_bands_have_names_by_which_odc_stac_finds_them(make_map):
    """odc-stac makes aliases of the names that pystac's eo extension finds: `load([item], ["canopy_height_p95"])`."""
    item = pystac.Item.from_dict(item_of(make_map(values=np.ones((3, 4, 4))), bands=UNCERTAINTY_BANDS))
    bands = pystac.extensions.eo.EOExtension.ext(item.assets["canopy_height"]).bands
    assert [band.name for band in bands] == list(UNCERTAINTY_BANDS)


def test_statistics_are_those_of_all_cells(make_map, monkeypatch):
    monkeypatch.setattr("tiles.stac.BLOCK_PX", 7)
    monkeypatch.setattr("tiles.stac._STRIP_PX", 9)
    values = np.random.default_rng(0).uniform(0, 40, (3, 50, 30)).astype(np.float32)
    values[0, 10:20], values[2] = np.nan, np.nan
    path = make_map(values=values)
    first, second, third = item_of(path, bands=UNCERTAINTY_BANDS)["assets"]["canopy_height"]["bands"]
    for band, cells in ((first, values[0]), (second, values[1])):
        finite = cells[np.isfinite(cells)].astype(float)
        assert band["statistics"] == {
            "minimum": finite.min(),
            "maximum": finite.max(),
            "mean": pytest.approx(finite.mean()),
            "stddev": pytest.approx(finite.std()),
            "valid_percent": 100 * finite.size / cells.size,
        }
    assert first["statistics"]["valid_percent"] == 80
    assert third["statistics"] == {"valid_percent": 0}


def test_gsd_is_in_true_metres(make_map):
    assert item_of(make_map())["properties"]["gsd"] == pytest.approx(2, abs=0.002)
    mercator = make_map(Affine(1, 0, 0, 0, -1, 8_399_738), "EPSG:3857")  # 60 degrees north
    assert item_of(mercator)["properties"]["gsd"] == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/home/someone/ortho.tif", "ortho.tif"),
        ("../data/ortho.tif", "ortho.tif"),
        ("file:///home/someone/ortho.tif", "ortho.tif"),
        (r"C:\Users\someone\ortho.tif", "ortho.tif"),
        ("https://example.org/a/ortho.tif", "https://example.org/a/ortho.tif"),
        ("s3://bucket/a/ortho.tif", "s3://bucket/a/ortho.tif"),
        ("naip", "naip"),
    ],
)
def test_local_folders_stay_private(make_map, uri, expected):
    item = item_of(make_map(), imagery=(uri,))
    assert item["properties"]["canopy:imagery"] == [expected]
    assert "someone" not in json.dumps(item)


def test_every_asset_has_a_type(make_map):
    path = make_map()
    path.with_suffix(".qml").write_text("<qgis/>")
    assets = item_of(path)["assets"]
    assert {name: asset["type"].partition(";")[0] for name, asset in assets.items()} == {
        "canopy_height": "image/tiff",
        "style": "application/xml",
    }


def test_footprint_is_the_area_in_degrees(make_map):
    area = Geometry(shapely.Polygon([(500_000, 4_999_950), (500_040, 4_999_950), (500_000, 5_000_000)]), "EPSG:32633")
    document = footprint(area)
    assert document["type"] == "Polygon"
    assert document["coordinates"][0][0] == pytest.approx([15, 45.15302], abs=1e-4)
    item = item_of(make_map(), geometry=document)
    assert core_errors(item) == []
    assert shapely.geometry.shape(item["geometry"]).area < shapely.geometry.box(*item["bbox"]).area * 0.51


def test_footprint_across_the_antimeridian_is_cut():
    ring = shapely.box(179, -17, 181, -16).difference(shapely.box(179.2, -16.6, 179.4, -16.4))
    document = footprint(Geometry(ring, "EPSG:4326"))
    parts = shapely.get_parts(shapely.geometry.shape(document))
    assert sorted(part.bounds for part in parts) == [(-180, -17, -179, -16), (179, -17, 180, -16)]
    assert [len(part.interiors) for part in sorted(parts, key=lambda part: part.bounds)] == [0, 1]
    assert all(part.exterior.is_ccw for part in parts)


def test_footprint_of_many_corners_is_drawn_more_coarsely():
    circle = shapely.Point(500_000, 5_000_000).buffer(5_000, quad_segs=20_000)
    drawn = shapely.geometry.shape(footprint(Geometry(circle, "EPSG:32633")))
    assert shapely.get_num_coordinates(drawn) <= 2000
    exact = shapely.geometry.shape(footprint(Geometry(circle.simplify(0.5), "EPSG:32633")))
    assert drawn.symmetric_difference(exact).area < 1e-3 * exact.area


def test_provenance_names_model_software_and_imagery(make_map):
    properties = item_of(make_map(), imagery=("a.tif", "b.tif"))["properties"]
    assert properties["canopy:model_name"] == "canopy-s"
    assert properties["canopy:model_sha256"] == MODEL["sha256"]
    assert properties["canopy:imagery"] == ["a.tif", "b.tif"]
    assert properties["processing:software"] == {"canopy": "1.2.3"}
    for word in ("canopy-s", MODEL["sha256"], "a.tif, b.tif"):
        assert word in properties["processing:lineage"]


def test_outline_contains_the_raster_and_turns_counterclockwise(make_map):
    item = item_of(make_map(Affine(1000, 0, 300_000, 0, -1000, 6_000_000), shape=(400, 400)))
    outline = shapely.geometry.shape(item["geometry"])
    assert outline.is_valid
    assert outline.exterior.is_ccw
    assert len(outline.exterior.coords) > 60
    assert item["bbox"] == pytest.approx(outline.bounds)
    # EPSG:32633 (500000, 5800000) lies on the central meridian, 15 degrees east.
    assert outline.contains(shapely.Point(15, 52.35))


def test_antimeridian_is_cut_and_the_bbox_wraps(make_map):
    item = item_of(make_map(Affine(10, 0, 1_000, 0, -10, 10_000), "EPSG:3832", shape=(10, 10)))
    assert item["geometry"]["type"] == "Polygon"  # PDC Mercator, centred on 150 degrees east
    item = item_of(make_map(Affine(1000, 0, 3_300_000, 0, -1000, 10_000), "EPSG:3832", shape=(20, 100)))
    assert core_errors(item) == []
    assert item["geometry"]["type"] == "MultiPolygon"
    west, south, east, north = item["bbox"]
    assert (west, east) == pytest.approx((179.6445, -179.4572), abs=1e-3)
    assert south < north
    outline = shapely.geometry.shape(item["geometry"])
    assert outline.bounds[0::2] == (-180, 180)
    assert outline.area == pytest.approx((360 + east - west) * (north - south), rel=1e-6)


def test_pole_is_inside(make_map):
    item = item_of(make_map(Affine(1000, 0, -50_000, 0, -1000, 50_000), "EPSG:3031", shape=(100, 100)))
    assert core_errors(item) == []
    west, south, east, north = item["bbox"]
    assert (west, south, east) == (-180, -90, 180)
    assert -89.6 < north < -89


def test_given_geometry_is_kept(make_map):
    area = shapely.geometry.mapping(shapely.MultiPolygon([shapely.box(179, 1, 180, 2), shapely.box(-180, 1, -178, 2)]))
    item = item_of(make_map(), geometry=area)
    assert item["geometry"] == json.loads(json.dumps(area))
    assert item["bbox"] == [179, 1, -178, 2]


def test_missing_map_and_missing_crs_are_said(make_map, tmp_path):
    with pytest.raises(RasterError, match=r"nothing\.tif: cannot read its georeference"):
        item_of(tmp_path / "nothing.tif")
    with pytest.raises(RasterError, match="CRS"):
        item_of(make_map(crs=None))
