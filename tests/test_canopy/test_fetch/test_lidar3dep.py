"""Returns over an area from EPT and COPC, as LAZ in the right place and unit."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import laspy
import numpy as np
import pyproj
import pytest
import shapely
import shapely.geometry
from forest import make_forest, write_laz
from pyproj.crs import CompoundCRS
from servers import clouds
from servers.web import Fault, Reply, WebServer
from stac_service import StacApi, signed

from canopy.errors import ConfigError, SourceError
from canopy.fetch.lidar3dep import LidarRequest, fetch_lidar, find_copc_projects, find_projects
from canopy.fetch.options import Years
from canopy.fetch.summary import Summary
from canopy.http import HttpClient, Retry
from canopy.imagery.signing import forget_tokens
from tiles.aoi import read_aoi

FOREST = make_forest(60, seed=5, crs="EPSG:32611")
WEST, NORTH = 320_000, 4_100_000


def degrees(west: float, south: float, east: float, north: float, crs: object = "EPSG:32611") -> str:
    move = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    return ",".join(f"{value:.9f}" for value in move.transform_bounds(west, south, east, north))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clouds")


@pytest.fixture(scope="module")
def returns(folder: Path) -> laspy.LasData:
    return clouds.write_ept(folder, FOREST)[1]


@pytest.fixture(scope="module")
def feet(folder: Path) -> pyproj.CRS:
    """A CRS in metres with heights in feet, as occurs."""
    return CompoundCRS("UTM + NAVD88 (ftUS)", [pyproj.CRS.from_epsg(32611), pyproj.CRS.from_epsg(6360)])


@pytest.fixture(scope="module")
def server(folder: Path, returns: laspy.LasData, feet: pyproj.CRS) -> Iterator[WebServer]:
    points = laspy.read(write_laz(FOREST, folder / "feet.laz", density=2))
    points.z = np.asarray(points.z) / 0.304800609601219
    clouds.write_copc(folder / "cloud.copc.laz", points, feet)
    with WebServer() as server:
        server.files("/", folder)
        yield server


@pytest.fixture
def fetch(server: WebServer, tmp_path: Path) -> Callable[..., Summary]:
    server.forget()

    def run(box: tuple[float, ...], *sources: str, dry_run: bool = False, **more: object) -> Summary:
        request = LidarRequest(read_aoi(degrees(*box)), sources=tuple(f"{server.url}/{name}" for name in sources))
        client = HttpClient(retry=Retry(attempts=2, pause_s=0))
        return fetch_lidar(tmp_path / "lidar", request, client=client, dry_run=dry_run, **more)

    return run


def test_an_ept_becomes_a_laz_in_metres(fetch, returns, tmp_path: Path) -> None:
    box = (WEST + 10, NORTH - 40, WEST + 40, NORTH - 15)
    summary = fetch(box, "project/ept.json")
    assert not summary.failures
    las = laspy.read(tmp_path / "lidar" / "project.laz")
    assert las.header.parse_crs().to_epsg() == 32611, "units of web mercator are no metres"
    # The box in degrees is turned against the grid, and its own box in web mercator is a little larger.
    x, y = np.asarray(returns.x), np.asarray(returns.y)
    inner = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    outer = (x > box[0] - 3) & (x < box[2] + 3) & (y > box[1] - 3) & (y < box[3] + 3)
    assert inner.sum() <= len(las) <= outer.sum()
    # Moved to web mercator and back, points are where they were, to a millimetre.
    written = {(round(a * 20), round(b * 20), round(c * 100)) for a, b, c in zip(las.x, las.y, las.z, strict=True)}
    original = {
        (round(a * 20), round(b * 20), round(c * 100))
        for a, b, c in zip(x[inner], y[inner], np.asarray(returns.z)[inner], strict=True)
    }
    assert len(original & written) > 0.9 * len(original)
    assert summary.facts["points"] == {"project": len(las)}
    assert np.isin(np.unique(las.classification), [2, 5, 6, 7]).all()
    assert 0 < np.count_nonzero(las.withheld) < len(las) / 20
    assert "no vertical CRS is stated" in " ".join(summary.remarks)
    assert not (tmp_path / "lidar" / "pieces").exists()


def test_only_nodes_over_the_area_are_fetched(fetch, server) -> None:
    summary = fetch((WEST + 1, NORTH - 59, WEST + 9, NORTH - 50), "project/ept.json")
    names = {call.path.rpartition("/")[2] for call in server.asked("/project/ept-data")}
    assert "0-0-0-0.laz" in names and len(names) < 5
    assert summary.facts["pieces"] == len(names)


def test_a_second_run_asks_for_no_node(fetch, server, tmp_path: Path) -> None:
    box = (WEST + 1, NORTH - 59, WEST + 9, NORTH - 50)
    first = fetch(box, "project/ept.json")
    content = (tmp_path / "lidar" / "project.laz").read_bytes()
    server.forget()
    second = fetch(box, "project/ept.json")
    assert (second.collected.fetched, server.count("/project/ept-data")) == (0, 0)
    assert second.facts["points"] == first.facts["points"]
    assert (tmp_path / "lidar" / "project.laz").read_bytes() == content


def test_a_damaged_node_is_said_and_fetched_again(fetch, server, tmp_path: Path) -> None:
    box = (WEST + 1, NORTH - 59, WEST + 9, NORTH - 50)
    server.fail(Fault(status=200, body=b"LASF of nothing"), path="/project/ept-data/0-0-0-0.laz")
    summary = fetch(box, "project/ept.json")
    assert len(summary.failures) == 1 and "0-0-0-0.laz: damaged" in summary.failures[0]
    assert not (tmp_path / "lidar" / "project.laz").exists()
    assert not fetch(box, "project/ept.json").failures


def test_a_copc_keeps_its_crs_and_its_feet(fetch, feet, folder, tmp_path: Path) -> None:
    summary = fetch((WEST + 5, NORTH - 30, WEST + 25, NORTH - 10), "cloud.copc.laz")
    assert not summary.failures
    las = laspy.read(tmp_path / "lidar" / "cloud.laz")
    crs = las.header.parse_crs()
    assert crs.is_compound and crs.sub_crs_list[0].to_epsg() == 32611
    whole = laspy.read(folder / "cloud.copc.laz")
    x, y = np.asarray(whole.x), np.asarray(whole.y)
    inner = (x >= WEST + 5) & (x < WEST + 25) & (y >= NORTH - 30) & (y < NORTH - 10)
    assert inner.sum() <= len(las) < 1.4 * inner.sum()
    assert set(zip(whole.X[inner], whole.Y[inner], whole.Z[inner], strict=True)) <= set(
        zip(las.X, las.Y, las.Z, strict=True)
    )
    assert "units of 0.304801 m (feet)" in " ".join(summary.remarks)


def test_fetched_clouds_become_a_canopy_height_model(canopy, fetch, tmp_path: Path) -> None:
    import rasterio

    fetch((WEST, NORTH - 60, WEST + 60, NORTH), "cloud.copc.laz")
    out = tmp_path / "chm.tif"
    code, _, err = canopy("chm", tmp_path / "lidar" / "cloud.laz", "--out", out)
    assert code == 0, err
    with rasterio.open(out) as raster:
        heights = raster.read(1)
    assert np.nanmax(heights) == pytest.approx(np.nanmax(FOREST.chm_m), abs=1.5), "feet became metres"


def test_the_project_that_covers_the_area_best_is_taken(fetch, server, folder, tmp_path: Path) -> None:
    def outline(west: float, east: float) -> dict:
        w, s, e, n = map(float, degrees(west, NORTH - 100, east, NORTH + 100).split(","))
        return {"type": "MultiPolygon", "coordinates": [[[[w, s], [e, s], [e, n], [w, n], [w, s]]]]}

    names = {"CA_Old_2012": (0, 200), "CA_Half_2021": (0, 30), "CA_New_2018": (-10, 300)}
    features = [
        {"properties": {"name": name, "id": 1, "count": 2**33, "url": f"{server.url}/project/ept.json"},
         "geometry": outline(WEST + west, WEST + east)}
        for name, (west, east) in names.items()
    ]  # fmt: skip
    features.append({"properties": {"name": "permissions-test", "url": "x"}, "geometry": None})
    (folder / "resources.geojson").write_text(json.dumps({"features": features}))
    index = f"{server.url}/resources.geojson"
    summary = fetch((WEST + 1, NORTH - 59, WEST + 59, NORTH - 5), dry_run=True, index=index)
    assert summary.remarks[0] == "project CA_New_2018 covers 100% of the area"
    assert "CA_Old_2012, CA_Half_2021" in summary.remarks[1]
    assert not list(tmp_path.iterdir())
    request = LidarRequest(read_aoi(degrees(WEST, NORTH - 9, WEST + 9, NORTH)), Years((2012, 2013)))
    assert [project.name for project in find_projects(HttpClient(), request, index)] == ["CA_Old_2012"]
    with pytest.raises(SourceError, match="no 3DEP project over the area"):
        fetch((WEST + 50_000, NORTH, WEST + 50_010, NORTH + 10), index=index)


def copc_catalogue(server: WebServer, folder: Path) -> str:
    """The Planetary Computer's catalogue of COPC files: one project that is whole, one newer that is half."""
    w, s, e, n = map(float, degrees(WEST - 5, NORTH - 65, WEST + 65, NORTH + 5).split(","))
    for project in ("USGS_LPC_CA_Whole_2018_LAS_2019", "USGS_LPC_CA_Half_2021"):
        (folder / "usgs-copc" / project / "copc").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "cloud.copc.laz", folder / "usgs-copc" / project / "copc" / "w2133n2147.copc.laz")

    def item(project: str, start: str, end: str, east: float) -> dict:
        href = f"{server.url}/usgslidareuwest/usgs-3dep-copc/usgs-copc/{project}/copc/w2133n2147.copc.laz"
        outline = shapely.box(w, s, east, n)
        return {
            "type": "Feature", "id": f"{project}-w2133n2147", "collection": "3dep-lidar-copc", "links": [],
            "geometry": shapely.geometry.mapping(outline), "bbox": list(outline.bounds),
            "properties": {"datetime": None, "start_datetime": start, "end_datetime": end, "pc:count": 9, "proj:epsg":
                           None, "3dep:usgs_id": project},
            "assets": {
                "data": {"href": href, "type": "application/vnd.laszip+copc", "roles": ["data"], "pc:type": "lidar"},
                "thumbnail": {"href": "https://example.org/thumbnail.png", "type": "image/png"},
            },
        }  # fmt: skip

    items = [
        item("USGS_LPC_CA_Whole_2018_LAS_2019", "2018-08-01T00:00:00Z", "2018-10-01T00:00:00Z", e),
        item("USGS_LPC_CA_Half_2021", "2021-05-01T00:00:00Z", "2021-05-09T00:00:00Z", (w + e) / 2),
    ]
    service = StacApi(server, items, prefix="/pc")
    signed(server, folder, lambda signature: signature == "good", "/usgslidareuwest/usgs-3dep-copc")
    server.route("/sas", Reply.json({"token": "sig=good&sip=1.2.3.4", "msft:expiry": "2999-01-01T00:00:00Z"}))
    forget_tokens()
    return f"{service.uri}?collection=3dep-lidar-copc&asset=data&signing={server.url}/sas"


def test_copc_files_are_found_in_a_catalogue_and_signed(server, folder, tmp_path: Path) -> None:
    catalogue = copc_catalogue(server, folder)
    area = read_aoi(degrees(WEST + 1, NORTH - 59, WEST + 59, NORTH - 5))
    client = HttpClient(retry=Retry(attempts=2, pause_s=0))
    summary = fetch_lidar(tmp_path / "lidar", LidarRequest(area, copc=True), index=catalogue, client=client)
    assert not summary.failures
    assert summary.remarks[0] == "project USGS_LPC_CA_Whole_2018_LAS_2019 covers 100% of the area"
    assert "USGS_LPC_CA_Half_2021" in summary.remarks[1]
    assert len(laspy.read(tmp_path / "lidar" / "w2133n2147.laz")) > 100
    for path in (tmp_path / "lidar").rglob("*.json"):
        assert "sig=" not in path.read_text()
    request = LidarRequest(area, Years((2021,)), copc=True)
    (project,) = find_copc_projects(client, request, catalogue)
    assert (project.name, project.year) == ("USGS_LPC_CA_Half_2021", 2021)
    # The unsigned address answers as a private blob does.
    with pytest.raises(SourceError, match="409"):
        fetch_lidar(tmp_path / "other", LidarRequest(area, sources=project.addresses), client=client)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"dataType": "binary", "bounds": [0,0,0,1,1,1], "srs": {"wkt": "EPSG:3857"}, "points": 1}',
         "points are binary"),
        ("{}", "no EPT"),
        ("", "expected JSON"),
    ],
)  # fmt: skip
def test_what_is_no_ept_is_one_line(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "ept.json").write_text(content)
    with WebServer() as server:
        server.files("/p", tmp_path)
        request = LidarRequest(read_aoi("1,1,2,2"), sources=(f"{server.url}/p/ept.json",))
        with pytest.raises(SourceError, match=reason):
            fetch_lidar(tmp_path / "out", request)


def test_what_is_no_copc_is_one_line(server, folder, tmp_path: Path) -> None:
    request = LidarRequest(read_aoi("1,1,2,2"), sources=(f"{server.url}/feet.laz",))
    with pytest.raises(SourceError, match="no COPC file"):
        fetch_lidar(tmp_path / "out", request)
    twice = f"{server.url}/cloud.copc.laz"
    area = read_aoi(degrees(WEST, NORTH - 9, WEST + 9, NORTH))
    with pytest.raises(ConfigError, match="one name"):
        fetch_lidar(tmp_path / "out", LidarRequest(area, sources=(twice, twice)))
    with pytest.raises(SourceError, match="no point of cloud over the area"):
        fetch_lidar(tmp_path / "out", LidarRequest(read_aoi("1,1,2,2"), sources=(twice,)))
