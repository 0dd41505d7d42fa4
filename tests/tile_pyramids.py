"""Small pyramids of tiles with known content: `rasters.world`, around `rasters.ORIGIN`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from rasters import ORIGIN, UTM, world_values
from servers.web import Call, Reply

from canopy.imagery.tiled.matrices import TileKey, TileMatrix, mercator_matrix, quadkey

ZOOM = 17
"""Zoom of the tiles: .85 m at `rasters.ORIGIN`."""


def grid(shape: tuple[int, int] = (90, 160), resolution: float = 0.9) -> GeoBox:
    """A UTM grid south-east of `rasters.ORIGIN`, whose pixels are as long as those of zoom 17.

    It lies in one of the blocks that are resampled at once, which keeps tests fast.
    """
    return GeoBox(shape, Affine(resolution, 0, ORIGIN[0], 0, -resolution, ORIGIN[1]), UTM)


def picture(values: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Encode (3, h, w) or (4, h, w) values from 0 to 255."""
    buffer = io.BytesIO()
    Image.fromarray(np.moveaxis(np.rint(values).astype(np.uint8), 0, -1)).save(buffer, kind, **options)
    return buffer.getvalue()


def tile_bytes(key: TileKey, matrix: TileMatrix, kind: str = "PNG") -> bytes:
    """The tile of the world in a column and row of a matrix."""
    width, height = matrix.tile_px
    left = matrix.left + key.col * width * matrix.pixel
    top = matrix.top - key.row * height * matrix.pixel
    transform = Affine(matrix.pixel, 0, left, 0, -matrix.pixel, top)
    return picture(world_values(matrix.crs, transform, (height, width)), kind)


def tile_at(matrix: TileMatrix, east_m: float = 0, south_m: float = 0) -> TileKey:
    """The tile at a distance from `rasters.ORIGIN`."""
    to_matrix = Transformer.from_crs(UTM, matrix.crs, always_xy=True)
    x, y = to_matrix.transform(ORIGIN[0] + east_m, ORIGIN[1] - south_m)
    side = matrix.tile_px[0] * matrix.pixel
    return TileKey(matrix.zoom, int((x - matrix.left) // side), int((matrix.top - y) // side))


def tiles_around(matrix: TileMatrix) -> dict[TileKey, bytes]:
    """The tiles that `grid()` needs."""
    first = tile_at(matrix, -30, -30)
    last = tile_at(matrix, 210, 120)
    keys = [
        TileKey(matrix.zoom, col, row)
        for col in range(first.col, last.col + 1)
        for row in range(first.row, last.row + 1)
    ]
    return {key: tile_bytes(key, matrix) for key in keys}


def write_tiles(folder: Path, tiles: dict[TileKey, bytes], layout: str = "xyz", suffix: str = ".png") -> Path:
    """Write tiles as mosaics are delivered."""
    for key, content in tiles.items():
        row = 2**key.zoom - 1 - key.row if layout == "tms" else key.row
        name = quadkey(key) if layout == "quadkey" else f"{key.zoom}/{key.col}/{row}"
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


class TileRoute:
    """A route that hands out tiles by column and row, and what a test puts in their place."""

    def __init__(self, tiles: dict[TileKey, bytes]) -> None:
        self.tiles = dict(tiles)
        self.replies: dict[TileKey, Reply] = {}

    def answer(self, key: TileKey) -> Reply:
        if key in self.replies:
            return self.replies[key]
        return Reply(self.tiles[key]) if key in self.tiles else Reply.text("no tile", 404)

    def xyz(self, call: Call) -> Reply:
        """Answer ``/tiles/z/x/y.png``."""
        zoom, col, row = call.path.removesuffix(".png").split("/")[-3:]
        return self.answer(TileKey(int(zoom), int(col), int(row)))


def mercator_tiles() -> dict[TileKey, bytes]:
    """The tiles of zoom 17 that `grid()` needs."""
    return tiles_around(mercator_matrix(ZOOM))
