"""Areas of interest of every kind: the right area, or one line that says why not."""

import json
import re
import zipfile

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box
from shapely.geometry import GeometryCollection, LineString, MultiPoint, MultiPolygon, Point, Polygon

from tiles.aoi import read_aoi, to_crs, utm_crs
from tiles.errors import AOIError
from tiles.windows import PixelWindow

WGS84, UTM32, MERCATOR = CRS("EPSG:4326"), CRS("EPSG:32632"), CRS("EPSG:3857")
SQUARE = shapely.box(10, 50, 11, 51)
BOWTIE = Polygon([(10, 50), (12, 52), (12, 50), (10, 52)])
FIJI = [(178, -19), (-178, -19), (-178, -16), (178, -16)]

windows = st.builds(PixelWindow, *[st.integers(-(10**7), 10**7)] * 2, *[st.integers(1, 300)] * 2)


@pytest.fixture
def write(tmp_path):
    """Factory of vector files: geometries, name, CRS -> path."""

    def make(*geometries, name="area.gpkg", crs="EPSG:4326", **options):
        frame = gpd.GeoDataFrame(geometry=list(geometries), crs=crs)
        frame.to_file(tmp_path / name, **options)
        return tmp_path / name

    return make


@pytest.fixture
def write_text(tmp_path):
    def make(content, name="area.geojson"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return make


def geojson(ring, **members):
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]], **members}


def refusal(path, **options):
    """Give the message with which a file is refused, which is one line that names it."""
    with pytest.raises(AOIError) as caught:
        read_aoi(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- reading areas


@pytest.mark.parametrize("name", ["area.gpkg", "area.shp", "area.geojson", "área é 森.gpkg", "été.geojson"])
def test_read_formats_and_names(write, name):
    aoi = read_aoi(write(SQUARE, name=name))
    assert aoi.crs == WGS84
    assert aoi.geom.equals(SQUARE)


@pytest.mark.parametrize("name", ["area.kmz", "été.kmz"])
def test_read_kml_and_kmz(write, name):
    kml = write(SQUARE, name="doc.kml", driver="KML")
    assert read_aoi(str(kml)).geom.equals(SQUARE)
    with zipfile.ZipFile(kml.parent / name, "w") as archive:
        archive.write(kml, "doc.kml")
    aoi = read_aoi(kml.parent / name)
    assert aoi.crs == WGS84
    assert aoi.geom.equals(SQUARE)


def test_read_mends_a_self_intersection(write):
    aoi = read_aoi(write(BOWTIE))
    assert aoi.is_valid
    assert aoi.area == pytest.approx(2)


def test_read_keeps_holes(write):
    hole = [(10.4, 50.4), (10.6, 50.4), (10.6, 50.6), (10.4, 50.6)]
    assert read_aoi(write(Polygon(SQUARE.exterior, [hole]))).area == pytest.approx(1 - 0.04)


def test_read_unites_features_and_overlapping_parts(write):
    parts = MultiPolygon([SQUARE, shapely.box(10.5, 50, 11.5, 51)])
    aoi = read_aoi(write(parts, shapely.box(11.5, 50, 12, 51), shapely.box(20, 50, 21, 51)))
    assert aoi.geom.equals(MultiPolygon([shapely.box(10, 50, 12, 51), shapely.box(20, 50, 21, 51)]))


def test_read_keeps_the_polygons_of_a_collection(write):
    inner = GeometryCollection([SQUARE, LineString([(0, 0), (1, 1)])])
    aoi = read_aoi(write(GeometryCollection([Point(0, 0), inner])))
    assert aoi.geom.equals(SQUARE)


@pytest.mark.parametrize(("name", "crs"), [("area.geojson", WGS84), ("area.gpkg", UTM32)])
def test_read_drops_heights(write, name, crs):
    aoi = read_aoi(write(shapely.force_3d(SQUARE, 7.0), name=name, crs=str(crs)))
    assert not aoi.geom.has_z
    assert aoi.crs == crs


def test_read_closes_an_open_ring(write_text):
    ring = [[0, 0], [1, 0], [1, 1]]
    assert read_aoi(write_text({"type": "Polygon", "coordinates": [ring]})).area == 0.5


def test_read_skips_features_without_geometry(write):
    assert read_aoi(write(None, SQUARE, Polygon())).geom.equals(SQUARE)


def test_geojson_without_crs_is_wgs84(write_text):
    assert read_aoi(write_text(geojson([(10, 50), (11, 50), (11, 51)]))).crs == WGS84


@pytest.mark.parametrize("name", ["urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326"])
def test_geojson_is_longitude_first_under_each_name_of_wgs84(write_text, name):
    feature = {"type": "Feature", "properties": {}, "geometry": geojson([(10, 50), (11, 50), (11, 51)])}
    crs = {"type": "name", "properties": {"name": name}}
    path = write_text({"type": "FeatureCollection", "crs": crs, "features": [feature]})
    assert tuple(read_aoi(path).boundingbox) == (10, 50, 11, 51)


def test_crs84_projects_like_4326(write):
    here, there = (read_aoi(write(SQUARE, name=f"{n}.gpkg", crs=n)) for n in ("OGC:CRS84", "EPSG:4326"))
    assert tuple(here.boundingbox) == tuple(there.boundingbox) == (10, 50, 11, 51)
    assert utm_crs(here) == utm_crs(there) == UTM32
    assert tuple(to_crs(here, UTM32).boundingbox) == tuple(to_crs(there, UTM32).boundingbox)


def test_read_keeps_a_projected_crs(write):
    square = shapely.box(500_000, 5_500_000, 500_100, 5_500_100)
    aoi = read_aoi(write(square, crs="EPSG:32632"))
    assert aoi.crs == UTM32
    assert aoi.geom.equals(square)


def test_read_drops_a_vertical_crs(write):
    aoi = read_aoi(write(shapely.box(500_000, 5_500_000, 500_100, 5_500_100), crs="EPSG:32632+5773"))
    assert aoi.crs == UTM32


def test_read_wants_a_layer_where_there_are_several(write):
    write(SQUARE, layer="north")
    path = write(shapely.box(0, 0, 1, 1), layer="süd")
    assert re.search(r"several layers; .*north, süd", refusal(path))
    assert re.search(r"no layer 'west'; .*north, süd", refusal(path, layer="west"))
    assert read_aoi(path, layer="süd").geom.equals(shapely.box(0, 0, 1, 1))


def test_read_refuses_a_missing_crs(write):
    with pytest.warns(UserWarning, match="crs"):
        path = write(SQUARE, name="area.shp", crs=None)
    assert re.search("no CRS.*ogr2ogr -a_srs", refusal(path))


def test_read_refuses_a_local_crs(write):
    local = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    assert "expected a CRS of the earth's surface" in refusal(write(SQUARE, crs=local))


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [(Point(10, 50), "Point"), (LineString([(0, 0), (1, 1)]), "LineString"), (MultiPoint([(0, 0)]), "Point")],
)
def test_read_refuses_points_and_lines(write, geometry, kind):
    assert re.search(f"only {kind}; .*buffer", refusal(write(geometry)))


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": None}]},
    ],
)
def test_read_refuses_an_empty_area(write_text, content):
    assert "has no geometry" in refusal(write_text(content))


@pytest.mark.parametrize("ring", [[(0, 0), (1, 1)], [(0, 0), (1, 1), (2, 2)], [(3, 3), (3, 3), (3, 3)]])
def test_read_refuses_an_area_of_zero(write_text, ring):
    assert "no area" in refusal(write_text(geojson(ring)))


@pytest.mark.parametrize("x", ["NaN", "1e999", "500", "-361", "1e300"])
def test_read_refuses_longitudes_that_are_no_place(write_text, x):
    text = f'{{"type":"Polygon","coordinates":[[[0,0],[{x},0],[1,1],[0,0]]]}}'
    assert "nowhere in WGS 84" in refusal(write_text(text))


def test_read_refuses_metres_as_degrees(write_text):
    path = write_text(geojson([(500_000, 5_500_000), (500_100, 5_500_000), (500_100, 5_500_100)]))
    assert "check its CRS" in refusal(path)


@pytest.mark.parametrize(("x", "crs"), [(1e9, "EPSG:3857"), (2e7, "EPSG:32632"), (1e12, "EPSG:2263")])
def test_read_refuses_metres_that_are_no_place(write, x, crs):
    assert "nowhere in" in refusal(write(shapely.box(x, x, x + 10, x + 10), crs=crs))


def test_read_refuses_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "nowhere.geojson")


@pytest.mark.parametrize("name", ["area.geojson", "area.kmz", "area.shp", "area.gpkg"])
def test_read_refuses_an_empty_file(write_text, name):
    assert "0 bytes" in refusal(write_text("", name=name))


@pytest.mark.parametrize("name", ["area.geojson", "area.kmz", "area.kml", "area.shp", "area.gpkg", "area.txt"])
def test_read_refuses_garbage(write_text, name):
    assert "cannot be read" in refusal(write_text("no\nvectors\n", name=name))


def test_read_refuses_half_a_file(write):
    path = write(SQUARE)
    path.write_bytes(path.read_bytes()[:5000])
    assert "cannot be read" in refusal(path)


def test_read_refuses_a_table(write_text):
    assert "has no geometry" in refusal(write_text("a,b\n1,2\n", name="area.csv"))


def test_read_refuses_a_raster(tmp_path):
    path = tmp_path / "area.tif"
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=Affine(1, 0, 0, 0, -1, 10), **profile) as raster:
        raster.write(np.ones((1, 4, 4), "uint8"))
    assert "cannot be read" in refusal(path)


# --- antimeridian and poles


def split_fiji():
    return MultiPolygon([shapely.box(178, -19, 180, -16), shapely.box(-180, -19, -178, -16)])


@pytest.mark.parametrize(
    "area", [Polygon(FIJI), split_fiji(), shapely.box(178, -19, 182, -16), shapely.box(-182, -19, -178, -16)]
)
def test_an_area_across_the_antimeridian_is_one_piece(write, area):
    aoi = read_aoi(write(area))
    assert aoi.geom.equals(shapely.box(178, -19, 182, -16))
    zone = utm_crs(aoi)
    assert zone == CRS("EPSG:32701")
    projected = to_crs(aoi, zone)
    assert projected.geom_type == "Polygon"
    assert projected.area == pytest.approx(4 * 3 * 111_320 * 110_650 * np.cos(np.radians(17.5)), rel=0.01)


def test_features_on_both_sides_of_the_antimeridian_stay_near(write):
    aoi = read_aoi(write(shapely.box(-180, 55, -130, 70), shapely.box(172, 52, 179, 55)))
    assert tuple(aoi.boundingbox) == (-188, 52, -130, 70)


def test_a_hole_follows_its_shell_across_the_antimeridian(write):
    hole = [(-179.5, -18), (-179.5, -17), (-179, -17), (-179, -18)]
    aoi = read_aoi(write(Polygon(FIJI, [hole])))
    assert aoi.area == pytest.approx(12 - 0.5)


def test_an_area_of_the_whole_world_keeps_its_width(write):
    assert tuple(read_aoi(write(shapely.box(-180, -60, 180, 80))).boundingbox) == (-180, -60, 180, 80)
    continents = shapely.box(-120, 0, -100, 50), shapely.box(0, 0, 130, 50)
    assert tuple(read_aoi(write(*continents)).boundingbox) == (-120, 0, 130, 50)


def cap(latitude):
    """Ring of one parallel, as digitised around a pole."""
    return Polygon([(lon, latitude) for lon in range(-175, 180, 10)])


@pytest.mark.parametrize(("latitude", "code"), [(86, 32661), (-85, 32761)])
@pytest.mark.parametrize("drawn", ["ring", "box"])
def test_a_polar_cap_maps_to_ups(write, latitude, code, drawn):
    pole = 90 if latitude > 0 else -90
    strip = shapely.box(-180, min(latitude, pole), 180, max(latitude, pole))
    aoi = read_aoi(write(cap(latitude) if drawn == "ring" else strip))
    assert utm_crs(aoi) == CRS(f"EPSG:{code}")
    projected = to_crs(aoi, CRS(f"EPSG:{code}"))
    radius = abs(projected.boundingbox.right - 2_000_000)
    assert projected.is_valid
    assert radius == pytest.approx((90 - abs(latitude)) * 111_000, rel=0.01)
    assert projected.area == pytest.approx(np.pi * radius**2, rel=0.02)
    assert projected.geom.contains(Point(2_000_000 + radius / 3, 2_000_000 - radius / 3))


def test_a_polar_area_in_a_polar_crs_becomes_a_cap_of_longitudes():
    aoi = to_crs(box(-2e5, -2e5, 2e5, 2e5, CRS("EPSG:3413")), WGS84)
    west, south, east, north = aoi.boundingbox
    assert east - west == pytest.approx(360)
    assert (south, north) == (pytest.approx(87.4, abs=0.1), 90)
    assert aoi.is_valid


@pytest.mark.parametrize(("code", "lat"), [(32661, 88.0), (32761, -88.0)])
def test_ups_agrees_between_pyproj_and_gdal_and_survives_a_geotiff(code, lat):
    x, y = CRS("EPSG:4326").transformer_to_crs(CRS(f"EPSG:{code}"))(30.0, lat)
    gx, gy = rasterio.warp.transform("EPSG:4326", f"EPSG:{code}", [30.0], [lat])
    assert (gx[0], gy[0]) == (pytest.approx(x), pytest.approx(y))
    profile = {"driver": "GTiff", "width": 2, "height": 2, "count": 1, "dtype": "uint8"}
    with rasterio.MemoryFile() as memory:
        with memory.open(crs=f"EPSG:{code}", transform=Affine(1, 0, x, 0, -1, y), **profile) as raster:
            raster.write(np.ones((1, 2, 2), "uint8"))
        with memory.open() as raster:
            assert CRS(raster.crs) == CRS(f"EPSG:{code}")
            assert (raster.transform.c, raster.transform.f) == (x, y)


# --- projections


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        (9, 50, 32632),
        (-180, 10, 32601),
        (179.5, -10, 32760),
        (0.5, -0.5, 32731),
        (5.9, 60, 32631),
        (-74, 83, 32618),
    ],
)
def test_utm_zone_is_that_of_the_centroid(lon, lat, code):
    assert utm_crs(box(lon - 0.1, lat - 0.1, lon + 0.1, lat + 0.1, WGS84)) == CRS(f"EPSG:{code}")


def test_utm_reaches_nine_degrees():
    assert utm_crs(box(6, 40, 17.9, 41, WGS84)) == CRS("EPSG:32632")
    with pytest.raises(AOIError, match=r"9\.1 degrees .* zone 32; .*--crs"):
        utm_crs(box(5, 40, 18.1, 41, WGS84))


def test_utm_takes_a_projected_area():
    assert utm_crs(box(1_000_000, 6_000_000, 1_001_000, 6_001_000, MERCATOR)) == UTM32


def test_to_crs_follows_the_curve_of_an_edge():
    aoi = to_crs(box(6, 60, 12, 61, WGS84), UTM32)
    lon = np.linspace(6, 12, 12_345)
    x, y = WGS84.transformer_to_crs(UTM32)(lon, np.full_like(lon, 60.0))
    assert y[0] > y.min() + 3000
    assert shapely.distance(aoi.geom.boundary, shapely.points(x, y)).max() < 0.03


def test_to_crs_keeps_the_vertices_in_the_same_crs():
    aoi = box(0.1, 0.2, 0.3, 0.7, UTM32)
    assert to_crs(aoi, UTM32) == aoi


def test_to_crs_there_and_back():
    aoi = box(500_000, 5_500_000, 503_000, 5_502_000, UTM32)
    back = to_crs(to_crs(aoi, WGS84), UTM32)
    assert back.geom.hausdorff_distance(aoi.geom) < 0.03


@pytest.mark.parametrize("source", ["EPSG:4326", "EPSG:3832"])
def test_to_crs_splits_the_area_where_the_projection_is_cut(source):
    aoi = to_crs(Geometry(Polygon(FIJI), WGS84), CRS(source))
    split = to_crs(aoi, MERCATOR)
    assert split.geom_type == "MultiPolygon"
    assert sorted(round(part.bounds[0]) for part in split.geom.geoms) == [-20_037_508, 19_814_869]
    assert to_crs(split, WGS84).area == pytest.approx(12, rel=1e-6)


def test_to_crs_refuses_a_point_and_a_target_too_far():
    with pytest.raises(AOIError, match="buffer points and lines"):
        to_crs(Geometry(Point(0, 0), WGS84), UTM32)
    with pytest.raises(AOIError, match="no CRS"):
        to_crs(Geometry(SQUARE, None), UTM32)
    with pytest.raises(AOIError, match="beyond WGS 84 / UTM zone 32N"):
        to_crs(box(99, 0, 100, 1, WGS84), UTM32)


def test_to_crs_refuses_an_outline_without_end():
    """A comb with teeth as long as the earth's radius would be projected in billions of steps."""
    teeth = [(n * 10 + side, y) for n in range(2000) for side, y in ((0, 0.0), (1, 9e6), (2, 9e6), (3, 0.0))]
    comb = Geometry(Polygon([(0, -10), *teeth, (20_000, -10)]), UTM32)
    with pytest.raises(AOIError, match="simplify it"):
        to_crs(comb, WGS84)
