import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.web import Fault, Reply, WebServer

from canopy.downloads import Checksum, download
from canopy.errors import OutputBusyError, SourceError
from canopy.http import HttpClient, Retry
from canopy.progress import Progress
from tiles.locks import hold

CONTENT = bytes(range(256)) * 40
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    with WebServer() as server:
        server.files("/", folder)
        yield server


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(retry=Retry(3, 0.0), timeout_s=0.5) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "a.bin"


def leftovers(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


def test_a_file_arrives_whole(server: WebServer, client: HttpClient, path: Path) -> None:
    steps: list[Progress] = []
    download(client, f"{server.url}/a.bin", path, size=len(CONTENT), checksum=SHA256, report=steps.append)
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == []
    assert steps[-1].done == steps[-1].total == len(CONTENT) / 1e6


def test_a_cut_connection_goes_on_where_it_ended(server: WebServer, client: HttpClient, path: Path) -> None:
    server.fail(Fault(truncate=True), Fault(status=503))
    download(client, f"{server.url}/a.bin", path)
    assert path.read_bytes() == CONTENT
    assert [call.range for call in server.calls] == [None, (len(CONTENT) // 2, None), (len(CONTENT) // 2, None)]


def test_a_killed_run_goes_on(server: WebServer, client: HttpClient, path: Path) -> None:
    server.fail(Fault(truncate=True), *[Fault(status=503)] * 3)
    with pytest.raises(SourceError, match="answered 503"):
        download(client, f"{server.url}/a.bin", path)
    assert not path.exists()
    steps: list[Progress] = []
    download(client, f"{server.url}/a.bin", path, report=steps.append)
    assert path.read_bytes() == CONTENT
    assert server.calls[-1].range == (len(CONTENT) // 2, None)
    assert steps[-1].resumed == len(CONTENT) // 2 / 1e6
    assert leftovers(path) == []


def test_a_file_that_changed_is_begun_again(server: WebServer, client: HttpClient, path: Path, tmp_path: Path) -> None:
    server.fail(Fault(truncate=True), *[Fault(status=503)] * 3)
    with pytest.raises(SourceError):
        download(client, f"{server.url}/a.bin", path)
    (tmp_path / "served" / "a.bin").write_bytes(new := CONTENT[::-1])
    download(client, f"{server.url}/a.bin", path)
    assert path.read_bytes() == new


def test_a_server_that_ignores_the_condition_is_noticed(server: WebServer, client: HttpClient, path: Path) -> None:
    server.fail(Fault(truncate=True), *[Fault(status=503)] * 3)
    with pytest.raises(SourceError):
        download(client, f"{server.url}/a.bin", path)
    new = CONTENT[::-1]
    half = len(new) // 2
    stale = Reply(new[half:], 206, {"Content-Range": f"bytes {half}-{len(new) - 1}/{len(new)}", "ETag": '"new"'})
    server.route("/a.bin", lambda call: stale if call.range else Reply(new, headers={"ETag": '"new"'}))
    download(client, f"{server.url}/a.bin", path)
    assert path.read_bytes() == new


def test_without_a_tag_nothing_is_continued_unless_a_checksum_guards_it(
    server: WebServer, client: HttpClient, path: Path, tmp_path: Path
) -> None:
    server.files("/", tmp_path / "served", etags=False)
    for checksum, expected in ((None, None), (SHA256, (len(CONTENT) // 2, None))):
        server.fail(Fault(truncate=True), *[Fault(status=503)] * 3)
        with pytest.raises(SourceError):
            download(client, f"{server.url}/a.bin", path, checksum=checksum)
        download(client, f"{server.url}/a.bin", path, checksum=checksum)
        assert server.calls[-1].range == expected
        assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_fetched_again_then_an_error(server: WebServer, client: HttpClient, path: Path) -> None:
    damaged = Reply(b"x" * len(CONTENT))
    answers = [damaged, Reply(CONTENT)]
    server.route("/c", lambda call: answers.pop(0))
    download(client, f"{server.url}/c", path, checksum=SHA256)
    assert path.read_bytes() == CONTENT
    path.unlink()
    server.route("/c", damaged)
    with pytest.raises(SourceError, match=r"sha256 differs from the [0-9a-f]{64} that the service states, twice"):
        download(client, f"{server.url}/c", path, checksum=SHA256)
    assert not path.exists()


def test_a_checksum_may_lack_leading_zeros(path: Path) -> None:
    class Crc:
        def __init__(self) -> None:
            self.value = 0

        def update(self, data: bytes, /) -> None:
            self.value = zlib.crc32(data, self.value)

        def hexdigest(self) -> str:
            return f"{self.value:08x}"

    path.parent.mkdir()
    content = next(c for c in (str(n).encode() for n in range(10_000)) if zlib.crc32(c) < 2**28)
    path.write_bytes(content)
    assert Checksum("crc32", f"{zlib.crc32(content):x}", Crc).matches(path)
    assert not Checksum("crc32", "1", Crc).matches(path)


def test_another_size_than_stated_is_an_error(server: WebServer, client: HttpClient, path: Path) -> None:
    with pytest.raises(SourceError, match=f"{len(CONTENT)} bytes, expected the 5 that the service states"):
        download(client, f"{server.url}/a.bin", path, size=5)
    assert not path.exists()


def test_an_expired_address_is_asked_for_again(server: WebServer, client: HttpClient, path: Path) -> None:
    signatures = iter("123")
    valid = {"3"}

    def reply(call: object) -> Reply:
        return Reply(CONTENT) if call.query["sig"] in valid else Reply.text("ExpiredToken", 400)  # type: ignore[attr-defined]

    server.route("/signed", reply)
    download(client, lambda: f"{server.url}/signed?sig={next(signatures)}", path)
    assert path.read_bytes() == CONTENT
    valid.clear()
    with pytest.raises(SourceError, match="answered 400"):
        download(client, f"{server.url}/signed?sig=3", path)


def test_two_runs_do_not_write_one_file(server: WebServer, client: HttpClient, path: Path) -> None:
    path.parent.mkdir()
    with hold(path.with_name(".a.bin.lock"), "busy"), pytest.raises(OutputBusyError, match="another run downloads"):
        download(client, f"{server.url}/a.bin", path)


def test_an_empty_file_is_a_file(server: WebServer, client: HttpClient, path: Path, tmp_path: Path) -> None:
    (tmp_path / "served" / "empty").write_bytes(b"")
    download(client, f"{server.url}/empty", path, size=0)
    assert path.read_bytes() == b""
