"""Catalog: which files are served, and under which ids. Nothing outside the root ever becomes a layer."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from tiles.errors import CanopyError, RasterError, VectorError, one_line
from tiles.server.layers import Layer, file_signature, read_layer
from tiles.server.vector_layers import (
    PRODUCT_SUFFIXES,
    VECTOR_SUFFIXES,
    VectorLayer,
    free_colour,
    read_vector_layers,
)

MAX_LAYERS = 1000
_SUFFIXES = (".tif", ".tiff", ".vrt")
_COMPANIONS = ("_dates", "_reasons", "_quality")
"""Endings of the names of rasters that belong to a map and are no layers."""
_MAX_JSON_BYTES = 64 * 2**20

log = logging.getLogger(__name__)
Answer = TypeVar("Answer", Layer, VectorLayer)


class Catalog:
    """Layers by id, heights first; and layers of features by id.

    Files may be removed or replaced while they are served. One that can no longer be read is an error where it is asked
    for by its id; the lists go on without it, and have it again when it is back.
    """

    def __init__(self, layers: Sequence[Layer], vectors: Sequence[VectorLayer] = ()) -> None:
        self._layers = {layer.id: layer for layer in layers}
        self._vectors = {vector.id: vector for vector in vectors}

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return _readable(self.layer, list(self._layers))

    def layer(self, layer_id: str) -> Layer:
        """Return a layer; one whose file has been replaced is read again.

        Raises:
            KeyError: There is no such layer.
            RasterError: Its file can no longer be read.
        """
        layer = self._layers[layer_id]
        try:
            is_same = file_signature(layer.path) == layer.signature
        except OSError as error:
            raise RasterError(f"{layer.path}: cannot be read ({error.strerror}), expected the file it was") from error
        if not is_same:
            layer = self._layers[layer_id] = read_layer(layer.path, layer.id, layer.title, layer.kind)
        return layer

    @property
    def vectors(self) -> list[VectorLayer]:
        """Layers of features; those that can no longer be read are left out, and said."""
        return list(_readable(self.vector, list(self._vectors)))

    def vector(self, vector_id: str) -> VectorLayer:
        """Return a layer of features; one whose file has been replaced is read again.

        Raises:
            KeyError: There is no such layer.
            VectorError: Its file can no longer be read.
        """
        vector = self._vectors[vector_id]
        try:
            is_same = file_signature(vector.path) == vector.signature
        except OSError as error:
            raise VectorError(f"{vector.path}: cannot be read ({error.strerror}), expected the file it was") from error
        if not is_same:
            vector = self._vectors[vector_id] = _read_again(vector)
        return vector


def _readable(read: Callable[[str], Answer], names: Sequence[str]) -> Iterator[Answer]:
    for name in names:
        try:
            yield read(name)
        except CanopyError as error:
            log.warning("left out: %s", one_line(error))


def _read_again(vector: VectorLayer) -> VectorLayer:
    """Return a layer of features as its file now has it, under its id and in its colour."""
    for layer in read_vector_layers(vector.path, is_named=vector.is_shown):
        if layer.table_name == vector.table_name:
            return replace(layer, id=vector.id, title=vector.title, colour=vector.colour, is_shown=vector.is_shown)
    raise VectorError(f"{vector.path}: has no table {vector.table_name!r} any more, expected the file it was")


def open_catalog(path: Path, imagery: Path | None = None, others: Sequence[Path] = ()) -> Catalog:
    """Collect the layers of files, of folders of maps, and of batch collections.

    Args:
        path: GeoTIFF, VRT, folder, or the STAC collection of a batch run.
        imagery: Raster to show next to the maps.
        others: Further files and folders: maps, and products of maps, with features too.

    Raises:
        RasterError: Nothing there can be served, or a raster that was named cannot be read.
        VectorError: A file of features that was named cannot be shown.
    """
    layers: list[Layer] = []
    vectors: list[VectorLayer] = []
    for source in (path, *others):
        _add(source, layers, vectors)
    if not layers:
        what = "only features" if vectors else "no raster that can be served"
        raise RasterError(f"{path}: has {what}; expected GeoTIFFs with a CRS, name a height map first")
    if imagery is not None:
        if not imagery.is_file():
            raise RasterError(f"{imagery}: no such file; expected a GeoTIFF on this machine as --imagery")
        layers.append(_open(imagery.resolve(), imagery.resolve().parent, layers, kind="imagery"))
    return Catalog(sorted(layers, key=lambda layer: layer.kind != "height"), vectors)


def _add(path: Path, layers: list[Layer], vectors: list[VectorLayer]) -> None:
    """Add the layers of a file, a folder or a collection to those that there are."""
    if not path.exists():
        raise RasterError(f"{path}: no such file or folder; expected a height map, a folder of maps or a collection")
    suffix = path.suffix.lower()
    if path.is_dir() and not (path / "collection.json").is_file():
        layers += _folder_layers(path, layers)
        _add_folder_vectors(path, vectors)
    elif path.is_dir() or suffix == ".json":
        layers += _collection_layers(path / "collection.json" if path.is_dir() else path, layers)
    elif suffix == ".csv":
        raise VectorError(f"{path}: a table without CRS; expected a GeoPackage or GeoParquet, write it as .gpkg")
    elif suffix in VECTOR_SUFFIXES:
        _add_vectors(path.resolve(), vectors, is_named=True)
    else:
        # A link that someone names is meant; links that lie in a folder are not.
        layers.append(_open(path.resolve(), _root_of(path.resolve()), layers))


def _add_folder_vectors(root: Path, vectors: list[VectorLayer]) -> None:
    """Add the products with features in a folder, switched off; what cannot be read is left out and said."""
    for path in _folder_files(root, PRODUCT_SUFFIXES):
        try:
            _require_inside(path, root.resolve())
            _add_vectors(path.resolve(), vectors, is_named=False)
        except CanopyError as error:
            log.warning("left out: %s", one_line(error))


def _add_vectors(path: Path, vectors: list[VectorLayer], *, is_named: bool) -> None:
    """Add the layers of a file of features, each with an id and a colour of its own."""
    for layer in read_vector_layers(path, is_named=is_named):
        if len(vectors) == MAX_LAYERS:
            raise VectorError(f"{path}: more than {MAX_LAYERS:,} layers of features; serve fewer files")
        name = _unused_id(layer.id, {vector.id for vector in vectors})
        vectors.append(replace(layer, id=name, colour=free_colour(layer.colour, {vector.colour for vector in vectors})))


def _root_of(path: Path) -> Path:
    """Return the folder that a named file may read: its own, or the batch to whose collection it belongs."""
    batch = path.parent.parent
    return batch if path.suffix.lower() == ".vrt" and (batch / "collection.json").is_file() else path.parent


def _folder_layers(root: Path, others: Sequence[Layer]) -> list[Layer]:
    """Read the maps of a folder; what cannot be read is left out and said."""
    paths = [path for path in _folder_files(root, _SUFFIXES[:2]) if not path.stem.endswith(_COMPANIONS)]
    return _open_all(paths, root, others)


def _folder_files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below a folder by the endings of their names, hidden and unfinished ones left out."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") or part.endswith(".partial") for part in path.relative_to(root).parts)
    ]


def _collection_layers(path: Path, others: Sequence[Layer]) -> list[Layer]:
    """Read the mosaics of a STAC collection; where it has none, the maps of its items."""
    root = path.parent
    collection = _read_json(path)
    assets = collection.get("assets")
    mosaics = [
        _local(asset, root)
        for asset in (assets.values() if isinstance(assets, dict) else ())
        if str(asset.get("href", "")).lower().endswith(".vrt")
    ]
    if mosaics:
        return _open_all([mosaic for mosaic in mosaics if mosaic], root, others)
    items = [link for link in collection.get("links", []) if isinstance(link, dict) and link.get("rel") == "item"]
    documents = [item_path for item in items if (item_path := _local(item, root))]
    return _open_all([raster for document in documents for raster in _item_rasters(document)], root, others)


def _item_rasters(path: Path) -> list[Path]:
    """Return the raster of heights of a STAC item."""
    assets = _read_json(path).get("assets")
    rasters = [
        asset
        for name, asset in (assets.items() if isinstance(assets, dict) else ())
        if isinstance(asset, dict) and (name == "canopy_height" or "data" in asset.get("roles", []))
    ]
    return [raster for asset in rasters[:1] if (raster := _local(asset, path.parent))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise RasterError(f"{path}: is larger than {_MAX_JSON_BYTES // 2**20} MiB, expected a STAC document")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RasterError(f"{path}: cannot be read ({one_line(error)}), expected a STAC document") from error
    if not isinstance(document, dict) or document.get("type") not in ("Collection", "Catalog", "Feature"):
        raise RasterError(f"{path}: is no STAC document, expected the collection of a batch run")
    return document


def _local(reference: dict[str, Any], folder: Path) -> Path | None:
    """Return the local path of a link or an asset; None, and a remark, where it is elsewhere."""
    href = str(reference.get("href", ""))
    if urlsplit(href).scheme or not href:
        log.warning("%s is left out: only files next to the collection are served", href[:200] or "a link without href")
        return None
    return folder / unquote(href)


def _open_all(paths: list[Path], root: Path, others: Sequence[Layer]) -> list[Layer]:
    if len(paths) + len(others) > MAX_LAYERS:
        raise RasterError(
            f"{root}: has {len(paths):,} rasters, expected at most {MAX_LAYERS:,} layers; serve their mosaic (VRT)"
        )
    layers: list[Layer] = []
    for path in paths:
        try:
            layers.append(_open(path, root.resolve(), [*others, *layers]))
        except CanopyError as error:
            log.warning("left out: %s", one_line(error))
    return layers


def _open(path: Path, root: Path, others: Sequence[Layer], kind: Any = None) -> Layer:
    """Read a layer after checking that it and all it consists of lie in the root."""
    _require_inside(path, root)
    if path.suffix.lower() == ".vrt":
        for member in _members(path):
            _require_inside(member, root)
    return read_layer(path.resolve(), _unused_id(path.stem, {layer.id for layer in others}), path.stem, kind)


def _require_inside(path: Path, root: Path) -> None:
    # Links are followed first: a link in the folder must not lead out of it.
    if not path.resolve().is_relative_to(root):
        raise RasterError(f"{path}: lies outside {root}, expected files of that folder only")
    if not path.is_file():
        raise RasterError(f"{path}: no such file, expected one of that folder")


def _members(path: Path) -> list[Path]:
    """Return the files that a VRT reads.

    GDAL reads a missing member as unknown without a word, and a member may be an address: both are refused.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise RasterError(f"{path}: cannot be read ({one_line(error)}), expected a VRT") from error
    if root.tag != "VRTDataset" or root.get("subClass") or root.find(".//VRTRasterBand[@subClass]") is not None:
        raise RasterError(f"{path}: is no plain mosaic, expected a VRT of simple sources, such as gdalbuildvrt writes")
    members = set()
    for name in root.iter("SourceFilename"):
        text = name.text or ""
        if re.match(r"^(/vsi|[A-Za-z][A-Za-z0-9+.-]*:)", text):
            raise RasterError(f"{path}: reads {text[:100]!r}, expected files of its folder only")
        members.add(path.parent / text if name.get("relativeToVRT") == "1" else Path(text))
    if not members:
        raise RasterError(f"{path}: has no sources, expected a mosaic of rasters")
    return sorted(members)


def _unused_id(stem: str, taken: set[str]) -> str:
    """Make an id of a name: letters, digits, hyphens and underscores, numbered where another layer has it."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:100] or "layer"
    number, name = 1, base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name
