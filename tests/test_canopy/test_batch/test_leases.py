"""Leases: one holder at a time, taken over from the dead, never from the living."""

from dataclasses import replace

import pytest
from batches import keys

from canopy.batch import leases
from canopy.batch.leases import Busy, HeldLease, Holder, Lease, acquire, hold_lease
from canopy.batch.store import Store

KEY = "leases/aa/tile.json"
ELSEWHERE = Holder("another-host", "pid:[1]", 7, "1")


def left_by(store: Store, holder: Holder, term_s: float, deaths: int = 0) -> None:
    """Write a lease as another process leaves it."""
    store.create(KEY, Lease("nonce", holder, term_s, deaths).to_bytes())


def test_a_lease_has_one_holder_and_is_given_back(store: Store) -> None:
    with hold_lease(store, KEY) as lease:
        assert isinstance(lease, HeldLease)
        other = acquire(store, KEY)
        assert isinstance(other, Busy)
        assert 60 < other.left_s <= 121
    assert keys(store, "leases") == []
    assert isinstance(acquire(store, KEY), HeldLease)


def test_a_lease_of_the_dead_is_taken_over_at_once(store: Store) -> None:
    left_by(store, replace(Holder.current(), pid=2**22 + 1), 3600, deaths=1)
    lease = acquire(store, KEY)
    assert isinstance(lease, HeldLease)
    assert lease.deaths == 2


def test_a_lease_of_another_machine_ends_at_its_deadline(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(store, ELSEWHERE, 100)
    assert isinstance(acquire(store, KEY), Busy)
    now_s = store.now_s()
    monkeypatch.setattr(store, "now_s", lambda: now_s + 101)
    lease = acquire(store, KEY)
    assert isinstance(lease, HeldLease)
    assert lease.deaths == 1


def test_a_renewal_moves_the_deadline_and_keeps_the_lease(store: Store) -> None:
    lease = acquire(store, KEY)
    assert isinstance(lease, HeldLease)
    nonce = lease.lease.nonce
    lease.renew()
    assert not lease.is_lost
    assert lease.lease.nonce != nonce
    assert isinstance(acquire(store, KEY), Busy)


def test_a_lease_that_was_taken_over_is_lost_and_not_deleted(store: Store) -> None:
    with hold_lease(store, KEY) as lease:
        assert isinstance(lease, HeldLease)
        present = store.read(KEY)
        assert present is not None
        store.replace(KEY, Lease("thief", ELSEWHERE, 100, 1).to_bytes(), present[1].etag)
        lease.renew()
        assert lease.is_lost
    assert keys(store, "leases") == [KEY]


def test_of_two_that_take_over_one_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(store, replace(Holder.current(), pid=2**22 + 1), 3600)
    replaced = store.replace

    def late(key: str, content: bytes, etag: str) -> str | None:
        replaced(key, Lease("first", ELSEWHERE, 100, 1).to_bytes(), etag)
        return replaced(key, content, etag)

    monkeypatch.setattr(store, "replace", late)
    assert isinstance(acquire(store, KEY), Busy)


def test_the_lease_is_renewed_while_the_block_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWALS", 1000)
    with hold_lease(store, KEY, term_s=10) as lease:
        assert isinstance(lease, HeldLease)
        nonce = lease.lease.nonce
        for _ in range(500):
            if lease.lease.nonce != nonce:
                break
            lease._ending.wait(0.01)
        assert lease.lease.nonce != nonce


def test_a_damaged_lease_is_one_of_nobody_known() -> None:
    assert Lease.from_bytes(b"{") is None
    assert Lease.from_bytes(b"{}") is None
    assert Lease.from_bytes(Lease("n", ELSEWHERE, 5, 0).to_bytes()) == Lease("n", ELSEWHERE, 5, 0)
    assert not Holder.current().is_dead
    assert not ELSEWHERE.is_dead
