"""Validation of height maps: what breaks the height profile, read from every block of the file."""

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from tiles.cog import (
    BANDS,
    CACHE_BYTES,
    LIDAR_TAGS,
    RASTER_ERRORS,
    REQUIRED_TAGS,
    UNCERTAINTY_BANDS,
    UNIT,
    Block,
    level_name,
    read_every_block,
)
from tiles.errors import RasterError, one_line
from tiles.files import file_sha256
from tiles.pyramid import BLOCK_PX

PLAUSIBLE_M = (-1.0, 150.0)


def validate(path: Path) -> tuple[str, ...]:
    """List what breaks the height profile in a map; nothing, when the map is valid.

    Reads every block of every band and overview, because a truncated GeoTIFF opens without complaint. Checks
    the STAC item `<stem>.json` against the file when there is one. Memory does not grow with the map.
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as src:
                problems = [*_band_problems(src), *_grid_problems(src), *_tag_problems(src)]
            problems += _layout_problems(path)
        except RASTER_ERRORS as error:
            return (f"cannot be opened as a GeoTIFF ({one_line(error)})",)
        return (*problems, *_block_problems(path), *_item_problems(path))


def _band_problems(src: Any) -> Iterator[str]:
    if tuple(src.descriptions) not in (BANDS, UNCERTAINTY_BANDS):
        yield f"band descriptions are {src.descriptions}, expected {BANDS} or {UNCERTAINTY_BANDS}"
    bands = zip(src.indexes, src.dtypes, src.nodatavals, src.units, strict=True)
    for number, dtype, nodata, unit in bands:
        if dtype != "float32":
            yield f"band {number} is {dtype}, expected float32"
        if nodata is None or not math.isnan(nodata):
            yield f"nodata of band {number} is {nodata}, expected NaN"
        if unit != UNIT:
            yield f"unit of band {number} is {unit!r}, expected {UNIT!r}"


def _grid_problems(src: Any) -> Iterator[str]:
    if not src.crs:
        yield "CRS is missing, expected one"
    t = src.transform
    if t.b or t.d or t.a <= 0 or t.e >= 0 or not 0.5 <= t.a / -t.e <= 2:
        yield f"transform is {tuple(t)[:6]}, expected north up with pixels at most twice as long as wide"
    if set(src.block_shapes) != {(BLOCK_PX, BLOCK_PX)}:
        yield f"blocks are {src.block_shapes[0]} px, expected {(BLOCK_PX, BLOCK_PX)}"
    if max(src.shape) > BLOCK_PX and not src.overviews(1):
        yield f"overviews are missing, expected some for {src.shape} px"


def _tag_problems(src: Any) -> Iterator[str]:
    tags = src.tags()
    for tag in LIDAR_TAGS if "CANOPY_LIDAR" in tags else REQUIRED_TAGS:
        if not tags.get(tag):
            yield f"tag {tag} is missing, expected a value"


def _layout_problems(path: Path) -> Iterator[str]:
    _, errors, cautions = cog_validate(path, strict=True, quiet=True)
    return (f"not a valid COG: {problem}" for problem in (*errors, *cautions))


def _block_problems(path: Path) -> Iterator[str]:
    """Say the first block that cannot be read, and the first with heights that no forest has."""
    implausible: str | None = None
    try:
        for block in read_every_block(path):
            implausible = implausible or _implausible(block)
    except RasterError as error:
        yield str(error)
    if implausible:
        yield implausible


def _implausible(block: Block) -> str | None:
    low_m, high_m = PLAUSIBLE_M
    # NaN compares false on both sides, infinities do not.
    outside = (block.values < low_m) | (block.values > high_m)
    if not outside.any():
        return None
    band, row, col = np.argwhere(outside)[0]
    return (
        f"height is {block.values[band, row, col]} m in band {band + 1} at row {block.row_off + row}, column "
        f"{block.col_off + col} of {level_name(block.level)}, expected {low_m} to {high_m} m or NaN"
    )


def _item_problems(path: Path) -> Iterator[str]:
    item_path = path.with_suffix(".json")
    if not item_path.exists():
        return
    try:
        item = json.loads(item_path.read_text("utf-8"))
        asset = next(a for a in item["assets"].values() if Path(unquote(a["href"])).name == path.name)
        recorded = (asset["file:size"], asset["file:checksum"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        yield f"{item_path.name} records no size and checksum of {path.name}, expected its STAC item"
        return
    actual = (path.stat().st_size, "1220" + file_sha256(path))
    if recorded != actual:
        yield f"size and checksum are {actual}, expected {recorded} of {item_path.name}"
