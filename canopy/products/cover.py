"""Cover: the share of ground under trees, in cells of 10 to 30 m, as a Cloud-Optimized GeoTIFF.

Cells lie on multiples of their side from the origin of the CRS, whatever the map. Cells of the map that lie in two of
them count by their share in each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from canopy.errors import ProductError
from canopy.products.reading import ProductMap, open_map
from canopy.products.work import Work, hold_work, part_name
from canopy.products.writing import RASTER, RasterSpec, provenance, publish_raster, require_suffix
from canopy.progress import Progress, Report, ignore
from tiles.heights import Heights
from tiles.style import share_qml
from tiles.windows import PixelWindow, cut_windows

TILE_PX = 2048
"""Side of what is read at once, in cells of the map."""
BANDS = ("cover", "cover_p05", "cover_p95")
MIN_KNOWN = 0.5
"""Smallest share of a cell that is known."""


@dataclass(frozen=True)
class CoverGrid:
    """Grid of a raster of cover, and how the map lies on it."""

    side: float
    """Side of a cell in units of the CRS."""
    window: PixelWindow
    """Cells that the map touches, counted from the origin of the CRS; rows grow southward."""

    @classmethod
    def of(cls, source: ProductMap, cell_m: float) -> "CoverGrid":
        """Return the grid of a map.

        Args:
            source: Map.
            cell_m: Side of a cell, metres.

        Raises:
            ProductError: Cells are smaller than those of the map, or larger than the map.
        """
        side = cell_m / source.scale_m
        rows, cols = source.shape
        width, height = cols * source.transform.a, rows * -source.transform.e
        if not (math.isfinite(cell_m) and max(source.cell_m) * 2 <= cell_m and side <= min(width, height)):
            raise ProductError(
                f"cells of {cell_m:g} m on {source.path} of {source.gsd_m:.2f} m: at least two of those along a side "
                "expected, and none larger than the map"
            )
        left, top = source.transform.c, source.transform.f
        # A millionth of a cell is rounding of the transform, not ground.
        col0, col1 = math.floor(left / side + 1e-6), math.ceil((left + width) / side - 1e-6)
        row0, row1 = math.floor(-top / side + 1e-6), math.ceil((height - top) / side - 1e-6)
        return cls(side, PixelWindow(row0, col0, row1 - row0, col1 - col0))

    def geobox(self, source: ProductMap, window: PixelWindow) -> GeoBox:
        """Return the georeference of a window of the grid."""
        affine = Affine(self.side, 0, window.col0 * self.side, 0, -self.side, -window.row0 * self.side)
        return GeoBox(window.shape, affine, source.crs)

    def edges(self, source: ProductMap, window: PixelWindow) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the lines of a window of the grid lie on the map, in its rows and columns."""
        rows = (np.arange(window.row0, window.row1 + 1) * self.side + source.transform.f) / -source.transform.e
        cols = (np.arange(window.col0, window.col1 + 1) * self.side - source.transform.c) / source.transform.a
        return rows.astype(np.float64), cols.astype(np.float64)


def derive_cover(
    map_path: Path,
    out: Path,
    *,
    cell_m: float = 20.0,
    above_m: float = 2.0,
    error_m: float | None = None,
    overwrite: bool = False,
    report: Report = ignore,
) -> Path:
    """Map the share of ground that is higher than a threshold.

    Where the map has intervals, two more bands have the cover of the surfaces of all their lower and all their upper
    ends at once: errors that go together over a cell, the widest that the map allows.

    Args:
        map_path: Height map.
        out: GeoTIFF.
        cell_m: Side of a cell, metres.
        above_m: Height above which a cell of the map is covered, metres.
        error_m: Standard error of a cell of the map, metres, in place of its own intervals.
        overwrite: Whether the output is replaced.
        report: Called after each tile.

    Raises:
        CanopyError: The map is of no use, or the output cannot be written.
    """
    require_suffix(out, RASTER)
    if not (math.isfinite(above_m) and above_m > 0):
        raise ProductError(f"cover above {above_m:g} m: a height above 0 expected")
    with open_map(map_path, error_m=error_m) as source:
        grid = CoverGrid.of(source, cell_m)
        options = {"cell_m": cell_m, "above_m": above_m, "error_m": error_m}
        bands = BANDS if source.has_intervals else BANDS[:1]
        spec = RasterSpec("cover", f"Share of ground above {above_m:g} m", bands, ("1",) * len(bands), share_qml())
        with hold_work(out, {"product": "cover", **options}, inputs=[map_path], overwrite=overwrite) as work:

            def compute(window: PixelWindow) -> NDArray[np.float32]:
                return cover_of(source, grid, window, above_m)

            members = tile_members(source, grid, compute, work, report)
            about = provenance("cover", {"map": source}, options)
            publish_raster(work, spec, members, grid.geobox(source, grid.window), about, source)
    return out


def tile_members(
    source: ProductMap,
    grid: CoverGrid,
    compute: Callable[[PixelWindow], NDArray[np.float32]],
    work: Work,
    report: Report,
) -> list[tuple[Path, int, int]]:
    """Compute the tiles of a raster on a grid, those that are done left out.

    Args:
        source: Map.
        grid: Grid of the raster.
        compute: Returns the (K, H, W) values of a window of the grid.
        work: Folder of unfinished work.
        report: Called after each tile.

    Returns:
        File, first row and first column of each tile.
    """
    side = max(1, int(TILE_PX * -source.transform.e / grid.side))
    windows = cut_windows(grid.window.shape, side)
    members, resumed = [], 0
    for number, part in enumerate(windows, 1):
        name = part_name(part)
        if work.has_raster(name):
            resumed += 1
        else:
            window = PixelWindow(grid.window.row0 + part.row0, grid.window.col0 + part.col0, part.height, part.width)
            work.save_raster(name, compute(window), grid.geobox(source, window))
        members.append((work.raster(name), part.row0, part.col0))
        report(Progress(number, len(windows), "tiles", f"tile {number}/{len(windows)}", resumed=resumed))
    return members


def cover_of(source: ProductMap, grid: CoverGrid, window: PixelWindow, above_m: float) -> NDArray[np.float32]:
    """Return the cover of a window of the grid: (K, H, W) float32 shares, NaN where less than half is known."""
    rows, cols = grid.edges(source, window)
    row0, col0 = math.floor(rows[0]), math.floor(cols[0])
    around = PixelWindow(row0, col0, math.ceil(rows[-1]) - row0, math.ceil(cols[-1]) - col0)
    surfaces: list[Heights] = [source.read(around)]
    interval = source.read_interval(around)
    surfaces += interval if interval is not None else ()
    bands = [_share_above(heights_m, rows - row0, cols - col0, above_m) for heights_m in surfaces]
    return np.stack(bands)


def _share_above(
    heights_m: Heights, rows: NDArray[np.float64], cols: NDArray[np.float64], above_m: float
) -> NDArray[np.float32]:
    valid = ~np.isnan(heights_m)
    with np.errstate(invalid="ignore"):
        tall = heights_m > above_m
    area = np.outer(np.diff(rows), np.diff(cols))
    known_area, tall_area = block_sums(valid, rows, cols), block_sums(tall, rows, cols)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(known_area >= MIN_KNOWN * area * (1 - 1e-9), tall_area / known_area, np.nan)
    # Sums of parts of cells leave a rest of rounding.
    return np.clip(share, 0, 1).astype(np.float32)


def block_sums(values: NDArray[Any], rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums of cells between lines, cells on a line by their share on each side of it.

    Args:
        values: (H, W).
        rows: (h + 1,) lines between rows, in rows of `values`.
        cols: (w + 1,) lines between columns.
    """
    return _sums_between(_sums_between(values.astype(np.float64), rows).T, cols).T


def _sums_between(values: NDArray[np.float64], lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums of rows between lines: differences of the running sum, which is linear within a row."""
    running = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    whole = np.clip(np.floor(lines).astype(np.int64), 0, len(values) - 1)
    at_lines = running[whole] + (lines - whole)[:, None] * values[whole]
    return np.diff(at_lines, axis=0)
