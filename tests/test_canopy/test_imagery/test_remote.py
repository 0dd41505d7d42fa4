"""Remote files give the pixels of a local file, or an error; never anything else."""

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from imagery_reading import SHAPE, X, Y, grid
from rasterio.shutil import copy
from rasters import make_raster
from servers.web import Call, Fault, Reply, WebServer

from canopy.errors import ImageryError, SourceError
from canopy.http import HttpClient, Retry
from canopy.imagery import open_imagery, remote
from canopy.imagery.remote import Part, RemoteFile, merge
from canopy.stores import store_credentials


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(autouse=True)
def patient_without_pauses(monkeypatch: pytest.MonkeyPatch, server: WebServer) -> None:
    quick = HttpClient(retry=Retry(attempts=3, pause_s=0))
    monkeypatch.setattr(remote, "client", lambda: quick)
    server.forget()


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COG with JPEG blocks of 128 px, a mask and overviews."""
    folder = tmp_path_factory.mktemp("cog")
    mask = np.ones((1024, 1024), bool)
    mask[300:420, 500:600] = False
    plain = make_raster(folder / "plain.tif", origin=(X - 100, Y + 100), shape=(1024, 1024), pattern="noise", mask=mask)
    copy(plain, folder / "cog.tif", driver="COG", COMPRESS="JPEG", QUALITY=98, BLOCKSIZE=128)
    return folder / "cog.tif"


@pytest.fixture
def address(server: WebServer, cog: Path) -> str:
    server.files("/data", cog.parent)
    return f"{server.url}/data/cog.tif"


def read(path: object) -> np.ndarray:
    return open_imagery(str(path)).read(grid(SHAPE, origin=(X, Y))).values


def test_pixels_are_those_of_the_local_file_to_the_bit(cog: Path, address: str) -> None:
    local, far = open_imagery(cog), open_imagery(address)
    for geobox in (grid((300, 500)), grid((90, 70), resolution=1.3)):
        np.testing.assert_array_equal(local.read(geobox).values, far.read(geobox).values)
    assert np.isnan(far.read(grid((300, 500)))).any()
    assert (local.gsd_m, local.datetime, local.rescale) == (far.gsd_m, far.datetime, far.rescale)


def test_opening_is_one_request_and_a_window_one_a_row_of_blocks(address: str, server: WebServer) -> None:
    source = open_imagery(address)
    assert server.count("/data") == 1
    server.forget()
    server.together = 2
    # Five rows of blocks of 128 px; the blocks of the mask lie between those of the image.
    source.read(grid((512, 512), origin=(X - 68, Y + 68)))
    assert server.count("/data") == 5
    assert server.most_at_a_time > 1


def test_every_thread_has_its_own_handle_on_one_head(address: str, server: WebServer) -> None:
    source = open_imagery(address)
    geoboxes = [grid((64, 64), origin=(X + 40 * n, Y)) for n in range(4)]
    alone = [source.read(geobox).values for geobox in geoboxes]
    server.forget()
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(lambda geobox: source.read(geobox).values, geoboxes), strict=True):
            np.testing.assert_array_equal(one, other)
    assert all(call.range != (0, 2**16) for call in server.calls)


def test_passing_failures_are_asked_again(cog: Path, address: str, server: WebServer) -> None:
    source = open_imagery(address)
    server.fail(Fault(status=503), path="/data")
    server.fail(Fault(truncate=True), path="/data")
    np.testing.assert_array_equal(source.read(grid()).values, read(cog))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(status=500), "500"),
        (Fault(status=429), "429"),
        (Fault(truncate=True), "cog.tif"),
        (Fault(drop=True), "cog.tif"),
        (Fault(status=403), "403"),
        (Fault(status=404), "404"),
        (Fault(status=200, body=b"<html>please log in</html>"), "ranges"),
    ],
)
def test_a_range_that_fails_is_an_error_and_never_nodata(
    address: str, server: WebServer, fault: Fault, reason: str
) -> None:
    source = open_imagery(address)
    server.fail(*[fault] * 100, path="/data")
    with pytest.raises(SourceError, match=reason) as caught:
        source.read(grid((300, 500)))
    assert "\n" not in str(caught.value)
    server.forget()
    assert np.isfinite(source.read(grid((300, 500))).values).any()


def test_a_failed_range_of_the_mask_alone_is_an_error(address: str, cog: Path, server: WebServer) -> None:
    """GDAL reads an unreadable mask as a mask without unknown pixels."""
    source = open_imagery(address)
    with rasterio.open(cog) as dataset:
        size = dataset.width // 128
    assert size == 8
    whole = source.read(grid((300, 500)))
    fresh = open_imagery(address)
    server.forget()
    fresh.read(grid((300, 500)))
    asked = server.count("/data")
    for number in range(asked):
        again = open_imagery(address)
        server.forget()
        server.fail(*[Fault(status=200)] * number, path="/none")
        failing = iter(range(10_000))
        inner = server.answer

        def answer(call: Call, inner=inner, failing=failing, number=number) -> tuple[Reply, Fault]:
            return (Reply(b"", 403), Fault()) if next(failing) == number else inner(call)

        server.answer = answer
        try:
            with pytest.raises(SourceError, match="403"):
                again.read(grid((300, 500)))
        finally:
            del server.answer
    np.testing.assert_array_equal(open_imagery(address).read(grid((300, 500))), whole)


def test_a_file_that_changes_stops_the_run(server: WebServer, tmp_path: Path) -> None:
    server.files("/changing", tmp_path)
    make_raster(tmp_path / "a.tif", shape=(512, 512), pattern="world", tiled=True, blockxsize=128, blockysize=128)
    source = open_imagery(f"{server.url}/changing/a.tif")
    server.count()
    worker = pickle.loads(pickle.dumps(source))
    make_raster(tmp_path / "a.tif", shape=(512, 512), pattern="noise", tiled=True, blockxsize=128, blockysize=128)
    with pytest.raises(ImageryError, match=r"a\.tif: replaced since it was opened"):
        source.read(grid((300, 500), origin=(X + 100, Y - 100)))
    # A worker asks for the head itself, and finds another file than the run's.
    remote.forget(f"{server.url}/changing/a.tif")
    with pytest.raises(ImageryError, match="replaced since it was opened"):
        worker.read(grid())
    assert open_imagery(f"{server.url}/changing/a.tif").fingerprint() != source.fingerprint()


def test_without_an_entity_tag_size_and_time_are_compared() -> None:
    parts = iter([Part(b"II*\0" * 100, 400_000, "Mon"), Part(b"x" * 70_000, 400_000, "Mon"),
                  Part(b"x" * 70_000, 400_000, "Tue")])  # fmt: skip
    file = RemoteFile("https://example.org/a.tif", lambda start, stop: next(parts))
    assert file.read(100_000, 170_000) == b"x" * 70_000
    with pytest.raises(ImageryError, match="replaced"):
        file.read(100_000, 170_000)


def test_fingerprint_does_not_depend_on_a_signature(address: str, server: WebServer) -> None:
    one, other = (open_imagery(f"{address}?sig={value}") for value in ("AAAA", "BBBB"))
    assert one.fingerprint() == other.fingerprint()
    assert "AAAA" not in one.describe()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>no</html>", "a text of HTML or XML, expected GeoTIFF"),
        (b'{"error": 1}', "a text of JSON"),
        (b"\0" * 64, "no raster that is understood"),
        (b"", "0 bytes"),
    ],
)
def test_what_is_no_raster_is_refused(server: WebServer, body: bytes, reason: str) -> None:
    server.route("/page", Reply(body))
    with pytest.raises(ImageryError, match=reason):
        open_imagery(f"{server.url}/page/a.tif?key=SECRET")


def test_ranges_are_copied_where_the_environment_asks_for_it(
    address: str, server: WebServer, cog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_TILE_CACHE", str(tmp_path / "cache"))
    first = open_imagery(f"{address}?sig=HIDDENWORD").read(grid((300, 500)))
    assert server.count("/data") > 1
    server.forget()
    np.testing.assert_array_equal(open_imagery(f"{address}?sig=another").read(grid((300, 500))), first)
    # The head is asked for again, and would show another file.
    assert [call.range for call in server.calls] == [(0, 2**16)]
    monkeypatch.setenv("CANOPY_TILE_CACHE", str(tmp_path / "other"))
    remote.forget(address)
    source = RemoteFile(address, remote._fetcher(address, remote.DIRECT))
    source.read(100_000, 200_000)
    assert not (tmp_path / "other").exists()


def test_a_server_without_ranges_is_said(server: WebServer, cog: Path) -> None:
    server.files("/plain", cog.parent, ranges=False)
    with pytest.raises(SourceError, match="ranges"):
        open_imagery(f"{server.url}/plain/cog.tif")


def test_small_files_and_png_are_read_whole(server: WebServer, tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif", pattern="noise")
    server.files("/small", tmp_path)
    np.testing.assert_array_equal(read(f"{server.url}/small/a.tif"), read(tmp_path / "a.tif"))


def test_ranges_that_lie_close_become_one() -> None:
    assert merge([(50, 60), (0, 10), (60, 70), (5, 20)]) == [(0, 70)]
    assert merge([(0, 10), (100_000, 100_010)]) == [(0, 10), (100_000, 100_010)]
    content = bytes(range(256)) * 2000
    asked = []

    def fetch(start: int, stop: int) -> Part:
        asked.append((start, stop))
        return Part(content[start:stop], len(content), "1")

    file = RemoteFile("https://example.org/a.tif", fetch)
    wanted = [(100_000, 170_000), (170_008, 170_100), (400_000, 470_000)]
    assert file.read_many(wanted) == [content[start:stop] for start, stop in wanted]
    assert sorted(asked[1:]) == [(100_000, 170_100), (400_000, 470_000)]
    assert file.read(500_000, 10**9) == content[500_000:]
    assert file.read(600_000, 700_000) == b""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of an S3 server of this process, with a bucket that wants credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def test_objects_of_a_store_are_read_with_the_usual_environment(
    bucket: str, cog: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import obstore
    from obstore.store import S3Store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETKEY")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    HttpClient().request("PUT", f"{bucket}/scenes", body=(
        b"<CreateBucketConfiguration><LocationConstraint>us-west-2</LocationConstraint></CreateBucketConfiguration>"
    ))  # fmt: skip
    store = S3Store("scenes", endpoint=bucket, client_options={"allow_http": True})
    obstore.put(store, "folder/a b.tif", cog.read_bytes())
    source = open_imagery("s3://scenes/folder/a b.tif")
    np.testing.assert_array_equal(source.read(grid((300, 500))), open_imagery(cog).read(grid((300, 500))))
    obstore.put(store, "folder/a b.tif", make_raster(tmp_path / "b.tif").read_bytes())
    with pytest.raises(ImageryError, match=r"a b\.tif: replaced since it was opened"):
        source.read(grid((300, 500), origin=(X + 150, Y - 150)))
    with pytest.raises(SourceError, match=r"s3://scenes/none\.tif: no such object"):
        open_imagery("s3://scenes/none.tif")
    with pytest.raises(ImageryError, match="expected a bucket and a name"):
        open_imagery("s3://scenes")


def test_credentials_come_from_the_profile_of_the_users_other_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert dict(store_credentials("s3")) == {"skip_signature": "true"}
    assert dict(store_credentials("s3", own=True)) == {}, "the role of a machine signs"
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n")
    assert dict(store_credentials("s3")) == {"access_key_id": "a", "secret_access_key": "b%c"}
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_session_token = c\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "d")
    assert dict(store_credentials("s3")) == {"access_key_id": "d"}, "a token of other keys is left out"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "config").write_text("[default]\nregion = x\n[profile other]\nregion = y\nendpoint_url = http://z\n")
    assert dict(store_credentials("s3"))["region"] == "x"
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert dict(store_credentials("s3", own=True)) == {"region": "y", "endpoint": "http://z"}
    (tmp_path / "config").unlink()
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert dict(store_credentials("s3")) == {"request_payer": "true", "skip_signature": "true"}
    monkeypatch.setenv("AZURE_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "naipeuwest")
    assert dict(store_credentials("az")) == {"account_name": "naipeuwest", "skip_signature": "true"}
