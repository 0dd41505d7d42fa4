"""Tiles of a slow server: several requests at a time against one after the other, to the same pixels.

    python benchmarks/tile_server.py [--tiles 1000] [--latency-ms 50] [--connections 16]

The server runs in this process and waits before each answer, as a distant one does. Tiles are JPEG of noise, decoded and
resampled to a UTM grid by the reader of `canopy predict`. The one-by-one figure is measured on a tenth of the tiles and
scaled, as waiting is all that it does.
"""

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from rasterio import Affine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers.web import Call, Reply, WebServer

from canopy.imagery.tiled import open_tiles
from canopy.imagery.tiled.matrices import mercator_matrix

ZOOM, CRS = 17, "EPSG:32631"
PLACE = (3.0, 45.1)


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


def grid(count: int) -> GeoBox:
    """Return a grid that needs about so many tiles."""
    side_px = int(np.sqrt(count) * 256 - 300)
    x, y = Transformer.from_crs("OGC:CRS84", CRS, always_xy=True).transform(*PLACE)
    gsd_m = mercator_matrix(ZOOM).gsd_m(*PLACE)
    return GeoBox((side_px, side_px), Affine(gsd_m, 0, x, 0, -gsd_m, y), CRS)


def measure(server: WebServer, count: int, connections: int) -> tuple[float, int]:
    """Return the seconds of a read, and the tiles that it took."""
    before = server.count()
    source = open_tiles(f"xyz+{server.url}/{{z}}/{{x}}/{{y}}.jpg#zoom={ZOOM}&connections={connections}")
    start = time.perf_counter()
    image = source.read(grid(count)).values
    seconds = time.perf_counter() - start
    if np.isnan(image).any():
        raise SystemExit("pixels without imagery: the benchmark is broken")
    return seconds, server.count() - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    pictures = tiles(options.tiles)

    def reply(call: Call) -> Reply:
        # Bytes after the end of a JPEG are ignored by decoders.
        return Reply(pictures[hash(call.path) % len(pictures)] + call.path.encode())

    with WebServer(options.latency_ms / 1000) as server:
        server.route("/", reply)
        several_s, count = measure(server, options.tiles, options.connections)
        single_s, few = measure(server, options.tiles // 10, 1)
    single_s *= count / few
    print(f"{count} tiles, {options.latency_ms:g} ms each: {single_s:.1f} s one by one ({few} measured)")
    print(f"{options.connections} at a time: {several_s:.1f} s, {single_s / several_s:.1f} times faster")


if __name__ == "__main__":
    main()
