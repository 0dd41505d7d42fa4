"""Planes: what a height map says of its pixels besides heights, as rasters of whole numbers next to it.

While a map is computed its planes lie in its tiles, behind the bands of heights, so that one marker commits both. When
it is published each becomes a Cloud-Optimized GeoTIFF of its own; the height map keeps one band or three.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import rasterio
from odc.geo.geobox import GeoBox

from tiles.cog import BLOCKS_TAG, CACHE_BYTES, OPEN_TILES, RASTER_ERRORS, Member, read_every_block
from tiles.errors import OutputError, RasterError, one_line
from tiles.files import file_sha256, removed_on_error, replacing, sync
from tiles.pyramid import BLOCK_PX, write_cog

CATEGORY_TAG = "CANOPY_CATEGORY_{}"
PLANE_TYPES = {"uint8": "Byte", "uint16": "UInt16"}
"""GDAL's name of each type that a plane may have."""
_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"


@dataclass(frozen=True)
class PlaneSpec:
    """A raster of whole numbers next to a height map; pixels of no tile are 0."""

    name: str
    """Suffix of its file, and key of its asset: reasons."""
    dtype: str
    """uint8 or uint16."""
    band: str
    """Name of its band."""
    title: str
    """What its values mean, in a few words."""
    categories: tuple[str, ...] = ()
    """Name of each value from 0 on; none where the values are numbers."""
    unit: str = ""
    """Unit of the values, where they have one."""
    nodata: int | None = None
    """Value that means unknown, if any."""


DATES = PlaneSpec(
    "dates", "uint16", "canopy_acquisition_day", "Day of acquisition, counted from 1970-01-01; 0 is unknown",
    unit="days since 1970-01-01", nodata=0,
)  # fmt: skip
"""Days of acquisition of the imagery."""


@dataclass(frozen=True)
class PlaneFile:
    """The files of a plane of a map."""

    raster: Path
    names: Path | None
    """Names of the categories, as GDAL and QGIS read them."""

    @classmethod
    def of(cls, path: Path, spec: PlaneSpec) -> "PlaneFile":
        """Return the files of a plane next to a map."""
        raster = path.with_name(f"{path.stem}_{spec.name}{path.suffix}")
        return cls(raster, raster.with_name(f"{raster.name}.aux.xml") if spec.categories else None)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the files, the raster first."""
        return (self.raster, *((self.names,) if self.names is not None else ()))


def write_plane(
    tiles: Sequence[Member], band: int, draft: PlaneFile, geobox: GeoBox, spec: PlaneSpec, tags: Mapping[str, str]
) -> None:
    """Write a plane of committed tiles as one Cloud-Optimized GeoTIFF, and read it back.

    Args:
        tiles: Tiles of the map.
        band: Number of the plane's band in the tiles, from 1.
        draft: Files to write.
        geobox: Georeference of the map.
        spec: The plane.
        tags: Metadata of the map.

    Raises:
        RasterError: What was written cannot be read.
        OutputError: A file cannot be written. Nothing stays under its name.
    """
    path = draft.raster
    try:
        blocks = _blocks_of(tiles)
    except RASTER_ERRORS as error:
        raise RasterError(f"cannot read a tile of {path}: {one_line(error)}; make the map again") from error
    categories = {CATEGORY_TAG.format(value): text for value, text in enumerate(spec.categories)}
    described = {**tags, **categories, BLOCKS_TAG: str(len(blocks))}
    source = _vrt(tiles, band, geobox, spec, described)
    header_source = _vrt([], band, geobox[:BLOCK_PX, :BLOCK_PX], spec, described)
    with removed_on_error(path, Path(f"{path}.ovr.tmp")):
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_MAX_DATASET_POOL_SIZE=OPEN_TILES):
                write_cog(source, header_source, path, blocks)
            sync(path)
        except RASTER_ERRORS as error:
            raise OutputError(f"cannot write {path}: {one_line(error)}; check that its folder has room") from error
        for block in read_every_block(path):
            if spec.categories and block.values.max() >= len(spec.categories):
                raise RasterError(f"{path}: value {block.values.max()}, at most {len(spec.categories) - 1} expected")
    if draft.names is not None:
        _write_names(draft.names, spec.categories)


def plane_asset(draft: Path, path: Path, spec: PlaneSpec) -> dict[str, Any]:
    """Describe a plane as an asset of the map's STAC item.

    Args:
        draft: The plane's raster as it lies on the disk.
        path: Name that it is going to have.
        spec: The plane.
    """
    band: dict[str, Any] = {"name": spec.band, "data_type": spec.dtype}
    if spec.unit:
        band["unit"] = spec.unit
    if spec.nodata is not None:
        band["nodata"] = spec.nodata
    if spec.categories:
        band["classification:classes"] = [
            {"value": value, "name": f"value_{value}", "description": text}
            for value, text in enumerate(spec.categories)
        ]
    return {
        "href": f"./{quote(path.name)}",
        "type": _COG_TYPE,
        "title": spec.title,
        "roles": ["metadata"],
        "file:size": draft.stat().st_size,
        "file:checksum": "1220" + file_sha256(draft),  # multihash: sha2-256, 32 bytes
        "bands": [band],
    }


def add_asset(item: dict[str, Any], name: str, asset: dict[str, Any]) -> None:
    """Add the asset of a plane to a STAC item, with the extension that its classes need."""
    item["assets"][name] = asset
    if "classification:classes" in asset["bands"][0] and _CLASSIFICATION not in item["stac_extensions"]:
        item["stac_extensions"].append(_CLASSIFICATION)


def _blocks_of(tiles: Sequence[Member]) -> set[tuple[int, int]]:
    """Return the full-resolution blocks that tiles touch; the others are left out of the file."""
    blocks: set[tuple[int, int]] = set()
    for path, row_off, col_off in tiles:
        with rasterio.open(path) as src:
            rows, cols = (
                range(offset // BLOCK_PX, -(-(offset + length) // BLOCK_PX))
                for offset, length in zip((row_off, col_off), src.shape, strict=True)
            )
        blocks |= set(product(rows, cols))
    return blocks


def _vrt(tiles: Sequence[Member], number: int, geobox: GeoBox, spec: PlaneSpec, tags: Mapping[str, str]) -> str:
    """Return a plane as a virtual raster, XML that GDAL reads tile by tile."""
    if geobox.crs is None:
        raise RasterError("found a geobox without CRS, expected one; give the raster its CRS")
    height, width = geobox.shape
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS").text = geobox.crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, geobox.affine.to_gdal()))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in sorted(tags.items()):
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType=PLANE_TYPES[spec.dtype], band="1")
    ElementTree.SubElement(band, "Description").text = spec.band
    if spec.unit:
        ElementTree.SubElement(band, "UnitType").text = spec.unit
    if spec.nodata is not None:
        ElementTree.SubElement(band, "NoDataValue").text = str(spec.nodata)
    ElementTree.SubElement(band, "ColorInterp").text = "Gray"
    for path, row_off, col_off in tiles:
        with rasterio.open(path) as src:
            size: dict[str, Any] = {"xSize": str(src.width), "ySize": str(src.height)}
        part = ElementTree.SubElement(band, "SimpleSource")
        ElementTree.SubElement(part, "SourceFilename", relativeToVRT="0").text = str(path.resolve())
        ElementTree.SubElement(part, "SourceBand").text = str(number)
        ElementTree.SubElement(part, "SrcRect", xOff="0", yOff="0", **size)
        ElementTree.SubElement(part, "DstRect", xOff=str(col_off), yOff=str(row_off), **size)
    return ElementTree.tostring(root, encoding="unicode")


def _write_names(path: Path, categories: Sequence[str]) -> None:
    """Write the names of categories as GDAL does, which a GeoTIFF cannot contain."""
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for text in categories:
        ElementTree.SubElement(names, "Category").text = text
    with replacing(path) as draft:
        draft.write_bytes(ElementTree.tostring(root, encoding="utf-8"))
