"""Local disk and S3 keep the same promises."""

import time
from pathlib import Path

import obstore
import pytest
from batches import keys
from obstore.exceptions import AlreadyExistsError, GenericError

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
