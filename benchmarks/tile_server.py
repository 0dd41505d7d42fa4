"""Tiles of a slow server: several requests at a time against one after the other, by the reader of `canopy predict`.

    python benchmarks/tile_server.py [--tiles 1000] [--latency-ms 50] [--connections 16]

The server runs in a process of its own and waits before each answer, as a distant one does. Tiles are JPEG of noise,
fetched and decoded. The one-by-one figure is measured on a tenth of the tiles and scaled: it is all waiting.
"""

import argparse
import io
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers.web import Call, Reply, WebServer

from canopy.imagery.tiled.address import TileTemplate
from canopy.imagery.tiled.client import HttpTiles, Service
from canopy.imagery.tiled.decoding import Unknown
from canopy.imagery.tiled.matrices import mercator_matrix
from canopy.imagery.tiled.reader import TileReader
from tiles.windows import PixelWindow

ZOOM = 17


def tiles(count: int) -> list[bytes]:
    """Return a few pictures of noise; an answer adds its address, so that no two are the same bytes."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(min(count, 16)):
        buffer = io.BytesIO()
        noise = rng.integers(40, 200, (32, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(noise).save(buffer, "JPEG", quality=75)
        pictures.append(buffer.getvalue())
    return pictures


def serve(count: int, latency_s: float, address: Connection) -> None:
    """Serve tiles until the other side hangs up; in a process of its own, so that it takes no time from the client."""
    pictures = tiles(count)

    def reply(call: Call) -> Reply:
        # Bytes after the end of a JPEG are ignored by decoders.
        return Reply(pictures[len(call.path) % len(pictures)] + call.path.encode())

    with WebServer(latency_s) as server:
        server.route("/", reply)
        address.send(server.url)
        address.recv()


def measure(url: str, count: int, connections: int) -> float:
    """Return the seconds in which so many tiles are fetched and decoded."""
    matrix = mercator_matrix(ZOOM)
    template = TileTemplate(f"{url}/{{z}}/{{x}}/{{y}}.jpg")
    reader = TileReader(HttpTiles(template, Service(connections=connections)), (matrix,), Unknown())
    corner = matrix.columns // 2
    windows = [PixelWindow(corner * 256, (corner + number) * 256, 256, 256) for number in range(count)]
    start = time.perf_counter()
    for number, window in enumerate(windows):
        # As a map does: what follows is requested while this is used.
        following = (
            windows[: reader.ahead] if number == 0 else windows[number + reader.ahead - 1 : number + reader.ahead]
        )
        for one in following:
            reader.request(reader.keys(matrix, one))
        if reader.read(matrix, window)[1] is not None:
            raise SystemExit("an unknown tile: the benchmark is broken")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    address, other = context.Pipe()
    server = context.Process(target=serve, args=(options.tiles, options.latency_ms / 1000, other), daemon=True)
    server.start()
    url = address.recv()
    few = max(1, options.tiles // 10)
    measure(url, few, options.connections)  # a warm start for both
    single_s = measure(url, few, 1) * options.tiles / few
    several_s = measure(url, options.tiles, options.connections)
    address.send("enough")
    server.join()
    print(f"{options.tiles} tiles, {options.latency_ms:g} ms each: {single_s:.1f} s one by one ({few} measured)")
    print(f"{options.connections} at a time: {several_s:.1f} s, {single_s / several_s:.1f} times faster")


if __name__ == "__main__":
    main()
