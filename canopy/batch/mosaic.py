"""One picture of many tiles: a virtual raster a CRS, and low-zoom layers made of the tiles' blocks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, calculate_default_transform, reproject

from canopy.batch.zones import BLOCK_PX
from tiles.grid import Lattice
from tiles.planes import PLANE_TYPES, PlaneSpec
from tiles.pyramid import BLOCK_PX as COG_BLOCK_PX
from tiles.windows import PixelWindow

LAYER_SIDE = 4096
"""Most cells along a side of a low-zoom layer."""
UNKNOWN_DATE = 0
MERCATOR = "EPSG:3857"
_BLOCK_SIZE = f'blockXSize="{COG_BLOCK_PX}" blockYSize="{COG_BLOCK_PX}"'


@dataclass(frozen=True)
class MosaicMember:
    """A tile of a mosaic."""

    href: str
    """Its file, relative to the mosaic's folder."""
    window: PixelWindow
    """Its pixels on the lattice."""


@dataclass(frozen=True)
class Blocks:
    """Sums of a tile's heights over squares of the lattice, and its date."""

    sum_m: NDArray[np.float64]
    """(rows, columns) sum of known heights, metres."""
    count: NDArray[np.int32]
    """(rows, columns) number of known heights."""
    first: tuple[int, int]
    """Row and column of the first square."""
    date: int
    """Last day of acquisition, YYYYMMDD; 0 where unknown."""


@dataclass(frozen=True)
class LowZoom:
    """Low-zoom layers on one grid."""

    height_m: NDArray[np.float32]
    """(H, W) mean height, NaN where unknown."""
    coverage: NDArray[np.uint8]
    """(H, W) share of the cell with a height, per cent, 1 at least where there is one."""
    date: NDArray[np.int32]
    """(H, W) last day of acquisition, YYYYMMDD; 0 where unknown."""
    crs: Any
    """CRS of the grid."""
    transform: Affine
    """(Column, row) to coordinates."""


def mosaic_vrt(
    lattice: Lattice, whole: PixelWindow, members: Iterable[MosaicMember], bands: Sequence[str], unit: str = "m"
) -> str:
    """Return a virtual raster over tiles, with names relative to its folder, that GDAL 3.6 opens.

    The sizes of members are written out, so that opening a mosaic of 200,000 tiles opens none of them.

    Args:
        lattice: Lattice of the tiles.
        whole: Pixels of the mosaic; NaN where no member is.
        members: Tiles.
        bands: Names of the bands.
        unit: Unit of the bands.
    """
    parts = [
        _Band(band, "Float32", unit, "nan", "Gray" if number == 1 else "Undefined")
        for number, band in enumerate(bands, 1)
    ]
    return _vrt(lattice, whole, list(members), parts)


def plane_vrt(lattice: Lattice, whole: PixelWindow, members: Iterable[MosaicMember], spec: PlaneSpec) -> str:
    """Return a virtual raster over what tiles say besides heights, with the names of its categories.

    Args:
        lattice: Lattice of the tiles.
        whole: Pixels of the mosaic; 0 where no member is.
        members: Tiles.
        spec: What the values are.
    """
    nodata = "" if spec.nodata is None else str(spec.nodata)
    band = _Band(spec.band, PLANE_TYPES[spec.dtype], spec.unit, nodata, "Gray", spec.categories)
    return _vrt(lattice, whole, list(members), [band])


@dataclass(frozen=True)
class _Band:
    """A band of a virtual raster."""

    name: str
    kind: str
    """GDAL's name of its type."""
    unit: str
    nodata: str
    """Value that means unknown; empty for none."""
    colour: str
    categories: tuple[str, ...] = ()


def _vrt(lattice: Lattice, whole: PixelWindow, members: Sequence[MosaicMember], bands: Sequence[_Band]) -> str:
    transform = ", ".join(repr(value) for value in lattice.geobox(whole).affine.to_gdal())
    lines = [
        f'<VRTDataset rasterXSize="{whole.width}" rasterYSize="{whole.height}">',
        f"  <SRS>{_escaped(lattice.crs.to_wkt())}</SRS>",
        f"  <GeoTransform>{transform}</GeoTransform>",
    ]
    for number, band in enumerate(bands, 1):
        categories = "".join(f"<Category>{_escaped(name)}</Category>" for name in band.categories)
        lines += [
            f'  <VRTRasterBand dataType="{band.kind}" band="{number}" {_BLOCK_SIZE}>',
            f"    <Description>{_escaped(band.name)}</Description>",
            *([f"    <UnitType>{_escaped(band.unit)}</UnitType>"] if band.unit else []),
            *([f"    <NoDataValue>{band.nodata}</NoDataValue>"] if band.nodata else []),
            f"    <ColorInterp>{band.colour}</ColorInterp>",
            *([f"    <CategoryNames>{categories}</CategoryNames>"] if categories else []),
            *(_source(member, number, whole, band.kind) for member in members),
            "  </VRTRasterBand>",
        ]
    return "\n".join([*lines, "</VRTDataset>", ""])


def low_zoom(lattice: Lattice, whole: PixelWindow, tiles: Iterable[Blocks]) -> LowZoom:
    """Return the low-zoom layers of the tiles of one lattice; memory does not grow with their number.

    Args:
        lattice: Lattice of the tiles.
        whole: Pixels of the mosaic.
        tiles: Blocks of each tile.
    """
    row0, col0 = whole.row0 // BLOCK_PX, whole.col0 // BLOCK_PX
    rows, cols = -(-whole.row1 // BLOCK_PX) - row0, -(-whole.col1 // BLOCK_PX) - col0
    # Cells are squares of blocks, a power of two along a side.
    factor = 1 << max(0, math.ceil(math.log2(max(rows, cols) / LAYER_SIDE)))
    shape = (row0 + rows - 1) // factor - row0 // factor + 1, (col0 + cols - 1) // factor - col0 // factor + 1
    sums, counts, dates = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    for blocks in tiles:
        at_rows = (blocks.first[0] + np.arange(blocks.count.shape[0])) // factor - row0 // factor
        at_cols = (blocks.first[1] + np.arange(blocks.count.shape[1])) // factor - col0 // factor
        index = np.ix_(at_rows, at_cols)
        np.add.at(sums, index, blocks.sum_m)
        np.add.at(counts, index, blocks.count)
        np.maximum.at(dates, index, np.where(blocks.count > 0, blocks.date, UNKNOWN_DATE).astype(np.int32))
    cell_px = BLOCK_PX * factor
    with np.errstate(invalid="ignore", divide="ignore"):
        heights = np.where(counts > 0, sums / counts, np.nan).astype(np.float32)
    share = np.ceil(100 * counts / cell_px**2).astype(np.uint8)
    res = lattice.resolution * cell_px
    transform = Affine(res, 0, (col0 // factor) * res, 0, -res, -(row0 // factor) * res)
    return LowZoom(heights, share, dates, lattice.crs.to_wkt(), transform)


def joined(layers: Sequence[LowZoom]) -> LowZoom:
    """Return layers of several CRSs as one, in web mercator; those of one CRS stay as they are."""
    if len(layers) == 1:
        return layers[0]
    frames = [
        calculate_default_transform(one.crs, MERCATOR, *one.coverage.shape[::-1], *_bounds(one)) for one in layers
    ]
    res = max(frame[0].a for frame in frames)
    corners = [array_bounds(frame[2], frame[1], frame[0]) for frame in frames]
    west, south = min(c[0] for c in corners), min(c[1] for c in corners)
    east, north = max(c[2] for c in corners), max(c[3] for c in corners)
    res = max(res, (east - west) / LAYER_SIDE, (north - south) / LAYER_SIDE)
    shape = max(1, math.ceil((north - south) / res)), max(1, math.ceil((east - west) / res))
    transform = Affine(res, 0, west, 0, -res, north)
    merged = LowZoom(
        np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.int32), MERCATOR, transform
    )
    for one in layers:
        heights = _moved(one, one.height_m, transform, shape, Resampling.average, np.nan)
        coverage = _moved(one, one.coverage.astype(np.float32), transform, shape, Resampling.average, np.nan)
        dates = _moved(one, one.date, transform, shape, Resampling.nearest, UNKNOWN_DATE)
        free = np.isnan(merged.height_m) & ~np.isnan(heights)
        merged.height_m[free] = heights[free]
        merged.coverage[free] = np.ceil(np.nan_to_num(coverage[free])).astype(np.uint8)
        merged.date[free] = dates[free]
    return merged


def write_layer(path: Path, values: NDArray[Any], layer: LowZoom, tags: dict[str, str], **profile: Any) -> None:
    """Write one low-zoom layer as a Cloud-Optimized GeoTIFF.

    Args:
        path: File to write.
        values: (H, W) cells.
        layer: Grid of the cells.
        tags: Tags of the file.
        profile: Further options of the format, such as the nodata value.
    """
    with rasterio.open(
        path, "w", driver="COG", width=values.shape[1], height=values.shape[0], count=1, dtype=values.dtype,
        crs=layer.crs, transform=layer.transform, compress="ZSTD", blocksize=COG_BLOCK_PX, **profile,
    ) as out:  # fmt: skip
        out.write(values, 1)
        out.update_tags(**tags)


def _moved(
    layer: LowZoom, values: NDArray[Any], transform: Affine, shape: tuple[int, int], how: Resampling, nodata: float
) -> NDArray[Any]:
    out = np.full(shape, nodata, values.dtype)
    reproject(
        values, out, src_transform=layer.transform, src_crs=layer.crs, dst_transform=transform, dst_crs=MERCATOR,
        resampling=how, src_nodata=nodata, dst_nodata=nodata,
    )  # fmt: skip
    return out


def _bounds(layer: LowZoom) -> tuple[float, float, float, float]:
    bounds: tuple[float, float, float, float] = array_bounds(*layer.coverage.shape, layer.transform)
    return bounds


def _source(member: MosaicMember, band: int, whole: PixelWindow, kind: str) -> str:
    window = member.window
    size = f'xSize="{window.width}" ySize="{window.height}"'
    return (
        f'    <SimpleSource><SourceFilename relativeToVRT="1">{_escaped(member.href)}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" DataType="{kind}" '
        f'BlockXSize="{COG_BLOCK_PX}" BlockYSize="{COG_BLOCK_PX}"/>'
        f'<SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{window.col0 - whole.col0}" yOff="{window.row0 - whole.row0}" {size}/></SimpleSource>'
    )


def _escaped(text: str) -> str:
    return quoteattr(text)[1:-1]
