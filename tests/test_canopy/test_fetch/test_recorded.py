"""Answers as services really sent them, where the recordings are at hand."""

import json
from pathlib import Path

import laspy
import numpy as np
import pyproj
import pytest
from servers.web import Call, Reply, WebServer

from canopy.credentials import Secret
from canopy.fetch import clouds_remote
from canopy.fetch.clouds_remote import CopcCloud, EptCloud
from canopy.fetch.cmr import search
from canopy.fetch.earthdata import refusal
from canopy.fetch.neon_files import NeonApi
from canopy.fetch.options import Years
from canopy.http import Answer, HttpClient
from tiles.aoi import read_aoi

CLIENT = HttpClient()


def recorded(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_listing_of_neon_is_sorted_out(shared_fixtures: Path) -> None:
    body = recorded(shared_fixtures, "04-neon/data_DP3.30015.001_TEAK_2018-06_assembled.json")["response"]["body"]
    with WebServer() as server:
        server.route("/data/DP3.30015.001/TEAK/2018-06", Reply.json(body))
        files, _ = NeonApi(CLIENT, Secret("token-3c1f0e77"), server.url).files("chm", "TEAK", "2018-06")
    assert len(files) == 4, "outlines of the clouds are no tiles"
    assert {file.visit for file in files} == {"2018_TEAK_3"}
    assert (317_000, 4_104_000) in {file.tile for file in files}


def test_pages_of_the_catalogue_are_followed(shared_fixtures: Path) -> None:
    pages = [recorded(shared_fixtures, f"05-cmr-harmony/cmr_granules_umm_page{number}.json") for number in (1, 2, 3)]

    def answer(call: Call) -> Reply:
        after = call.headers.get("cmr-search-after")
        number = 0 if after is None else int(json.loads(after)[0])
        if number == len(pages):
            return Reply.json({"items": []}, **{"CMR-Hits": "6"})
        return Reply.json(pages[number]["response"]["body"], **{"CMR-Hits": "6", "CMR-Search-After": f"[{number + 1}]"})

    with WebServer() as server:
        server.route("/search/", answer)
        granules = search(CLIENT, "C", "V003", [(0, 0, 1, 1)], Years(), server.url)
    assert len(granules) == 6
    assert all(granule.url and granule.url.startswith("https://") for granule in granules)
    assert [granule.bytes for granule in granules if granule.name == "LAADS:2715071895"] == [27_984_421]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("401_invalid_token", "refuses the token (invalid_token)"),
        ("404_eula_not_accepted", "accept_eula?eula_id="),
    ],
)
def test_refusals_of_the_login_are_understood(shared_fixtures: Path, name: str, said: str) -> None:
    response = recorded(shared_fixtures, f"05-cmr-harmony/urs_{name}.json")["response"]
    answer = Answer("https://urs", response["status"], response["headers"], json.dumps(response["body"]).encode())
    assert said in str(refusal(answer))


def test_a_project_of_more_points_than_32_bits_is_walked(shared_fixtures: Path) -> None:
    with WebServer() as server:
        server.route("/MI/ept.json", Reply((shared_fixtures / "06-3dep" / "ept.json").read_bytes()))
        page = {"0-0-0-0": 100, "1-0-0-0": 7, "1-1-1-0": 9, "1-1-1-1": 5}
        server.route("/MI/ept-hierarchy/0-0-0-0.json", Reply.json(page))
        cloud = EptCloud(CLIENT, f"{server.url}/MI/ept.json", read_aoi("-84.6,45.65,-84.59,45.66"))
        assert cloud.total_points == 9_252_098_247
        # The cube's north-eastern quarter, at any height: elevations below the cube's middle are in the lower half.
        assert [piece.name for piece in cloud.pieces()] == ["0-0-0-0", "1-1-1-1", "1-1-1-0"]
        assert pyproj.CRS(cloud.frame.crs).to_epsg() == 32616


@pytest.mark.parametrize("name", ["1.2-with-color", "autzen_clip_native", "autzen_clip_4326"])
def test_copc_of_other_software_is_cut_by_its_extent(
    shared_fixtures: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds_remote, "_PART_UNITS", 2500.0)
    whole = laspy.read(shared_fixtures / "06-3dep" / f"{name}.copc.laz")
    crs = whole.header.parse_crs()
    horizontal = (crs.sub_crs_list[0] if crs.is_compound else crs).to_2d()
    move = pyproj.Transformer.from_crs(horizontal, "OGC:CRS84", always_xy=True)
    low, high = whole.header.mins, whole.header.maxs
    west, south, east, north = move.transform_bounds(low[0], low[1], high[0], high[1])
    with WebServer() as server:
        server.files("/", shared_fixtures / "06-3dep")
        area = f"{west - 1e-4:.7f},{south - 1e-4:.7f},{east + 1e-4:.7f},{north + 1e-4:.7f}"
        cloud = CopcCloud(CLIENT, f"{server.url}/{name}.copc.laz", read_aoi(area))
        counts = []
        for number, piece in enumerate(cloud.pieces()):
            path = tmp_path / f"{number}.laz"
            counts.append(piece.write(path, lambda done: None))
    assert sum(counts) == len(whole)
    if counts == [len(whole)]:
        np.testing.assert_allclose(np.sort(laspy.read(path).z), np.sort(whole.z))
