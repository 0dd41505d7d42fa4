"""Vector files from anywhere as geometries with a CRS, within bounds and without a side effect.

A file may come from a stranger. Formats that only point elsewhere (OGR VRT, WFS documents, GDAL pipelines) and links
inside files would make GDAL fetch URLs or open other files, so they are refused before GDAL sees them; archives are
unpacked up to a limit.
"""

import json
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pyogrio
import pyogrio.raw
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from pyproj.exceptions import CRSError, ProjError
from shapely.errors import ShapelyError

from tiles.errors import AOIError, one_line

MAX_BYTES = 512 * 2**20
"""Most bytes that an archive may unpack to, a column of geometries take, or a text file have."""

SUFFIXES = (".shp", ".gpkg", ".geojson", ".json", ".kml", ".kmz", ".fgb", ".gml", ".parquet", ".zip")
"""Names by which vector files are recognised inside folders and archives."""

Polygons = NDArray[np.object_]

_HEAD_BYTES = 64 * 1024
_POINTERS = {
    b"<ogrvrtdatasource": "an OGR virtual file",
    b"<ogrwfsdatasource": "a reference to a web service",
    b"wfs_capabilities": "a description of a web service",
    b"gdal_streamed_alg": "a GDAL pipeline",
    b"<vrtdataset": "a virtual raster",
}
"""Text at the beginning of files that have no geometry of their own, in lower case."""
_POINTER_SUFFIXES = (".moaw", ".gdalg.json")
_BINARY = (b"SQLite format 3\0", b"fgb\x03", b"\0\0\x27\x0a", b"PAR1", b"PK")
_LINES = re.compile(r"Point|LineString|Curve|Line$")
_AREAS = re.compile(r"Surface|CurvePolygon|Polygon")


def read_vector(path: Path, layer: str | None = None) -> tuple[Polygons, CRS]:
    """Read the geometries of a vector file in 2D, and their CRS.

    Args:
        path: Vector file; a folder or a zip archive with one, or with several that `layer` chooses from.
        layer: Name of the layer. It may be left out where one layer has areas; folders of a KML file are one layer.

    Raises:
        AOIError: The path cannot be read, points elsewhere, or has several layers of areas.
    """
    _require_file(path)
    try:
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore")  # GDAL's remarks on rings, which `tiles.aoi` repairs
            geometries, crs = _read(path, layer)
    except (RuntimeError, ValueError, OSError, ShapelyError, MemoryError) as error:
        reason = one_line(one_line(error).split(";")[0], 300)
        raise AOIError(f"{path}: cannot be read ({reason}); expected vectors, such as GeoJSON") from error
    return geometries, parse_crs(crs, path)


def read_geojson(document: Mapping[str, Any]) -> tuple[Polygons, CRS]:
    """Read the geometries of a GeoJSON document in memory, and their CRS.

    Raises:
        AOIError: The document is no GeoJSON.
    """
    try:
        content = json.dumps(document).encode()
    except (TypeError, ValueError) as error:
        raise AOIError(f"area: not GeoJSON ({one_line(error)}); expected a geometry, feature or collection") from error
    with tempfile.TemporaryDirectory(prefix="canopy-") as folder:
        path = Path(folder) / "area.geojson"
        path.write_bytes(content)
        try:
            return read_vector(path)
        except AOIError as error:
            raise AOIError(str(error).replace(str(path), "GeoJSON")) from error


def parse_crs(text: str | None, origin: object) -> CRS:
    """Parse the CRS of a layer, less its vertical part.

    Args:
        text: CRS in any form that PROJ reads; None for none.
        origin: File or other origin that messages name.

    Raises:
        AOIError: There is no CRS, or none on earth.
    """
    if not text:
        raise AOIError(f"{origin}: has no CRS; expected one, assign it: ogr2ogr -a_srs EPSG:<code> NEW OLD")
    try:
        flat = pyproj.CRS(text).to_2d()
        code = flat.to_epsg(min_confidence=100)
        crs = CRS(f"EPSG:{code}" if code else flat)
    except (CRSError, ProjError) as error:
        raise AOIError(f"{origin}: has an unknown CRS; expected an EPSG code, assign one") from error
    if not (crs.geographic or crs.projected):
        raise AOIError(f"{origin}: has the CRS {flat.name!r}; expected a CRS of the earth's surface, reproject it")
    return crs


def _require_file(path: Path) -> None:
    """Refuse a path that is no file or folder: devices and pipes would never end."""
    try:
        exists, size = path.exists(), path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:  # a name of more than 255 bytes, or with a NUL
        name = str(path)[:60]
        raise AOIError(
            f"{name!r}...: no file name ({one_line(error, 80)}); expected the path of a vector file"
        ) from error
    if not exists:
        raise AOIError(f"{path}: no such file; expected a vector file, check the path")
    if size is None and not path.is_dir():
        raise AOIError(f"{path}: neither a file nor a folder; expected a vector file, write the area to one")
    if size == 0:
        raise AOIError(f"{path}: file is empty (0 bytes); expected a vector file, write it again")


def _read(path: Path, name: str | None) -> tuple[Polygons, str | None]:
    if not _is_archive(path):
        return _choose(_list_layers(path, path), path, name)
    with _unpacked(path) as folder:
        layers = [layer for part in sorted(folder.iterdir()) for layer in _list_layers(part, path)]
        return _choose(layers, path, name)


def _is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive of vector files; spreadsheets are zip archives of another kind."""
    if not path.is_file() or path.suffix.lower() in (".xlsx", ".ods"):
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class _Layer:
    """A layer that may be read."""

    name: str
    """Name of the layer; of the file where that is one layer."""
    kind: str
    """Geometry type in GDAL's words."""
    path: Path
    """File."""
    parts: tuple[str, ...]
    """Layers of the file that belong to it: the folders of a KML file are one area. None in a GeoParquet file."""

    @property
    def may_have_areas(self) -> bool:
        """Whether its type allows polygons."""
        return bool(_AREAS.search(self.kind)) or not _LINES.search(self.kind)

    def read(self, origin: Path) -> tuple[Polygons, str | None]:
        """Read the geometries in 2D, and their CRS as text."""
        if not self.parts:
            return _read_parquet(self.path, origin)
        parts = [
            pyogrio.raw.read(self.path, layer=part, columns=[], force_2d=True, read_geometry=True)
            for part in self.parts
        ]
        wkb = np.concatenate([part[2] for part in parts])
        return shapely.from_wkb(wkb, on_invalid="fix"), parts[0][0]["crs"]


def _choose(layers: Sequence[_Layer], origin: Path, name: str | None) -> tuple[Polygons, str | None]:
    """Read the layer that is named, or the only one with areas."""
    names = ", ".join(dict.fromkeys(layer.name for layer in layers))
    if not layers:
        raise AOIError(f"{origin}: has no geometry; expected polygons, give a vector file")
    if name is not None:
        layers = [layer for layer in layers if layer.name == name]
        if not layers:
            raise AOIError(f"{origin}: has no layer {name!r}; expected one of {names}, name it with --layer")
    elif len(layers) > 1:
        # Where no layer may have areas, all are read, so that the message can say what they have instead.
        layers = [layer for layer in layers if layer.may_have_areas] or layers
    read = [layer.read(origin) for layer in layers]
    if len(read) > 1:
        read = [(geometries, crs) for geometries, crs in read if _has_areas(geometries)] or read[:1]
    if len(read) > 1:
        raise AOIError(f"{origin}: contains several layers; expected one of {names}, name it with --layer")
    return read[0]


def _list_layers(path: Path, origin: Path) -> list[_Layer]:
    """List the layers of a file, of the vector files directly in a folder, or of a geodatabase."""
    if path.is_dir() and path.suffix.lower() != ".gdb":
        files = _vector_files(path)
        return [layer for file in files for layer in _list_layers(file, origin)] or _list_ogr(path)
    if path.is_file():
        refuse_pointers(path, origin)
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return [_Layer(path.stem, "Unknown", path, ())]
    layers = _list_ogr(path)
    if layers and _is_kml(path):
        return [_Layer(path.stem, "Unknown", layers[0].path, tuple(layer.name for layer in layers))]
    return layers


def _list_ogr(path: Path) -> list[_Layer]:
    source = path.absolute()  # one such as ``zip:area`` would be taken for a scheme
    kinds = pyogrio.list_layers(source)
    return [_Layer(str(name), str(kind), source, (str(name),)) for name, kind in kinds if kind is not None]


def _vector_files(folder: Path) -> list[Path]:
    """List the vector files directly in a folder, geodatabases included."""
    paths = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    files = [path for path in paths if path.suffix.lower() in (SUFFIXES if path.is_file() else (".gdb",))]
    # A .json next to another file is metadata more often than geometry.
    return [path for path in files if path.suffix.lower() != ".json"] or files


def _is_kml(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".kml" or b"<kml" in file.read(_HEAD_BYTES).lower()


def _has_areas(geometries: Polygons) -> bool:
    parts = shapely.get_parts(geometries)
    while np.any(shapely.get_type_id(parts) > 3):
        parts = shapely.get_parts(parts)
    return bool(np.any(shapely.get_type_id(parts) == 3))


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Unpack the vector files of a zip archive into a folder that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="canopy-") as name:
        left = MAX_BYTES
        try:
            with zipfile.ZipFile(path) as archive:
                for member, target in _targets(archive, path.suffix.lower() == ".kmz"):
                    (Path(name) / target).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, (Path(name) / target).open("wb") as copy:
                        left = _copy(source, copy, left, path)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise AOIError(f"{path}: cannot be read ({one_line(error, 200)}); expected a zip archive") from error
        yield Path(name)


def _copy(source: IO[bytes], copy: IO[bytes], left: int, origin: Path) -> int:
    """Copy a member of an archive, and return how many more bytes the archive may unpack to."""
    # Bytes are counted as they come, because the sizes that an archive declares may be false.
    while chunk := source.read(2**20):
        left -= len(chunk)
        if left < 0:
            raise AOIError(
                f"{origin}: unpacks to more than {MAX_BYTES // 2**20} MiB; expected an outline, unpack it and give "
                "the vector file"
            )
        copy.write(chunk)
    return left


def _targets(archive: zipfile.ZipFile, kmz: bool) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """Yield the members of vector files and where each goes: a folder for each folder of the archive."""
    # A damaged archive may hold a member without a name, on which `ZipInfo.is_dir` raises.
    infos = [info for info in archive.infolist() if info.filename and not info.is_dir()]
    infos = [info for info in infos if "__MACOSX" not in info.filename]
    paths = {info.filename: PurePosixPath(info.filename.replace("\\", "/")) for info in infos}
    if kmz:  # its root is doc.kml, by custom the only KML
        infos = sorted((i for i in infos if paths[i.filename].suffix == ".kml"), key=lambda i: i.filename != "doc.kml")[
            :1
        ]
    stems = {path.with_suffix("") for path in paths.values() if path.suffix.lower() in SUFFIXES}
    folders: dict[PurePosixPath, int] = {}
    for info in infos:
        path = paths[info.filename]
        database = next((n for n, part in enumerate(path.parts[:-1]) if part.lower().endswith(".gdb")), None)
        if database is None and path.with_suffix("") not in stems:
            continue
        parent = PurePosixPath(*path.parts[: database if database is not None else -1])
        names = path.parts[-1:] if database is None else (path.parts[database], path.name)
        # Numbers instead of the archive's own names, which may lead out of the folder.
        yield info, Path(str(folders.setdefault(parent, len(folders))), *names)


def refuse_pointers(path: Path, origin: Path) -> None:
    """Refuse files that would make GDAL open other files or URLs.

    Args:
        path: File to look into.
        origin: File or archive that messages name.

    Raises:
        AOIError: The file points to other data.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.replace(b"\0", b"").lower()
    kind = next((kind for mark, kind in _POINTERS.items() if mark in text), None)
    if kind is None and path.name.lower().endswith(_POINTER_SUFFIXES):
        kind = "a reference to other data"
    if kind is not None:
        raise AOIError(f"{origin}: is {kind}, which points to other data; expected geometries, write them to GeoJSON")
    if b"{" in text and not head.startswith(_BINARY):
        _refuse_crs_links(path, origin)


def _refuse_crs_links(path: Path, origin: Path) -> None:
    """Refuse a GeoJSON whose CRS is a link, which GDAL would fetch."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise AOIError(
            f"{origin}: {size / 2**20:,.0f} MiB of text; expected at most {MAX_BYTES // 2**20} MiB, convert it: "
            "ogr2ogr area.gpkg FILE"
        )
    content = path.read_bytes()
    if b"\\u" not in content and b"crs" not in content.lower():
        return
    link = object()

    def check(pairs: list[tuple[str, Any]]) -> object:
        """Mark an object that is a link, and refuse one whose CRS is so marked; GDAL ignores the case of names."""
        if any(key.lower() == "crs" and value is link for key, value in pairs):
            raise AOIError(f"{origin}: its CRS is a link; expected the name of a CRS, write the file again in WGS 84")
        kinds = (str(value).lower() for key, value in pairs if key.lower() == "type")
        return link if any(kind.startswith(("link", "url")) for kind in kinds) else None

    try:
        json.loads(content, object_pairs_hook=check)
    except (ValueError, RecursionError) as error:
        # GDAL reads JSON that is not strict; where it cannot be looked through, a link may hide in it.
        if re.search(rb"link|url|\\u", content.lower()):
            raise AOIError(f"{origin}: is no strict JSON ({one_line(error, 100)}); write the file again") from error


def _read_parquet(path: Path, origin: Path) -> tuple[Polygons, str | None]:
    """Read a GeoParquet file; without a CRS of its own it is in longitude and latitude."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise AOIError(f"{origin}: GeoParquet needs pyarrow; pip install pyarrow, or give another format") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        name, column = geometry_column(file.schema_arrow.metadata, origin)
        _require_small(file, name, origin)
        values = file.read([name]).column(name).to_numpy()
    except (pyarrow.ArrowException, KeyError, TypeError, AttributeError, OSError, ValueError, OverflowError) as error:
        raise AOIError(f"{origin}: cannot be read ({one_line(error, 200)}); expected GeoParquet") from error
    return shapely.force_2d(shapely.from_wkb(values, on_invalid="fix")), parquet_crs(column)


def geometry_column(metadata: Mapping[bytes, bytes] | None, origin: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the geometries of a GeoParquet file, and what its metadata says of them.

    Args:
        metadata: Metadata of the file's schema.
        origin: File that messages name.

    Raises:
        AOIError: The file has no geometries, or none as WKB.
        LookupError, TypeError, AttributeError, ValueError: The metadata is damaged.
    """
    geo = json.loads((metadata or {}).get(b"geo", b"null"))
    if not isinstance(geo, dict):
        raise AOIError(f"{origin}: has no geometry; expected GeoParquet, write it with geopandas or ogr2ogr")
    name = str(geo["primary_column"])
    column: dict[str, Any] = geo["columns"][name]
    if column["encoding"].upper() != "WKB":
        raise AOIError(f"{origin}: its geometries are encoded as {column['encoding']!r}; expected WKB")
    return name, column


def parquet_crs(column: Mapping[str, Any]) -> str | None:
    """Return the CRS of a GeoParquet column as text: longitude and latitude without one, None where it is null."""
    crs = column.get("crs", "OGC:CRS84")
    return json.dumps(crs) if isinstance(crs, dict) else crs


def _require_small(file: Any, name: str, origin: Path) -> None:
    """Refuse a column that decompresses to more than the limit."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == name)
    if size > MAX_BYTES:
        raise AOIError(f"{origin}: geometries of {size / 2**20:,.0f} MiB; expected at most {MAX_BYTES // 2**20} MiB")
