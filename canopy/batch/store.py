"""Where a batch lies: local disk and S3 behind one protocol, on which nothing is ever overwritten unseen.

Only three kinds of writing exist. `create` writes an object unless its name is taken: commit markers and plans.
`replace` writes a new version of an object unless it changed in the meantime: leases. `upload` streams a file to a
name that no other attempt uses.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from canopy.errors import OutputBusyError, OutputError, one_line
from canopy.stores import store_credentials
from tiles.files import sync
from tiles.locks import hold

LOCKS = ".locks"
"""Folder of the locks under which leases of a local store change."""
WRITE_TRIES = 4
"""Times that a write is sent whose answer says that another request was in its way."""
CONFLICT_PAUSE_S = 0.2
LOCK_TRIES = 200
LOCK_PAUSE_S = 0.01
CHUNK_BYTES = 8 * 2**20
_RETRIES: Any = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}
TIMEOUT_VARIABLE = "CANOPY_STORE_TIMEOUT_S"
"""Environment variable: seconds without a byte after which a request to a store has failed."""


class StoreError(OutputError):
    """The store of a batch does not do what was asked of it."""


@dataclass(frozen=True)
class Entry:
    """An object of a store."""

    key: str
    """Name, from the root of the batch."""
    size: int
    """Bytes."""
    modified_s: float
    """Time of its last change, by the store's clock."""
    etag: str
    """Identity of its present version."""


class Store(Protocol):
    """A place for the objects of a batch."""

    url: str
    """Folder, or ``s3://bucket/prefix``."""

    def read(self, key: str) -> tuple[bytes, Entry] | None:
        """Return an object and its version, None where there is none."""
        ...

    def create(self, key: str, content: bytes) -> str | None:
        """Write an object unless its name is taken.

        Args:
            key: Name of the object.
            content: Bytes that no other writer writes; a nonce in them makes sure.

        Returns:
            Identity of our version; None where the name belongs to another writer.
        """
        ...

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        """Write a new version of an object.

        Args:
            key: Name of the object.
            content: Bytes that no other writer writes.
            etag: Version that is replaced; where another has replaced it, nothing is written.

        Returns:
            Identity of our version; None where another writer came first.
        """
        ...

    def upload(self, key: str, path: Path) -> None:
        """Write a file under a name that no other writer uses."""
        ...

    def download(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of an object."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are absent already count as deleted."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below a prefix."""
        ...

    def now_s(self) -> float:
        """Return the present time by the store's clock."""
        ...


class Objects:
    """A store of obstore's; `replace` differs by kind."""

    def __init__(self, url: str, objects: Any) -> None:
        self.url, self._objects = url, objects

    def read(self, key: str) -> tuple[bytes, Entry] | None:
        """Return an object and its version; see `Store.read`."""
        try:
            with self._explained(f"read {key}", FileNotFoundError):
                answer = obstore.get(self._objects, key)
                return bytes(answer.bytes()), _entry(answer.meta)
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes) -> str | None:
        """Write an object unless its name is taken; see `Store.create`."""
        for _ in range(WRITE_TRIES):
            try:
                etag = self._put(key, content, mode="create")
                self._sync(key)
                return etag
            except AlreadyExistsError:
                # The answer to our own first request may have been lost, and the request repeated; S3 also reports a
                # conflict of two writers so, though neither has written. What lies there decides.
                present = self.read(key)
                if present is not None:
                    return present[1].etag if present[0] == content else None
                time.sleep(CONFLICT_PAUSE_S)
        raise StoreError(
            f"cannot write {key} in {self.url}: its name is taken, yet nothing is there; run canopy batch doctor"
        )

    def upload(self, key: str, path: Path) -> None:
        """Write a file under a name that no other writer uses; see `Store.upload`."""
        self._put(key, path)
        self._sync(key)

    def download(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of an object; see `Store.download`."""
        with self._explained(f"read {key}"):
            for part in obstore.get(self._objects, key).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(part)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; see `Store.delete`."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._explained(f"delete {key}", FileNotFoundError):
                obstore.delete(self._objects, key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below a prefix; see `Store.list`."""
        with self._explained(f"list {prefix or 'all'}"):
            for batch in obstore.list(self._objects, prefix or None, chunk_size=1000):
                yield from map(_entry, batch)

    def now_s(self) -> float:
        """Return the present time by the store's clock: that of an object written for the purpose."""
        key = f"clock/{uuid.uuid4().hex}"
        self._put(key, b"tick")
        try:
            with self._explained(f"read {key}"):
                return float(obstore.head(self._objects, key)["last_modified"].timestamp())
        finally:
            self.delete([key])

    def _sync(self, key: str) -> None:
        """Bring a written object to the disk, where the store is one."""

    def _put(self, key: str, content: bytes | Path, mode: Any = None) -> str:
        """Write an object and return its identity; conditions that fail are left to the caller."""
        passing: tuple[type[Exception], ...] = ()
        if mode is not None:  # elsewhere "already exists" is no answer, and a missing file is a missing bucket
            passing = (AlreadyExistsError, PreconditionError, *((FileNotFoundError,) if mode != "create" else ()))
        with self._explained(f"write {key}", *passing):
            for _ in range(WRITE_TRIES - 1):
                try:
                    return _etag(obstore.put(self._objects, key, content, mode=mode))
                except AlreadyExistsError:
                    # Only "create" can find a name taken. To any other write S3 reports a conflict with a request of
                    # the same moment so (409 OperationAborted, ConditionalRequestConflict), which passes.
                    if mode == "create":
                        raise
                    time.sleep(CONFLICT_PAUSE_S)
            return _etag(obstore.put(self._objects, key, content, mode=mode))

    @contextlib.contextmanager
    def _explained(self, action: str, *passing: type[Exception]) -> Iterator[None]:
        """Turn what obstore raises into one line, except for what the caller decides on."""
        try:
            yield
        except passing:
            raise
        except (BaseError, OSError, ValueError) as error:
            reason = one_line(str(error).split("\n\nDebug source")[0], 300)
            raise StoreError(f"cannot {action} in {self.url}: {reason}") from error


class LocalObjects(Objects):
    """A folder. obstore's local store has no compare-and-swap: leases change under a lock."""

    def __init__(self, folder: Path) -> None:
        with Objects("", None)._explained(f"make the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        super().__init__(str(folder), LocalStore(folder))

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        """Write a new version of an object under a lock; see `Store.replace`."""
        with self._locked(key):
            present = self.read(key)
            # obstore writes a draft and renames it, so that a reader sees one version or the other.
            return self._put(key, content) if present is not None and present[1].etag == etag else None

    def forget_locks(self, name: str = "*") -> None:
        """Remove locks that no process needs any more, and folders that are left empty."""
        for lock in (self.folder / LOCKS).glob(name):
            lock.unlink(missing_ok=True)
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # it has files
                folder.rmdir()

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a key's folder, for as long as one small file is read and written."""
        lock = self.folder / LOCKS / (Path(key).parent.name or "root")
        lock.parent.mkdir(exist_ok=True)
        for tried in range(LOCK_TRIES):
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(hold(lock, f"another process has locked {lock}"))
                except OutputBusyError:
                    if tried == LOCK_TRIES - 1:
                        raise
                else:
                    yield
                    return
            time.sleep(LOCK_PAUSE_S)

    def _sync(self, key: str) -> None:
        path = self.folder / key
        sync(path)
        sync(path.parent)


class S3Objects(Objects):
    """A prefix of a bucket that honours conditional requests."""

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        """Write a new version of an object by compare-and-swap; see `Store.replace`."""
        try:
            # Without "version": obstore refuses None there, and a bucket without versions has none.
            return self._put(key, content, mode={"e_tag": etag})
        except (PreconditionError, AlreadyExistsError, FileNotFoundError):
            present = self.read(key)  # our own request may have been repeated after its answer was lost
            return present[1].etag if present is not None and present[0] == content else None


def open_store(url: str | Path, *, make: bool = False) -> Store:
    """Open the store of a batch.

    Args:
        url: Folder, or ``s3://bucket/prefix``; credentials and endpoint come from the usual AWS variables.
        make: Whether a folder is made where there is none.

    Raises:
        StoreError: There is no such folder, or the address is of another kind.
    """
    text = str(url)
    parts = urlsplit(text)
    if len(parts.scheme) < 2:
        folder = Path(text).absolute()
        if not make and not folder.is_dir():
            raise StoreError(f"no folder {folder}: `canopy batch plan --out {folder}` makes one")
        return LocalObjects(folder)
    if parts.scheme != "s3" or not parts.netloc:
        raise StoreError(f"store {text!r}: a folder or s3://bucket/prefix expected")
    prefix = parts.path.strip("/")
    clean = f"s3://{parts.netloc}/{prefix}".rstrip("/")
    opener = Objects(clean, None)
    with opener._explained("open the store"):
        settings: Any = dict(store_credentials("s3", own=True))
        client = _client(plain=settings.get("endpoint", "").startswith("http://"))
        objects = S3Store(
            parts.netloc, prefix=prefix or None, config=settings, retry_config=_RETRIES, client_options=client
        )
    return S3Objects(clean, objects)


def _client(*, plain: bool) -> Any:
    """Return the options of the client; without them a request that stalls would wait for ever."""
    quiet_s = os.environ.get(TIMEOUT_VARIABLE, "30")
    return {"connect_timeout": "10s", "read_timeout": f"{quiet_s}s", "timeout": "10m", "allow_http": plain}


def _etag(written: Any) -> str:
    return str(written["e_tag"] or "unknown")


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp(), str(meta["e_tag"] or ""))
