"""Height maps and tables for tests of products."""

import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from rasters import make_raster

from tiles.cog import UNCERTAINTY_BANDS

UTM = "EPSG:32633"
X, Y = 500_000.0, 5_000_000.0
"""Top left corner of the maps: on the lattice of 10 m, at the central meridian."""


def height_map(path: Path, heights_m: np.ndarray, half_m: float | None = None, **options: Any) -> Path:
    """Write heights (H, W) in metres, NaN where unknown, with intervals of a half width where one is given."""
    bands = [heights_m] if half_m is None else [heights_m, heights_m - half_m, heights_m + half_m]
    names = UNCERTAINTY_BANDS[: len(bands)]
    settings = {"crs": UTM, "origin": (X, Y), "resolution": 1.0, "dtype": "float32", "nodata": np.nan}
    return make_raster(path, values=np.stack(bands), descriptions=names, **(settings | options))


def read_rows(path: Path) -> Any:
    """Read a product's table by the ending of its name."""
    if path.suffix == ".csv":
        import pandas

        return pandas.read_csv(path)
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def write_polygons(path: Path, polygons: list[shapely.Geometry], crs: str = UTM) -> Path:
    names = [f"stand {n}" for n in range(len(polygons))]
    geopandas.GeoDataFrame({"name": names}, geometry=polygons, crs=crs).to_file(path)
    return path


def blobs(
    count: int, box: tuple[float, float, float, float], areas_ha: tuple[float, float], seed: int = 0
) -> list[Any]:
    """Return irregular polygons whose middles lie in a box of metres east and south of the maps' corner."""
    rng = np.random.default_rng(seed)
    turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    shapes = []
    for _ in range(count):
        radius = math.sqrt(math.exp(rng.uniform(*np.log(areas_ha))) * 1e4 / math.pi) * rng.uniform(0.7, 1.25, 14)
        x, y = X + rng.uniform(box[0], box[2]), Y - rng.uniform(box[1], box[3])
        shapes.append(shapely.Polygon(np.column_stack([x + radius * np.cos(turns), y + radius * np.sin(turns)])))
    return shapes
