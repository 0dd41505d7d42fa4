"""Downloads that break, change, are refused and are verified."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from publisher import Publisher, serve

from canopy.errors import ModelError, OutputBusyError, OutputError, SourceError
from canopy.http import HttpClient, Retry
from canopy.models.public.publisher_files import PublisherFile, download_file
from canopy.progress import Progress, Report, ignore
from tiles.locks import hold

CONTENT = b"\x80" + np.random.default_rng(0).bytes(2_999_999)
"""Bytes that begin as a torch file."""
PAGE = b"<html>Sign in</html>"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


ATTEMPTS = 5


@pytest.fixture
def publisher():
    with serve(CONTENT) as server:
        yield server


def download(
    url: str, path: Path, *, sha256: str | None = None, token: str | None = None, report: Report = ignore
) -> PublisherFile:
    with HttpClient(retry=Retry(ATTEMPTS, 0.0), timeout_s=2.0) as client:
        return download_file(client, url, path, sha256=sha256, token=token, report=report)


def break_every_connection(publisher: Publisher, after: int) -> None:
    publisher.cuts = [after] + [0] * ATTEMPTS


def write_part(path: Path, content: bytes, address: str) -> None:
    """Leave what a killed run leaves of a file whose version is "one"."""
    path.with_name(f".{path.name}.part").write_bytes(content)
    note = {"etag": '"one"', "modified": "", "address": address}
    path.with_name(f".{path.name}.part.json").write_text(json.dumps(note))


def test_a_download_continues_after_a_break(publisher, tmp_path) -> None:
    publisher.cuts = [1_000_000, 500_000]
    reports: list[Progress] = []
    path = tmp_path / "SSLtiny.pth"
    assert download(publisher.url(), path, report=reports.append) == PublisherFile(DIGEST)
    assert path.read_bytes() == CONTENT
    assert [request.get("range") for request in publisher.requests] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert reports[-1] == Progress(3.0, 3.0, "MB")
    assert [file.name for file in tmp_path.iterdir()] == ["SSLtiny.pth"]
    download(publisher.url(), path)
    assert len(publisher.requests) == 3, "a whole file is not downloaded again"


def test_an_interrupted_download_leaves_no_file_of_that_name_and_continues(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    break_every_connection(publisher, after=1_000_000)
    with pytest.raises(SourceError, match="1000000 bytes are kept, run the same command to continue"):
        download(publisher.url(), path)
    assert not path.exists()
    publisher.cuts, publisher.requests = [], []
    assert download(publisher.url(), path, sha256=DIGEST).sha256 == DIGEST
    assert [request.get("range") for request in publisher.requests] == ["bytes=1000000-"]


def test_a_whole_part_is_not_downloaded_again(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    write_part(path, CONTENT, publisher.url())
    publisher.cuts = [0] * 9
    assert download(publisher.url(), path, sha256=DIGEST).sha256 == DIGEST
    assert len(publisher.requests) == 1


def test_a_part_longer_than_the_file_is_dropped(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    write_part(path, CONTENT + b"more", publisher.url())
    assert download(publisher.url(), path).sha256 == DIGEST
    assert path.read_bytes() == CONTENT


def test_a_changed_file_is_downloaded_from_its_start(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    break_every_connection(publisher, after=1_000_000)
    with pytest.raises(SourceError):
        download(publisher.url(), path)
    publisher.cuts, publisher.content, publisher.etag = [], CONTENT[:1000], '"two"'
    assert download(publisher.url(), path).sha256 == hashlib.sha256(CONTENT[:1000]).hexdigest()
    assert path.read_bytes() == CONTENT[:1000]


def test_a_part_of_another_address_is_not_continued(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    break_every_connection(publisher, after=1_000_000)
    with pytest.raises(SourceError):
        download(publisher.url("other.pth"), path)
    publisher.cuts, publisher.requests = [], []
    assert download(publisher.url(), path).sha256 == DIGEST
    assert [request.get("range") for request in publisher.requests] == [None]


def test_a_wrong_digest_is_refused_and_removed(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    with pytest.raises(ModelError, match=f"sha256 {DIGEST} came, {'0' * 64} expected"):
        download(publisher.url(), path, sha256="0" * 64)
    assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == [".SSLtiny.pth.lock"]


def test_a_page_with_status_200_never_gets_the_name_and_blocks_no_retry(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    publisher.content = PAGE
    for _ in range(2):
        with pytest.raises(ModelError, match=r"a web page came, SSLtiny\.pth expected; it was removed, run the same"):
            download(publisher.url(), path)
        assert [file.name for file in tmp_path.iterdir()] == [".SSLtiny.pth.lock"]
    publisher.content, publisher.etag = CONTENT, '"two"'
    assert download(publisher.url(), path).sha256 == DIGEST


def test_a_page_in_the_middle_of_a_download_is_not_joined_to_it(publisher, tmp_path) -> None:
    path = tmp_path / "SSLtiny.pth"
    break_every_connection(publisher, after=1_000_000)
    with pytest.raises(SourceError, match="1000000 bytes are kept"):
        download(publisher.url(), path)
    publisher.cuts, publisher.content, publisher.etag = [], PAGE, '"page"'
    with pytest.raises(ModelError, match="a web page came"):
        download(publisher.url(), path)
    publisher.content, publisher.etag = CONTENT, '"one"'
    assert download(publisher.url(), path).sha256 == DIGEST


@pytest.mark.parametrize("content", [PAGE, b"", CONTENT[:-1]])
def test_a_bad_file_under_the_final_name_is_downloaded_again(publisher, tmp_path, caplog, content) -> None:
    """As an earlier version left it."""
    path = tmp_path / "SSLtiny.pth"
    path.write_bytes(content)
    assert download(publisher.url(), path, sha256=DIGEST).sha256 == DIGEST
    assert "it is downloaded again" in caplog.text
    assert path.read_bytes() == CONTENT


def test_the_revision_that_the_hub_states_is_returned(publisher, tmp_path) -> None:
    publisher.revision = "0123456789abcdef0123456789abcdef01234567"
    assert download(publisher.url(), tmp_path / "a.pth") == PublisherFile(DIGEST, publisher.revision)
    assert download(publisher.url(), tmp_path / "a.pth") == PublisherFile(DIGEST), "not asked for again"
    publisher.revision = "main; rm -rf"
    assert download(publisher.url(), tmp_path / "b.pth").revision is None


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [(401, ModelError, "HF_TOKEN"), (403, ModelError, "gates this file"), (404, SourceError, "answered 404")],
)
def test_a_refusal_says_what_to_do_at_once(publisher, tmp_path, status, kind, message) -> None:
    publisher.status = status
    with pytest.raises(kind, match=message):
        download(publisher.url(), tmp_path / "SSLtiny.pth")
    assert len(publisher.requests) == 1
    assert not (tmp_path / "SSLtiny.pth").exists()


def test_a_server_in_trouble_is_asked_again(publisher, tmp_path) -> None:
    publisher.status = 503
    with pytest.raises(SourceError, match=r"answered 503 .*, asked 5 times"):
        download(publisher.url(), tmp_path / "SSLtiny.pth")
    assert len(publisher.requests) == ATTEMPTS


def test_a_token_is_not_passed_on_and_the_stated_digest_is_checked(publisher, tmp_path) -> None:
    assert download(publisher.url("moved"), tmp_path / "a.pth", token="secret").sha256 == DIGEST
    assert [request.get("authorization") for request in publisher.requests] == ["Bearer secret", None]
    break_every_connection(publisher, after=10)
    with pytest.raises(SourceError):
        download(publisher.url("moved"), tmp_path / "b.pth")
    (tmp_path / ".b.pth.part").write_bytes(b"\x80" * 10)
    publisher.cuts = []
    with pytest.raises(ModelError, match="expected; it was removed, run the same command"):
        download(publisher.url("moved"), tmp_path / "b.pth")


def test_an_address_that_is_not_http_is_refused(tmp_path) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(SourceError, match="an http or https address expected"):
        download(f"file://{tmp_path}/secret", tmp_path / "a.pth")


def test_a_second_download_of_one_file_waits_its_turn(publisher, tmp_path) -> None:
    with hold(tmp_path / ".a.pth.lock", "busy"), pytest.raises(OutputBusyError, match="another run downloads"):
        download(publisher.url(), tmp_path / "a.pth")
    assert publisher.requests == []


def test_a_folder_that_cannot_be_written_to_is_one_line(publisher, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*a\.pth: ") as caught:
        download(publisher.url(), tmp_path / "file" / "a.pth")
    assert "\n" not in str(caught.value)
