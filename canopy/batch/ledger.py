"""The ledger of a batch: what is done, runs, failed and is left, from the listing of the store alone."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from canopy.batch.failures import ATTEMPTS, Failure, failed_tiles, parse_failure
from canopy.batch.leases import TERM_S, Lease
from canopy.batch.plan import PREFIXES, Plan, marker_key, prefix_of
from canopy.batch.store import Entry, Store
from canopy.tables import parse_table, table_bytes

LISTERS = 32
"""Prefixes that are listed at the same time."""
MANY = 20_000
"""Tiles from which on prefixes are listed in parallel, and compacted when they are finished."""
RATE_S = 3600.0
"""Speed is that of the markers of this time before the last one."""


@dataclass(frozen=True)
class Marker:
    """A committed tile, as a listing shows it."""

    tile: str
    """Name of the tile."""
    modified_s: float
    """Time of the commit, by the store's clock."""


@dataclass(frozen=True)
class Status:
    """State of a batch."""

    tiles: int
    """Tiles to compute."""
    done: int
    """Tiles that are committed."""
    running: int
    """Tiles that a worker computes now."""
    failed: dict[str, int]
    """Tiles that are not tried again, by reason."""
    waiting: int
    """Tiles that no worker has begun, or that are tried again."""
    skipped: int
    """Tiles of the area without imagery, which are not computed."""
    km2: float
    """Mapped area, km2."""
    total_km2: float
    """Area to map, km2."""
    km2_per_h: float | None
    """Speed of the last hour of work; None before the second tile."""
    hours_left: float | None
    """Time left at that speed."""
    retried: int
    """Attempts that failed."""
    retried_hours: float
    """Time that failed attempts took, hours of a worker."""
    collected: bool
    """Whether the collection is there."""
    failures: list[Failure] = field(default_factory=list, repr=False)
    """Failures that decided the failed tiles."""

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON."""
        document = asdict(self)
        document["failures"] = [
            {"tile": each.tile, "reason": each.reason, "record": each.key} for each in self.failures
        ]
        return document

    def to_prometheus(self, batch: str) -> str:
        """Return the state as a Prometheus text file."""
        label = f'{{batch="{batch}"}}'
        lines = []
        for state, count in [("done", self.done), ("running", self.running), ("waiting", self.waiting),
                             ("skipped", self.skipped)]:  # fmt: skip
            lines.append(f'canopy_batch_tiles{{batch="{batch}",state="{state}"}} {count}')
        for reason, count in sorted(self.failed.items()):
            lines.append(f'canopy_batch_tiles{{batch="{batch}",state="failed",reason="{reason}"}} {count}')
        return "\n".join(
            ["# TYPE canopy_batch_tiles gauge", *lines, "# TYPE canopy_batch_km2 gauge",
             f"canopy_batch_km2{label} {self.km2:.6g}", f"canopy_batch_total_km2{label} {self.total_km2:.6g}",
             f"canopy_batch_km2_per_hour{label} {self.km2_per_h or 0:.6g}",
             f"canopy_batch_failed_attempts{label} {self.retried}",
             f"canopy_batch_failed_hours{label} {self.retried_hours:.6g}", ""]
        )  # fmt: skip


def read_markers(store: Store, plan: Plan) -> Iterator[Marker]:
    """Yield the committed tiles."""
    if len(plan.names) < MANY:
        yield from map(_marker, store.list("items"))
        return
    indexed = {entry.key[len("index/") :][:2] for entry in store.list("index")}
    with ThreadPoolExecutor(LISTERS, thread_name_prefix="list") as pool:
        tables = pool.map(lambda prefix: read_index(store, prefix), sorted(indexed))
        listings = pool.map(lambda prefix: list(store.list(f"items/{prefix}")), _others(indexed))
        for table in tables:
            names, times = table["name"].to_pylist(), table["modified_s"].to_pylist()
            yield from map(Marker, names, times)
        for entries in listings:
            yield from map(_marker, entries)


def read_failures(store: Store, folder: str = "failures") -> list[Failure]:
    """Return the failed attempts that a listing shows."""
    return [failure for entry in store.list(folder) if (failure := parse_failure(entry)) is not None]


def read_status(store: Store, plan: Plan, attempts: int = ATTEMPTS) -> Status:
    """Return the state of a batch from the store alone.

    Args:
        store: Store of the batch.
        plan: Plan of the batch.
        attempts: Attempts after which a tile fails for good.
    """
    km2 = plan.km2
    markers = [marker for marker in read_markers(store, plan) if marker.tile in km2]
    done = {marker.tile for marker in markers}
    failures = read_failures(store)
    earlier = read_failures(store, "retried")
    decided = {tile: failure for tile, failure in failed_tiles(failures, attempts).items() if tile not in done}
    now_s = store.now_s()
    leased = {_tile(entry) for entry in store.list("leases") if _is_held(store, entry, now_s)}
    running = len(leased - done)
    # The exact sum is the same in any order of the set, so that nothing is left of a batch that is done.
    mapped, total = math.fsum(km2[tile] for tile in done), math.fsum(km2.values())
    speed = _speed(markers, km2)
    tried = [*failures, *earlier]
    return Status(
        tiles=len(km2), done=len(done), running=running,
        failed=dict(Counter(failure.reason for failure in decided.values())),
        waiting=max(0, len(km2) - len(done) - len(decided) - running), skipped=len(plan.table) - len(km2),
        km2=mapped, total_km2=total, km2_per_h=speed, hours_left=(total - mapped) / speed if speed else None,
        retried=len(tried), retried_hours=sum(failure.seconds for failure in tried) / 3600,
        collected=store.read("collection.json") is not None,
        failures=sorted(decided.values(), key=lambda failure: failure.tile),
    )  # fmt: skip


def compact(store: Store, names: Sequence[str]) -> None:
    """Write the markers of a finished prefix into one table, so that they are not listed and read one by one again.

    Args:
        store: Store of the batch.
        names: All tiles of the prefix.
    """
    table = items_table(store, names)
    store.create(f"index/{prefix_of(names[0])}.parquet", table_bytes(table))


def items_table(store: Store, names: Iterable[str]) -> pa.Table:
    """Read markers into a table: name, time of commit, and the STAC item as text; tiles without a marker are absent."""
    with ThreadPoolExecutor(LISTERS, thread_name_prefix="read") as pool:
        rows = [
            {"name": name, "modified_s": present[1].modified_s, "item": present[0].decode()}
            for name, present in zip(names, pool.map(lambda name: store.read(marker_key(name)), names), strict=True)
            if present is not None
        ]
    schema = pa.schema({"name": pa.string(), "modified_s": pa.float64(), "item": pa.string()})
    return pa.Table.from_pylist(rows, schema)


def read_index(store: Store, prefix: str) -> pa.Table:
    """Read the table of a finished prefix; empty where there is none."""
    content = store.read(f"index/{prefix}.parquet")
    if content is None:
        return items_table(store, [])
    return parse_table(content[0])


def by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """Group tiles by their prefix."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(prefix_of(name), []).append(name)
    return groups


def _others(indexed: set[str]) -> list[str]:
    return [prefix for prefix in PREFIXES if prefix not in indexed]


def _tile(entry: Entry) -> str:
    return entry.key.rpartition("/")[2].removesuffix(".json")


def _marker(entry: Entry) -> Marker:
    return Marker(_tile(entry), entry.modified_s)


def _is_held(store: Store, entry: Entry, now_s: float) -> bool:
    """Return whether a lease is held; only one that may have run out is read."""
    content = store.read(entry.key)
    lease = Lease.from_bytes(content[0]) if content else None
    if lease is None or lease.holder.is_dead:
        return False
    return now_s - entry.modified_s < (lease.term_s or TERM_S)


def _speed(markers: Sequence[Marker], km2: dict[str, float]) -> float | None:
    """Return the speed over the last hour of work, km2 an hour."""
    if len(markers) < 2:
        return None
    last_s = max(marker.modified_s for marker in markers)
    recent = sorted((m for m in markers if m.modified_s > last_s - RATE_S), key=lambda m: m.modified_s)
    span_s = last_s - recent[0].modified_s
    # The first marker only says when the time began.
    return 3600 * sum(km2[m.tile] for m in recent[1:]) / span_s if span_s > 0 else None
