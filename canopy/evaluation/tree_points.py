"""Tree points: the trees of an inventory or of a person who looked at the image, from a table or a vector file."""

import logging
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from canopy.errors import AOIError, EvaluationError, one_line
from canopy.evaluation.weak_ground import ImagePoints
from tiles.vectors import parse_crs, read_vector, refuse_pointers

IMAGE_COLUMNS = ("image", "crop")
"""Columns that name the image of a row in pixel coordinates, the first that a table has."""
HEIGHT_COLUMN = "height_m"
TRUSTED_COLUMNS = ("top", "plausible")
"""Columns that say of a row whether it may be used, where a table has them: seen from above, plausible."""
HIGHEST_M = 130.0
"""No tree is higher: heights beyond are in another unit."""
FEET_MEDIAN_M = 45.0
"""Median of heights beyond which they are probably feet."""
DEGREES = "OGC:CRS84"
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_LOG = logging.getLogger(__name__)


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
        # A tree that the image's CRS cannot place is on the other side of the earth, and not in the image.
        near = np.isfinite(x) & np.isfinite(y)
        x, y, inverse = np.asarray(x)[near], np.asarray(y)[near], ~transform
        cols = inverse.a * x + inverse.b * y + inverse.c
        rows = inverse.d * x + inverse.e * y + inverse.f
        return ImagePoints(rows, cols, self.height_m[near])


def read_tree_points(path: Path) -> TreePoints:
    """Read trees from a CSV file or a vector file of points.

    A CSV file has the columns ``lon,lat`` (degrees), or ``image,col,row`` (``crop`` for ``image``): pixels of the image
    whose path ends in that name, with or without its suffix. ``height_m`` is optional, and rows whose ``top`` or
    ``plausible`` is false are left out.

    Raises:
        EvaluationError: The file cannot be read, has no points, or columns are missing.
        AOIError: The file points to other data, or its CRS is none on earth.
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
    _check_heights(path, points.height_m[~np.isnan(points.height_m)])
    _check_coordinates(path, points)
    return points


def _check_heights(path: Path, measured_m: NDArray[np.float64]) -> None:
    """Refuse heights that no tree has, and warn of those that are probably feet."""
    if not measured_m.size:
        return
    if measured_m.min() <= 0 or measured_m.max() > HIGHEST_M:
        raise EvaluationError(
            f"{path}: {HEIGHT_COLUMN} from {measured_m.min():g} to {measured_m.max():g}: metres expected, above 0 and "
            f"up to {HIGHEST_M:g}; empty where a tree was not measured"
        )
    if (median_m := float(np.median(measured_m))) > FEET_MEDIAN_M:
        _LOG.warning("%s: half of the trees exceed %.0f m; are these feet? metres expected", path, median_m)


def _check_coordinates(path: Path, points: TreePoints) -> None:
    """Refuse trees without coordinates, and coordinates that lie nowhere on earth."""
    if absent := int((~(np.isfinite(points.x) & np.isfinite(points.y))).sum()):
        raise EvaluationError(f"{path}: a tree without coordinates, {absent} in all: remove such rows")
    if points.crs is None:
        return
    crs = CRS(points.crs)
    lon, lat = points.x, points.y
    if not crs.is_geographic:
        lon, lat = Transformer.from_crs(crs, DEGREES, always_xy=True).transform(points.x, points.y)
    nowhere = ~((np.abs(lon) <= 360) & (np.abs(lat) <= 90))
    if nowhere.any():
        x, y = points.x[nowhere][0], points.y[nowhere][0]
        raise EvaluationError(
            f"{path}: {nowhere.sum()} trees lie nowhere on earth, the first at {x:g}, {y:g} in {crs.name}: check the "
            "CRS, and which coordinate comes first (longitude, then latitude)"
        )


def _read_table(path: Path) -> TreePoints:
    try:
        with warnings.catch_warnings():
            # rows longer than the header: pandas would shift or cut them
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # a name of digits stays as it is written, 007 too
            table = pd.read_csv(path, index_col=False, dtype=dict.fromkeys(IMAGE_COLUMNS, str))
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise EvaluationError(
            f"{path} is no table of tree points ({one_line(error, 200)}): UTF-8 with commas between columns expected"
        ) from error
    table = table[_trusted(path, table)]
    image = next((name for name in IMAGE_COLUMNS if name in table), None)
    if {"lon", "lat"} <= set(table):
        return TreePoints(_numbers(path, table, "lon"), _numbers(path, table, "lat"), _heights(path, table), DEGREES)
    if image is None or not {"col", "row"} <= set(table):
        raise EvaluationError(
            f"{path} has the columns {', '.join(map(str, table.columns[:8]))}: lon,lat or image,col,row expected"
        )
    if table[image].isna().any():
        raise EvaluationError(f"{path}: a tree without its {image}: remove its row")
    names = np.array([Path(name.replace("\\", "/")).as_posix() for name in table[image]], np.str_)
    return TreePoints(_numbers(path, table, "col"), _numbers(path, table, "row"), _heights(path, table), None, names)


def _read_vectors(path: Path) -> TreePoints:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GDAL's remarks on measured geometries and the like
            frame = _read_frame(path)
    except (AOIError, EvaluationError):
        raise
    except Exception as error:  # of GDAL, pyogrio, pyarrow or the system
        raise EvaluationError(f"{path} is no file of tree points: {one_line(error, 200)}") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise EvaluationError(f"{path} has no geometry: points with a CRS expected")
    crs = parse_crs(frame.crs.to_wkt() if frame.crs is not None else None, path).to_wkt()
    frame = frame[_trusted(path, frame)]
    if absent := int((frame.geometry.isna() | frame.geometry.is_empty).sum()):
        raise EvaluationError(f"{path}: a tree without coordinates, {absent} in all: remove such rows")
    frame = frame.explode()
    if not (frame.geom_type == "Point").all():
        raise EvaluationError(f"{path} has {', '.join(sorted(set(frame.geom_type)))}: points expected")
    x, y = frame.geometry.x.to_numpy(np.float64), frame.geometry.y.to_numpy(np.float64)
    return TreePoints(x, y, _heights(path, frame), crs)


def _read_frame(path: Path) -> pd.DataFrame:
    """Read the layer of points of a vector file, or a GeoParquet file, with its columns."""
    if path.is_file():
        refuse_pointers(path, path)
        if zipfile.is_zipfile(path):
            read_vector(path)  # refuses members that point elsewhere
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                frame: pd.DataFrame = geopandas.read_parquet(path)
                return frame
    frame = geopandas.read_file(path, layer=_points_layer(path))
    return frame


def _points_layer(path: Path) -> str | None:
    """Return the layer that has the points: the only one with geometries of that kind, None where there is none.

    Raises:
        EvaluationError: Several layers have points.
    """
    kinds = {str(name): str(kind) for name, kind in pyogrio.list_layers(path) if kind is not None}
    layers = [name for name, kind in kinds.items() if "Point" in kind] or list(kinds)
    if len(layers) > 1:
        full = [n for n in layers if pyogrio.read_info(path, layer=n, force_feature_count=True)["features"] > 0]
        layers = full or layers[:1]
    if len(layers) > 1:
        raise EvaluationError(
            f"{path} has several layers of points ({', '.join(layers[:8])}): one expected; write it to a file of its "
            f"own: ogr2ogr NEW.gpkg {path.name} {layers[0]}"
        )
    return layers[0] if layers else None


def _trusted(path: Path, table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows no column of `TRUSTED_COLUMNS` says no of; an empty value says nothing."""
    trusted = np.ones(len(table), bool)
    for name in TRUSTED_COLUMNS:
        if name in table:
            words = [_word(value) for value in table[name]]
            if unclear := [word for word in words if word not in (*_TRUE, *_FALSE, "")]:
                raise EvaluationError(f"{path}: column {name} has {unclear[0][:40]!r}: true or false expected, or none")
            trusted &= [word not in _FALSE for word in words]
    return trusted


def _word(value: object) -> str:
    """Return a truth value as it may be stored, in lower case; empty where there is none."""
    # integers with gaps are read as floating point: 1.0
    return "" if pd.isna(value) else str(value).strip().lower().removesuffix(".0")  # type: ignore[call-overload]


def _heights(path: Path, table: pd.DataFrame) -> NDArray[np.float64]:
    if HEIGHT_COLUMN in table:
        return _numbers(path, table, HEIGHT_COLUMN)
    if like := [str(name) for name in table.columns if "height" in str(name).lower()]:
        _LOG.warning("%s: column %s is not read: heights are read from %s, metres", path, like[0], HEIGHT_COLUMN)
    return np.full(len(table), np.nan)


def _numbers(path: Path, table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return a column as numbers, NaN where it is empty."""
    values = table[column]
    try:
        if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
            raise ValueError(f"{values.dtype} values")
        if not pd.api.types.is_numeric_dtype(values):
            values = values.where(values.astype(str).str.strip() != "")
        return values.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: column {column} is not all numbers: {one_line(error, 100)}") from error


def _names(path: Path) -> list[str]:
    """Return what a table may call an image: each end of its path, with its suffix and without."""
    parts, stem = path.absolute().parts[1:], path.with_suffix("").name
    ends = ["/".join(parts[first:]) for first in range(len(parts))]
    return ends + ["/".join((*parts[first:-1], stem)) for first in range(len(parts))]
