"""Whether a store keeps its word: the promises on which a batch rests, each tried."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from canopy.batch.store import LocalObjects, Store, StoreError

RACERS = 16
UPLOAD_BYTES = 12 * 2**20
"""Enough for an upload in several parts."""
CLOCK_S = 120.0
"""Difference to this machine's clock that is worth a word."""


@dataclass(frozen=True)
class Check:
    """A promise of a store."""

    name: str
    """What the store must do."""
    passed: bool
    """Whether it does."""
    detail: str
    """What was seen."""


def examine(store: Store) -> list[Check]:
    """Try what a batch needs of a store; nothing stays behind.

    Args:
        store: Store to examine.
    """
    folder = f"doctor-{uuid.uuid4().hex}"
    tests: list[tuple[str, Callable[[Store, str], str]]] = [
        ("keeps what it is sent", _keeps),
        ("writes a name once", _creates_once),
        ("gives a name to one of many writers", _one_winner),
        ("replaces only the version that was read", _swaps),
        ("gives a lease to one of many thieves", _one_swap),
        ("keeps large files", _keeps_large),
        ("lists what is there", _lists),
    ]
    checks = []
    for number, (name, test) in enumerate(tests):
        try:
            checks.append(Check(name, True, test(store, f"{folder}/{number}")))
        except StoreError as error:
            checks.append(Check(name, False, str(error)))
    store.delete([entry.key for entry in list(store.list(folder))])
    if isinstance(store, LocalObjects):
        store.forget_locks(folder)
    return checks


def _require(fulfilled: bool, observation: str) -> None:
    if not fulfilled:
        raise StoreError(f"{observation}: tiles could be lost or mixed there, name another store")


def _keeps(store: Store, key: str) -> str:
    store.create(key, b"heights")
    present = store.read(key)
    _require(present is not None and present[0] == b"heights", "an object reads back differently")
    _require(store.read(f"{key}-absent") is None, "an object that was never written is there")
    return "reads back the bytes that were written"


def _creates_once(store: Store, key: str) -> str:
    store.create(key, b"first")
    _require(store.create(key, b"second") is None, "a second writer was let in (If-None-Match is ignored)")
    present = store.read(key)
    _require(present is not None and present[0] == b"first", "the second writer replaced the first")
    return "the second writer is refused"


def _one_winner(store: Store, key: str) -> str:
    wins = _race(lambda number: store.create(key, f"writer {number}".encode()) is not None)
    _require(sum(wins) == 1, f"{sum(wins)} of {RACERS} writers of one name were confirmed")
    present = store.read(key)
    _require(present is not None and present[0] == f"writer {wins.index(True)}".encode(), "the loser's bytes are there")
    return f"{RACERS} writers, one winner"


def _swaps(store: Store, key: str) -> str:
    first = store.create(key, b"lease 1") or ""
    second = store.replace(key, b"lease 2", first)
    _require(bool(second), "the version that was written last is not accepted")
    _require(store.replace(key, b"lease 3", first) is None, "an old version was replaced (If-Match is ignored)")
    present = store.read(key)
    _require(present is not None and present[0] == b"lease 2", "an old version was replaced")
    return "an old version is refused"


def _one_swap(store: Store, key: str) -> str:
    etag = store.create(key, b"expired") or ""
    wins = _race(lambda number: store.replace(key, f"thief {number}".encode(), etag) is not None)
    _require(sum(wins) == 1, f"{sum(wins)} of {RACERS} writers replaced one version")
    return f"{RACERS} writers, one winner"


def _keeps_large(store: Store, key: str) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large"
        path.write_bytes(bytes(range(256)) * (UPLOAD_BYTES // 256))
        store.upload(key, path)
        size = sum(map(len, store.download(key)))
    _require(size == UPLOAD_BYTES, f"{size:,} of {UPLOAD_BYTES:,} bytes came back")
    return f"{UPLOAD_BYTES / 2**20:.0f} MiB in parts"


def _lists(store: Store, key: str) -> str:
    for number in range(3):
        store.create(f"{key}/{number}", b"x")
    count = len(list(store.list(key)))
    _require(count == 3, f"{count} of 3 objects are listed right after they were written")
    shift_s = store.now_s() - time.time()
    return f"at once; its clock differs by {shift_s:.0f} s" + (" from this machine's" if abs(shift_s) > CLOCK_S else "")


def _race(write: Callable[[int], bool]) -> list[bool]:
    """Let writers write at the same time; return which of them were confirmed."""
    wins = [False] * RACERS
    start = threading.Barrier(RACERS)

    def compete(number: int) -> None:
        start.wait()
        wins[number] = write(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wins
