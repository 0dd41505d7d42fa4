"""Windows of remote rasters are the pixels of the file, or an error."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.crs import CRS
from rasters import ORIGIN, UTM, make_raster
from servers.web import Call, Fault, Reply, WebServer, file_reply

from canopy.errors import ImageryError, SourceError
from canopy.fetch.checksums import crc32c
from canopy.fetch.remote import Ranges, RemoteRaster, RemoteStream, open_ranges
from canopy.fetch.windows import copy_window, cut, require_corner
from canopy.http import HttpClient, Retry

CLIENT = HttpClient(retry=Retry(attempts=2, pause_s=0))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "a.tif"
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    return make_raster(path, shape=(512, 640), pattern="noise", resolution=1.0, nodata=0, **options)


@pytest.fixture
def server(image: Path) -> Iterator[WebServer]:
    with WebServer() as server:
        server.files("/", image.parent)
        yield server


def remote(server: WebServer, renew=None) -> RemoteRaster:
    url = f"{server.url}/a.tif?token=1"
    return RemoteRaster(open_ranges(Ranges(CLIENT, url, renew=renew), url))


def bounds(col: int, row: int, width: int, height: int) -> tuple[float, float, float, float]:
    x, y = ORIGIN[0] + col, ORIGIN[1] - row
    return x, y - height, x + width, y


def test_a_window_has_the_pixels_and_the_place(server: WebServer, image: Path, tmp_path: Path) -> None:
    done: list[float] = []
    with remote(server) as raster:
        copy_window(raster, bounds(100, 50, 300, 400), tmp_path / "w.tif", done.append)
    with rasterio.open(image) as whole, rasterio.open(tmp_path / "w.tif") as window:
        np.testing.assert_array_equal(window.read(), whole.read()[:, 50:450, 100:400])
        assert tuple(window.bounds) == bounds(100, 50, 300, 400)
        assert (window.crs, window.nodata, window.dtypes[0]) == (whole.crs, 0, "uint8")
    assert done[-1] == 3 * 400 * 300
    sent = sum(len(range(*call.range)) for call in server.asked() if call.range)
    assert sent < image.stat().st_size


def test_bounds_beyond_the_file_are_cut(server: WebServer, image: Path, tmp_path: Path) -> None:
    cut(image, bounds(-50, -50, 60, 60), tmp_path / "w.tif")
    with rasterio.open(tmp_path / "w.tif") as window:
        assert window.shape == (10, 10)
    with remote(server) as raster, pytest.raises(SourceError, match="no pixel within the area"):
        copy_window(raster, bounds(-500, 0, 100, 100), tmp_path / "v.tif", done_nothing)


def done_nothing(count: float) -> None:
    return None


def test_damage_and_change_are_errors(server: WebServer, image: Path, tmp_path: Path) -> None:
    content = bytearray(image.read_bytes())
    with remote(server) as raster:
        server.fail(*[Fault(status=503)] * 9)
        with pytest.raises(SourceError, match="503"):
            copy_window(raster, bounds(300, 200, 200, 200), tmp_path / "w.tif", done_nothing)
    server.forget()
    with remote(server) as raster:
        server.route("/a.tif", lambda call: file_reply(call, bytes(content) + b"more"))
        with pytest.raises(ImageryError, match="replaced since it was opened"):
            copy_window(raster, bounds(300, 200, 200, 200), tmp_path / "w.tif", done_nothing)


def test_an_expired_address_is_renewed_once(server: WebServer, image: Path, tmp_path: Path) -> None:
    def answer(call: Call) -> Reply:
        if call.query["token"] == "1":
            return Reply.text("<Error><Code>ExpiredToken</Code></Error>", 400)
        return file_reply(call, image.read_bytes())

    server.route("/a.tif", answer)
    with remote(server, renew=lambda: f"{server.url}/a.tif?token=2") as raster:
        copy_window(raster, bounds(0, 0, 10, 10), tmp_path / "w.tif", done_nothing)
    with pytest.raises(SourceError, match="400"):
        remote(server, renew=lambda: f"{server.url}/a.tif?token=1")


def test_a_stream_reads_as_a_file(server: WebServer, image: Path) -> None:
    url = f"{server.url}/a.tif"
    stream = RemoteStream(open_ranges(Ranges(CLIENT, url), url))
    content = image.read_bytes()
    assert stream.read(8) == content[:8]
    assert stream.seek(-10, 2) == len(content) - 10 and stream.read() == content[-10:]
    stream.seek(100_000)
    buffer = bytearray(70_000)
    assert stream.readinto(buffer) == 70_000 and bytes(buffer) == content[100_000:170_000]
    assert stream.readable() and stream.seekable() and stream.tell() == 170_000


def test_a_tile_elsewhere_is_refused() -> None:
    crs = CRS(UTM)
    require_corner((1000.0, 2000.0, 2000.0, 3000.0), crs, (1000, 2000), crs, "a.tif")
    for corner, own in (((1001, 2010), crs), ((1000, 2000), CRS("EPSG:32632")), ((1000, 2000), None)):
        with pytest.raises(SourceError, match=r"a\.tif: its corner is"):
            require_corner((1000.0, 2000.0, 2000.0, 3000.0), own, corner, crs, "a.tif")


@pytest.mark.parametrize("stated", ["E3069283", "e3069283"])
def test_checksums_are_those_of_the_standard(stated: str, tmp_path: Path) -> None:
    # RFC 3720, B.4: the CRC-32C of "123456789".
    (tmp_path / "a").write_bytes(b"123456789")
    assert crc32c(stated, "a").matches(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"12345678")
    assert not crc32c(stated, "a").matches(tmp_path / "b")


def test_checksums_may_lack_zeros_and_must_be_numbers(tmp_path: Path) -> None:
    content = next(f"{number}".encode() for number in range(1000) if _crc(f"{number}".encode()) < 2**24)
    (tmp_path / "a").write_bytes(content)
    assert crc32c(f"{_crc(content):x}", "a").matches(tmp_path / "a")
    for stated in ("", "123456789", "xyz"):
        with pytest.raises(SourceError, match="8 hexadecimal digits"):
            crc32c(stated, "a")


def _crc(content: bytes) -> int:
    import google_crc32c

    return google_crc32c.value(content)
