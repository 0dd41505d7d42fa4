"""Clouds edited for a test, and canopy height models read on the grid of the forest that they show."""

from pathlib import Path

import laspy
import numpy as np
import rasterio
from forest import Forest
from numpy.typing import NDArray
from rasterio.windows import from_bounds

from canopy.lidar import build_chm


def heights(path: Path, band: int = 1) -> NDArray[np.float32]:
    with rasterio.open(path) as opened:
        return opened.read(band)


def built(path: Path | list[Path], folder: Path, **options: object) -> NDArray[np.float32]:
    paths = [path] if isinstance(path, Path) else path
    return heights(build_chm(paths, folder / "chm.tif", overwrite=True, **options).path)


def on_grid(forest: Forest, path: Path) -> NDArray[np.float32]:
    """Heights on the forest's grid: the map ends where the returns do."""
    rows, cols = forest.chm_m.shape
    bounds = rasterio.transform.array_bounds(rows, cols, forest.transform)
    with rasterio.open(path) as opened:
        window = from_bounds(*bounds, opened.transform)
        return opened.read(1, window=window, boundless=True, fill_value=np.nan)


def header(path: Path) -> laspy.LasHeader:
    with laspy.open(path) as reader:
        return reader.header


def edited(path: Path, out: Path, **changes: object) -> Path:
    """A copy of a cloud with some dimensions replaced."""
    las = laspy.read(path)
    for name, values in changes.items():
        setattr(las, name, values)
    las.write(out)
    return out


def with_points(path: Path, out: Path, xyz: NDArray[np.float64], code: int = 1) -> Path:
    """A copy of a cloud with more returns."""
    las = laspy.read(path)
    more = laspy.ScaleAwarePointRecord.zeros(len(xyz), header=las.header)
    more.x, more.y, more.z = xyz.T
    more.classification = np.full(len(xyz), code, np.uint8)
    with laspy.open(out, "w", header=las.header) as writer:
        writer.write_points(las.points)
        writer.write_points(more)
    return out
