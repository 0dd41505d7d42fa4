"""What running a batch costs beyond its tiles: Dask against plain processes, and the rate of tiles that do nothing.

    python benchmarks/batch_run.py                                    # both, small: some minutes on two cores
    python benchmarks/batch_run.py ratio --side 4096 --tile-px 1024   # tiles of a usual size
    python benchmarks/batch_run.py noop --tiles 1000 10000 100000

`ratio`: two Dask workers of one thread map the tiles of a scene, then two processes that know nothing of each other map
the same tiles with `canopy.predict`. Models are loaded before either clock starts.

`noop`: the run loop and Dask's scheduler move tiles that do nothing, so that what remains is what a tile costs there.
Two processes with 32 threads each stand for 64 GPUs, so that as many tasks are on their way as would be there.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
from odc.geo.geom import Geometry

from canopy.batch import executors, run
from canopy.batch.executors import DaskPool
from canopy.batch.extras import PinnedExtras
from canopy.batch.plan import Plan
from canopy.batch.planning import BatchRequest, make_plan
from canopy.batch.store import Store, open_store
from canopy.batch.tasks import Outcome, Task
from canopy.imagery.configured import SAMPLE_SCENE

WORKERS = 2
GPUS = 64
ORIGIN = (499_712.0, 4_899_840.0)
"""A corner of tiles of 512, 1024 and 2048 px."""
CRS = "EPSG:32612"
TRANSFORM = rasterio.Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1])


def say(text: str) -> None:
    """Print a result."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def cluster(workers: int, threads: int = 1) -> Iterator[str]:
    """Start a Dask cluster on this machine; gives its address."""
    from distributed import LocalCluster

    started: Any = LocalCluster(
        n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=None, silence_logs=50
    )
    try:
        yield str(started.scheduler_address)
    finally:
        started.close()


def write_scene(path: Path, side: int) -> Path:
    """Write a scene of `side` pixels of 0.5 m: the sample, mirrored until it is large enough."""
    with rasterio.open(SAMPLE_SCENE) as sample:
        values = sample.read()
    quarter = np.concatenate([values, values[:, ::-1]], axis=1)
    mirrored = np.concatenate([quarter, quarter[:, :, ::-1]], axis=2)
    repeats = [1, *(-(-side // size) for size in mirrored.shape[1:])]
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, width=side, height=side, crs=CRS, transform=TRANSFORM,
        tiled=True, compress="deflate",
    ) as scene:  # fmt: skip
        scene.write(np.tile(mirrored, repeats)[:, :side, :side])
    return path


def map_tiles(scene: str, model: str, areas: Sequence[str], folder: str, barrier: Any, seconds: Any) -> None:
    """Map areas with `canopy.predict`, one after the other, in a process of their own."""
    import canopy
    from canopy.models.model import load_model

    network = load_model(model)
    barrier.wait()
    began = time.monotonic()
    for number, wkt in enumerate(areas):
        canopy.predict(Geometry(wkt_shape(wkt), CRS), scene, network, Path(folder) / f"{number}.tif", crs=CRS)
    seconds.put(time.monotonic() - began)


def wkt_shape(text: str) -> Any:
    """Return the shape of a text."""
    import shapely

    return shapely.from_wkt(text)


def measure_ratio(side: int, tile_px: int, model: str) -> None:
    """Compare Dask workers with processes of their own on the same tiles."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = write_scene(folder / "scene.tif", side)
        inset = 0.01  # so that the area has the scene's pixels and no more
        west, north = ORIGIN[0] + inset, ORIGIN[1] - inset
        length = side / 2 - 2 * inset
        area = Geometry(
            wkt_shape(f"POLYGON(({west} {north}, {west + length} {north}, {west + length} {north - length}, "
                      f"{west} {north - length}, {west} {north}))"), CRS,
        )  # fmt: skip
        store = open_store(folder / "batch", make=True)
        plan = make_plan(BatchRequest(area, model, (str(scene),), tile_px=tile_px), store)
        count = len(plan.names)
        dask_s, share = _by_dask(store, plan)
        apart_s = _by_processes(plan, scene, model, folder)
        say(f"ratio     {count} tiles of {tile_px} px: {WORKERS} Dask workers {dask_s:.1f} s, {WORKERS} processes of "
            f"canopy.predict {apart_s:.1f} s; ratio {apart_s / dask_s:.3f} (aim: at least 0.95)")  # fmt: skip
        scheduling = max(0.0, 1 - _work_s(share, dask_s))
        say(f"share     lease and commit {100 * share[1] / share[0]:.2f} %, workers without a tile "
            f"{100 * scheduling:.2f} % of the time (aim: at most 2 % together)")  # fmt: skip


def _work_s(share: tuple[float, float], wall_s: float) -> float:
    """Return the part of the workers' time in which they had a tile."""
    return share[0] / (WORKERS * wall_s)


def _by_dask(store: Store, plan: Plan) -> tuple[float, tuple[float, float]]:
    """Map a plan with Dask workers; return seconds, and the workers' time with that for lease and commit."""
    with cluster(WORKERS) as address:
        pool = DaskPool(store.url, address)
        try:
            # The plugin loads the model in each worker before it takes a task.
            pool._client.run(_loaded, store.url)
            began = time.monotonic()
            summary = run.run_tiles(store, plan, pool)
            seconds = time.monotonic() - began
        finally:
            pool.close()
    if not summary.complete:
        raise SystemExit("\n".join(summary.describe()))
    return seconds, (summary.work_s, summary.overhead_s)


def _loaded(url: str) -> str:
    """Load plan and model in a worker."""
    from canopy.batch.runtime import runtime

    return runtime(url).model.sha256


def _by_processes(plan: Plan, scene: Path, model: str, folder: Path) -> float:
    """Map the tiles of a plan in processes that know nothing of each other; return the seconds of the slowest."""
    areas: list[list[str]] = [[] for _ in range(WORKERS)]
    for number, tile in enumerate(plan.tiles()):
        zone = plan.zone[tile.zone]
        areas[number % WORKERS].append((zone.lattice.geobox(tile.window).extent & zone.area).wkt)
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(WORKERS), context.Queue()
    processes = []
    for number, part in enumerate(areas):
        (folder / str(number)).mkdir()
        arguments = (str(scene), model, part, str(folder / str(number)), barrier, seconds)
        processes.append(context.Process(target=map_tiles, args=arguments))
        processes[-1].start()
    longest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return float(longest)


def noop(task: Task) -> Outcome:
    """Do nothing with a tile."""
    return Outcome(task.tile.name, "done")


class NoopPool(DaskPool):
    """Dask workers that do nothing with their tiles."""

    def submit(self, task: Task) -> Any:
        """Submit a tile."""
        return self._executor.submit(noop, task)


def _plain_plugin(url: str) -> Any:
    """Return a plugin that loads nothing."""
    from distributed import WorkerPlugin

    class Plain(WorkerPlugin):
        """Loads nothing."""

        name = "plain"

    return Plain()


def plan_of(store: Store, tiles: int) -> Plan:
    """Return a plan that is only a list of tiles."""
    numbers = np.arange(tiles)
    table = pa.table(
        {
            "name": [f"12-r{row}c{col}" for row, col in zip(numbers // 1000, numbers % 1000, strict=True)],
            "zone": ["12"] * tiles, "row0": numbers // 1000 * 1024, "col0": numbers % 1000 * 1024,
            "height": np.full(tiles, 1024), "width": np.full(tiles, 1024), "share": np.ones(tiles),
            "km2": np.ones(tiles), "imagery": np.ones(tiles, bool),
            "scenes": pa.array([[0, 1]] * tiles, pa.list_(pa.int32())),
        }
    )  # fmt: skip
    unused: Any = None
    return Plan("noop", {}, (), unused, unused, PinnedExtras(), table)


def measure_noop(sizes: Sequence[int]) -> None:
    """Time tiles that do nothing, through the run loop and Dask's scheduler."""
    executors._plugin = _plain_plugin
    # Nothing is committed, so there is no table of finished markers to write.
    run.compact = lambda store, names: None  # type: ignore[assignment]
    costs = {}
    with tempfile.TemporaryDirectory() as name, cluster(WORKERS, GPUS // WORKERS) as address:
        store = open_store(name)
        pool = NoopPool(store.url, address)
        try:
            for tiles in (200, *sizes):  # the first to warm up
                state = run._Run(store, plan_of(store, tiles), pool, run.RunOptions(), lambda progress: None)
                began = time.monotonic()
                state.work()
                seconds = time.monotonic() - began
                if state.done != tiles:
                    raise SystemExit(f"{state.done} of {tiles} tiles came back")
                costs[tiles] = seconds / tiles
        finally:
            pool.close()
    for tiles in sizes:
        say(f"no-op     {tiles:,} tiles through Dask: {1 / costs[tiles]:.0f} a second, {1e3 * costs[tiles]:.2f} ms a "
            f"tile; {GPUS} GPUs stay busy with tiles of {GPUS * costs[tiles]:.2f} s and more")  # fmt: skip
    first, last = costs[sizes[0]], costs[sizes[-1]]
    say(f"flat      a tile of {sizes[-1]:,} costs {last / first:.2f} times one of {sizes[0]:,}")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("all", "ratio", "noop"), default="all")
    parser.add_argument("--side", type=int, default=1536, help="side of the scene, pixels of 0.5 m")
    parser.add_argument("--tile-px", type=int, default=512, help="side of a tile")
    parser.add_argument("--model", default="canopy-small", help="name or bundle")
    parser.add_argument("--tiles", type=int, nargs="+", default=[500, 2000], help="numbers of tiles that do nothing")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # for all processes that are started
    if options.mode in ("all", "noop"):
        measure_noop(options.tiles)
    if options.mode in ("all", "ratio"):
        measure_ratio(options.side, options.tile_px, options.model)


if __name__ == "__main__":
    main()
