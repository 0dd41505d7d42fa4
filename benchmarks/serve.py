"""Server of maps against plain titiler: the same requests for the same file, in turns; many users; memory.

Both servers run in processes of their own. A round asks each for the same tile, point or polygon, one after the other,
so that whatever else the machine does slows both. Plain titiler answers `url=` with viridis on the same range.

    python benchmarks/serve.py             # a map of 30 MB, 200 requests, 50 users, memory over 500 requests
    python benchmarks/serve.py --mb 1000 --memory 10000
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import morecantile
import numpy as np
import psutil
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

CRS = "EPSG:32633"
BLOCK_PX = 512
TMS = morecantile.tms.get("WebMercatorQuad")
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """A request, as each server gets it."""

    kind: str
    """Tile, point or polygon."""
    own: str
    """Path on our server."""
    plain: str
    """Path of plain titiler, with the file's name to follow."""
    body: str | None = None
    """GeoJSON to post."""


def write_map(path: Path, megabytes: float) -> Bounds:
    """Write a COG of noise in crowns of a few metres, and return its bounds in degrees."""
    side = max(4, round(math.sqrt(megabytes * 2**20 / 2.6) / BLOCK_PX)) * BLOCK_PX  # 2.6 bytes a cell
    transform = from_origin(500_000, 5_000_000, 0.5, 0.5)
    generator = np.random.default_rng(0)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": CRS, "transform": transform}
    profile |= {"nodata": math.nan, "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
    draft = path.with_suffix(".draft.tif")
    with rasterio.open(draft, "w", height=side, width=side, **profile) as out:
        for _, window in out.block_windows(1):
            coarse = generator.gamma(2, 5, (BLOCK_PX // 8, BLOCK_PX // 8))
            heights = np.kron(coarse, np.ones((8, 8))) + generator.normal(0, 0.5, (BLOCK_PX, BLOCK_PX))
            out.write((np.round(np.clip(heights, 0, 60) * 128) / 128).astype(np.float32), 1, window=window)
        bounds = transform_bounds(CRS, "EPSG:4326", *out.bounds)
    options = {"compress": "ZSTD", "predictor": "FLOATING_POINT", "overview_resampling": "AVERAGE", "blocksize": 512}
    rasterio.shutil.copy(draft, path, driver="COG", **options)
    draft.unlink()
    return bounds


def plain_titiler(port: int) -> None:
    """Run titiler as its documentation starts it."""
    import uvicorn
    from fastapi import FastAPI
    from titiler.core.errors import DEFAULT_STATUS_CODES, add_exception_handlers
    from titiler.core.factory import TilerFactory

    app = FastAPI()
    app.include_router(TilerFactory(router_prefix="/cog").router, prefix="/cog")
    add_exception_handlers(app, DEFAULT_STATUS_CODES)
    uvicorn.run(app, port=port, log_level="warning")


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[psutil.Process]:
    """Run a server until the block ends."""
    # Plain titiler warns on every tile with unknown cells.
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def questions(bounds: Bounds, count: int, seed: int = 0) -> list[Question]:
    """Return mixed requests: of ten, eight are tiles from the whole map to full detail, one a point, one a polygon."""
    generator = random.Random(seed)
    west, south, east, north = bounds
    mixed = []
    for number in range(count):
        # The map is not upright in degrees: a point of its corners is outside, where plain titiler answers 500.
        lon, lat = (a + generator.uniform(0.05, 0.95) * (b - a) for a, b in ((west, east), (south, north)))
        if number % 10 == 8:
            mixed.append(Question("point", f"point?lon={lon}&lat={lat}", f"point/{lon},{lat}?"))
        elif number % 10 == 9:
            side = 0.001
            ring = [[lon, lat], [lon + side, lat], [lon + side, lat + side], [lon, lat + side], [lon, lat]]
            feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
            mixed.append(Question("polygon", "statistics", "statistics?", json.dumps(feature)))
        else:
            tile = TMS.tile(lon, lat, generator.randint(13, 18))
            path = f"tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png?tilesize=512"
            mixed.append(
                Question("tile", f"{path}&range=0,35&ramp=viridis", f"{path}&rescale=0,35&colormap_name=viridis&")
            )
    return mixed


def ask(client: httpx.Client, address: str, question: Question) -> float:
    """Return the milliseconds of a request; it must succeed."""
    start = time.perf_counter()
    if question.body is None:
        answer = client.get(address)
    else:
        answer = client.post(address, content=question.body, headers={"content-type": "application/json"})
    elapsed_ms = 1000 * (time.perf_counter() - start)
    answer.raise_for_status()
    return elapsed_ms


def print_times(kind: str, ours_ms: Sequence[float], plain_ms: Sequence[float]) -> None:
    """Print p50 and p95 of both servers, and the ratios."""
    cells = []
    for share in (50, 95):
        own, plain = (float(np.percentile(times, share)) for times in (ours_ms, plain_ms))
        cells.append(f"p{share} {own:6.1f} ms, plain titiler {plain:6.1f} ms ({own / plain:.2f} of it)")
    print(f"{kind:8} {len(ours_ms):4} requests: {'; '.join(cells)}")


def compare(mixture: Sequence[Question], own: str, plain: str, path: Path) -> None:
    """Ask both servers in turns, and print their times."""
    times: dict[str, tuple[list[float], list[float]]] = {}
    with httpx.Client(timeout=60) as client:
        for number, question in enumerate(mixture):
            pair = times.setdefault(question.kind, ([], []))
            calls = [(own + question.own, pair[0]), (f"{plain}{question.plain}url={path}", pair[1])]
            for address, elapsed in calls if number % 2 else reversed(calls):
                elapsed.append(ask(client, address, question))
    print_times("all", *([t for pair in times.values() for t in pair[i]] for i in (0, 1)))
    for kind, pair in times.items():
        print_times(kind, *pair)


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time of a server so far: what it needs, whatever else the machine does."""
    times = process.cpu_times()
    return float(times.user + times.system)


def ask_together(mixture: Sequence[Question], own: str, users: int) -> None:
    """Ask as many users do at the same time."""
    with ThreadPoolExecutor(users) as pool, httpx.Client(timeout=120, limits=httpx.Limits(max_connections=users)) as c:
        start = time.perf_counter()
        times = list(pool.map(lambda question: ask(c, own + question.own, question), mixture))
        seconds = time.perf_counter() - start
    print(
        f"{users} users: {len(times)} requests without an error, {len(times) / seconds:.0f} a second, "
        f"median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms"
    )


def watch_memory(mixture: Sequence[Question], own: str, process: psutil.Process) -> None:
    """Print resident memory after each tenth of the requests."""
    sizes = []
    with httpx.Client(timeout=60) as client:
        for number, question in enumerate(mixture, 1):
            ask(client, own + question.own, question)
            if number % max(1, len(mixture) // 10) == 0:
                sizes.append(process.memory_info().rss / 2**20)
    print(f"memory over {len(mixture)} requests, MiB: {', '.join(f'{size:.0f}' for size in sizes)}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=30, help="size of the map")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--memory", type=int, default=500, help="requests over which memory is watched")
    parser.add_argument("--port", type=int, default=8711, help="first of two free ports")
    parser.add_argument("--titiler", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.titiler:
        plain_titiler(options.titiler)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.tif"
        bounds = write_map(path, options.mb)
        print(f"map of {path.stat().st_size / 2**20:.0f} MiB")
        port = options.port
        command = ["-m", "tiles.server", str(path), "--port", str(port)]
        own, plain = f"http://127.0.0.1:{port}/layers/map/", f"http://127.0.0.1:{port + 1}/cog/"
        with running(command, port) as process, running([__file__, "--titiler", str(port + 1)], port + 1) as peer:
            compare(questions(bounds, 10, seed=1), own, plain, path)  # warms both up
            print()
            before = [processor_seconds(each) for each in (process, peer)]
            compare(questions(bounds, options.requests), own, plain, path)
            own_s, peer_s = (processor_seconds(each) - past for each, past in zip((process, peer), before, strict=True))
            print(f"processor time: {own_s:.1f} s, plain titiler {peer_s:.1f} s ({own_s / peer_s:.2f} of it)")
            ask_together(questions(bounds, 2 * options.users, seed=2), own, options.users)
            watch_memory(questions(bounds, options.memory, seed=3), own, process)


if __name__ == "__main__":
    main()
