"""Vector layers: what the server says of a table of features, such as trees, gaps and stands."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import ProjError

from tiles.errors import CanopyError, VectorError, one_line
from tiles.server.feature_tables import Box, Features, FeatureTable, TableInfo, read_ogr_tables, read_parquet_table
from tiles.server.fields import Field, describe_field
from tiles.server.layers import Signature, file_signature
from tiles.vectors import parse_crs, refuse_pointers

PARQUET_SUFFIXES = (".parquet", ".geoparquet", ".pq")
PRODUCT_SUFFIXES = (".gpkg", *PARQUET_SUFFIXES)
"""Endings of the names of products with features; in a folder these are vector layers."""
VECTOR_SUFFIXES = (*PRODUCT_SUFFIXES, ".geojson", ".fgb", ".shp")
"""Endings of the names of files with features."""

_LONLAT = "OGC:CRS84"
_SAMPLE = 1000
"""Features whose geometries are looked at where a file does not state their type."""
_CONTENTS = {
    "crowns": ("trees", "#ff8f00"),
    "trees": ("trees", "#ff8f00"),
    "tops": ("treetops", "#ffd600"),
    "gaps": ("gaps", "#d500f9"),
    "stands": ("stands", "#00b0ff"),
    "change": ("changed stands", "#ff1744"),
}
"""Name of a table that `canopy derive` writes -> what it shows, and its colour."""
_COLOURS = ("#ff8f00", "#00b0ff", "#d500f9", "#ffd600", "#ff1744", "#00e5ff", "#ff80ab", "#b388ff")
_COORDINATES = frozenset({"top_x", "top_y"})
"""Columns that repeat the geometry."""
_POLYGONS, _POINTS = re.compile(r"Polygon|Surface"), re.compile(r"Point")


@dataclass(frozen=True)
class VectorLayer:
    """A table of features that is served."""

    id: str
    """Name in requests."""
    title: str
    """Name for people."""
    content: str
    """What the features are, for people: trees, gaps, stands; "features" where that is not known."""
    geometry: Literal["polygon", "point"]
    """Kind of the geometries."""
    path: Path
    """File; never part of an answer."""
    table_name: str
    """Name of the table in the file."""
    signature: Signature
    """Device, size and time of change of the file when it was read."""
    bounds: Box
    """West, south, east, north in degrees; west is greater than east across the antimeridian."""
    crs: pyproj.CRS
    """CRS of the file."""
    count: int
    """Number of features."""
    colour: str
    """Colour of the outlines, #rrggbb."""
    is_shown: bool
    """Whether the page draws the layer before the reader switches it on."""
    fields: tuple[Field, ...]
    """Columns that are shown."""
    table: FeatureTable
    """The features."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without links."""
        authority = self.crs.to_authority()
        return {
            "id": self.id,
            "title": self.title,
            "content": self.content,
            "geometry": self.geometry,
            "bounds": list(self.bounds),
            "crs": ":".join(authority) if authority else None,
            "features": self.count,
            "colour": self.colour,
            "shown": self.is_shown,
            "fields": [field.to_json() for field in self.fields],
        }


def read_vector_layers(path: Path, *, is_named: bool) -> list[VectorLayer]:
    """Read the layers of a file of features; ids and colours may be those of other files' layers.

    Args:
        path: GeoPackage, GeoParquet, GeoJSON, FlatGeobuf or shapefile.
        is_named: Whether someone named the file, so that its layers are drawn from the beginning.

    Raises:
        VectorError: The file has no features, no CRS, or features that are neither polygons nor points.
    """
    try:
        signature = file_signature(path)
        tables = read_tables(path)
        layers = [_layer(path, table, len(tables) == 1, signature, is_named) for table in tables]
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise VectorError(f"{path}: cannot be read ({reason}), expected a file of features") from error
    except ProjError as error:
        reason = one_line(error, 100)
        raise VectorError(f"{path}: lies outside its CRS ({reason}); expected another CRS, assign it") from error
    except CanopyError as error:
        raise error if isinstance(error, VectorError) else VectorError(one_line(error)) from error
    return layers


def read_tables(path: Path) -> list[TableInfo]:
    """Return the tables of a file that have polygons or points.

    Raises:
        CanopyError: There is none.
    """
    refuse_pointers(path, path)
    tables = [read_parquet_table(path)] if path.suffix.lower() in PARQUET_SUFFIXES else read_ogr_tables(path)
    if not tables:
        raise VectorError(f"{path}: has no geometries; expected polygons or points")
    full = [table for table in tables if table.count and np.isfinite(table.bounds).all()]
    if not full:
        raise VectorError(f"{path}: has no features; expected polygons or points, derive it from a larger map")
    fit = [table for table in full if _geometry_of(table) is not None]
    if not fit:
        raise VectorError(f"{path}: has features of the type {full[0].kind}; expected polygons or points")
    return fit


def _geometry_of(table: TableInfo) -> Literal["polygon", "point"] | None:
    """Return the kind of the geometries of a table, None where it is neither polygons nor points."""
    if table.kind not in ("Unknown", "GeometryCollection") and len(table.kind.split()) < 3:
        return "polygon" if _POLYGONS.search(table.kind) else "point" if _POINTS.search(table.kind) else None
    dimensions = shapely.get_dimensions(table.table.read(table.bounds, _SAMPLE).geometries)
    present = set(dimensions[dimensions >= 0].tolist())
    return "polygon" if present == {2} else "point" if present == {0} else None


def _layer(path: Path, table: TableInfo, is_only: bool, signature: Signature, is_named: bool) -> VectorLayer:
    crs = parse_crs(table.crs, path).proj
    title = path.stem if is_only else f"{path.stem}: {table.name}"
    content, colour = _CONTENTS.get(table.name, ("features", _COLOURS[0]))
    geometry = _geometry_of(table) or "polygon"
    to_lonlat = pyproj.Transformer.from_crs(crs, _LONLAT, always_xy=True)
    return VectorLayer(
        id=path.stem if is_only else f"{path.stem}-{table.name}",
        title=title,
        content=content,
        geometry=geometry,
        path=path,
        table_name=table.name,
        signature=signature,
        bounds=to_lonlat.transform_bounds(*table.bounds, densify_pts=21, errcheck=True),
        crs=crs,
        count=table.count,
        colour=colour,
        is_shown=is_named and (is_only or geometry == "polygon"),
        fields=tuple(describe_field(name) for name in table.columns if name not in _COORDINATES),
        table=table.table,
    )


def free_colour(colour: str, taken: Collection[str]) -> str:
    """Return a colour that no other layer has, the given one first; where all are taken, the given one."""
    return next((candidate for candidate in (colour, *_COLOURS) if candidate not in taken), colour)


def read_features(layer: VectorLayer, box: Box, limit: int) -> Features:
    """Read the features of a layer in a box.

    Args:
        layer: Layer.
        box: West, south, east, north in degrees, within the bounds of the layer.
        limit: Most features to read.

    Returns:
        Features in longitude and latitude; those without geometry are left out.

    Raises:
        VectorError: The file can no longer be read.
    """
    to_table = pyproj.Transformer.from_crs(_LONLAT, layer.crs, always_xy=True)
    features = layer.table.read(to_table.transform_bounds(*box, densify_pts=21), limit)
    rows = np.flatnonzero(~(shapely.is_missing(features.geometries) | shapely.is_empty(features.geometries)))
    to_lonlat = pyproj.Transformer.from_crs(layer.crs, _LONLAT, always_xy=True)

    def project(corners: Any) -> Any:
        return np.column_stack(to_lonlat.transform(corners[:, 0], corners[:, 1]))

    geometries = shapely.transform(features.geometries[rows], project)
    columns = {name: values[rows] for name, values in features.columns.items()}
    return Features(features.ids[rows], geometries, columns)
