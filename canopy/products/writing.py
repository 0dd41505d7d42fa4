"""The one way in which products become files: tables and vectors by the ending of the name, rasters as COGs.

Each file is drafted in the folder of unfinished work, listed as an asset of the map's STAC item where the map has one
next to it, and then named: a run that is killed on the way goes on, and none leaves a product that no item lists. What
is said of the origin stands in the file itself.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from canopy.errors import OutputError
from canopy.products.reading import ProductMap
from canopy.products.work import Work
from canopy.version import __version__
from tiles.cog import Member, assemble, read_every_block, write_json
from tiles.files import file_sha256, relative_name, removed_on_error, reported
from tiles.publish import item_path, publish, style_path
from tiles.qgis import GEOPACKAGE_OPTIONS, add_layer_style

GEOMETRY = "geometry"
"""Column of geometries in the tables of products, as WKB."""
META_KEY = "canopy"
"""Key of the origin in the metadata of Parquet files and of GeoPackage layers."""
GEOPACKAGE, PARQUET, CSV, RASTER = (".gpkg",), (".parquet", ".geoparquet", ".pq"), (".csv",), (".tif", ".tiff")
_MEDIA_TYPES = {
    **dict.fromkeys(GEOPACKAGE, "application/geopackage+sqlite3"),
    **dict.fromkeys(PARQUET, "application/vnd.apache.parquet"),
    **dict.fromkeys(CSV, "text/csv"),
    **dict.fromkeys(RASTER, "image/tiff; application=geotiff; profile=cloud-optimized"),
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a text that a spreadsheet would run."""
_GPKG_COLUMN = "geom"
DERIVED = "derived"
"""Role of a product among the assets of its map's STAC item."""


@dataclass(frozen=True)
class TableSpec:
    """What the rows of a table are."""

    layer: str
    """Name of the layer: stands, trees."""
    title: str
    """Name for people."""
    schema: pa.Schema
    """Columns with their units in their names; that of geometries is `GEOMETRY`, binary, last."""
    kind: str
    """Geometry type: Point, Polygon or MultiPolygon."""
    crs: CRS
    """CRS of the geometries."""
    style: str | None = None
    """QGIS style (QML) of the layer, for GeoPackage."""


@dataclass(frozen=True)
class RasterSpec:
    """What the bands of a raster are."""

    name: str
    """Name of the product: cover."""
    title: str
    """Name for people."""
    bands: tuple[str, ...]
    """Names of the bands."""
    units: tuple[str, ...]
    """Unit of each band; empty for a share."""
    style: str | None = None
    """QGIS style (QML), written next to the raster."""


def require_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a name whose ending is of no format that the product is written in.

    Raises:
        OutputError: The ending is another.
    """
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"output {path}: a name ending in {', '.join(suffixes)} expected")


def provenance(product: str, sources: Mapping[str, ProductMap], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a product says of its origin, as JSON.

    Args:
        product: Name of the product.
        sources: Maps that were read, by the role of each.
        options: Options that the content depends on.
    """
    return {
        "product": product,
        "canopy_version": __version__,
        "created": datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z",
        "maps": {role: _origin(source) for role, source in sources.items()},
        "options": dict(options),
    }


def _origin(source: ProductMap) -> dict[str, Any]:
    tags = source.heights.dataset.tags()
    first, last = source.dates.first, source.dates.last
    return {
        "name": source.path.name,
        "sha256": file_sha256(source.path),
        "model": tags.get("CANOPY_MODEL"),
        "imagery": tags.get("CANOPY_IMAGERY") or tags.get("CANOPY_LIDAR"),
        "acquisition": None if first is None or last is None else [first.isoformat(), last.isoformat()],
        "intervals": "error_m" if source.error_m is not None else "bands" if source.has_intervals else None,
    }


@dataclass(frozen=True)
class Draft:
    """A file of a product that is written and has no name yet."""

    path: Path
    """The file, in the folder of unfinished work."""
    out: Path
    """Its name."""
    name: str
    """Name of the product in the map's STAC item."""
    title: str
    """Name for people."""
    style: Path | None = None
    """Draft of the QGIS style that lies next to the file; None for none."""


def publish_table(
    work: Work,
    spec: TableSpec,
    tables: Iterable[pa.Table],
    about: Mapping[str, Any],
    source: ProductMap,
    more: Sequence[tuple[TableSpec, Iterable[pa.Table]]] = (),
) -> Path:
    """Write the rows of a product, list it in the map's STAC item, and give the file its name.

    Args:
        work: Folder of unfinished work of the product.
        spec: What the rows are.
        tables: Rows in batches, in order, of the schema of `spec`; read one by one.
        about: Origin, see `provenance`.
        source: Map in whose item the file is listed.
        more: Further layers of a GeoPackage, with their rows.

    Raises:
        OutputError: The file cannot be written; its name has its old content.
    """
    publish_drafts(work, [draft_table(work, work.out, spec, tables, about, more)], source)
    return work.out


def draft_table(
    work: Work,
    out: Path,
    spec: TableSpec,
    tables: Iterable[pa.Table],
    about: Mapping[str, Any],
    more: Sequence[tuple[TableSpec, Iterable[pa.Table]]] = (),
) -> Draft:
    """Write the rows of a table that is going to be called `out`; arguments and errors as of `publish_table`."""
    suffix = out.suffix.lower()
    # Drivers look at the ending of the name.
    draft = work.folder / f"product{suffix}"
    with reported(out, RuntimeError, pa.ArrowException), removed_on_error(draft):
        draft.unlink(missing_ok=True)
        if suffix in GEOPACKAGE:
            for layer, rows in ((spec, tables), *more):
                _write_geopackage(draft, layer, _batches(rows), about)
        elif suffix in PARQUET:
            _write_parquet(draft, spec, _batches(tables), about)
        else:
            _write_csv(draft, spec, _batches(tables))
    return Draft(draft, out, spec.layer, spec.title)


def publish_raster(
    work: Work,
    spec: RasterSpec,
    members: Sequence[Member],
    geobox: GeoBox,
    about: Mapping[str, Any],
    source: ProductMap,
) -> Path:
    """Assemble the rasters of parts into a COG, read it back, list it in the map's STAC item, and name it.

    Args:
        work: Folder of unfinished work of the product.
        spec: What the bands are.
        members: Rasters of parts, saved with `Work.save_raster`.
        geobox: Georeference of the whole raster.
        about: Origin, see `provenance`.
        source: Map in whose item the file is listed.

    Raises:
        OutputError: The file cannot be written; its name has its old content.
        RasterError: What was written cannot be read back.
    """
    publish_drafts(work, [draft_raster(work, spec, members, geobox, about, source)], source)
    return work.out


def draft_raster(
    work: Work,
    spec: RasterSpec,
    members: Sequence[Member],
    geobox: GeoBox,
    about: Mapping[str, Any],
    source: ProductMap,
) -> Draft:
    """Assemble the rasters of parts into a COG and read it back; arguments and errors as of `publish_raster`."""
    draft, style = work.folder / "product.tif", work.folder / "product.qml"
    acquisition = source.heights.dataset.tags().get("CANOPY_ACQUISITION_DATETIME")
    tags = {
        "CANOPY_PRODUCT": spec.name,
        "CANOPY_PROVENANCE": json.dumps(about),
        "CANOPY_VERSION": __version__,
        **({"CANOPY_ACQUISITION_DATETIME": acquisition} if acquisition else {}),
    }
    assemble(members, draft, geobox, spec.bands, tags, units=spec.units)
    for _ in read_every_block(draft):
        pass
    if spec.style is None:
        return Draft(draft, work.out, spec.name, spec.title)
    with reported(style):
        style.write_text(spec.style, encoding="utf-8")
    return Draft(draft, work.out, spec.name, spec.title, style)


def publish_drafts(work: Work, drafts: Sequence[Draft], source: ProductMap) -> None:
    """List files in the map's STAC item and give them their names, all of them or, if killed, in the next run.

    Args:
        work: Folder of unfinished work of the product.
        drafts: Files of the product, the one that it is called after last.
        source: Map in whose item they are listed.

    Raises:
        OutputError: The item cannot be written, or a name not be given.
    """
    names = []
    for draft in drafts:
        record_asset(source.path, draft)
        names += [] if draft.style is None else [(draft.style, style_path(draft.out))]
        names.append((draft.path, draft.out))
    publish(names, work.folder)


def record_asset(map_path: Path, draft: Draft) -> None:
    """List a product in the STAC item of its map; without an item next to the map there is nothing to do.

    Args:
        map_path: Map.
        draft: The product. The key of its asset is its name with the name of the file behind it.

    Raises:
        OutputError: The item cannot be written.
    """
    out = draft.out
    path = item_path(map_path)
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
        assets = item["assets"]
        href = quote(relative_name(out, path.parent))
    except (OSError, ValueError, LookupError, TypeError):  # no item, or a file of another kind of that name
        return
    if not isinstance(assets, dict) or item.get("type") != "Feature":
        return
    assets[f"{draft.name}:{out.name}"] = {
        "href": href,
        "type": _MEDIA_TYPES[out.suffix.lower()],
        "title": draft.title,
        "roles": ["data", DERIVED],
        "file:size": draft.path.stat().st_size,
        "file:checksum": "1220" + file_sha256(draft.path),  # multihash: sha2-256, 32 bytes
    }
    write_json(path, item)


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    return (batch for table in tables for batch in table.combine_chunks().to_batches())


def _write_geopackage(
    draft: Path, spec: TableSpec, batches: Iterator[pa.RecordBatch], about: Mapping[str, Any]
) -> None:
    import pyogrio.raw

    # Without a geometry's type in the metadata GDAL takes the column for plain bytes.
    field = spec.schema.field(GEOMETRY).with_metadata({"ARROW:extension:name": "geoarrow.wkb"})
    schema = spec.schema.set(spec.schema.get_field_index(GEOMETRY), field)
    reader = pa.RecordBatchReader.from_batches(
        schema, (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches)
    )
    pyogrio.raw.write_arrow(
        reader, draft, driver="GPKG", layer=spec.layer, geometry_name=GEOMETRY, geometry_type=spec.kind,
        crs=str(spec.crs.to_wkt()), dataset_options=GEOPACKAGE_OPTIONS, layer_metadata={META_KEY: json.dumps(about)},
    )  # fmt: skip
    if spec.style is not None:
        add_layer_style(draft, spec.layer, _GPKG_COLUMN, spec.title, spec.style)


def _write_parquet(draft: Path, spec: TableSpec, batches: Iterator[pa.RecordBatch], about: Mapping[str, Any]) -> None:
    column = {"encoding": "WKB", "geometry_types": [spec.kind], "crs": spec.crs.proj.to_json_dict()}
    geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
    metadata = {"geo": json.dumps(geo), META_KEY: json.dumps(about)}
    schema = spec.schema.with_metadata({key: text.encode() for key, text in metadata.items()})
    with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))


def _write_csv(draft: Path, spec: TableSpec, batches: Iterator[pa.RecordBatch]) -> None:
    """Write the columns, with x and y of a point of each geometry in its place: a spreadsheet cannot use polygons."""
    names = [name for name in spec.schema.names if name != GEOMETRY]
    fields = [*(spec.schema.field(name) for name in names), pa.field("x", pa.float64()), pa.field("y", pa.float64())]
    schema = pa.schema(fields)
    with pa.csv.CSVWriter(draft, schema) as writer:
        for batch in batches:
            points = shapely.point_on_surface(shapely.from_wkb(batch.column(GEOMETRY).to_numpy(zero_copy_only=False)))
            columns = [_inert(batch.column(name)) for name in names]
            coordinates = (np.round(axis(points), 3) for axis in (shapely.get_x, shapely.get_y))
            writer.write_batch(pa.RecordBatch.from_arrays([*columns, *map(pa.array, coordinates)], schema=schema))


def _inert(column: pa.Array) -> pa.Array:
    """Return a column whose texts no spreadsheet takes for a formula."""
    if not pa.types.is_string(column.type):
        return column
    texts = [f"'{text}" if text is not None and text.startswith(_FORMULA) else text for text in column.to_pylist()]
    return pa.array(texts, column.type)
