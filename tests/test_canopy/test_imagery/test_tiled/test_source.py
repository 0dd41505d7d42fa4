import pickle
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from rasters import ORIGIN, UTM, world_values
from servers.web import Fault, Reply, WebServer
from tile_pyramids import TileRoute, grid, picture, tile_at, tile_bytes, write_tiles

from canopy.errors import ImageryError, SourceError
from canopy.imagery import open_imagery
from canopy.imagery.tiled import open_tiles
from canopy.imagery.tiled.matrices import TileKey, mercator_matrix, of_quadkey

BLANK = bytes(1670)


def unknown_share(image: np.ndarray) -> float:
    return float(np.isnan(image[0]).mean())


def test_tiles_show_the_ground_where_it_lies(expected: np.ndarray) -> None:
    truth = world_values(UTM, grid().affine, grid().shape) / 255
    assert np.abs(expected - truth).max() < 0.01


def test_a_service_and_a_folder_give_the_same_bits(xyz, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(xyz().read(grid()).values, expected)


@pytest.mark.parametrize("layout", ["xyz", "tms", "quadkey"])
def test_each_layout_gives_the_same_bits(
    layout: str, tiles: dict[TileKey, bytes], tmp_path: Path, expected: np.ndarray
) -> None:
    folder = write_tiles(tmp_path, tiles, layout)
    np.testing.assert_array_equal(open_tiles(f"{layout}+file:{folder}").read(grid()).values, expected)


@pytest.mark.parametrize(
    ("template", "kind"),
    [("{z}/{x}/{-y}", "xyz"), ("{z}/{x}/{y}", "tms"), ("q/{q}", "quadkey"), ("{switch:a,b}/{z}/{x}/{y}", "xyz")],
)
def test_each_kind_of_address_gives_the_same_bits(
    server: WebServer, tiles: dict[TileKey, bytes], expected: np.ndarray, template: str, kind: str
) -> None:
    south = kind == "tms" or "-y" in template
    route = TileRoute(tiles)

    def reply(call):
        parts = call.path.removesuffix(".png").split("/")
        if parts[-2] == "q":
            return route.answer(of_quadkey(parts[-1]))
        zoom, col, row = map(int, parts[-3:])
        return route.answer(TileKey(zoom, col, 2**zoom - 1 - row if south else row))

    server.route("/", reply)
    source = open_tiles(f"{kind}+{server.url}/t/{template}.png#zoom=17")
    np.testing.assert_array_equal(source.read(grid()).values, expected)
    if "switch" in template:
        assert {call.path.split("/")[2] for call in server.calls} == {"a", "b"}


def test_pixels_do_not_depend_on_the_window(xyz, expected: np.ndarray) -> None:
    source = xyz()
    for rows, cols in ((slice(17, 60), slice(60, 131)), (slice(85, 90), slice(3, 7))):
        np.testing.assert_array_equal(source.read(grid()[rows, cols]).values, expected[:, rows, cols])


def test_each_tile_is_fetched_once(xyz, server: WebServer) -> None:
    source = xyz()
    source.read(grid())
    source.read(grid()[50:80, 50:150])
    assert server.count("/tiles/") == len({call.path for call in server.calls}) >= 4


def test_the_zoom_follows_the_true_size_of_pixels(tmp_path: Path) -> None:
    contents = {}
    for zoom in (15, 16, 17):
        matrix = mercator_matrix(zoom)
        first, last = tile_at(matrix, -30, -30), tile_at(matrix, 90, 90)
        for col in range(first.col, last.col + 1):
            for row in range(first.row, last.row + 1):
                noise = np.random.default_rng((col, row)).integers(zoom * 10, zoom * 10 + 2, (3, 256, 256))
                contents[TileKey(zoom, col, row)] = picture(noise)
    source = open_tiles(write_tiles(tmp_path, contents))
    # Zoom 16 has 1.69 m here though its own pixels are 2.39 units: a reader of units would take zoom 17.
    for resolution, zoom in ((0.85, 17), (1.65, 17), (1.7, 16), (3.5, 15)):
        side = max(2, int(60 / resolution))
        values = source.read(GeoBox((side, side), Affine(resolution, 0, ORIGIN[0], 0, -resolution, ORIGIN[1]), UTM))
        assert np.nanmedian(values.values) * 255 == pytest.approx(zoom * 10 + 0.5, abs=1), resolution
    assert source.gsd_m == pytest.approx(0.845, abs=0.002)


def test_absent_tiles_are_unknown(xyz, route: TileRoute, expected: np.ndarray) -> None:
    key = tile_at(mercator_matrix(17), 60, 40)
    shares = set()
    for reply in (Reply(status=204), Reply.text("none", 404), Reply(b"")):
        route.replies[key] = reply
        image = xyz().read(grid()).values
        shares.add(unknown_share(image))
        # What is left is the ground, up to the pixels next to the hole.
        assert np.nanmax(np.abs(image - expected)) < 0.2
    assert len(shares) == 1
    assert 0.1 < shares.pop() < 0.9


def test_tiles_of_one_colour_are_unknown(xyz, route: TileRoute) -> None:
    key = tile_at(mercator_matrix(17), 60, 40)
    for level, kind in ((0, "PNG"), (255, "JPEG")):
        route.replies[key] = Reply(picture(np.full((3, 256, 256), level), kind))
        assert 0.1 < unknown_share(xyz().read(grid()).values) < 1


def test_a_declared_blank_is_unknown_by_size_or_hash(xyz, route: TileRoute) -> None:
    key = tile_at(mercator_matrix(17), 60, 40)
    blank = picture(np.random.default_rng(1).integers(0, 255, (3, 256, 256)))
    route.replies[key] = Reply(blank)
    assert unknown_share(xyz().read(grid()).values) == 0
    for declared in (f"1670,{len(blank)}", sha256(blank).hexdigest()[:16]):
        assert 0.1 < unknown_share(xyz(f"&blank={declared}").read(grid()).values) < 1


def test_transparent_pixels_are_unknown(xyz, route: TileRoute, tiles: dict[TileKey, bytes]) -> None:
    matrix = mercator_matrix(17)
    key = tile_at(matrix, 60, 40)
    alpha = np.zeros((256, 256))
    values = np.random.default_rng(0).integers(0, 255, (3, 256, 256))
    route.replies[key] = Reply(picture(np.concatenate([values, alpha[None]])))
    holed = unknown_share(xyz().read(grid()).values)
    assert 0.1 < holed < 1
    alpha[:, :128] = 255
    route.replies[key] = Reply(picture(np.concatenate([values, alpha[None]])))
    assert 0 < unknown_share(xyz().read(grid()).values) < holed


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply.text("<html><body>Sign in</body></html>", kind="text/html"), "HTML or XML .*Sign in"),
        (Reply.text("\n<?xml version='1.0'?><ServiceException>Invalid level</ServiceException>"), "Invalid level"),
        (Reply.json({"error": "quota"}), "a text of JSON .*quota"),
        (Reply(b"\x00\x01\x02"), "a file, expected a tile in JPEG, PNG, WEBP"),
        (Reply(picture(np.zeros((3, 512, 512)))), "512 x 512 px, expected 256 x 256.*#tile=512"),
        (Reply(picture(np.random.default_rng(0).integers(0, 255, (3, 256, 256)), "JPEG")[:900]), "a damaged picture"),
        (Reply(picture(np.random.default_rng(0).integers(0, 255, (3, 256, 256)))[:900]), "a damaged picture"),
        (Reply.text("denied", 403), "answered 403"),
        (Reply.text("slow down", 429), "answered 429 .*asked 2 times"),
        (Reply.text("broken", 500), "answered 500 .*asked 2 times"),
    ],
)
def test_what_is_no_tile_is_an_error_never_ground(xyz, route: TileRoute, reply: Reply, message: str) -> None:
    route.replies[tile_at(mercator_matrix(17), 60, 40)] = reply
    with pytest.raises(SourceError, match=message) as error:
        xyz().read(grid())
    assert "\n" not in str(error.value)


def test_what_fails_once_is_fetched_again(xyz, server: WebServer, expected: np.ndarray) -> None:
    # A fault for each of three tiles: several tiles are on their way at once, and each is asked for twice at most.
    faults = (Fault(status=429), Fault(drop=True), Fault(status=200, body=b"<html>busy</html>"))
    xyz().read(grid())
    paths = sorted({call.path for call in server.asked("/tiles/")})
    for path, fault in zip(paths, faults, strict=False):
        server.fail(fault, path=path)
    np.testing.assert_array_equal(xyz().read(grid()).values, expected)
    # Once whole, once with the fault, once again.
    assert [server.count(path) for path in paths[: len(faults)]] == [3] * len(faults)


def test_a_source_goes_on_after_an_error(xyz, route: TileRoute, expected: np.ndarray) -> None:
    key = tile_at(mercator_matrix(17), 60, 40)
    source = xyz()
    route.replies[key] = Reply.text("broken", 500)
    with pytest.raises(SourceError):
        source.read(grid())
    del route.replies[key]
    np.testing.assert_array_equal(source.read(grid()).values, expected)


def test_one_picture_for_two_places_is_a_placeholder(xyz, route: TileRoute) -> None:
    matrix = mercator_matrix(17)
    sorry = picture(np.random.default_rng(3).integers(0, 255, (3, 256, 256)))
    keys = [tile_at(matrix, 5, 5), tile_at(matrix, 140, 75)]
    assert keys[0] != keys[1]
    for key in keys:
        route.replies[key] = Reply(sorry)
    with pytest.raises(SourceError, match="the same picture byte for byte") as error:
        xyz().read(grid())
    # The remedy that the message names works.
    option = str(error.value).partition("#")[2].split()[0]
    assert unknown_share(xyz(f"&{option}").read(grid()).values) > 0.5


def test_a_value_that_means_unknown(xyz, route: TileRoute, tiles: dict[TileKey, bytes]) -> None:
    key = tile_at(mercator_matrix(17), 60, 40)
    values = np.moveaxis(np.asarray(Image.open(BytesIO(tiles[key]))), -1, 0).copy()
    values[:, :, 100:] = 0
    route.replies[key] = Reply(picture(values))
    assert unknown_share(xyz().read(grid()).values) == 0
    assert unknown_share(xyz(nodata=0).read(grid()).values) > 0.1


def test_larger_tiles_of_the_same_grid(server: WebServer, expected: np.ndarray) -> None:
    matrix = mercator_matrix(16, 512)
    server.route("/", lambda call: Reply(tile_bytes(TileKey(*map(int, call.path.split("/")[-3:])), matrix)))
    source = open_tiles(f"xyz+{server.url}/{{z}}/{{x}}/{{y}}#zoom=16&tile=512")
    # 512 px at zoom 16 are the pixels of zoom 17.
    np.testing.assert_allclose(source.read(grid()).values, expected, atol=1e-6)


def test_both_sides_of_the_antimeridian(server: WebServer) -> None:
    def reply(call):
        zoom, col, row = map(int, call.path.split("/")[-3:])
        return Reply(tile_bytes(TileKey(zoom, col, row), mercator_matrix(zoom)))

    server.route("/", reply)
    source = open_tiles(f"xyz+{server.url}/{{z}}/{{x}}/{{y}}#zoom=14")
    crs = "EPSG:32701"  # its western edge is the antimeridian
    edge_x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(180, -18)
    geobox = GeoBox((20, 60), Affine(9, 0, edge_x - 9 * 30, 0, -9, y), crs)
    image = source.read(geobox).values
    assert not np.isnan(image).any()
    columns = {call.path.split("/")[-2] for call in server.calls}
    assert {"0", str(2**14 - 1)} <= columns


def test_a_source_works_in_another_process(xyz, expected: np.ndarray) -> None:
    source = xyz()
    source.read(grid()[:50, :50])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(grid()).values, expected)
    assert copy.fingerprint() == source.fingerprint()


def test_fingerprints_change_with_what_decides_a_pixel(xyz, tile_folder: Path, tmp_path: Path) -> None:
    prints = [
        source.fingerprint()
        for source in (xyz(), xyz("&blank=1670"), xyz(scale=(0, 200)), xyz("&query.v=2"), open_tiles(tile_folder))
    ]
    assert len(set(prints)) == 5
    assert xyz().fingerprint() == prints[0]
    # A key changes nothing.
    assert xyz("&key=x-api-key:SOME_KEY").fingerprint() == prints[0]


def test_a_file_that_is_replaced_stops_the_run(tiles: dict[TileKey, bytes], tmp_path: Path) -> None:
    folder = write_tiles(tmp_path, tiles)
    source = open_tiles(folder)
    path = next(iter(folder.rglob("*.png")))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ImageryError, match="replaced or removed since it was opened"):
        source.read(grid())


def test_connections_are_bounded(xyz, server: WebServer) -> None:
    server.forget()
    server.together, server.latency_s = 3, 0.005
    try:
        xyz("&connections=3").read(grid())
    finally:
        server.together, server.latency_s = 1, 0.0
    assert server.most_at_a_time == 3


def test_the_source_describes_itself(xyz, server: WebServer) -> None:
    source = xyz(datetime="2023-06-01")
    assert source.describe() == (
        f"xyz+{server.url}/tiles/{{z}}/{{x}}/{{y}}.png#zoom=17, zoom 17, 256 px tiles, GSD from 1.19 m, EPSG:3857, "
        "values 0..255 -> 0..1 (8-bit)"
    )
    assert source.datetime == "2023-06-01"
    assert (source.dates(grid()) == 19_509).all()
    assert source.footprint.boundingbox.bbox == pytest.approx((-180, -85.0511, 180, 85.0511), abs=1e-3)


def test_a_key_travels_in_a_header_alone(
    xyz, server: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TILES_KEY", "a-secret-value")
    source = xyz("&key=x-api-key:TILES_KEY")
    source.read(grid()[:20, :20])
    assert {call.headers["x-api-key"] for call in server.calls} == {"a-secret-value"}
    texts = (source.describe(), source.fingerprint(), repr(source.uris), caplog.text, str(pickle.dumps(source)))
    assert not any("a-secret-value" in text for text in texts)
    assert not any("a-secret-value" in str(call.query) for call in server.calls)


def test_open_imagery_finds_tiles(tile_folder: Path, xyz, server: WebServer, expected: np.ndarray) -> None:
    for uri in (tile_folder, f"xyz+file:{tile_folder}", f"xyz+{server.url}/tiles/{{z}}/{{x}}/{{y}}.png#zoom=17"):
        np.testing.assert_array_equal(open_imagery(uri).read(grid()).values, expected)
