"""The ledger: what a listing says."""

from pathlib import Path

import pytest
from batches import copy_of, keys, plan_batch

from canopy.batch import ledger
from canopy.batch.failures import failed_tiles, parse_failure, reason_of, write_failure
from canopy.batch.leases import Holder, Lease
from canopy.batch.ledger import compact, read_failures, read_markers, read_status
from canopy.batch.plan import Plan, lease_key, marker_key
from canopy.batch.store import Entry, Store, StoreError
from canopy.errors import ImageryError, ModelError, OutputError, SourceError


@pytest.fixture
def planned(inputs: Path, tmp_path: Path) -> tuple[Store, Plan]:
    return plan_batch(inputs, tmp_path / "batch")


def test_a_new_batch_waits(planned: tuple[Store, Plan]) -> None:
    status = read_status(*planned)
    assert (status.tiles, status.done, status.running, status.waiting, status.skipped) == (4, 0, 0, 4, 2)
    assert status.km2 == 0
    assert status.km2_per_h is None
    assert not status.collected


def test_states_come_from_markers_leases_and_failures(
    planned: tuple[Store, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = planned
    names = plan.names.to_pylist()
    store.create(marker_key(names[0]), b"{}")
    store.create(lease_key(names[1]), Lease("n", Holder("other", "", 1, "1"), 100, 0).to_bytes())
    write_failure(store, names[2], "imagery", "corrupt", 3600.0)
    write_failure(store, names[3], "network", "no answer", 1800.0)
    status = read_status(store, plan)
    assert (status.done, status.running, status.failed, status.waiting) == (1, 1, {"imagery": 1}, 1)
    assert (status.retried, status.retried_hours) == (2, 1.5)
    assert status.to_json()["failures"][0]["tile"] == names[2]
    text = status.to_prometheus("b")
    assert 'canopy_batch_tiles{batch="b",state="failed",reason="imagery"} 1' in text
    assert 'canopy_batch_tiles{batch="b",state="done"} 1' in text
    now_s = store.now_s()
    monkeypatch.setattr(store, "now_s", lambda: now_s + 101)
    assert read_status(store, plan).running == 0


def test_speed_is_that_of_the_last_hour(finished: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plan = finished
    names = plan.names.to_pylist()
    markers = [ledger.Marker(name, 1000.0 + 600 * number) for number, name in enumerate(names)]
    monkeypatch.setattr(ledger, "read_markers", lambda *_: iter(markers))
    status = read_status(copy_of(folder, folder.with_name("speed")), plan)
    expected = sum(plan.km2[name] for name in names[1:]) / 0.5
    assert status.km2_per_h == pytest.approx(expected)
    assert status.hours_left == 0
    assert status.collected


def test_finished_prefixes_are_read_from_their_table(
    finished: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    monkeypatch.setattr(ledger, "MANY", 1)
    before = {marker.tile: marker.modified_s for marker in read_markers(store, plan)}
    assert before.keys() == plan.km2.keys()
    for names in ledger.by_prefix(plan.km2).values():
        compact(store, names)
    store.delete(keys(store, "items"))
    assert {marker.tile: marker.modified_s for marker in read_markers(store, plan)} == pytest.approx(before)


def test_a_failure_is_read_from_its_name(planned: tuple[Store, Plan]) -> None:
    written = write_failure(planned[0], "tile", "network", "no answer", 12.4)
    assert not written.final
    (read,) = read_failures(planned[0])
    assert (read.tile, read.reason, read.final, read.seconds) == ("tile", "network", False, 12)
    assert parse_failure(Entry("failures/aa/tile/strange", 0, 0.0, "")) is None


def test_a_tile_fails_for_good_by_reason_or_by_number(planned: tuple[Store, Plan]) -> None:
    store, _ = planned
    for _ in range(3):
        write_failure(store, "often", "network", "no answer", 1.0)
    write_failure(store, "once", "imagery", "corrupt", 1.0)
    assert failed_tiles(read_failures(store), 4).keys() == {"once"}
    assert failed_tiles(read_failures(store), 3).keys() == {"once", "often"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SourceError("no answer", 503), "network"),
        (ImageryError("https://x/a.tif: cannot be read"), "network"),
        (ImageryError("/data/a.tif: cannot be read"), "imagery"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory"), "memory"),
        (OSError(28, "No space left on device"), "disk"),
        (OutputError("cannot write a.tif: No space left on device"), "disk"),
        (StoreError("HTTP 503"), "store"),
        (ModelError("no interval"), "model"),
        (OutputError("read-only"), "output"),
        (ZeroDivisionError(), "error"),
    ],
)
def test_the_reason_of_an_error(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
