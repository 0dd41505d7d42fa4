"""Executors of a run: this process, worker processes of this machine, or a Dask cluster, behind one small class.

run ──submit──> pool ──> worker process ──> lease, compute, commit (canopy.batch.worker)
^                │
└── a few bytes ─┘      a pool that breaks is opened again; what its tiles did is in the store, not here
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, Protocol

from canopy.batch.runtime import DEVICE_VARIABLE, runtime
from canopy.batch.tasks import Outcome, Task
from canopy.batch.worker import run_task
from canopy.errors import CanopyError, ConfigError, one_line
from canopy.prediction.engine import InlineExecutor

WAIT_S = 60.0
"""Longest time without a worker that could take a tile."""
TASKS_PER_THREAD = 2
"""Tasks that a scheduler has for each thread of its workers: the next tile waits where it is needed."""
POLL_S = 0.5

_LOG = logging.getLogger(__name__)


class ClusterError(CanopyError):
    """A cluster does not take work."""


class Pool(Protocol):
    """Workers of a run."""

    expendable: bool
    """Whether workers are processes of their own, which may end."""

    @property
    def window(self) -> int:
        """Tasks that may be submitted at once."""
        ...

    def submit(self, task: Task) -> "Future[Outcome]":
        """Submit a tile."""
        ...

    def restart(self) -> None:
        """Open the pool again after it broke; its futures have failed."""
        ...

    def check(self, idle_s: float) -> None:
        """Raise a ClusterError where no worker can take a tile, after a time without an outcome."""
        ...

    def close(self) -> None:
        """End the workers that belong to this run."""
        ...


class InlinePool:
    """This process: one tile after the other."""

    window, expendable = 1, False

    def __init__(self) -> None:
        self._executor: Executor = InlineExecutor()

    def submit(self, task: Task) -> "Future[Outcome]":
        """Compute a tile at once."""
        return self._executor.submit(run_task, task)

    def restart(self) -> None:
        """Do nothing: this process does not break."""

    def check(self, idle_s: float) -> None:
        """Do nothing: this process takes every tile."""

    def close(self) -> None:
        """Do nothing: no worker belongs to this pool."""


class ProcessPool:
    """Worker processes of this machine, each with the model loaded once.

    Args:
        url: Store of the batch.
        workers: Number of processes.
        devices: Device of each process, one GPU each; the plan's device for all if empty.
    """

    expendable = True

    def __init__(self, url: str, workers: int, devices: tuple[str, ...] = ()) -> None:
        self._url, self._workers, self._devices = url, workers, devices
        self._executor = self._open()

    @property
    def window(self) -> int:
        """Tasks that may be submitted at once: one for each process, so that a broken pool takes few with it."""
        return self._workers

    def submit(self, task: Task) -> "Future[Outcome]":
        """Submit a tile."""
        return self._executor.submit(run_task, task)

    def restart(self) -> None:
        """Start new processes; those of a broken pool have been ended by the executor."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._open()

    def check(self, idle_s: float) -> None:
        """Do nothing: a pool without processes breaks, which its futures say."""

    def close(self) -> None:
        """End the processes; a tile that is being computed gives its lease back."""
        processes = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                process.terminate()
        for process in processes:
            process.join(10)

    def _open(self) -> ProcessPoolExecutor:
        # Spawned, not forked: CUDA and GDAL do not survive a fork.
        context = multiprocessing.get_context("spawn")
        devices: Any = context.SimpleQueue()
        for number in range(self._workers):
            devices.put(self._devices[number % len(self._devices)] if self._devices else "")
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        return ProcessPoolExecutor(
            self._workers, context, initializer=_start_process, initargs=(self._url, threads, devices)
        )


class DaskPool:
    """Workers of a Dask cluster.

    Args:
        url: Store of the batch, as every worker can open it.
        address: Address of the scheduler.
        wait_s: Longest time without a worker that could take a tile.
    """

    expendable = True

    def __init__(self, url: str, address: str, wait_s: float = WAIT_S) -> None:
        self._url, self._address, self._wait_s = url, address, wait_s
        self._threads, self._counted_s = 0, 0.0
        self._connect()

    @property
    def window(self) -> int:
        """Tasks that may be submitted at once; workers may come and go."""
        if time.monotonic() - self._counted_s > POLL_S:
            with contextlib.suppress(OSError, ClusterError):
                self._threads = sum(worker["nthreads"] for worker in self._eligible().values())
            self._counted_s = time.monotonic()
        return max(1, TASKS_PER_THREAD * self._threads)

    def submit(self, task: Task) -> "Future[Outcome]":
        """Submit a tile."""
        future: Future[Outcome] = self._executor.submit(run_task, task)
        return future

    def restart(self) -> None:
        """Connect again, to a scheduler that may have been restarted."""
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)
        self._connect()

    def check(self, idle_s: float) -> None:
        """Raise a ClusterError where no worker was there for too long."""
        if idle_s > self._wait_s and not self._eligible():
            raise ClusterError(_absence(self._workers(), self._resources, self._address, self._wait_s))

    def close(self) -> None:
        """Leave the cluster; its workers go on without us."""
        with contextlib.suppress(Exception):
            self._executor.shutdown(wait=False)
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def _connect(self) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError("--scheduler needs Dask: pip install distributed") from error
        deadline_s = time.monotonic() + self._wait_s
        connect: Any = Client
        try:
            self._client: Any = connect(self._address, timeout=self._wait_s, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no scheduler at {self._address} within {self._wait_s:.0f} s: {one_line(error, 200)}"
            ) from error
        while not (workers := self._workers()):
            if time.monotonic() > deadline_s:
                raise ClusterError(_absence(workers, {}, self._address, self._wait_s))
            time.sleep(min(POLL_S, self._wait_s))
        # A task that asks for a resource which no worker declares would wait for ever.
        gpus = [worker.get("resources", {}).get("GPU", 0) for worker in workers.values()]
        self._resources = {"GPU": 1} if all(gpus) else {}
        if any(gpus) and not all(gpus):
            _LOG.warning("only some workers declare GPU=1: none is reserved; declare it for all, or start others apart")
        self._client.register_plugin(_plugin(self._url))
        self._executor = self._client.get_executor(pure=False, retries=0, resources=self._resources or None)

    def _workers(self) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return info

    def _eligible(self) -> Mapping[str, Any]:
        return {
            name: worker
            for name, worker in self._workers().items()
            if all(worker.get("resources", {}).get(key, 0) >= need for key, need in self._resources.items())
        }


def _absence(workers: Mapping[str, Any], resources: Mapping[str, float], address: str, wait_s: float) -> str:
    """Say why no worker takes tiles."""
    if not workers:
        return f"no worker at {address} within {wait_s:.0f} s: start some with `dask worker {address}`"
    needs = ", ".join(f"{key}={need:g}" for key, need in resources.items())
    return f"{len(workers)} worker(s) at {address}, none with {needs}: start them with --resources '{needs}'"


def _plugin(url: str) -> Any:
    """Return the plugin that loads plan and model once in each worker, at its start."""
    from distributed import WorkerPlugin

    class LoadPlugin(WorkerPlugin):
        """Loads plan and model into a worker."""

        name = f"canopy-{url}"

        def setup(self, worker: Any) -> None:
            """Load them; what fails here fails again, and is reported, with the first tile."""
            from canopy.batch.runtime import runtime as load
            from canopy.errors import CanopyError as Expected

            with contextlib.suppress(Expected):
                load(url)

    return LoadPlugin()


def _start_process(url: str, threads: int, devices: Any) -> None:
    """Prepare a worker process: it ends with its parent, gives leases back when ended, and has the model loaded."""
    import torch

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers in order
    torch.set_num_threads(threads)
    os.environ.setdefault("GDAL_NUM_THREADS", str(threads))
    if device := devices.get():
        os.environ[DEVICE_VARIABLE] = device
    _follow_parent()
    with contextlib.suppress(CanopyError):
        runtime(url)


def _follow_parent() -> None:
    """End this process when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, name="parent", daemon=True).start()


def choose_pool(
    url: str,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    gpus: bool = False,
    wait_s: float = WAIT_S,
) -> Pool:
    """Open the workers of a run.

    Args:
        url: Store of the batch.
        scheduler: Address of a Dask scheduler.
        workers: Number of processes on this machine.
        gpus: Whether to start one process for each GPU.
        wait_s: Longest time without a worker of the cluster.

    Raises:
        ConfigError: There is no GPU, or Dask is not installed.
        ClusterError: The cluster takes no work.
    """
    if scheduler is not None:
        return DaskPool(url, scheduler, wait_s)
    if gpus:
        import torch

        count = torch.cuda.device_count()
        if not count:
            raise ConfigError("--gpus: torch sees no GPU, use --workers N")
        return ProcessPool(url, count, tuple(f"cuda:{number}" for number in range(count)))
    return InlinePool() if workers is None else ProcessPool(url, workers)
