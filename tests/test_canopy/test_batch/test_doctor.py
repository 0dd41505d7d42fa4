"""The doctor believes no store: each promise is tried."""

from collections.abc import Callable

import pytest
from batches import keys

from canopy.batch.doctor import examine
from canopy.batch.store import Store


def test_good_stores_pass_and_stay_clean(store: Store) -> None:
    checks = examine(store)
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 7
    assert keys(store, "") == []


Fault = Callable[[Store, pytest.MonkeyPatch], None]


def overwrites(store: Store, patched: pytest.MonkeyPatch) -> None:
    def create(key: str, content: bytes) -> str:
        return str(store._put(key, content))  # type: ignore[attr-defined]

    patched.setattr(store, "create", create)


def ignores_versions(store: Store, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(store, "replace", lambda key, content, etag: store._put(key, content))  # type: ignore[attr-defined]


def cuts(store: Store, patched: pytest.MonkeyPatch) -> None:
    download = store.download
    patched.setattr(store, "download", lambda key: (part[:-1] for part in download(key)))


@pytest.mark.parametrize(
    ("fault", "words"),
    [(overwrites, "If-None-Match is ignored"), (ignores_versions, "If-Match is ignored"), (cuts, "bytes came back")],
)
def test_stores_that_break_a_promise_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: str
) -> None:
    fault(store, monkeypatch)
    failed = [check for check in examine(store) if not check.passed]
    assert any(words in check.detail for check in failed)
    assert all("name another store" in check.detail for check in failed)
