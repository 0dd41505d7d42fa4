"""Leases: who computes a tile now, so that two workers seldom do the same work.

A lease is an object that its holder renews. A holder that dies renews nothing, and after the deadline another takes
the lease over. The deadline is the time of the last renewal, by the store's clock, plus the lease's term: no two
machines need clocks that agree. Leases only save work: what makes a tile be there once is its marker.
"""

import contextlib
import hashlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from canopy.batch.store import Entry, Store, StoreError

TERM_S = 120.0
"""Seconds after its last renewal at which a lease may be taken over."""
RENEWALS = 4
"""Renewals within a term."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lease."""

    host: str
    """Name of its machine."""
    space: str
    """Process numbers are unique within this space: a machine or a container."""
    pid: int
    """Number of the process."""
    started: str
    """When the process started, in the system's own ticks; a number is used again, but not at the same tick."""

    @classmethod
    def current(cls) -> "Holder":
        """Return this process."""
        return cls(socket.gethostname(), _pid_space(), os.getpid(), _started(os.getpid()))

    @property
    def machine(self) -> str:
        """Short name of the machine or container, for names of files."""
        return hashlib.sha256(f"{self.host} {self.space}".encode()).hexdigest()[:8]

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended: it ran where this one runs, and is no longer there."""
        machine = (socket.gethostname(), _pid_space())
        return (self.host, self.space) == machine and bool(self.started) and _started(self.pid) != self.started


@dataclass(frozen=True)
class Lease:
    """A lease as it is stored."""

    nonce: str
    """Random text of this lease and renewal; without it, two equal leases would have equal versions."""
    holder: Holder
    """Process that has the lease."""
    term_s: float
    """Seconds from the last renewal to the deadline."""
    deaths: int
    """Holders of the tile's lease that ended without giving it back."""

    def to_bytes(self) -> bytes:
        """Return the lease as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Lease | None":
        """Read a lease; None where it is damaged."""
        try:
            document = json.loads(content)
            return cls(**{**document, "holder": Holder(**document["holder"])})
        except (ValueError, LookupError, TypeError):
            return None


@dataclass(frozen=True)
class Busy:
    """A lease that another process has."""

    left_s: float
    """Seconds until it may be taken over, unless it is renewed."""


def acquire(store: Store, key: str, term_s: float = TERM_S) -> "HeldLease | Busy":
    """Take a lease, over where its holder has died.

    Args:
        store: Store of the batch.
        key: Key of the lease.
        term_s: Seconds from a renewal to the deadline.
    """
    lease = Lease(uuid.uuid4().hex, Holder.current(), term_s, 0)
    if etag := store.create(key, lease.to_bytes()):
        return HeldLease(store, key, lease, etag)
    present = store.read(key)
    if present is None:  # given back in between: a moment later it is free
        return Busy(0.0)
    content, entry = present
    other = Lease.from_bytes(content)
    left_s = _left_s(store, other, entry, term_s)
    if left_s > 0:
        return Busy(left_s)
    lease = replace(lease, deaths=1 + (other.deaths if other else 0))
    if etag := store.replace(key, lease.to_bytes(), entry.etag):
        return HeldLease(store, key, lease, etag)
    return Busy(term_s / RENEWALS)


def _left_s(store: Store, other: Lease | None, entry: Entry, term_s: float) -> float:
    """Return the seconds until a lease may be taken over."""
    if other is not None and other.holder.is_dead:
        return 0.0
    return entry.modified_s + (other.term_s if other else term_s) - store.now_s()


class HeldLease:
    """A lease that this process has, and renews in a thread of its own while the block runs."""

    def __init__(self, store: Store, key: str, lease: Lease, etag: str) -> None:
        self.lease = lease
        self._store, self._key, self._etag = store, key, etag
        self._ending = threading.Event()
        self._lost = threading.Event()

    @property
    def deaths(self) -> int:
        """Holders of the tile's lease that ended without giving it back."""
        return self.lease.deaths

    @property
    def is_lost(self) -> bool:
        """Whether another process took the lease over, because it was not renewed in time."""
        return self._lost.is_set()

    def __enter__(self) -> "HeldLease":
        self._thread = threading.Thread(target=self._renew_always, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ending.set()
        self._thread.join()
        if not self.is_lost:
            # A lease that cannot be given back ends at its deadline.
            with contextlib.suppress(StoreError):
                self._store.delete([self._key])

    def renew(self) -> None:
        """Renew the lease once."""
        renewed = replace(self.lease, nonce=uuid.uuid4().hex)
        etag = self._store.replace(self._key, renewed.to_bytes(), self._etag)
        if etag is None:
            self._lost.set()
        else:
            self.lease, self._etag = renewed, etag

    def _renew_always(self) -> None:
        while not self._ending.wait(self.lease.term_s / RENEWALS) and not self.is_lost:
            # A store that does not answer now may answer before the deadline.
            with contextlib.suppress(StoreError):
                self.renew()


@contextlib.contextmanager
def hold_lease(store: Store, key: str, term_s: float = TERM_S) -> "Iterator[HeldLease | Busy]":
    """Hold a lease while the block runs, where it is free."""
    lease = acquire(store, key, term_s)
    if isinstance(lease, Busy):
        yield lease
        return
    with lease:
        yield lease


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a magic link, no path
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the system did; empty where the system does not say."""
    try:
        # The name in parentheses may contain spaces and parentheses; the fields after it do not.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended, though its number is still taken.
    return "" if fields[0] in "ZX" else fields[19]
