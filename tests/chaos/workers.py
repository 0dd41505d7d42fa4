"""Processes of the chaos suite: forked from one that has imported torch and Dask, so that each starts at once.

What they compute is quick and known: the orchestration is on trial here, not the network.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from canopy.batch import run, worker
from canopy.batch.executors import InlinePool
from canopy.batch.plan import Plan, PlannedTile, read_plan
from canopy.batch.run import RunOptions, run_tiles
from canopy.batch.store import open_store
from canopy.batch.tasks import Limits
from canopy.errors import ImageryError, OutputError
from canopy.prediction import Prediction
from canopy.prediction.job import Job
from tiles.stac import height_item
from tiles.windows import PixelWindow

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["workers", "distributed", "canopy.batch.executors", "canopy.batch.collection"])
TILE_S = 0.01
"""Time of a tile, so that a kill often meets one."""
OPTIONS = RunOptions(Limits(term_s=3.0, pause_s=0.2, isolate=False), attempts=12, backoff_s=0.05)
run.STEP_S = 0.1


def heights_m(window: PixelWindow) -> NDArray[np.float32]:
    """Return the heights that a pixel has wherever it is computed."""
    rows = np.arange(window.row0, window.row1, dtype=np.int64)[:, None]
    cols = np.arange(window.col0, window.col1, dtype=np.int64)
    return ((rows * 7919 + cols * 104_729) % 4093 / 128).astype(np.float32)[None]


def quick_job(job: Job, path: Path, *, overwrite: bool, may_be_empty: bool, report: Any) -> Prediction:
    """Write the known heights of a tile in place of a network's, with its STAC item."""
    corrupt = os.environ.get("CHAOS_CORRUPT")
    if corrupt and path.stem == corrupt:
        raise ImageryError(f"{corrupt}.tif: cannot be read, expected an undamaged raster")
    time.sleep(TILE_S)
    window = job.part
    assert window is not None
    geobox = job.grid.lattice.geobox(window)
    try:
        with rasterio.open(
            path, "w", driver="GTiff", dtype="float32", count=1, height=window.height, width=window.width,
            crs=geobox.crs.to_wkt(), transform=geobox.affine, nodata=np.nan,
        ) as out:  # fmt: skip
            out.write(heights_m(window))
    except (RasterioError, CPLE_BaseError) as error:  # as the writer of maps says it
        raise OutputError(f"cannot write {path}: No space left on device") from error
    item = height_item(
        path, acquisition="2021-06-01", created=datetime.now(UTC), model={"name": "quick"}, imagery=(),
        bands=("canopy_height",), version="0",
    )  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(item))
    return Prediction(path, "quick", (), "", "2021-06-01", 1.0, 1, 0)


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Start a process."""
    process = CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    """Kill a process as the system does when memory runs out."""
    process.kill()
    process.join()


def run_inline(url: str, shard: tuple[int, int] | None, environment: dict[str, str], file_bytes: int | None) -> None:
    """Run the tiles of a plan in this process.

    Args:
        url: Store of the batch.
        shard: Part of the tiles.
        environment: Variables of the process.
        file_bytes: Largest file that the disk takes.
    """
    os.environ |= environment
    worker.run_job = quick_job
    if file_bytes is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    store = open_store(url)
    options = RunOptions(OPTIONS.limits, OPTIONS.attempts, OPTIONS.backoff_s, shard)
    run_tiles(store, read_plan(store), InlinePool(), options)


def run_scheduler(port: int) -> None:
    """Be the scheduler of a Dask cluster, until killed."""
    from distributed import Scheduler

    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=port, dashboard=False) as scheduler:
            await scheduler.finished()

    with contextlib.suppress(Exception):
        asyncio.run(serve())


def run_worker(address: str, folder: str) -> None:
    """Be a Dask worker of one thread, until killed."""
    import dask
    from distributed import Worker

    worker.run_job = quick_job
    os.chdir(folder)
    # A worker whose scheduler is gone waits for the next one under the same address.
    dask.config.set({"distributed.comm.timeouts.connect": "2s", "distributed.worker.memory.terminate": False})

    async def serve() -> None:
        async with Worker(address, nthreads=1, dashboard=False, local_directory=folder, death_timeout=60) as one:
            await one.finished()

    for _ in range(100):
        with contextlib.suppress(Exception):
            asyncio.run(serve())
        time.sleep(0.2)


def expected(plan: Plan) -> dict[str, PlannedTile]:
    """Return the tiles of a plan by name."""
    return {tile.name: tile for tile in plan.tiles()}
