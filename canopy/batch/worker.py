"""What a worker does with a tile: take its lease, compute it, commit it, and say in a few bytes how that went."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canopy.batch import isolation
from canopy.batch.commit import Attempt, commit
from canopy.batch.failures import TileLimitError, describe, reason_of, write_failure
from canopy.batch.imagery import DigestedSource
from canopy.batch.leases import Busy, Holder, hold_lease
from canopy.batch.plan import lease_key, marker_key
from canopy.batch.runtime import Runtime, runtime
from canopy.batch.store import StoreError
from canopy.batch.tasks import Limits, Outcome, State, Task
from canopy.errors import CoverageError
from canopy.prediction.run import run_job
from canopy.progress import Progress

HARD_LIMIT = 2.0
"""Multiple of the time limit after which a worker process that no longer answers is ended."""


def run_task(task: Task) -> Outcome:
    """Compute and commit a tile; failures are recorded in the store, never raised.

    Args:
        task: Tile to compute.

    Raises:
        CanopyError: Plan or model cannot be loaded, so that no tile can be computed.
    """
    loaded = runtime(task.url)
    began = time.monotonic()
    try:
        with hold_lease(loaded.store, lease_key(task.tile.name), task.limits.term_s) as lease:
            if isinstance(lease, Busy):
                return Outcome(task.tile.name, "busy", left_s=lease.left_s)
            # Another run may have committed the tile before its lease was given back.
            if loaded.store.read(marker_key(task.tile.name)) is not None:
                return Outcome(task.tile.name, "present")
            if lease.deaths and task.limits.isolate:
                return isolation.run_alone(task, loaded.store)
            leased_s = time.monotonic() - began
            with _watched(task, loaded):
                outcome = compute(task, loaded)
            return replace(outcome, overhead_s=outcome.overhead_s + leased_s)
    except StoreError as error:
        # The store may refuse the record of its own failure: the run counts it then.
        seconds = time.monotonic() - began
        with contextlib.suppress(StoreError):
            write_failure(loaded.store, task.tile.name, "store", describe(error), seconds)
        return Outcome(task.tile.name, "failed", seconds, "store")


def compute(task: Task, loaded: Runtime) -> Outcome:
    """Compute and commit a tile whose lease this process or its parent has."""
    tile, began = task.tile, time.monotonic()
    try:
        with _scratch(task.limits.scratch) as folder:
            return _compute(task, loaded, folder, began)
    except Exception as error:  # any fault of one tile is that tile's alone
        reason, seconds = reason_of(error), time.monotonic() - began
        failure = write_failure(loaded.store, tile.name, reason, describe(error), seconds)
        if reason == "memory":
            _free_memory()
        if reason == "disk":
            time.sleep(task.limits.pause_s)
        return Outcome(tile.name, "failed", seconds, reason, failure.final)


def _compute(task: Task, loaded: Runtime, folder: Path, began: float) -> Outcome:
    tile, pinned = task.tile, bool(loaded.plan.imagery.scenes)
    source: Any = loaded.source(tile)
    read_at = datetime.now(UTC).isoformat(timespec="seconds")
    source = source if pinned else DigestedSource(source)
    job = loaded.job(tile, source, small=task.small)
    try:
        # Where reasons are mapped, a tile without a single height says why.
        published = run_job(
            job, folder / f"{tile.name}.tif", overwrite=True, may_be_empty=job.extras.reasons,
            report=_guard(task.limits, began),
        )  # fmt: skip
    except CoverageError:
        published = None
    computed = time.monotonic()
    facts: dict[str, Any] = {
        "canopy:seconds": round(computed - began, 3),
        "canopy:coverage": published.coverage if published else 0.0,
    }
    if not pinned:
        facts |= {"canopy:imagery_read": read_at, "canopy:imagery_sha256": source.digest}
    won = commit(loaded.store, loaded.plan, tile, published, replace(Attempt.begin(), facts=facts))
    state: State = "lost" if not won else "done" if published and published.coverage else "empty"
    return Outcome(tile.name, state, time.monotonic() - began, overhead_s=time.monotonic() - computed)


def _guard(limits: Limits, began: float) -> Any:
    """Return a report that ends a tile at its limits, after each part of it."""

    def check(progress: Progress) -> None:
        if limits.time_s is not None and time.monotonic() - began > limits.time_s:
            raise TileLimitError(f"took longer than {limits.time_s:g} s ({progress.detail}): allow more", "time")
        if limits.memory_gb is not None and (used_gb := memory_gb()) > limits.memory_gb:
            raise TileLimitError(f"took {used_gb:.2f} GB, {limits.memory_gb:g} GB allowed", "memory")

    return check


@contextlib.contextmanager
def _watched(task: Task, loaded: Runtime) -> Iterator[None]:
    """End a worker process in which a tile never returns, as from a library that hangs."""
    limit_s = task.limits.time_s
    if limit_s is None or not task.limits.expendable:
        yield
        return

    def end() -> None:
        with contextlib.suppress(Exception):
            write_failure(loaded.store, task.tile.name, "time", "did not return; its worker was ended", limit_s or 0)
        os._exit(75)

    timer = threading.Timer(HARD_LIMIT * limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _scratch(folder: str | None) -> Iterator[Path]:
    """Give a folder for the unfinished tile, and remove it whatever happens."""
    sweep_scratch(Path(folder or tempfile.gettempdir()))
    holder = Holder.current()
    path = Path(tempfile.mkdtemp(prefix=f"canopy-tile-{holder.machine}-{holder.pid}-{holder.started}-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep_scratch(folder: Path) -> None:
    """Remove the folders that killed processes of this machine left."""
    holder = Holder.current()
    for path in folder.glob(f"canopy-tile-{holder.machine}-*"):
        _, _, _, pid, started, *_ = path.name.split("-")
        if replace(holder, pid=int(pid), started=started).is_dead:
            shutil.rmtree(path, ignore_errors=True)


def memory_gb() -> float:
    """Return the memory that this process has now, GB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def _free_memory() -> None:
    """Give memory that torch keeps for later back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
