"""Tree points: the trees of an inventory or of a person who looked at the image, from a table or a vector file."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from canopy.errors import EvaluationError, one_line
from canopy.evaluation.weak_ground import ImagePoints

IMAGE_COLUMNS = ("image", "crop")
"""Columns that name the image of a row in pixel coordinates, the first that a table has."""
HEIGHT_COLUMN = "height_m"
TRUSTED_COLUMNS = ("top", "plausible")
"""Columns that say of a row whether it may be used, where a table has them: seen from above, plausible."""
_TRUE = ("true", "1", "yes")


@dataclass(frozen=True)
class TreePoints:
    """Trees: where they stand, and how tall they are where that was measured."""

    x: NDArray[np.float64]
    """(n,) first coordinates: of the CRS, or columns of the image, from its left edge."""
    y: NDArray[np.float64]
    """(n,) second coordinates: of the CRS, or rows of the image, from its upper edge."""
    height_m: NDArray[np.float64]
    """(n,) heights, metres; NaN where not measured."""
    crs: str | None
    """CRS of the coordinates; None for pixels of images."""
    image: NDArray[np.str_] | None = None
    """(n,) image of each point, where the coordinates are its pixels."""

    def __len__(self) -> int:
        return len(self.x)

    def on_image(self, path: Path, transform: Affine, crs: str) -> "ImagePoints":
        """Return the points in pixels of an image: those of its rows in the table, or all by their coordinates.

        Args:
            path: Path of the image, by the end of which a table in pixels names it.
            transform: Transform of the image's pixels.
            crs: CRS of the image.
        """
        if self.image is not None:
            own = np.isin(self.image, _names(path))
            return ImagePoints(self.y[own], self.x[own], self.height_m[own])
        assert self.crs is not None
        x, y = Transformer.from_crs(CRS(self.crs), CRS(crs), always_xy=True).transform(self.x, self.y)
        inverse = ~transform
        cols = inverse.a * np.asarray(x) + inverse.b * np.asarray(y) + inverse.c
        rows = inverse.d * np.asarray(x) + inverse.e * np.asarray(y) + inverse.f
        return ImagePoints(rows, cols, self.height_m)


def read_tree_points(path: Path) -> TreePoints:
    """Read trees from a CSV file or a vector file of points.

    A CSV file has the columns ``lon,lat`` (degrees), or ``image,col,row`` (``crop`` for ``image``): pixels of the image
    whose path ends in that name, with or without its suffix. ``height_m`` is optional, and rows whose ``top`` or
    ``plausible`` is false are left out.

    Raises:
        EvaluationError: The file cannot be read, has no points, or columns are missing.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}): tree points expected") from error
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, modified_ns: int, size: int) -> TreePoints:
    """Read a file once, however many scenes it has the points of; modified and size make it another file."""
    points = _read_table(path) if path.suffix.lower() == ".csv" else _read_vectors(path)
    if not len(points):
        raise EvaluationError(f"{path} has no tree that may be used: check its rows, and its columns top and plausible")
    measured_m = points.height_m[~np.isnan(points.height_m)]
    if measured_m.size and (measured_m.min() < 0 or measured_m.max() > 130):
        raise EvaluationError(
            f"{path}: {HEIGHT_COLUMN} from {measured_m.min():g} to {measured_m.max():g}: metres expected"
        )
    if not (np.isfinite(points.x).all() and np.isfinite(points.y).all()):
        raise EvaluationError(f"{path}: a tree without coordinates: remove its row")
    return points


def _read_table(path: Path) -> TreePoints:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is no table of tree points: {one_line(error, 200)}") from error
    table = table[_trusted(table)]
    heights = _heights(path, table)
    image = next((name for name in IMAGE_COLUMNS if name in table), None)
    if {"lon", "lat"} <= set(table):
        return TreePoints(_numbers(path, table, "lon"), _numbers(path, table, "lat"), heights, "OGC:CRS84")
    if image is None or not {"col", "row"} <= set(table):
        raise EvaluationError(
            f"{path} has the columns {', '.join(map(str, table.columns[:8]))}: lon,lat or image,col,row expected"
        )
    names = np.array([Path(str(name)).as_posix() for name in table[image]], np.str_)
    return TreePoints(_numbers(path, table, "col"), _numbers(path, table, "row"), heights, None, names)


def _read_vectors(path: Path) -> TreePoints:
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # of GDAL, pyogrio or the system
        raise EvaluationError(f"{path} is no file of tree points: {one_line(error, 200)}") from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.crs is None:
        raise EvaluationError(f"{path} has no geometry or no CRS: points with a CRS expected")
    frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty].explode()
    frame = frame[_trusted(frame)]
    if not (frame.geom_type == "Point").all():
        raise EvaluationError(f"{path} has {', '.join(sorted(set(frame.geom_type)))}: points expected")
    x, y = frame.geometry.x.to_numpy(np.float64), frame.geometry.y.to_numpy(np.float64)
    return TreePoints(x, y, _heights(path, frame), frame.crs.to_wkt())


def _trusted(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows no column of `TRUSTED_COLUMNS` says no of; an empty value says nothing."""
    trusted = np.ones(len(table), bool)
    for name in TRUSTED_COLUMNS:
        if name in table:
            trusted &= (table[name].isna() | table[name].astype(str).str.lower().isin(_TRUE)).to_numpy(bool)
    return trusted


def _heights(path: Path, table: pd.DataFrame) -> NDArray[np.float64]:
    return _numbers(path, table, HEIGHT_COLUMN) if HEIGHT_COLUMN in table else np.full(len(table), np.nan)


def _numbers(path: Path, table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    try:
        return table[column].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: column {column} is not all numbers: {one_line(error, 100)}") from error


def _names(path: Path) -> list[str]:
    """Return what a table may call an image: each end of its path, with its suffix and without."""
    parts, stem = path.absolute().parts[1:], path.with_suffix("").name
    ends = ["/".join(parts[first:]) for first in range(len(parts))]
    return ends + ["/".join((*parts[first:-1], stem)) for first in range(len(parts))]
