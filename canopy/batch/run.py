"""A run: tiles that are not there yet go to workers, a few at a time, until every tile is committed or has failed."""

import hashlib
import heapq
import logging
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from canopy.batch.executors import ClusterError, Pool
from canopy.batch.failures import ATTEMPTS, Failure, failed_tiles, message_of, write_failure
from canopy.batch.ledger import MANY, by_prefix, compact, read_failures, read_markers
from canopy.batch.plan import Plan, PlannedTile, marker_key, prefix_of
from canopy.batch.store import Store
from canopy.batch.tasks import Limits, Outcome, Task
from canopy.errors import CanopyError, ConfigError
from canopy.progress import Progress, Report, ignore

BACKOFF_S = 5.0
"""Pause before the second attempt; it doubles with each."""
LONGEST_BACKOFF_S = 300.0
RESTARTS = 20
"""Times that a pool may break without one tile done in between."""
STEP_S = 1.0
"""Longest wait before leases, back-off and workers are looked at again."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a run treats tiles."""

    limits: Limits = field(default_factory=Limits)
    """What a tile may take."""
    attempts: int = ATTEMPTS
    """Attempts of a tile whose failures can pass."""
    backoff_s: float = BACKOFF_S
    """Pause before the second attempt."""
    shard: tuple[int, int] | None = None
    """Number of this part of the tiles, from 0, and the number of parts."""


@dataclass(frozen=True)
class FailedTile:
    """A tile that is not tried again."""

    tile: str
    """Name of the tile."""
    reason: str
    """Kind of failure."""
    message: str
    """What went wrong, in one line."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did."""

    tiles: int
    """Tiles that this run had to compute."""
    done: int
    """Tiles that this run committed."""
    elsewhere: int
    """Tiles that another run committed at the same time."""
    failed: tuple[FailedTile, ...]
    """Tiles of the batch that are not tried again."""
    left: int
    """Tiles of the batch that are neither committed nor failed: those of other shards."""
    work_s: float
    """Time of workers in committed tiles, seconds."""
    overhead_s: float
    """Part of it that went into lease and commit."""

    @property
    def complete(self) -> bool:
        """Whether every tile of the batch is committed."""
        return not self.left and not self.failed

    def describe(self) -> list[str]:
        """Return the run in lines: what was done, then each failed tile with its reason."""
        share = self.overhead_s / self.work_s if self.work_s else 0.0
        return [
            f"{self.done:,} tile(s) done, {self.elsewhere:,} by other runs, {self.left:,} left; lease and commit took "
            f"{100 * share:.1f} % of the time",
            *(f"{each.tile}: {each.reason}: {each.message}" for each in self.failed),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the run as JSON."""
        return asdict(self)


@dataclass(order=True)
class _Waiting:
    """A tile that waits for a worker."""

    ready_s: float
    order: int
    tile: PlannedTile = field(compare=False)
    failures: int = field(default=0, compare=False)
    small: bool = field(default=False, compare=False)


def run_tiles(
    store: Store, plan: Plan, pool: Pool, options: RunOptions | None = None, report: Report = ignore
) -> RunSummary:
    """Compute the tiles of a plan that are not committed yet.

    Args:
        store: Store of the batch.
        plan: Plan of the batch.
        pool: Workers.
        options: How tiles are treated.
        report: Called after each tile.

    Raises:
        CanopyError: No tile can be computed: the model cannot be loaded, or no worker takes tiles.
    """
    run = _Run(store, plan, pool, options or RunOptions(), report)
    run.work()
    return run.summary()


class _Run:
    """State of a run: what waits, what is submitted, what came of it."""

    def __init__(self, store: Store, plan: Plan, pool: Pool, options: RunOptions, report: Report) -> None:
        self.store, self.plan, self.pool, self.options, self.report = store, plan, pool, options, report
        self.limits = replace(options.limits, expendable=pool.expendable)
        self.committed = valid_markers(store, plan)
        failures = read_failures(store)
        pending = set(plan.km2) - self.committed - failed_tiles(failures, options.attempts).keys()
        earlier: dict[str, list[Failure]] = {}
        for failure in failures:
            earlier.setdefault(failure.tile, []).append(failure)
        self.waiting = [
            _Waiting(
                0.0, order, tile, len(tried := earlier.get(tile.name, [])), any(f.reason == "memory" for f in tried)
            )
            for order, tile in enumerate(plan.tiles(pending))
            if in_shard(tile.name, options.shard)
        ]
        self.submitted: dict[Future[Outcome], _Waiting] = {}
        self.resumed, self.total = len(self.committed), len(self.waiting)
        self.done = self.elsewhere = self.restarts = 0
        self.work_s = self.overhead_s = 0.0
        self.last_s = time.monotonic()
        groups = by_prefix(plan.km2) if len(plan.km2) >= MANY else {}
        self.unfinished = {prefix: set(names) - self.committed for prefix, names in groups.items()}
        self.prefixes = groups

    def work(self) -> None:
        """Submit tiles and take outcomes until none is left."""
        heapq.heapify(self.waiting)
        while self.waiting or self.submitted:
            self._submit()
            pause_s = min(STEP_S, max(0.0, self.waiting[0].ready_s - time.monotonic())) if self.waiting else STEP_S
            if not self.submitted:
                time.sleep(pause_s)
                continue
            full = len(self.submitted) >= self.pool.window
            ended, _ = wait(self.submitted, STEP_S if full else max(pause_s, 0.01), FIRST_COMPLETED)
            broken = [self._take(future) for future in ended]
            if any(broken):
                self._reopen()
            elif not ended:
                self.pool.check(time.monotonic() - self.last_s)

    def _submit(self) -> None:
        while self.waiting and len(self.submitted) < self.pool.window and self.waiting[0].ready_s <= time.monotonic():
            item = heapq.heappop(self.waiting)
            task = Task(self.store.url, item.tile, self.limits, item.small)
            try:
                self.submitted[self.pool.submit(task)] = item
            except (BrokenExecutor, OSError, RuntimeError):
                heapq.heappush(self.waiting, item)
                self._reopen()
                return

    def _take(self, future: "Future[Outcome]") -> bool:
        """Take the outcome of a task; return whether the pool broke instead."""
        item = self.submitted.pop(future)
        try:
            outcome = future.result()
        except CanopyError as error:
            # No tile can be computed there: the run ends if that is so from the first one on.
            if not self.done:
                raise
            self._failed(item, write_failure(self.store, item.tile.name, "model", str(error), 0.0, final=False))
            return False
        except (BrokenExecutor, CancelledError, OSError, TimeoutError) as error:
            _LOG.info("tile %s: its worker is gone (%s); it is computed again", item.tile.name, type(error).__name__)
            self._again(item, 0.0)
            return True
        except Exception as error:
            if type(error).__name__ != "KilledWorker":  # Dask's, for a task of which three workers died
                raise
            self._again(item, 0.0)
            return False
        self._settle(item, outcome)
        return False

    def _settle(self, item: _Waiting, outcome: Outcome) -> None:
        if outcome.state == "busy":
            self._again(item, min(STEP_S * 5, max(0.05, outcome.left_s)))
            return
        self.last_s, self.restarts = time.monotonic(), 0
        if outcome.state == "failed":
            self._failed(item, outcome)
            return
        self.done += outcome.state in ("done", "empty")
        self.elsewhere += outcome.state in ("lost", "present")
        self.work_s += outcome.seconds
        self.overhead_s += outcome.overhead_s
        self._mark(item.tile.name)
        done = self.resumed + self.done + self.elsewhere
        total = self.resumed + self.total
        detail = f"tile {done:,}/{total:,} {item.tile.name} {outcome.state} in {outcome.seconds:.1f} s"
        self.report(Progress(done, total, "tiles", detail, self.resumed))

    def _failed(self, item: _Waiting, failure: Outcome | Failure) -> None:
        failures = item.failures + 1
        reason = failure.reason
        if failure.final or failures >= self.options.attempts:
            _LOG.warning("tile %s failed: %s", item.tile.name, reason)
            return
        pause_s = min(LONGEST_BACKOFF_S, self.options.backoff_s * 2 ** (failures - 1))
        again = replace(item, failures=failures, small=item.small or reason == "memory")
        _LOG.info("tile %s failed: %s; attempt %d in %.0f s", item.tile.name, reason, failures + 1, pause_s)
        self._again(again, pause_s)

    def _again(self, item: _Waiting, pause_s: float) -> None:
        heapq.heappush(self.waiting, replace(item, ready_s=time.monotonic() + pause_s))

    def _reopen(self) -> None:
        """Open a broken pool again; every submitted tile waits again, and the store says which of them were done."""
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise ClusterError(f"workers ended {RESTARTS} times without one tile done: look at their logs")
        for item in self.submitted.values():
            self._again(item, 0.0)
        self.submitted.clear()
        self.pool.restart()

    def _mark(self, name: str) -> None:
        """Note a committed tile; a prefix that is finished becomes a table."""
        self.committed.add(name)
        prefix = prefix_of(name)
        if left := self.unfinished.get(prefix):
            left.discard(name)
            if not left:
                compact(self.store, self.prefixes[prefix])

    def summary(self) -> RunSummary:
        """Return what the run did, with the state of the whole batch."""
        present = {marker.tile for marker in read_markers(self.store, self.plan)}
        decided = failed_tiles(read_failures(self.store), self.options.attempts)
        failed = [failure for tile, failure in sorted(decided.items()) if tile not in present]
        left = len(set(self.plan.km2) - present - decided.keys())
        return RunSummary(
            self.total, self.done, self.elsewhere,
            tuple(FailedTile(f.tile, f.reason, message_of(self.store, f)) for f in failed),
            left, self.work_s, self.overhead_s,
        )  # fmt: skip


def valid_markers(store: Store, plan: Plan) -> set[str]:
    """Return the tiles whose marker and data are there; a marker whose data are gone is removed with a warning."""
    names = {marker.tile for marker in read_markers(store, plan)} & plan.km2.keys()
    if len(names) >= MANY:
        return names  # collecting checks every member; listing a million objects twice at each start would not pay
    stored = {entry.key.rpartition("/")[2].rpartition("-")[0] for entry in store.list("data")}
    for name in sorted(names - stored):
        content = store.read(marker_key(name))
        if content is not None and b'"canopy_height"' in content[0]:
            _LOG.warning("tile %s: its data are gone, it is computed again", name)
            store.delete([marker_key(name)])
            names.discard(name)
    return names


def in_shard(name: str, shard: tuple[int, int] | None) -> bool:
    """Return whether a tile belongs to a shard; shards of all machines need no word from each other."""
    return shard is None or hash_of(name) % shard[1] == shard[0]


def hash_of(name: str) -> int:
    """Return a number that spreads tiles evenly, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[1:9], "big")


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``i/N`` with i from 0 to N - 1, as array jobs count.

    Raises:
        ConfigError: It is no shard.
    """
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(count) >= 1 and int(number) < int(count)):
        raise ConfigError(f"--shard {text}: i/N with i from 0 to N - 1 expected, such as 0/8")
    return int(number), int(count)
