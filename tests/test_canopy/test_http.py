import logging
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from servers.web import Call, Fault, Reply, WebServer

from canopy.credentials import Secret
from canopy.errors import SourceError
from canopy.http import HttpClient, Retry, redacted, wanted_pause_s, with_params

QUICK = Retry(attempts=3, pause_s=0.0)
KEY = "very-secret-key"


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.route("/", Reply.text("hello"))
        yield server


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(retry=QUICK, timeout_s=0.5) as client:
        yield client


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_asked_again(server: WebServer, client: HttpClient, status: int) -> None:
    server.fail(Fault(status=status), Fault(status=status))
    assert client.get(f"{server.url}/a").text() == "hello"
    assert server.count() == 3


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(truncate=True)])
def test_broken_connections_are_asked_again(server: WebServer, client: HttpClient, fault: Fault) -> None:
    server.fail(fault)
    assert client.get(f"{server.url}/a").text() == "hello"
    assert server.count() == 2


def test_a_server_that_says_nothing_is_an_error(server: WebServer) -> None:
    server.fail(Fault(stall=True), Fault(stall=True))
    with (
        HttpClient(retry=Retry(2, 0.0), timeout_s=0.03) as client,
        pytest.raises(SourceError, match="no answer in time, asked 2 times"),
    ):
        client.get(f"{server.url}/a")


def test_a_port_where_nothing_listens_is_an_error(client: HttpClient) -> None:
    with WebServer() as gone:
        url = gone.url
    with pytest.raises(SourceError, match=r"^http://127.0.0.1:\d+/x: .*refused.*, asked 3 times"):
        client.get(f"{url}/x?token={KEY}")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_other_failures_are_final(server: WebServer, client: HttpClient, status: int) -> None:
    server.fail(Fault(status=status, body=b"no\nway"))
    with pytest.raises(SourceError, match=rf"answered {status} .* \(no way\), expected 200") as error:
        client.get(f"{server.url}/a")
    assert error.value.status == status
    assert server.count() == 1


def test_what_stays_broken_is_an_error_in_one_line(server: WebServer, client: HttpClient) -> None:
    server.fail(*[Fault(status=503)] * 3)
    with pytest.raises(SourceError) as error:
        client.get(f"{server.url}/a?key={KEY}")
    assert str(error.value) == f"{server.url}/a: answered 503 Service Unavailable (broken), asked 3 times, expected 200"


def test_statuses_that_mean_something_are_returned(server: WebServer, client: HttpClient) -> None:
    server.fail(Fault(status=404), Fault(status=503))
    assert client.get(f"{server.url}/a", accept=(404,)).status == 404
    assert client.get(f"{server.url}/a", accept=(503,)).status == 503


def test_throttling_in_other_words_is_asked_again(server: WebServer) -> None:
    server.fail(Fault(status=403))
    with HttpClient(retry=QUICK, retried={403}) as client:
        assert client.get(f"{server.url}/a").status == 200


def test_the_wanted_pause_is_read_in_each_form() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert wanted_pause_s({"retry-after": "7"}) == 7
    assert wanted_pause_s({"retryafter": "0.5"}) == 0.5
    assert 15 < (wanted_pause_s({"retry-after": soon}) or 0) <= 20
    assert wanted_pause_s({"retry-after": "soon"}) is None
    assert wanted_pause_s({}) is None


def test_a_server_that_wants_too_much_patience_is_an_error(server: WebServer, client: HttpClient) -> None:
    server.fail(Fault(status=429, headers={"RetryAfter": "3600"}))
    with pytest.raises(SourceError, match="asks to wait 3600 s"):
        client.get(f"{server.url}/a")
    assert server.count() == 1


def test_pauses_grow_and_are_drawn() -> None:
    retry = Retry(pause_s=1.0, longest_s=10.0)
    assert [retry.backoff_s(n, 1.0) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert retry.backoff_s(3, 0.0) == 2


def test_a_range_is_those_bytes(server: WebServer, client: HttpClient, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    server.files("/files", tmp_path)
    answer = client.read_range(f"{server.url}/files/a.bin", 10, 20)
    assert answer.content == bytes(range(10, 20))
    assert answer.total_bytes == 100
    assert client.read_range(f"{server.url}/files/a.bin", 90, 200).content == bytes(range(90, 100))
    with pytest.raises(SourceError, match="416"):
        client.read_range(f"{server.url}/files/a.bin", 100, 110)


def test_a_file_that_changes_is_an_error(server: WebServer, client: HttpClient, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(100))
    server.files("/files", tmp_path)
    etag = client.read_range(f"{server.url}/files/a.bin", 0, 10).etag
    assert client.read_range(f"{server.url}/files/a.bin", 10, 20, etag=etag).status == 206
    (tmp_path / "a.bin").write_bytes(b"1" * 100)
    with pytest.raises(SourceError, match="replaced while it is read"):
        client.read_range(f"{server.url}/files/a.bin", 10, 20, etag=etag)


def test_a_server_without_ranges_is_an_error(server: WebServer, client: HttpClient, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(100))
    server.files("/files", tmp_path, ranges=False)
    with pytest.raises(SourceError, match="asked for bytes 10 to 19, got 100 bytes with status 200"):
        client.read_range(f"{server.url}/files/a.bin", 10, 20)
    assert len(client.read_range(f"{server.url}/files/a.bin", 0, 100).content) == 100


def test_other_bytes_than_asked_are_an_error(server: WebServer, client: HttpClient) -> None:
    server.route("/", Reply(bytes(10), 206, {"Content-Range": "bytes 0-9/100"}))
    with pytest.raises(SourceError, match="asked for bytes 50 to 59"):
        client.read_range(f"{server.url}/a", 50, 60)


def test_large_answers_are_not_read(server: WebServer, client: HttpClient) -> None:
    server.route("/", Reply(bytes(1000)))
    with pytest.raises(SourceError, match="over 999 bytes"):
        client.get(f"{server.url}/a", limit_bytes=999)
    assert len(client.get(f"{server.url}/a", limit_bytes=1000).content) == 1000


def test_a_key_stays_with_its_host(server: WebServer, client: HttpClient) -> None:
    headers = {"X-API-TOKEN": Secret(KEY), "Authorization": "Bearer x", "Accept": "text/plain"}
    with WebServer() as other:
        other.route("/", Reply.text("signed"))
        server.route("/far", Reply(status=302, headers={"Location": f"{other.url}/store?sig=1"}))
        server.route("/near", Reply(status=307, headers={"Location": "/end"}))
        assert client.get(f"{server.url}/far", headers=headers).text() == "signed"
        assert client.get(f"{server.url}/near", headers=headers).text() == "hello"
        far, near = other.calls[-1].headers, server.calls[-1].headers
    assert "x-api-token" not in far and "authorization" not in far
    assert far["accept"] == "text/plain"
    assert near["x-api-token"] == KEY and near["authorization"] == "Bearer x"


def test_a_redirect_to_nowhere_is_an_error(server: WebServer, client: HttpClient) -> None:
    server.route("/loop", Reply(status=302, headers={"Location": "/loop"}))
    with pytest.raises(SourceError, match="over 10 redirects"):
        client.get(f"{server.url}/loop")
    server.route("/file", Reply(status=302, headers={"Location": "file:///etc/passwd"}))
    with pytest.raises(SourceError, match="redirected to file:///etc/passwd, expected an https address"):
        client.get(f"{server.url}/file")
    server.route("/bare", Reply(status=301))
    with pytest.raises(SourceError, match="answered 301"):
        client.get(f"{server.url}/bare")


def test_a_posted_search_is_sent_again_whole(server: WebServer, client: HttpClient) -> None:
    server.route("/search", lambda call: Reply.json({"got": call.body.decode(), "kind": call.headers["content-type"]}))
    server.fail(Fault(status=502))
    answer = client.post_json(f"{server.url}/search", {"limit": 10})
    assert answer.json() == {"got": '{"limit": 10}', "kind": "application/json"}


def test_a_page_in_place_of_json_is_an_error(server: WebServer, client: HttpClient) -> None:
    server.route("/", Reply.text("<html>Log in</html>", kind="text/html"))
    with pytest.raises(SourceError, match="expected JSON, got text/html: <html>Log in</html>"):
        client.get(f"{server.url}/a").json()


def test_nothing_shows_a_key(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    def echo(call: Call) -> Reply:
        return Reply.text(f"bad key {call.headers['maxar-api-key']} {call.query.get('key')}", 401)

    server.route("/", echo)
    with (
        caplog.at_level(logging.DEBUG),
        HttpClient(headers={"maxar-api-key": Secret(KEY)}, retry=QUICK) as client,
        pytest.raises(SourceError) as error,
    ):
        client.get(f"{server.url}/a", params={"key": KEY})
    assert str(error.value).endswith("(bad key *** ***), expected 200")
    assert KEY not in caplog.text + repr(client)


def test_addresses_are_shown_without_what_is_private() -> None:
    assert redacted("https://me:pw@host.org:8080/a/b?sig=1#x") == "https://host.org:8080/a/b"


def test_parameters_join_a_query() -> None:
    assert with_params("https://h/a?x=1", {"y": "2 3"}) == "https://h/a?x=1&y=2%203"
    assert with_params("https://h/a", {"y": "é"}) == "https://h/a?y=%C3%A9"
    assert with_params("https://h/a?x=1", None) == "https://h/a?x=1"


def test_connections_are_bounded(server: WebServer) -> None:
    server.forget()
    server.together, server.latency_s = 3, 0.005
    try:
        with HttpClient(connections=3) as client, ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda n: client.get(f"{server.url}/{n}").status, range(24)))
    finally:
        server.together, server.latency_s = 1, 0.0
    assert answers == [200] * 24
    assert server.most_at_a_time == 3


def test_a_client_works_in_another_process(server: WebServer, client: HttpClient) -> None:
    copy = pickle.loads(pickle.dumps(client))
    with copy:
        assert copy.get(f"{server.url}/a").status == 200
        assert copy.retry == QUICK
    assert client.get(f"{server.url}/a").status == 200
    # After a fork the connections of the parent are not used.
    client._process = os.getpid() - 1
    assert client.get(f"{server.url}/a").status == 200


@pytest.mark.parametrize("url", ["no address", "ftp://host/a", "http://"])
def test_what_is_no_address_is_an_error(client: HttpClient, url: str) -> None:
    with pytest.raises(SourceError):
        client.get(url)
