"""Batches under attack: at the end every tile is valid, right, there once, and nothing else is left."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import keys, plan_batch
from rasterio.io import MemoryFile
from rasters import make_raster
from servers.s3 import BUCKET, LocalS3
from workers import OPTIONS, expected, heights_m, kill, run_inline, run_scheduler, run_worker, start

from canopy.batch import run as batch_run
from canopy.batch.collection import collect_batch, read_items
from canopy.batch.executors import DaskPool
from canopy.batch.failures import forget_failures
from canopy.batch.leases import Holder, Lease
from canopy.batch.ledger import read_failures, read_status
from canopy.batch.plan import Plan, lease_key
from canopy.batch.run import run_tiles
from canopy.batch.store import Store
from canopy.batch.tasks import Task
from canopy.batch.worker import run_task

pytestmark = pytest.mark.filterwarnings("ignore")
"""Dask warns of workers that vanish, which is the point here."""


def many_tiles(inputs: Path, url: Path | str, side: int) -> tuple[Store, Plan]:
    """Plan about side x side tiles of 256 px; the imagery is a scene that reaches over all of them."""
    degrees = 128 * side / 111_320
    scene = inputs / "wide.tif"
    if not scene.exists():
        make_raster(scene, crs="EPSG:32612", origin=(499000, 4901000), resolution=50, shape=(200, 200), pattern="noise")
    aoi = f"-110.999,{44.2505 - degrees * 0.98:.6f},{-110.999 + degrees * 1.35:.6f},44.2505"
    return plan_batch(inputs, url, aoi=aoi, imagery=(str(scene),), force=True)


def check(store: Store, plan: Plan) -> None:
    """Collect, and check that the batch has every tile once, right, and nothing else."""
    collect_batch(store, plan)
    tiles = expected(plan)
    items = read_items(store, plan)
    assert [item.name for item in items] == sorted(tiles)
    used = set()
    for item in items:
        key = item.key("canopy_height") or ""
        used |= {key, item.key("blocks")}
        with MemoryFile(b"".join(store.download(key))) as memory, memory.open() as opened:
            np.testing.assert_array_equal(opened.read(), heights_m(tiles[item.name].window))
    assert set(keys(store, "data")) == used
    assert keys(store, "leases") == []
    assert keys(store, "clock") == []
    status = read_status(store, plan)
    assert (status.done, status.running, status.waiting, status.failed) == (len(tiles), 0, 0, {})
    if not store.url.startswith("s3://"):
        assert not [path for path in Path(store.url).rglob("*") if "#" in path.name or path.suffix == ".tmp"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "STEP_S", 0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_workers_and_the_scheduler_die_during_200_tiles(inputs: Path, tmp_path: Path) -> None:
    store, plan = many_tiles(inputs, tmp_path / "batch", 14)
    assert len(plan.km2) >= 190
    port, rng = free_port(), random.Random()
    address, folder = f"tcp://127.0.0.1:{port}", str(tmp_path)
    scheduler = [start(run_scheduler, port)]
    workers = [start(run_worker, address, folder) for _ in range(2)]
    ending = threading.Event()

    def attack() -> None:
        """Kill a worker after each 40 tiles, and the scheduler in the middle."""
        targets = [(20, "worker"), (60, "worker"), (100, "scheduler"), (130, "worker"), (160, "worker")]
        while targets and not ending.wait(0.1):
            if len(keys(store, "items")) < targets[0][0]:
                continue
            _, kind = targets.pop(0)
            if kind == "worker":
                number = rng.randrange(len(workers))
                kill(workers[number])
                workers[number] = start(run_worker, address, folder)
            else:
                kill(scheduler[0])
                scheduler[0] = start(run_scheduler, port)

    attacker = threading.Thread(target=attack)
    attacker.start()
    pool = DaskPool(store.url, address, wait_s=60)
    try:
        summary = run_tiles(store, plan, pool, OPTIONS)
        assert summary.complete
    finally:
        ending.set()
        attacker.join()
        pool.close()
        for process in [*workers, *scheduler]:
            kill(process)
    check(store, plan)


def test_two_runs_and_three_shards_of_one_plan_at_once(inputs: Path, tmp_path: Path) -> None:
    store, plan = many_tiles(inputs, tmp_path / "batch", 7)
    processes = [start(run_inline, store.url, shard, {}, None) for shard in (None, None, (0, 3), (1, 3), (2, 3))]
    while len(keys(store, "items")) < 10:
        time.sleep(0.02)
    kill(processes[0])
    for process in processes[1:]:
        process.join(300)
        assert process.exitcode == 0
    check(store, plan)


def test_a_full_disk_on_one_worker_and_a_corrupt_image(inputs: Path, tmp_path: Path) -> None:
    store, plan = many_tiles(inputs, tmp_path / "batch", 4)
    corrupt = plan.names.to_pylist()[3]
    environment = {"CHAOS_CORRUPT": corrupt}
    full = start(run_inline, store.url, None, environment, 40_000)
    whole = start(run_inline, store.url, None, environment, None)
    whole.join(300)
    full.join(300)
    assert whole.exitcode == 0
    status = read_status(store, plan, OPTIONS.attempts)
    assert status.failed == {"imagery": 1}
    assert status.done == len(plan.km2) - 1
    assert {failure.reason for failure in read_failures(store)} <= {"imagery", "disk", "store"}
    # The cause is gone: the tile is tried again, and the batch ends whole.
    forget_failures(store, read_failures(store))
    repaired = start(run_inline, store.url, None, {}, None)
    repaired.join(300)
    check(store, plan)


def test_a_tile_whose_worker_died_is_computed_in_a_process_of_its_own(inputs: Path, tmp_path: Path) -> None:
    store, plan = plan_batch(inputs, tmp_path / "batch")
    tile = next(plan.tiles())
    dead = replace(Holder.current(), pid=2**22 + 1)
    store.create(lease_key(tile.name), Lease("n", dead, 3600, 0).to_bytes())
    assert run_task(Task(store.url, tile)).state == "done"
    assert keys(store, "leases") == []


class FaultyProxy:
    """A proxy before a store: of each few connections one stalls, one is answered by 503, and one is cut."""

    def __init__(self, target: tuple[str, int], rng: random.Random, stall_s: float = 1.5) -> None:
        self._target, self._rng, self._stall_s = target, rng, stall_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.faults = dict.fromkeys(("stall", "busy", "cut"), 0)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        draw = self._rng.random()
        fault = "stall" if draw < 0.02 else "busy" if draw < 0.06 else "cut" if draw < 0.10 else ""
        with client:
            if fault:
                self.faults[fault] += 1
            if fault == "stall":
                time.sleep(self._stall_s)
                return
            if fault == "busy":
                client.recv(65536)
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            try:
                with socket.create_connection(self._target) as server:
                    self._pump(client, server, cut=fault == "cut")
            except OSError:
                return

    def _pump(self, client: socket.socket, server: socket.socket, cut: bool) -> None:
        """Pass bytes both ways; a connection that is cut ends within its first answer."""

        def forward() -> None:
            try:
                while content := client.recv(65536):
                    server.sendall(content)
            except OSError:
                pass

        threading.Thread(target=forward, daemon=True).start()
        while content := server.recv(65536):
            client.sendall(content[: len(content) // 2] if cut else content)
            if cut:
                return


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyProxy, Callable[[bool], dict[str, str]]]]:
    """A faulty proxy, and the variables of a client with it or without it."""
    with LocalS3() as server:
        host, port = server.url.removeprefix("http://").split(":")
        proxy = FaultyProxy((host, int(port)), random.Random())

        def environment(through: bool) -> dict[str, str]:
            url = f"http://127.0.0.1:{proxy.port}" if through else server.url
            return {**server.environment, "AWS_ENDPOINT_URL": url, "CANOPY_STORE_TIMEOUT_S": "1"}

        for name, value in environment(False).items():
            monkeypatch.setenv(name, value)
        yield proxy, environment
        proxy.close()


def test_a_store_that_stalls_answers_503_and_cuts(
    inputs: Path, faulty: tuple[FaultyProxy, Callable[[bool], dict[str, str]]]
) -> None:
    proxy, environment = faulty
    url = f"s3://{BUCKET}/chaos"
    store, plan = many_tiles(inputs, url, 4)
    runs = [start(run_inline, url, None, environment(True), None) for _ in range(2)]
    for process in runs:
        process.join(300)
    # A run that the faults ended is started again, as an operator would; at the end without faults.
    for _ in range(3):
        if read_status(store, plan).done < len(plan.km2):
            last = start(run_inline, url, None, environment(False), None)
            last.join(300)
    assert sum(proxy.faults.values()) > 0
    check(store, plan)
