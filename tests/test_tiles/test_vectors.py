"""Vector files of strangers: the right geometries, or one line, without a request, another file or much memory."""

import json
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from odc.geo.crs import CRS
from shapely.geometry import LineString, Point

from tiles import vectors
from tiles.errors import AOIError
from tiles.vectors import read_geojson, read_vector

SQUARE, OTHER = shapely.box(10, 50, 11, 51), shapely.box(20, 50, 21, 51)
GEOJSON = {"type": "Polygon", "coordinates": [[[10, 50], [11, 50], [11, 51], [10, 51], [10, 50]]]}


def write(path: Path, *geometries: object, crs: str | None = "EPSG:4326", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    gpd.GeoDataFrame(geometry=list(geometries), crs=crs).to_file(path, **options)
    return path


def pack(path: Path, *files: Path, below: str = "") -> Path:
    """Write an archive of files, and of what goes with shapefiles."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            parts = file.parent.glob(f"{file.stem}.*") if file.suffix == ".shp" else [file]
            for part in parts:
                archive.write(part, f"{below}{part.name}")
    return path


def area(path: Path, layer: str | None = None) -> shapely.Geometry:
    return shapely.union_all(read_vector(path, layer)[0])


def refusal(path: Path, layer: str | None = None) -> str:
    with pytest.raises(AOIError) as caught:
        read_vector(path, layer)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- layers


def test_layers_of_points_and_lines_do_not_count(tmp_path: Path) -> None:
    for name, geometry in {"plots": Point(0, 0), "roads": LineString([(0, 0), (1, 1)]), "stand": SQUARE}.items():
        write(tmp_path / "area.gpkg", geometry, layer=name)
    assert area(tmp_path / "area.gpkg").equals(SQUARE)
    assert area(tmp_path / "area.gpkg", "stand").equals(SQUARE)


def test_layers_of_any_geometry_count_by_what_they_contain(tmp_path: Path) -> None:
    write(tmp_path / "area.gpkg", Point(0, 0), layer="plots", geometry_type="Unknown")
    write(tmp_path / "area.gpkg", SQUARE, layer="stand", geometry_type="Unknown")
    assert area(tmp_path / "area.gpkg").equals(SQUARE)


def test_several_layers_of_areas_name_the_option(tmp_path: Path) -> None:
    write(tmp_path / "area.gpkg", SQUARE, layer="north")
    write(tmp_path / "area.gpkg", OTHER, layer="south")
    assert "expected one of north, south, name it with --layer" in refusal(tmp_path / "area.gpkg")
    assert area(tmp_path / "area.gpkg", "south").equals(OTHER)
    assert "no layer 'west'" in refusal(tmp_path / "area.gpkg", "west")


KML = """<?xml version="1.0" encoding="UTF-8"?>
<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{}</Document></kml>"""
FOLDER = """<Folder><name>{}</name><Placemark><Polygon><outerBoundaryIs><LinearRing><coordinates>{}</coordinates>
</LinearRing></outerBoundaryIs></Polygon></Placemark></Folder>"""


def ring(polygon: shapely.Polygon) -> str:
    return " ".join(f"{x},{y},0" for x, y in polygon.exterior.coords)


@pytest.mark.parametrize("name", ["area.kml", "area.kmz"])
def test_folders_of_a_kml_are_one_area(tmp_path: Path, name: str) -> None:
    pin = "<Folder><name>pins</name><Placemark><Point><coordinates>0,0</coordinates></Point></Placemark></Folder>"
    text = KML.format(FOLDER.format("north", ring(SQUARE)) + FOLDER.format("south", ring(OTHER)) + pin)
    (tmp_path / "area.kml").write_text(text)
    if name.endswith("kmz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(tmp_path / "area.kml", "doc.kml")
            archive.writestr("files/overlay.kml", KML.format(""))
            archive.writestr("files/icon.png", b"png")
    polygons = [g for g in read_vector(tmp_path / name)[0] if g.geom_type == "Polygon"]
    assert shapely.union_all(polygons).equals(shapely.union_all([SQUARE, OTHER]))


# --- folders and archives


@pytest.mark.parametrize("below", ["", "region/", "a/b c/ü/"])
@pytest.mark.parametrize("name", ["area.shp", "area.gpkg", "area.geojson"])
def test_an_archive_is_read_wherever_its_file_lies(tmp_path: Path, below: str, name: str) -> None:
    archive = pack(tmp_path / "area.zip", write(tmp_path / "in" / name, SQUARE), below=below)
    geometries, crs = read_vector(archive)
    assert shapely.union_all(geometries).equals(SQUARE)
    assert crs == CRS("EPSG:4326")


def test_an_archive_of_several_areas_names_them(tmp_path: Path) -> None:
    files = [write(tmp_path / "in" / f"{name}.shp", geometry) for name, geometry in (("a", SQUARE), ("b", OTHER))]
    archive = pack(tmp_path / "area.zip", *files)
    assert "expected one of a, b, name it with --layer" in refusal(archive)
    assert area(archive, "b").equals(OTHER)


def test_files_of_one_name_in_two_folders_of_an_archive_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "x" / "area.geojson", SQUARE)
    write(tmp_path / "y" / "area.geojson", Point(0, 0))
    with zipfile.ZipFile(tmp_path / "area.zip", "w") as archive:
        for folder in ("x", "y"):
            archive.write(tmp_path / folder / "area.geojson", f"{folder}/area.geojson")
    assert area(tmp_path / "area.zip").equals(SQUARE)


@pytest.mark.parametrize("name", ["area.shp", "area.gpkg", "area.zip"])
def test_a_folder_is_read_by_its_one_vector_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "in" / ("area.shp" if name == "area.zip" else name), SQUARE)
    folder = path.parent
    if name == "area.zip":
        folder = tmp_path / "folder"
        folder.mkdir()
        pack(folder / name, path)
    (folder / "notes.txt").write_text("a")
    (folder / "metadata.json").write_text("{}")
    assert area(folder).equals(SQUARE)


def test_a_folder_without_vectors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    assert "cannot be read" in refusal(tmp_path)


def test_members_that_lead_out_of_the_archive_stay_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "area.zip", "w") as archive:
        archive.writestr("../../../escaped.geojson", json.dumps(GEOJSON))
    assert area(tmp_path / "area.zip").equals(SQUARE)
    assert not list(tmp_path.parent.rglob("escaped.geojson"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "area.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("area.geojson", json.dumps(GEOJSON).rjust(2**21))
    assert (tmp_path / "area.zip").stat().st_size < 10_000
    assert "unpacks to more than 1 MiB" in refusal(tmp_path / "area.zip")


def test_a_member_without_a_name_is_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "area.zip", "w") as archive:
        archive.writestr("area.geojson", json.dumps(GEOJSON))
        archive.writestr(nameless := zipfile.ZipInfo("a"), b"")
        nameless.filename = nameless.orig_filename = ""
    assert "" in zipfile.ZipFile(tmp_path / "area.zip").namelist()
    assert area(tmp_path / "area.zip").equals(SQUARE)


def test_what_belongs_to_no_vector_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "area.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("area.geojson", json.dumps(GEOJSON))
        archive.writestr("photo.jpg", b"\0" * 2**22)
    assert area(tmp_path / "area.zip").equals(SQUARE)


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_damaged_archive_is_refused(tmp_path: Path, size: int) -> None:
    whole = pack(tmp_path / "whole.zip", write(tmp_path / "area.geojson", SQUARE)).read_bytes()
    (tmp_path / "area.zip").write_bytes(whole[:size] if size < len(whole) else whole[:-1])
    assert str(tmp_path / "area.zip") in refusal(tmp_path / "area.zip")


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "area.zip", "w"):
        pass
    assert "has no geometry" in refusal(tmp_path / "area.zip")


# --- GeoParquet


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632", "OGC:CRS84"])
def test_geoparquet_is_read_with_its_crs(tmp_path: Path, crs: str) -> None:
    frame = gpd.GeoDataFrame({"a": [1, 2]}, geometry=[SQUARE, shapely.force_3d(OTHER, 5)], crs=crs)
    frame.to_parquet(tmp_path / "area.parquet")
    geometries, read = read_vector(tmp_path / "area.parquet")
    assert read.proj == CRS(crs).proj or read == CRS(crs)
    assert shapely.union_all(geometries).equals(shapely.union_all([SQUARE, OTHER]))
    assert not shapely.has_z(geometries).any()


def test_geoparquet_without_a_crs_is_refused_and_a_table_too(tmp_path: Path) -> None:
    gpd.GeoDataFrame(geometry=[SQUARE]).to_parquet(tmp_path / "none.parquet")
    assert "has no CRS" in refusal(tmp_path / "none.parquet")
    gpd.pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "table.parquet")
    assert "has no geometry" in refusal(tmp_path / "table.parquet")


def test_a_large_column_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MAX_BYTES", 1000)
    squares = [shapely.box(n, 0, n + 1, 1) for n in range(100)]
    gpd.GeoDataFrame(geometry=squares, crs=4326).to_parquet(tmp_path / "area.parquet")
    assert "expected at most" in refusal(tmp_path / "area.parquet")


# --- strangers


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its address, and the paths that were requested."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    with serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", requests
        serving.shutdown()


def with_crs(url: str, key: str = '"crs"', kind: str = "link") -> str:
    """A GeoJSON polygon whose CRS is a link."""
    link = f'{{"type": "{kind}", "properties": {{"href": "{url}/crs", "url": "{url}/crs", "type": "proj4"}}}}'
    return f'{{"type": "Polygon", {key}: {link}, "coordinates": {json.dumps(GEOJSON["coordinates"])}}}'


def hostile_texts(url: str, secret: Path) -> dict[str, str]:
    """Files that make GDAL fetch a URL or open another file."""
    feature = '{"type": "Feature", "properties": {}, "geometry": %s}'
    layer = f'<OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
    vrt = f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"
    pipeline = {
        "type": "gdal_streamed_alg",
        "command_line": f"gdal vector convert --output-format=stream {secret} streamed",
    }
    return {
        "link": with_crs(url),
        "url": with_crs(url, kind="URL"),
        "upper case": with_crs(url, key='"CRS"', kind="LINK"),
        "escaped": with_crs(url, key='"\\u0063rs"', kind="l\\u0069nk"),
        "comment": "/* a */" + with_crs(url),
        "single quotes": with_crs(url).replace('"', "'"),
        "callback": f"loadGeoJSON({with_crs(url)});",
        "in a feature": feature % with_crs(url),
        "sequence": (feature % with_crs(url)) + "\n" + (feature % json.dumps(GEOJSON)),
        "named by a url": json.dumps({**GEOJSON, "crs": {"type": "name", "properties": {"name": f"{url}/crs"}}}),
        "vrt": vrt,
        "vrt after a comment": f"<!-- {'a' * 500} -->\n{vrt}",
        "vrt of a url": vrt.replace(str(secret), f"/vsicurl/{url}/area.geojson"),
        "web service": f"<OGRWFSDataSource><URL>{url}/wfs</URL></OGRWFSDataSource>",
        "capabilities": f'<WFS_Capabilities version="1.1.0"><OnlineResource href="{url}/wfs"/></WFS_Capabilities>',
        "pipeline": json.dumps(pipeline),
        "network link": KML.format(f"<NetworkLink><Link><href>{url}/area.kml</href></Link></NetworkLink>"),
        "gml schema": f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/'
        f'XMLSchema-instance" xsi:schemaLocation="{url} {url}/area.xsd"><gml:featureMember xmlns:xlink="http://www.w3.org'
        f'/1999/xlink" xlink:href="{url}/member"/></gml:FeatureCollection>',
        "gml crs": f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml"><gml:featureMember><a><gml:Polygon '
        f'srsName="{url}/crs"><gml:outerBoundaryIs><gml:LinearRing><gml:coordinates>10,50 11,50 11,51 10,50'
        "</gml:coordinates></gml:LinearRing></gml:outerBoundaryIs></gml:Polygon></a></gml:featureMember>"
        "</gml:FeatureCollection>",
        "json-fg": json.dumps({"type": "Feature", "conformsTo": ["[ogc-json-fg-1-0.1:core]"], "place": GEOJSON,
                               "coordRefSys": f"{url}/crs", "geometry": None, "properties": {}, "time": None}),
        "esri json": json.dumps({"geometryType": "esriGeometryPolygon", "exceededTransferLimit": True, "features": [],
                                 "spatialReference": {"wkt": f"{url}/crs"}}),
        "entity": f'<!DOCTYPE kml [<!ENTITY x SYSTEM "{url}/x">]>' + KML.format(FOLDER.format("&x;", ring(SQUARE))),
    }  # fmt: skip


NAMES = tuple(hostile_texts("", Path()))


@pytest.mark.parametrize("name", NAMES)
def test_no_file_reaches_for_a_url_or_another_file(tmp_path: Path, server: tuple[str, list[str]], name: str) -> None:
    """Whatever its suffix, plain or in an archive: GDAL knows files by what is in them."""
    url, requests = server
    secret = write(tmp_path / "secret.geojson", OTHER)
    for suffix in (".geojson", ".kml", ".gml", ".vrt"):
        plain = tmp_path / f"area{suffix}"
        plain.write_text(hostile_texts(url, secret)[name])
        for path in (plain, pack(tmp_path / "area.zip", plain)):
            try:
                geometries, _ = read_vector(path)
            except AOIError as error:
                assert "\n" not in str(error)
            else:
                assert not shapely.union_all(geometries).intersects(OTHER)
            assert requests == []


def test_a_link_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "area.geojson").write_text(with_crs("http://127.0.0.1:9"))
    assert "its CRS is a link; expected the name of a CRS" in refusal(tmp_path / "area.geojson")


def test_links_among_properties_are_no_crs(tmp_path: Path) -> None:
    properties = {"crs": "local", "site": {"type": "link", "href": "http://example.org"}}
    feature = {"type": "Feature", "properties": properties, "geometry": GEOJSON}
    (tmp_path / "area.geojson").write_text(json.dumps(feature))
    assert area(tmp_path / "area.geojson").equals(SQUARE)


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "x" * 300 + ".geojson"])
def test_a_path_that_no_file_can_have_is_one_line(path: str) -> None:
    message = refusal(Path(path))
    assert "no file name" in message
    assert len(message) < 300


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.geojson")
    for path in (tmp_path / "pipe.geojson", Path("/dev/zero")):
        assert "neither a file nor a folder" in refusal(path)


# --- documents


def test_documents_in_memory_are_read_as_files_are() -> None:
    geometries, crs = read_geojson({"type": "Feature", "properties": {}, "geometry": GEOJSON})
    assert shapely.union_all(geometries).equals(SQUARE)
    assert crs == CRS("EPSG:4326")


@pytest.mark.parametrize("document", [{}, {"type": "Polygon"}, {"type": "Polygon", "coordinates": {1, 2}}])
def test_documents_that_are_no_geojson_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(AOIError, match="GeoJSON"):
        read_geojson(document)
