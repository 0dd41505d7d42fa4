"""Tables of features: where the features of a box are read from, without reading the file for each request.

A file with a spatial index answers from the disk (GeoPackage, FlatGeobuf); so does GeoParquet, by its column of boxes
or by boxes that are measured once. Any other file is read into memory, up to a limit, and indexed there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyogrio.raw
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from tiles.errors import VectorError, one_line
from tiles.vectors import geometry_column, parquet_crs

MAX_IN_MEMORY = 500_000
"""Most features of a file that is read into memory because it has no index."""
MAX_BYTES = 256 * 2**20
"""Largest file that is read into memory."""
MAX_BOXES = 5_000_000
"""Most features of a GeoParquet file without a column of boxes, whose boxes are in memory: 32 bytes each."""
BATCH = 16_384
"""Rows of a GeoParquet file that are in memory at once."""
MAX_FIELDS = 64
"""Columns of a table that are shown; further ones are left out."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in the CRS of the table."""
Geometries = NDArray[np.object_]
_BOX_ENDS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Features:
    """Features of a box, in the CRS of their table."""

    ids: NDArray[np.int64]
    """(N,) Numbers that name the features in their file."""
    geometries: Geometries
    """(N,) Geometries in two dimensions; None where a feature has none."""
    columns: Mapping[str, NDArray[Any]]
    """Name of a column -> (N,) values."""


class FeatureTable(Protocol):
    """A table from which the features of a box are read."""

    def read(self, box: Box, limit: int) -> Features:
        """Return the features that meet a box, at most `limit` of them."""
        ...


@dataclass(frozen=True)
class TableInfo:
    """What a file says of one of its tables."""

    name: str
    """Name of the table; in GeoParquet the product that it states, else the name of the file."""
    kind: str
    """Geometry type in GDAL's words, Unknown where the file states none."""
    crs: str | None
    """CRS as text; None where the file has none."""
    count: int
    """Number of features."""
    bounds: Box
    """Bounds of the features; not finite where there are none."""
    columns: tuple[str, ...]
    """Names of the columns that can be shown."""
    table: FeatureTable
    """The features."""


@dataclass(frozen=True)
class IndexedTable:
    """A table of a file whose driver finds the features of a box by an index."""

    path: Path
    """File."""
    name: str
    """Name of the table."""
    columns: tuple[str, ...]
    """Names of the columns."""

    def read(self, box: Box, limit: int) -> Features:
        """Return the features that meet a box, at most `limit` of them.

        Raises:
            VectorError: The file cannot be read.
        """
        return _read_ogr(self.path, self.name, self.columns, bbox=box, max_features=limit)


class StoredTable:
    """A table in memory, with a tree of the boxes of its features."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._tree = shapely.STRtree(features.geometries)

    def read(self, box: Box, limit: int) -> Features:
        """Return the features that meet a box, at most `limit` of them."""
        return _take(self._features, np.sort(self._tree.query(shapely.box(*box)))[:limit])


@dataclass(frozen=True)
class ParquetTable:
    """A GeoParquet file, whose features are found by their boxes and read batch by batch."""

    path: Path
    """File."""
    geometry: str
    """Name of the column of geometries."""
    columns: tuple[str, ...]
    """Names of the columns that can be shown."""
    ends: tuple[tuple[str, str], ...] | None
    """Column and member of xmin, ymin, xmax and ymax, where the file has a column of boxes."""
    boxes: NDArray[np.float64] | None
    """(N, 4) Boxes of all features, where the file has none."""

    def read(self, box: Box, limit: int) -> Features:
        """Return the features that meet a box, at most `limit` of them.

        Raises:
            VectorError: The file cannot be read.
        """
        import pyarrow
        import pyarrow.parquet

        parts: list[Features] = []
        count = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False) as file:
                for number, first in self._groups(file.metadata, box):
                    rows = self._rows(file, number, first, box)[: limit - count]
                    parts += self._read_rows(file, number, first, rows)
                    count += rows.size
                    if count >= limit:
                        break
        except (pyarrow.ArrowException, OSError, ShapelyError) as error:
            raise VectorError(f"{self.path}: cannot be read ({one_line(error, 200)}), expected GeoParquet") from error
        return _join(parts, self.columns)

    def _groups(self, metadata: Any, box: Box) -> Iterator[tuple[int, int]]:
        """Yield the number and the first row of each row group that may have features in a box."""
        first = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if self.ends is None or _group_may_meet(group, self.ends, box):
                yield number, first
            first += group.num_rows

    def _rows(self, file: Any, number: int, first: int, box: Box) -> NDArray[np.int64]:
        """Return the rows of a row group, counted from its first, whose boxes meet a box."""
        if self.ends is not None:
            boxes = _read_boxes(file, number, self.ends)
        else:
            assert self.boxes is not None
            boxes = self.boxes[first : first + file.metadata.row_group(number).num_rows]
        xmin, ymin, xmax, ymax = boxes.T
        return np.flatnonzero((xmin <= box[2]) & (xmax >= box[0]) & (ymin <= box[3]) & (ymax >= box[1]))

    def _read_rows(self, file: Any, number: int, first: int, rows: NDArray[np.int64]) -> Iterator[Features]:
        """Yield rows of a row group, from no more than a batch in memory."""
        if not rows.size:
            return
        start, columns = 0, [self.geometry, *self.columns]
        for batch in file.iter_batches(BATCH, row_groups=[number], columns=columns):
            chosen = rows[(rows >= start) & (rows < start + batch.num_rows)]
            if chosen.size:
                yield _from_arrow(batch.take(chosen - start), self.geometry, self.columns, chosen + first)
            start += batch.num_rows
            if start > rows[-1]:
                return


def _read_boxes(file: Any, number: int, ends: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return (N, 4) xmin, ymin, xmax and ymax of the features of a row group, from its column of boxes."""
    import pyarrow.compute

    table = file.read_row_group(number, columns=sorted({column for column, _ in ends}))
    values = [pyarrow.compute.struct_field(table.column(column), [member]) for column, member in ends]
    return np.column_stack([np.asarray(value.to_numpy(), np.float64) for value in values])


def _measure_boxes(file: Any, geometry: str) -> NDArray[np.float64]:
    """Return (N, 4) boxes of all features, measured on their geometries; those without geometry have NaN."""
    boxes = [
        shapely.bounds(shapely.from_wkb(batch.column(0).to_numpy(zero_copy_only=False), on_invalid="fix"))
        for batch in file.iter_batches(BATCH, columns=[geometry])
    ]
    return np.concatenate([np.empty((0, 4)), *boxes])


def _group_may_meet(group: Any, ends: Sequence[tuple[str, str]], box: Box) -> bool:
    """Return whether the statistics of a row group leave room for a feature in a box."""
    paths = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    limits = [paths[".".join(end)].statistics for end in ends]
    if any(limit is None or not limit.has_min_max for limit in limits):
        return True
    xmin, ymin, xmax, ymax = limits
    return bool(xmin.min <= box[2] and xmax.max >= box[0] and ymin.min <= box[3] and ymax.max >= box[1])


def read_ogr_tables(path: Path) -> list[TableInfo]:
    """Return the tables with geometries of a file that GDAL reads.

    Args:
        path: File.

    Raises:
        VectorError: The file cannot be read, or is too large to be read without an index.
    """
    try:
        kinds = pyogrio.list_layers(path)
        return [_ogr_table(path, str(name)) for name, kind in kinds if kind is not None]
    except (RuntimeError, ValueError, OSError, ShapelyError) as error:
        raise VectorError(
            f"{path}: cannot be read ({one_line(error, 200)}), expected a GeoPackage or GeoJSON"
        ) from error


def _ogr_table(path: Path, name: str) -> TableInfo:
    info = pyogrio.read_info(path, layer=name, force_feature_count=True, force_total_bounds=True)
    columns = tuple(str(column) for column in info["fields"][:MAX_FIELDS])
    table: FeatureTable = IndexedTable(path, name, columns)
    if not info["capabilities"].get("fast_spatial_filter"):
        _require_few(path, int(info["features"]), MAX_IN_MEMORY, "spatial index")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise VectorError(
                f"{path}: {size / 2**20:,.0f} MiB without a spatial index; expected at most {MAX_BYTES // 2**20} MiB, "
                "write it as a GeoPackage"
            )
        table = StoredTable(_read_ogr(path, name, columns))
    bounds = tuple(info["total_bounds"]) if info["total_bounds"] is not None else (np.nan,) * 4
    return TableInfo(name, str(info["geometry_type"]), info["crs"], int(info["features"]), bounds, columns, table)


def _read_ogr(path: Path, name: str, columns: Sequence[str], **options: Any) -> Features:
    try:
        meta, ids, wkb, values = pyogrio.raw.read(
            path, layer=name, columns=list(columns), force_2d=True, return_fids=True, **options
        )
    except (RuntimeError, ValueError, OSError, ShapelyError) as error:
        raise VectorError(f"{path}: cannot be read ({one_line(error, 200)}), expected the file it was") from error
    geometries = shapely.from_wkb(wkb, on_invalid="fix")
    return Features(np.asarray(ids, np.int64), geometries, dict(zip(map(str, meta["fields"]), values, strict=True)))


def read_parquet_table(path: Path) -> TableInfo:
    """Return the table of a GeoParquet file.

    Args:
        path: File.

    Raises:
        VectorError: The file cannot be read, or is too large to be read without a column of boxes.
        AOIError: The file has no geometries, or none as WKB.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VectorError(f"{path}: GeoParquet needs pyarrow; pip install pyarrow, or give a GeoPackage") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _parquet_table(file, path)
    except (pyarrow.ArrowException, LookupError, TypeError, AttributeError, OSError, ValueError, ShapelyError) as error:
        raise VectorError(f"{path}: cannot be read ({one_line(error, 200)}), expected GeoParquet") from error


def _parquet_table(file: Any, path: Path) -> TableInfo:
    name, column = geometry_column(file.schema_arrow.metadata, path)
    ends, count = _box_ends(column), file.metadata.num_rows
    boxes = None
    if ends is None:
        _require_few(path, count, MAX_BOXES, "column of boxes (bbox)")
        boxes = _measure_boxes(file, name)
        bounds = _total(boxes)
    else:
        groups = [_total(_read_boxes(file, number, ends)) for number in range(file.metadata.num_row_groups)]
        bounds = _total(np.array(groups).reshape(-1, 4))
    columns = _plain_columns(file.schema_arrow, {name})
    kinds = " ".join(column.get("geometry_types") or ["Unknown"])
    table = ParquetTable(path, name, columns, ends, boxes)
    title = _product(file.schema_arrow.metadata) or path.stem
    return TableInfo(title, kinds, parquet_crs(column), count, bounds, columns, table)


def _product(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Return the name of the product that a Parquet file states, as `canopy derive` writes it; None without one."""
    try:
        about = json.loads((metadata or {}).get(b"canopy", b"null"))
    except ValueError:
        return None
    name = about.get("product") if isinstance(about, dict) else None
    return name if isinstance(name, str) else None


def _box_ends(column: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    """Return column and member of each end of the boxes that a file has next to its geometries; None without."""
    boxes = column.get("covering", {}).get("bbox")
    return tuple((str(boxes[end][0]), str(boxes[end][1])) for end in _BOX_ENDS) if boxes else None


def _plain_columns(schema: Any, without: set[str]) -> tuple[str, ...]:
    """Return the names of columns of numbers, texts, truth values and dates."""
    import pyarrow.types as types

    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    tests: tuple[Any, ...] = (*numbers, types.is_temporal, types.is_string, types.is_large_string)
    names = [column.name for column in schema if any(test(column.type) for test in tests)]
    return tuple(name for name in names if name not in without)[:MAX_FIELDS]


def _from_arrow(batch: Any, geometry: str, columns: Sequence[str], ids: NDArray[np.int64]) -> Features:
    wkb, *values = (batch.column(name).to_numpy(zero_copy_only=False) for name in (geometry, *columns))
    geometries = shapely.force_2d(shapely.from_wkb(wkb, on_invalid="fix"))
    return Features(ids, geometries, dict(zip(columns, values, strict=True)))


def _total(boxes: NDArray[np.float64]) -> Box:
    """Return the bounds of (N, 4) boxes, those of empty geometries (NaN) left out."""
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(finite):
        return (np.nan,) * 4
    low, high = finite[:, :2].min(axis=0), finite[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _require_few(path: Path, count: int, most: int, index: str) -> None:
    """Refuse a file without an index that has too many features for memory."""
    if count > most:
        raise VectorError(
            f"{path}: {count:,} features without a {index}; expected at most {most:,}, write them to a GeoPackage"
        )


def _take(features: Features, rows: NDArray[np.int64]) -> Features:
    columns = {name: values[rows] for name, values in features.columns.items()}
    return Features(features.ids[rows], features.geometries[rows], columns)


def _join(parts: Sequence[Features], columns: Sequence[str]) -> Features:
    if not parts:
        nothing = np.empty(0, object)
        return Features(np.empty(0, np.int64), nothing, dict.fromkeys(columns, nothing))
    return Features(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.geometries for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in columns},
    )
