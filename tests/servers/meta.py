"""Tiles of published height maps, as large as the real ones: empty but for a few pixels, with their footprints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer

from canopy.fetch import meta_maps
from canopy.fetch.meta_maps import quadkey

SIDE = 2 * meta_maps._HALF_M / 2**25
"""Pixels of the lattice, metres of web mercator."""
TO_DEGREES = Transformer.from_crs("EPSG:3857", "OGC:CRS84", always_xy=True)


def corner(col: float, row: float) -> tuple[float, float]:
    """Coordinates of a corner of a pixel, web mercator."""
    return -meta_maps._HALF_M + col * SIDE, meta_maps._HALF_M - row * SIDE


def pixel(lon: float, lat: float) -> tuple[int, int]:
    """Column and row of the pixel of a place."""
    x, y = TO_DEGREES.transform(lon, lat, direction="INVERSE")
    return int((x + meta_maps._HALF_M) / SIDE), int((meta_maps._HALF_M - y) / SIDE)


def degrees(col0: float, row0: float, col1: float, row1: float) -> tuple[float, float, float, float]:
    """Bounds in degrees of a rectangle of pixels."""
    west, north = TO_DEGREES.transform(*corner(col0, row0))
    east, south = TO_DEGREES.transform(*corner(col1, row1))
    return west, south, east, north


def outline(col0: float, row0: float, col1: float, row1: float, **properties: str) -> dict[str, Any]:
    """A footprint of a rectangle of pixels."""
    west, south, east, north = degrees(col0, row0, col1, row1)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def key(zoom: int, col: int, row: int) -> str:
    """Quadkey of the tile of a pixel."""
    return quadkey(col >> (25 - zoom), row >> (25 - zoom), zoom)


def write_tile(path: Path, zoom: int, values: np.ndarray, col: int, row: int, **options: Any) -> None:
    """Write a tile of the real size that is empty but for values at a pixel."""
    side = 2 ** (25 - zoom)
    x, y = corner(col // side * side, row // side * side)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "width": side, "height": side, "crs": "EPSG:3857",
        "transform": Affine(SIDE, 0, x, 0, -SIDE, y), "sparse_ok": True, "compress": "deflate", "bigtiff": "yes",
        "tiled": True, "blockxsize": 512, "blockysize": 512, **options,
    }  # fmt: skip
    window = rasterio.windows.Window(col % side, row % side, values.shape[1], values.shape[0])
    with rasterio.open(path, "w", **profile) as tile:
        tile.write(values, 1, window=window)


def write_footprints(path: Path, *features: dict[str, Any]) -> None:
    """Write the footprints of a tile; they lack a CRS as the real ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
