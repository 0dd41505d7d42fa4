"""Local disk and S3 keep the same promises."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from batches import keys
from obstore.exceptions import AlreadyExistsError, GenericError
from servers.web import Call, Fault, Reply, WebServer

from canopy.batch import store as stores
from canopy.batch.store import Store, StoreError, open_store


def test_a_name_is_written_once(store: Store) -> None:
    assert store.create("items/aa/x.json", b"first")
    assert store.create("items/aa/x.json", b"second") is None
    present = store.read("items/aa/x.json")
    assert present is not None
    assert present[0] == b"first"
    assert present[1].size == 5


def test_a_request_that_was_repeated_is_ours(store: Store) -> None:
    """The answer to a first request may be lost; the same bytes, with their nonce, can only be our own."""
    assert store.create("x", b"nonce 1") == store.create("x", b"nonce 1")


def test_a_conflict_without_a_writer_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 when two requests collide, and obstore says "exists" though nothing was written."""
    put, calls = obstore.put, []

    def collide(objects: object, key: str, content: bytes, **options: object) -> object:
        calls.append(key)
        if len(calls) == 1:
            raise AlreadyExistsError("409")
        return put(objects, key, content, **options)

    monkeypatch.setattr(obstore, "put", collide)
    assert store.create("x", b"tile")
    assert len(calls) == 2


def test_a_store_that_refuses_a_free_name_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AlreadyExistsError("409")

    monkeypatch.setattr(obstore, "put", refuse)
    with pytest.raises(StoreError, match="canopy batch doctor"):
        store.create("x", b"tile")


def test_only_the_version_that_was_read_is_replaced(store: Store) -> None:
    first = store.create("leases/aa/x", b"1") or ""
    second = store.replace("leases/aa/x", b"2", first)
    assert second
    assert store.replace("leases/aa/x", b"3", first) is None
    assert store.replace("leases/aa/absent", b"3", first) is None
    assert store.replace("leases/aa/x", b"4", second)
    assert (store.read("leases/aa/x") or (b"",))[0] == b"4"


def test_files_come_back_and_are_listed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    store.upload("data/a.tif", path)
    assert b"".join(store.download("data/a.tif")) == path.read_bytes()
    store.create("data/deep/b.tif", b"b")
    assert keys(store, "data") == ["data/a.tif", "data/deep/b.tif"]
    assert keys(store, "none") == []
    store.delete(["data/a.tif", "data/absent"])
    assert keys(store, "data") == ["data/deep/b.tif"]


def test_the_clock_is_the_stores_and_leaves_nothing(store: Store) -> None:
    assert store.now_s() == pytest.approx(time.time(), abs=30)
    assert keys(store, "clock") == []
    assert store.read("clock/none") is None


def test_failures_of_a_store_are_one_line_without_details(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GenericError("HTTP 503\n\nDebug source:\nlong")

    monkeypatch.setattr(obstore, "put", fail)
    with pytest.raises(StoreError, match=r"^cannot write x in .*: HTTP 503$"):
        store.create("x", b"1")


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3:///x", "https://example.org"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="a folder or s3://bucket/prefix expected"):
        open_store(url)


def test_a_folder_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="canopy batch plan"):
        open_store(tmp_path / "absent")


def test_a_bucket_that_is_absent_is_an_error(store: Store) -> None:
    if store.url.startswith("s3"):
        with pytest.raises(StoreError, match="cannot write x"):
            open_store("s3://no-such-bucket/x").create("x", b"1")


# --- what stores other than moto answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server in place of S3."""
    with WebServer() as server:
        for name, value in {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "none",
                            "AWS_SECRET_ACCESS_KEY": "none"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(stores, "CONFLICT_PAUSE_S", 0.0)
        yield server


def refusal(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()


def test_keys_region_and_endpoint_come_from_the_profile_of_the_users_other_programs(
    answers: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = KEY\naws_secret_access_key = secret\n")
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-north-1\nendpoint_url = {answers.url}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    answers.route("/", Reply(headers={"ETag": '"1"'}))
    assert open_store("s3://batches/x").create("a", b"1") == '"1"'
    (call,) = answers.calls
    assert "Credential=KEY/" in call.headers["authorization"]
    assert "/eu-north-1/s3/" in call.headers["authorization"]


def test_a_conflict_of_a_plain_write_passes(answers: WebServer, tmp_path: Path) -> None:
    """S3 answers 409 OperationAborted to a write without a condition too: nothing exists there."""
    (tmp_path / "file").write_bytes(b"heights")
    answers.route("/", Reply(headers={"ETag": '"1"'}))
    answers.fail(*[Fault(409, refusal("OperationAborted"))] * 2)
    open_store("s3://batches/x").upload("data/a.tif", tmp_path / "file")
    assert [call.body for call in answers.calls] == [b"heights"] * 3


def test_a_conflict_of_a_lease_is_no_other_owner(answers: WebServer) -> None:
    """409 ConditionalRequestConflict: nobody has replaced the version, so the lease is still ours."""
    answers.route("/", Reply(headers={"ETag": '"2"'}))
    answers.fail(Fault(409, refusal("ConditionalRequestConflict")))
    assert open_store("s3://batches/x").replace("leases/a", b"renewed", '"1"') == '"2"'
    assert [call.headers.get("if-match") for call in answers.calls] == ['"1"'] * 2


def test_a_conflict_that_stays_is_an_error(answers: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"heights")
    answers.route("/", Reply(refusal("OperationAborted"), 409))
    store = open_store("s3://batches/x")
    with pytest.raises(StoreError, match=r"cannot write data/a.tif .*409 Conflict"):
        store.upload("data/a.tif", tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot write clock/.*409 Conflict"):
        store.now_s()


def test_a_bucket_of_another_region_is_named(answers: WebServer) -> None:
    """S3 answers 301 without a Location."""
    answers.route("/", Reply(refusal("PermanentRedirect"), 301, {"x-amz-bucket-region": "eu-west-1"}))
    store = open_store("s3://batches/x")
    for action in (lambda: store.read("a"), lambda: store.create("a", b"1"), lambda: list(store.list("a"))):
        with pytest.raises(StoreError, match="region"):
            action()


def test_an_upload_that_fails_with_status_200_has_failed(
    answers: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last request of an upload in parts may answer 200 with an error in its body."""

    def reply(call: Call) -> Reply:
        if call.method == "POST" and "uploadId" not in call.query:
            return Reply(b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        return Reply(refusal("InternalError")) if call.method == "POST" else Reply(headers={"ETag": '"1"'})

    (tmp_path / "file").write_bytes(bytes(12 * 2**20))
    answers.route("/", reply)
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    with pytest.raises(StoreError, match=r"cannot write data/a.tif .*InternalError"):
        open_store("s3://batches/x").upload("data/a.tif", tmp_path / "file")
