"""The height profile: how heights become files that are either whole and verified, or absent.

A *tile* is an intermediate GeoTIFF, committed by its sidecar. A *map* is the Cloud-Optimized GeoTIFF made of
tiles. Both are float32 metres above ground, NaN where unknown; 0 is bare ground and never nodata.
"""

import contextlib
import errno
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # rasterio.shutil.copy raises it bare, and no public name exists
from rasterio.errors import RasterioError
from rasterio.windows import Window

from tiles.errors import CanopyError, OutputError, RasterError, one_line
from tiles.files import draft_of, file_sha256, removed_on_error, rename, sync
from tiles.pyramid import BLOCK_PX, all_blocks, write_cog

BANDS = ("canopy_height",)
UNCERTAINTY_BANDS = ("canopy_height", "canopy_height_p05", "canopy_height_p95")
REQUIRED_TAGS = (
    "CANOPY_MODEL",
    "CANOPY_MODEL_SHA256",
    "CANOPY_IMAGERY",
    "CANOPY_ACQUISITION_DATETIME",
    "CANOPY_VERSION",
)
LIDAR_TAGS = (
    "CANOPY_LIDAR",
    "CANOPY_LIDAR_POINTS",
    "CANOPY_LIDAR_DENSITY",
    "CANOPY_LIDAR_GROUND",
    "CANOPY_LIDAR_FILE_YEARS",
    "CANOPY_ACQUISITION_DATETIME",
    "CANOPY_VERSION",
)
"""Required instead, where heights were measured by lidar and no model was involved."""
UNIT = "m"
BLOCKS_TAG = "CANOPY_BLOCKS"
"""Number of full-resolution blocks with data, in a file from which the others are left out."""
Member = tuple[Path, int, int]
"""A committed tile, and the row and column of its first pixel in the map."""
CACHE_BYTES = 64 * 2**20
OPEN_TILES = 32

# Predictor 2 on the float bits: 12 % larger than predictor 3 and as lossless, but it reads twice as fast, and
# `assemble` reads every tile twice.
_TILE_OPTIONS = {"compress": "ZSTD", "zstd_level": 1, "predictor": 2, "bigtiff": "IF_SAFER"}
RASTER_ERRORS = (OSError, RasterioError, CPLE_BaseError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Block:
    """One block of a raster, of all bands."""

    level: int
    """0 is full resolution, n the n-th overview."""
    row_off: int
    """First row, in pixels of the level."""
    col_off: int
    """First column, in pixels of the level."""
    values: NDArray[Any]
    """(K, h, w) in the raster's own dtype."""


def write_tile(path: Path, heights: NDArray[np.float32], geobox: GeoBox, plan: str) -> None:
    """Write and commit one tile: after a crash at any moment the tile is whole and marked, or not committed.

    Temporary file in the same folder, fsync, every block read back, rename, then the sidecar `<path>.json`
    the same way, last, as the commit marker.

    Args:
        path: Final name of the GeoTIFF.
        heights: (K, H, W) float32, metres above ground, NaN where unknown.
        geobox: Georeference of the (H, W) pixels.
        plan: Identity of the run; a resume keeps the tiles of its own plan only.

    Raises:
        RasterError: The heights do not fit the geobox or the profile.
        OutputError: The tile cannot be written, or reads back differently. Its final name is left empty.
    """
    _require_heights(path, heights, geobox)
    crs = _wkt(geobox)
    draft = draft_of(path)
    with removed_on_error(draft, path), _reported(path):
        _write_geotiff(draft, heights, crs, geobox.affine)
        sync(draft)
        _require_same_heights(draft, heights)
        marker = {"plan": plan, "sha256": file_sha256(draft), "bytes": draft.stat().st_size}
        marker["valid_px"] = int(np.count_nonzero(~np.isnan(heights[0])))
        rename(draft, path)
        write_json(_sidecar(path), marker)


def tile_is_committed(path: Path, plan: str) -> bool:
    """Return whether the tile on disk is the one that a run of this plan committed, down to the last bit."""
    try:
        marker = json.loads(_sidecar(path).read_text("utf-8"))
        return isinstance(marker, dict) and (marker["plan"], marker["sha256"], marker["bytes"]) == (
            plan,
            file_sha256(path),
            path.stat().st_size,
        )
    except (OSError, ValueError, KeyError):
        return False


def valid_pixels(path: Path) -> int:
    """Return how many pixels of a committed tile have a height; read from its marker."""
    return int(json.loads(_sidecar(path).read_text("utf-8"))["valid_px"])


def assemble(
    tiles: Sequence[Member],
    out: Path,
    geobox: GeoBox,
    bands: Sequence[str],
    tags: Mapping[str, str],
    units: Sequence[str] | None = None,
    sparse: bool = False,
    planes: int = 0,
) -> None:
    """Assemble committed tiles into one Cloud-Optimized GeoTIFF. Memory does not grow with the map.

    A file of this function is synced but not verified: `validate` it under a temporary name, then rename it.

    Args:
        tiles: (path, row_off, col_off) of each tile, offsets in pixels of `geobox`. Elsewhere the map is NaN.
        out: Name to write, replaced if it exists.
        geobox: Georeference of the map.
        bands: Band descriptions, one for each band of the tiles.
        tags: Metadata of the map, `REQUIRED_TAGS` or `LIDAR_TAGS` among them.
        units: Unit of each band; metres if None.
        sparse: Whether blocks without one known cell are left out of the file, so that areas far apart do not cost
            the area between them. The tag `BLOCKS_TAG` then records how many full-resolution blocks there are.
        planes: Bands of the tiles behind those of the map, which it does not get.

    Raises:
        RasterError: A tile is missing, unreadable, or does not lie where its offsets say.
        OutputError: The map cannot be written. Nothing stays under `out`.
    """
    if sparse:
        blocks = _blocks_with_data(tiles, len(bands))
        tags = {**tags, BLOCKS_TAG: str(len(blocks))}
    else:
        blocks = all_blocks((geobox.height, geobox.width))
    described = dict(zip(bands, units or [UNIT] * len(bands), strict=True))
    source = _mosaic_vrt(tiles, geobox, described, tags, planes)
    header_source = _mosaic_vrt([], geobox[:BLOCK_PX, :BLOCK_PX], described, tags, planes)
    need_bytes = sum(path.stat().st_size for path, _, _ in tiles)
    with removed_on_error(out, Path(f"{out}.ovr.tmp")), _reported(out, need_bytes):
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_MAX_DATASET_POOL_SIZE=OPEN_TILES):
            write_cog(source, header_source, out, blocks)
        sync(out)
        sync(out.parent)


def read_every_block(path: Path) -> Iterator[Block]:
    """Read all blocks of all bands and overviews, one at a time.

    Raises:
        RasterError: A block was never written or cannot be decoded; the message names its level and position.
    """
    with _readable(path, "the header"), rasterio.open(path) as src:
        level_count = 1 + len(src.overviews(1))
    for level in range(level_count):
        yield from _read_level(path, level)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` has either its old bytes or all of the new ones.

    Raises:
        OutputError: The file cannot be written; `path` is as it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    draft = draft_of(path)
    with removed_on_error(draft), _reported(path):
        draft.write_text(text, "utf-8")
        sync(draft)
        rename(draft, path)


def _blocks_with_data(tiles: Sequence[Member], bands: int) -> set[tuple[int, int]]:
    """Return row and column of the map's full-resolution blocks that have a known cell."""
    blocks: set[tuple[int, int]] = set()
    for path, row_off, col_off in tiles:
        with _readable(path, "its cells"), rasterio.open(path) as src:
            valid = ~np.isnan(src.read(list(range(1, bands + 1)))).all(axis=0)
        # A tile may begin anywhere in the map's blocks: it is cut where a block of the map begins.
        row_cuts, col_cuts = _cuts(row_off, valid.shape[0]), _cuts(col_off, valid.shape[1])
        has_data = np.logical_or.reduceat(np.logical_or.reduceat(valid, row_cuts, axis=0), col_cuts, axis=1)
        rows, cols = np.nonzero(has_data)
        blocks |= {
            ((row_off + row_cuts[r]) // BLOCK_PX, (col_off + col_cuts[c]) // BLOCK_PX)
            for r, c in zip(rows, cols, strict=True)
        }
    return blocks


def _cuts(offset: int, length: int) -> list[int]:
    """Return where blocks of the map begin along a tile's axis, the tile's own beginning included."""
    return [0, *range(BLOCK_PX - offset % BLOCK_PX, length, BLOCK_PX)]


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


@contextlib.contextmanager
def _reported(path: Path, need_bytes: int = BLOCK_PX**2) -> Iterator[None]:
    """Turn what goes wrong while writing into one line about the file that the caller asked for.

    Belongs inside `removed_on_error`: a disk is full only until the draft is gone.
    """
    try:
        yield
    except OutputError:
        raise
    except (*RASTER_ERRORS, RasterError) as error:
        raise OutputError(f"cannot write {path}: {_cause(error, path.parent, need_bytes)}") from error


def _cause(error: BaseException, folder: Path, need_bytes: int) -> str:
    if _is_disk_full(error, folder, need_bytes):
        return f"disk full; free some space in {folder} and run again"
    return f"{one_line(error)}; check that {folder} exists, is writable and has room, and run again"


def _is_disk_full(error: BaseException, folder: Path, need_bytes: int) -> bool:
    if getattr(error, "errno", None) in _DISK_FULL or "No space left" in str(error):
        return True
    with contextlib.suppress(OSError):
        # GDAL seldom passes on why the system refused.
        return shutil.disk_usage(folder).free < need_bytes
    return False


def _require_heights(path: Path, heights: NDArray[Any], geobox: GeoBox) -> None:
    height, width = geobox.shape
    if heights.dtype != np.float32 or heights.ndim != 3 or heights.shape[1:] != (height, width):
        raise RasterError(
            f"{path}: heights are {heights.dtype} {heights.shape}, expected float32 (K, {height}, {width}); "
            "pass heights that fill the geobox"
        )


def _write_geotiff(path: Path, heights: NDArray[np.float32], crs: str, transform: Affine) -> None:
    count, height, width = heights.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="float32",
        count=count,
        height=height,
        width=width,
        crs=crs,
        transform=transform,
        nodata=math.nan,
        tiled=True,
        blockxsize=BLOCK_PX,
        blockysize=BLOCK_PX,
        interleave="band",
        **_TILE_OPTIONS,
    ) as out:
        out.write(heights)


def _require_same_heights(path: Path, heights: NDArray[np.float32]) -> None:
    for block in read_every_block(path):
        rows = slice(block.row_off, block.row_off + block.values.shape[1])
        cols = slice(block.col_off, block.col_off + block.values.shape[2])
        if not np.array_equal(block.values, heights[:, rows, cols], equal_nan=True):
            raise RasterError(f"the block at row {block.row_off}, column {block.col_off} differs from what was written")


def _wkt(geobox: GeoBox) -> str:
    if geobox.crs is None:
        raise RasterError("found a geobox without CRS, expected one; give the raster its CRS")
    return geobox.crs.to_wkt()


def _mosaic_vrt(
    tiles: Sequence[Member], geobox: GeoBox, bands: Mapping[str, str], tags: Mapping[str, str], planes: int
) -> str:
    """The map as a virtual raster, XML that GDAL reads tile by tile; `bands` are names and units."""
    height, width = geobox.shape
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS").text = _wkt(geobox)
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, geobox.affine.to_gdal()))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in sorted(tags.items()):
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    for number, (name, unit) in enumerate(bands.items(), start=1):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Float32", band=str(number))
        ElementTree.SubElement(band, "Description").text = name
        ElementTree.SubElement(band, "UnitType").text = unit
        ElementTree.SubElement(band, "NoDataValue").text = "nan"
        ElementTree.SubElement(band, "ColorInterp").text = "Gray" if number == 1 else "Undefined"
    for path, row_off, col_off in tiles:
        _add_tile(root, path, row_off, col_off, geobox, planes)
    return ElementTree.tostring(root, encoding="unicode")


def _add_tile(root: ElementTree.Element, path: Path, row_off: int, col_off: int, geobox: GeoBox, planes: int) -> None:
    """Add one tile to each band, after checking it: GDAL reads a missing member as nodata, without a word."""
    bands = root.findall("VRTRasterBand")
    with _readable(path, "the header"), rasterio.open(path) as src:
        size: dict[str, Any] = {"xSize": str(src.width), "ySize": str(src.height)}
        _require_member(path, src, len(bands) + planes, _corner(geobox, row_off, col_off))
    rows, cols = (row_off, row_off + src.height), (col_off, col_off + src.width)
    if min(rows[0], cols[0]) < 0 or rows[1] > geobox.height or cols[1] > geobox.width:
        raise RasterError(
            f"{path}: found a tile over rows {rows[0]} to {rows[1]} and columns {cols[0]} to {cols[1]}, "
            f"expected it inside the map of {geobox.height} x {geobox.width} px; correct its offsets"
        )
    for number, band in enumerate(bands, start=1):
        source = ElementTree.SubElement(band, "SimpleSource")
        name = ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0")
        name.text = str(path.resolve())
        ElementTree.SubElement(source, "SourceBand").text = str(number)
        ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", **size)
        ElementTree.SubElement(source, "DstRect", xOff=str(col_off), yOff=str(row_off), **size)


def _corner(geobox: GeoBox, row_off: int, col_off: int) -> tuple[float, float]:
    t = geobox.affine
    return t.c + t.a * col_off + t.b * row_off, t.f + t.d * col_off + t.e * row_off


def _require_member(path: Path, src: Any, band_count: int, corner: tuple[float, float]) -> None:
    if src.count != band_count or src.dtypes[0] != "float32":
        raise RasterError(
            f"{path}: found {src.count} band(s) of {src.dtypes[0]}, expected {band_count} of float32; "
            "delete the tile and run again"
        )
    shift_px = math.dist(corner, (src.transform.c, src.transform.f)) / abs(src.transform.a)
    if shift_px > 0.01:
        raise RasterError(
            f"{path}: found the tile {shift_px:.2f} px away from its place in the map, expected it there; "
            "delete the tile and run again"
        )


@contextlib.contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except CanopyError:
        raise
    except RASTER_ERRORS as error:
        raise RasterError(
            f"{path}: cannot read {what} ({one_line(error)}), expected a whole GeoTIFF; make the file again"
        ) from error


def _read_level(path: Path, level: int) -> Iterator[Block]:
    at_level = {"overview_level": level - 1} if level else {}
    with rasterio.open(path) as whole, rasterio.open(path, **at_level) as src:
        is_sparse = BLOCKS_TAG in whole.tags()
        written = 0
        for (block_row, block_col), window in src.block_windows(1):
            where = f"the block at row {window.row_off}, column {window.col_off} of {level_name(level)}"
            if not _is_written(whole, level, block_row, block_col):
                if is_sparse and not (level and _has_child(whole, level, block_row, block_col)):
                    continue
                raise RasterError(f"{path}: {where} was never written, expected data; make the file again")
            written += 1
            with _readable(path, where):
                values = src.read(window=window)
            yield Block(level, window.row_off, window.col_off, values)
        if is_sparse and not level and str(written) != whole.tags()[BLOCKS_TAG]:
            raise RasterError(
                f"{path}: {written} blocks were written, expected {whole.tags()[BLOCKS_TAG]}; make the file again"
            )


def may_have_data(src: Any, window: Window) -> bool:
    """Return whether a window of an open height map touches a block that is stored; others read as nodata."""
    if BLOCKS_TAG not in src.tags():
        return True
    block_height, block_width = src.block_shapes[0]
    rows = range(int(window.row_off) // block_height, -(-int(window.row_off + window.height) // block_height))
    cols = range(int(window.col_off) // block_width, -(-int(window.col_off + window.width) // block_width))
    return any(_is_written(src, 0, row, col) for row in rows for col in cols)


def _has_child(src: Any, level: int, block_row: int, block_col: int) -> bool:
    """Return whether one of the four blocks below an overview's block has data: their average is then known."""
    rows, cols = (-(-size // 2 ** (level - 1)) for size in src.shape)
    below = [(2 * block_row + down, 2 * block_col + right) for down in (0, 1) for right in (0, 1)]
    inside = [(row, col) for row, col in below if row * BLOCK_PX < rows and col * BLOCK_PX < cols]
    return any(_is_written(src, level - 1, row, col) for row, col in inside)


def _is_written(src: Any, level: int, block_row: int, block_col: int) -> bool:
    at_level = {"ovr": level - 1} if level else {}
    key = f"BLOCK_OFFSET_{block_col}_{block_row}"
    return all(src.get_tag_item(key, "TIFF", bidx=band, **at_level) for band in src.indexes)


def level_name(level: int) -> str:
    """Return how a message names a level: 0 is the full resolution, n the n-th overview."""
    return f"overview {level}" if level else "the full resolution"
