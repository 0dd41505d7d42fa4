"""Maps to serve, a client that asks a server in this process, and a server in a thread for browsers and QGIS."""

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from PIL import Image
from rasters import make_raster
from starlette.testclient import TestClient

from tiles.cog import UNCERTAINTY_BANDS
from tiles.server.app import create_app
from tiles.server.catalog import open_catalog

UTM = "EPSG:32633"
X, Y = 500_000.0, 5_000_000.0
"""Top left corner of the maps."""
SHAPE = (120, 160)
TAGS = {
    "CANOPY_MODEL": "canopy-small",
    "CANOPY_IMAGERY": "/home/someone/ortho.tif, b.tif",
    "CANOPY_ACQUISITION_DATETIME": "2021-07-01",
    "CANOPY_VERSION": "1.2.3",
    "CANOPY_IMAGERY_ATTRIBUTION": "© Survey <of> Somewhere",
}
_TO_LONLAT = pyproj.Transformer.from_crs(UTM, "OGC:CRS84", always_xy=True)


def map_values(shape: tuple[int, int] = SHAPE, offset_m: float = 0.0) -> np.ndarray:
    """Return heights and their bounds (3, H, W): a slope from west to east, a quarter unknown in the south-east."""
    heights = np.tile(np.arange(shape[1]) / 8 + offset_m, (shape[0], 1))
    heights[shape[0] // 2 :, shape[1] // 2 :] = np.nan
    return np.stack([heights, heights - 1, heights + 3])


def make_map(path: Path, values: np.ndarray | None = None, **options: Any) -> Path:
    """Write a height map with cells of 0.5 m at (X, Y); with three bands it has an interval."""
    values = map_values() if values is None else values
    settings = {
        "crs": UTM,
        "origin": (X, Y),
        "resolution": 0.5,
        "dtype": "float32",
        "nodata": math.nan,
        "descriptions": UNCERTAINTY_BANDS[: len(values)],
        "tags": TAGS,
    }
    return make_raster(path, values=values, **(settings | options))


def lonlat(east_m: float, south_m: float) -> tuple[float, float]:
    """Return longitude and latitude of a point, in metres from the maps' top left corner."""
    lon, lat = _TO_LONLAT.transform(X + east_m, Y - south_m)
    return float(lon), float(lat)


def square(left_m: float, top_m: float, side_m: float) -> dict[str, Any]:
    """Return a square as GeoJSON, in metres from the maps' top left corner."""
    corners = [(left_m, top_m), (left_m, top_m + side_m), (left_m + side_m, top_m + side_m), (left_m + side_m, top_m)]
    ring = [list(lonlat(*corner)) for corner in [*corners, corners[0]]]
    return {"type": "Polygon", "coordinates": [ring]}


def open_client(path: Path, imagery: Path | None = None, **options: Any) -> TestClient:
    """Return a client of a server of a path."""
    app = create_app(open_catalog(path, imagery), **options)
    return TestClient(app, base_url="http://127.0.0.1:8000")


def pixels(content: bytes) -> np.ndarray:
    """Return the pixels of a picture as (H, W, 4) red, green, blue, alpha."""
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGBA"))


def decode_terrain(rgba: np.ndarray) -> np.ndarray:
    """Return the heights of a terrain tile as MapLibre reads them."""
    red, green, blue, _ = np.moveaxis(rgba.astype(float), -1, 0)
    return -10_000 + (65_536 * red + 256 * green + blue) / 10


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of 127.0.0.1 until the block ends; yield its address with a slash behind."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()
