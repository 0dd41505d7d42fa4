"""A real scene with the bundled model on Dask, killed twice on the way: the mosaic is the map of `canopy predict`.

The commands are those of users: schedulers, workers and runs are processes, and are killed as the system kills them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from batches import keys
from servers.s3 import BUCKET, LocalS3
from shapely import affinity
from stac_service import outline_of

import canopy
from canopy.batch.planning import BatchRequest, make_plan
from canopy.batch.store import Store, open_store

pytestmark = pytest.mark.slow
LEAST_PX = 2e6
"""Pixels of a scene on which more than a few tiles lie."""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def scene(shared_data: Path) -> Path:
    """The smallest real scene that is large enough."""
    sizes = {}
    for path in sorted((shared_data / "pairs").glob("*/rgb.tif")):
        with rasterio.open(path) as opened:
            sizes[path] = opened.width * opened.height
    large = {path: size for path, size in sizes.items() if size > LEAST_PX}
    if not large:
        pytest.skip(f"no scene of more than {LEAST_PX:.0e} pixels under {shared_data}")
    return min(large, key=lambda path: large[path])


@pytest.fixture(scope="module")
def area(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of the scene, a tenth of it, as a file of users."""
    path = tmp_path_factory.mktemp("area") / "area.geojson"
    ring = affinity.scale(outline_of(scene), 0.3, 0.3).exterior.coords
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [[list(point) for point in ring]]}))
    return path


@pytest.fixture(scope="module")
def expected(scene: Path, area: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Heights of one process."""
    result = canopy.predict(area, scene, out=tmp_path_factory.mktemp("map") / "map.tif", backend="eager")
    with rasterio.open(result.path) as opened:
        return opened.read()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands of this environment; whatever is left at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *arguments: Any, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
        with (tmp_path / f"{len(processes)}-{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path, env={**os.environ, **environment}
            )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def wait_for_tiles(store: Store, count: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until some tiles are committed."""
    deadline_s = time.monotonic() + 1200
    while len(keys(store, "items")) < count:
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < deadline_s, "no tile came"
        time.sleep(0.2)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_run_that_is_killed_twice_ends_in_the_map_of_predict(
    kind: str, scene: Path, area: Path, expected: np.ndarray, start: Start, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with LocalS3() as server:
        environment = {**server.environment, "OMP_NUM_THREADS": "1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/real" if kind == "s3" else str(tmp_path / "batch")
        store = open_store(url, make=True)
        make_plan(BatchRequest(str(area), "canopy-small", (str(scene),), tile_px=256, backend="eager"), store)
        _run_and_kill(store, start, environment)
        folder = tmp_path / "copy"
        for key in keys(store, ""):
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(b"".join(store.download(key)))
    assert not (folder / "leases").exists()
    (mosaic,) = folder.glob("mosaic-*/[0-9]*.vrt")
    with rasterio.open(mosaic) as opened:
        np.testing.assert_array_equal(opened.read(), expected)
    shutil.rmtree(folder)


def _run_and_kill(store: Store, start: Start, environment: dict[str, str]) -> None:
    """Run a plan on a cluster of two workers; kill the run and a worker, then the run and the scheduler."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"

    def begin(name: str, *arguments: Any) -> "subprocess.Popen[bytes]":
        return start(name, *arguments, environment=environment)

    def worker() -> "subprocess.Popen[bytes]":
        return begin("dask", "worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")

    def scheduler() -> "subprocess.Popen[bytes]":
        return begin("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def run() -> "subprocess.Popen[bytes]":
        return begin("canopy", "batch", "run", store.url, "--scheduler", address, "--term", 10, "--wait", 600)

    leader, workers, running = scheduler(), [worker(), worker()], run()
    wait_for_tiles(store, 2, running)
    kill(running)
    kill(workers[0])
    workers[0], running = worker(), run()
    wait_for_tiles(store, 5, running)
    for process in (running, leader, *workers):
        kill(process)
    leader, workers, running = scheduler(), [worker(), worker()], run()
    assert running.wait(1800) == 0
