"""Height maps and tables for tests of products."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
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
