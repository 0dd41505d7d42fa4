"""From point clouds to a canopy height model: two passes over the returns, tables of cells in between.

The first pass leaves the lowest return and the ground of each cell, from which the terrain is computed; the second
leaves the heights above it, from which the surface is. Terrain and surface are computed in blocks with cells around
them, so that memory does not grow with the raster. What has to be decided once for all (whether the clouds are
classified, whether they contain heights already) is decided between the steps.
"""

import datetime as dt
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.crs import CRS
from scipy import ndimage

from canopy.errors import LidarError
from canopy.lidar.classes import Role, spelled, unknown_codes
from canopy.lidar.clouds import HEADER_SLACK_M, Z_UNITS_M, Cloud, Returns, open_cloud, read_returns, require_one_crs
from canopy.lidar.flights import FlightDays
from canopy.lidar.outputs import HEIGHTS, QUALITY, TERRAIN, Chm, Outputs, Rasters, pending, publish_rasters
from canopy.lidar.placement import output_crs, placed_bounds, union
from canopy.lidar.surface import COLUMNS_BYTES, HALO_M, Columns, canopy_surface
from canopy.lidar.tables import Block, Tables, blocks, slices
from canopy.lidar.terrain import (
    BLOCK_CELLS,
    FILES,
    LOWS_BYTES,
    MAX_GROUND_GAP_M,
    Lows,
    extrapolated,
    filled_ground,
    halo_cells,
    measured_ground,
)
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.cog import write_tile
from tiles.files import expand_patterns, reported
from tiles.grid import Lattice
from tiles.windows import PixelWindow

METHODS = ("auto", "classified", "smrf")
RESOLUTIONS_M = (0.2, 2.0)
MAX_CELLS = 400_000_000
CLASSIFIED_SHARE = 0.01
"""A cloud with fewer ground returns than this is not a classified one."""
SPARSE_RETURNS = 2.0
"""Fewer returns a cell leave so many cells empty that the user is warned."""
SCATTERED_SHARE = 0.5
"""A raster of which no more than this share can contain returns is much wider than the ground that was flown."""
_NORMALISED_M, _NORMALISED_SHARE = 0.1, 0.98
_SURFACE_CELLS = 1024
_TERRAIN_BYTES = 20
_CLOSED_M = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What is computed, decided before a return is read."""

    clouds: tuple[Cloud, ...]
    """Clouds, as their headers describe them."""
    target: pyproj.CRS
    """CRS of the canopy height model."""
    lattice: Lattice
    """Cells of the CRS."""
    window: PixelWindow
    """Cells that the headers reach."""
    ground: str
    """One of `METHODS`."""
    outputs: Outputs
    """Files to write."""
    report: Report
    """Called as work is done."""

    @property
    def cell_m(self) -> float:
        """Cell size, metres."""
        return self.lattice.resolution


@dataclass(frozen=True)
class _Terrain:
    """Ground under every cell."""

    window: PixelWindow
    """Cells from the first to the last row and column with a return."""
    elevation_m: NDArray[np.float64]
    """(H + 2, W + 2) elevation of the cells' centres, and of a cell more on every side."""
    gap_m: NDArray[np.float32]
    """(H, W) distance to the nearest cell with ground."""
    method: str
    """Source of the ground, as in `Chm`."""


@dataclass
class _Sums:
    """What is counted while blocks of the surface are computed."""

    cells: int = 0
    """Cells of the raster."""
    measured: int = 0
    """Cells with a height."""
    empty: int = 0
    """Cells without a return on ground that returns cover."""
    covered: int = 0
    """Cells of the ground that returns cover."""


def build_chm(
    clouds: Sequence[Path],
    out: Path,
    *,
    resolution_m: float = 1.0,
    crs: str | None = None,
    cloud_crs: str | None = None,
    z_unit: str | None = None,
    ground: str = "auto",
    ground_out: Path | None = None,
    quality: bool = False,
    overwrite: bool = False,
    report: Report = ignore,
) -> Chm:
    """Make a canopy height model of point clouds, as one mosaic on the lattice of its CRS.

    The result does not depend on how the returns are cut into files. Memory grows neither with the clouds nor, beyond
    some 15 million cells, with the raster, whose tables are then files. A run that was killed while its outputs got
    their names is finished by the same call.

    Args:
        clouds: LAS, LAZ or COPC files in one CRS, or patterns of their names.
        out: Cloud-Optimized GeoTIFF to write: float32 metres, NaN where unknown.
        resolution_m: Cell size, metres.
        crs: CRS of the output, and of clouds that record none, or none that can be right.
        cloud_crs: CRS of the clouds, whatever they record.
        z_unit: Unit of elevation, whatever the clouds record: m, ft or us-ft.
        ground: One of `METHODS`; `auto` takes the classification if there is one, else the filter `smrf`.
        ground_out: File for the terrain model, if it is wanted.
        quality: Whether to write `<stem>_quality.tif`: returns per square metre, and metres to the nearest ground cell.
        overwrite: Whether to replace existing outputs.
        report: Called as returns are read and blocks are computed.

    Raises:
        LidarError: A cloud cannot be read or placed, or has no ground.
        OutputError: An output exists or cannot be written.
    """
    clouds = _files(clouds)
    _check(clouds, resolution_m, ground, z_unit)
    outputs = Outputs(out, ground_out, quality)
    outputs.check_names(clouds)
    settings = {"resolution": resolution_m, "crs": crs, "cloud_crs": cloud_crs, "z_unit": z_unit, "ground": ground}
    # In this order: a publication that was killed is finished although its outputs exist, and nothing is created
    # before every cloud was opened.
    plan = outputs.plan(clouds, settings)
    if (published := pending(outputs, plan)) is not None:
        return published
    outputs.check_new(overwrite)
    opened = tuple(open_cloud(path, crs, cloud_crs, z_unit) for path in clouds)
    target = output_crs(require_one_crs(opened), opened[0].bounds, crs)
    lattice = Lattice(CRS(target.to_wkt()), resolution_m)
    job = _Job(opened, target, lattice, _window(opened, target, lattice), ground, outputs, report)
    with outputs.drafts(plan) as folder, reported(out):
        chm, rasters = _compute(job, folder)
        publish_rasters(rasters, chm, outputs, folder)
    return chm


def _files(clouds: Sequence[Path]) -> list[Path]:
    """Return the files, patterns replaced by those that match."""
    if len({path.resolve() for path in clouds}) < len(clouds):
        raise LidarError("a point cloud is named twice: name each once")
    files, unmatched = expand_patterns(clouds)
    if unmatched:
        raise LidarError(f"{unmatched[0]}: no file matches, expected LAS, LAZ or COPC point clouds")
    return files


def _check(clouds: Sequence[Path], resolution_m: float, ground: str, z_unit: str | None) -> None:
    """Refuse arguments that are out of range."""
    if not clouds:
        raise LidarError("found no point clouds, expected at least one LAS, LAZ or COPC file")
    if ground not in METHODS:
        raise LidarError(f"--ground {ground}: one of {', '.join(METHODS)} expected")
    if z_unit is not None and z_unit not in Z_UNITS_M:
        raise LidarError(f"--z-unit {z_unit}: one of {', '.join(Z_UNITS_M)} expected")
    if not RESOLUTIONS_M[0] <= resolution_m <= RESOLUTIONS_M[1]:
        raise LidarError(f"--resolution {resolution_m:g}: {RESOLUTIONS_M[0]:g} to {RESOLUTIONS_M[1]:g} m expected")


def _window(opened: Sequence[Cloud], target: pyproj.CRS, lattice: Lattice) -> PixelWindow:
    """Return the cells that the headers of the clouds reach, and some around them: headers may be a bit short."""
    bounds = union([placed_bounds(cloud.bounds, cloud.crs, target) for cloud in opened], target)
    window = lattice.window(bounds)
    if window.height * window.width > MAX_CELLS:
        raise LidarError(
            f"the clouds span {window.width} x {window.height} cells, at most {MAX_CELLS:,} expected: a stray "
            "coordinate in a header, or too large an area for one raster; give fewer files"
        )
    return window.pad(math.ceil(HEADER_SLACK_M / lattice.resolution))


def _compute(job: _Job, folder: Path) -> tuple[Chm, Rasters]:
    """Compute a canopy height model and its side products, as tiles in a folder."""
    count_read = _counter(job)
    wide = Tables(folder, job.window.shape, LOWS_BYTES)
    # Every return is read twice: terrain needs all of them before the first height can be measured.
    lows = Lows.empty(wide, job.cell_m)
    left_out = np.zeros(256, np.int64)
    days: list[dt.date] = []
    flights = FlightDays([cloud.path for cloud in job.clouds if cloud.layered])
    try:
        for returns, cell in _cells(job, job.window):
            for part in wide.parts(cell):
                lows.add(cell[part], returns.taken(part))
            left_out += returns.left_out
            days.extend(returns.flown or ())
            count_read(returns.read_count)
        days.extend(day for span in flights.result() for day in span)
    finally:
        flights.stop()
    if unknown := unknown_codes(left_out.tolist()):
        _LOG.warning("left out, for they are no canopy: %s; give vegetation the class 5", spelled(unknown))
    window, point_count, classified = _census(job, lows, wide, left_out)
    # The tables of the first pass go as soon as there is a terrain, before those of the second fill the disk.
    tables = Tables(folder, window.shape, COLUMNS_BYTES + _TERRAIN_BYTES)
    inside = slices(PixelWindow(window.row0 - job.window.row0, window.col0 - job.window.col0, *window.shape))
    lows = lows.within(inside)
    terrain = _terrain(job, lows, window, classified, wide, tables)
    count = lows.count
    del lows
    wide.remove(*FILES)
    columns = Columns.empty(tables)
    for returns, cell in _cells(job, window):
        for part in tables.parts(cell):
            columns.add(cell[part], _heights_mm(returns.taken(part), terrain, job.cell_m))
        count_read(returns.read_count)
    tiles, sums = _surface(job, folder, columns, count, terrain, (wide, tables))
    density = point_count / (sums.covered * job.cell_m**2)
    _warn_if_sparse(density, job.cell_m, sums)
    chm = Chm(
        path=job.outputs.path,
        point_count=point_count,
        density=density,
        method=terrain.method,
        acquisition=(min(days), max(days)) if days else None,
        file_years=tuple(sorted({cloud.file_year for cloud in job.clouds if cloud.file_year})),
        known_share=sums.measured / sums.cells,
    )
    return chm, Rasters(job.lattice.geobox(window), tiles, _tags(chm, job.clouds))


def _counter(job: _Job) -> Callable[[int], None]:
    """Return a function that adds to the returns read and reports them."""
    done, total = 0, 2 * sum(cloud.point_count for cloud in job.clouds)

    def count_read(count: int) -> None:
        nonlocal done
        done += count
        job.report(Progress(done / 1e6, total / 1e6, "M returns", f"{done / total:.0%} of returns read"))

    return count_read


def _cells(job: _Job, window: PixelWindow) -> Iterator[tuple[Returns, NDArray[np.int64]]]:
    """Yield the returns of all clouds with the index of each one's cell in the window."""
    for cloud in job.clouds:
        for returns in read_returns(cloud, job.target):
            col = np.floor(returns.x / job.cell_m).astype(np.int64) - window.col0
            row = np.floor(-returns.y / job.cell_m).astype(np.int64) - window.row0
            # The far edge of the last row and column belongs to them.
            col, row = np.clip(col, 0, window.width - 1), np.clip(row, 0, window.height - 1)
            yield returns, row * window.width + col


def _census(job: _Job, lows: Lows, tables: Tables, left_out: NDArray[np.int64]) -> tuple[PixelWindow, int, bool]:
    """Return the smallest window that contains all returns, their number, and whether ground is classified."""
    rows, cols = np.zeros(job.window.height, bool), np.zeros(job.window.width, bool)
    total = ground = 0
    for block in blocks(job.window.shape, BLOCK_CELLS, 0):
        count = block.of(lows.count)
        down, right = slices(block.core)
        rows[down] |= count.any(axis=1)
        cols[right] |= count.any(axis=0)
        total += int(count.sum(dtype=np.int64))
        ground += int(block.of(lows.ground_count).sum(dtype=np.int64))
        tables.release()
    if not total:
        codes = {code: int(count) for code, count in enumerate(left_out) if count}
        what = f": {spelled(codes)}" if codes else ""
        raise LidarError(f"the clouds contain nothing but noise and other returns that count nowhere{what}")
    (row0, row1), (col0, col1) = ((int(np.argmax(x)), len(x) - int(np.argmax(x[::-1]))) for x in (rows, cols))
    window = PixelWindow(job.window.row0 + row0, job.window.col0 + col0, row1 - row0, col1 - col0)
    _warn_if_scattered(rows[row0:row1], cols[col0:col1], job.cell_m)
    return window, total, job.ground == "classified" or (job.ground == "auto" and ground > CLASSIFIED_SHARE * total)


def _warn_if_scattered(rows: NDArray[np.bool_], cols: NDArray[np.bool_], cell_m: float) -> None:
    """Say that the raster is wide and nearly empty; rows and columns with a return do not depend on the density."""
    share = float(rows.mean() * cols.mean())
    if share > SCATTERED_SHARE:
        return
    _LOG.warning(
        "scattered clouds: the raster spans %s x %s m, and returns lie in at most %.2g %% of it: a stray return, or "
        "files far apart? give a stray one the class 7 (noise), and map files that lie apart by themselves",
        f"{len(cols) * cell_m:,.0f}", f"{len(rows) * cell_m:,.0f}", 100 * share,
    )  # fmt: skip


def _terrain(job: _Job, lows: Lows, window: PixelWindow, classified: bool, wide: Tables, tables: Tables) -> _Terrain:
    """Return the terrain of a window.

    Args:
        job: What is computed.
        lows: Tables of the first pass, of the window.
        window: Cells from the first to the last row and column with a return.
        classified: Whether ground is what the clouds classify as ground.
        wide: Tables that `lows` looks at.
        tables: Tables of the window.
    """
    measured_m = tables.new("measured", np.float64, np.nan)
    cells = level = 0  # with ground, and with ground at height 0
    parts = list(blocks(window.shape, BLOCK_CELLS, halo_cells(job.cell_m)))
    for number, block in enumerate(parts, 1):
        part_m = measured_ground(lows, block, classified)
        measured_m[slices(block.core)] = part_m
        cells += int(np.count_nonzero(~np.isnan(part_m)))
        level += int(np.count_nonzero(np.abs(part_m) <= _NORMALISED_M))
        wide.release()
        tables.release()
        _report_block(job, number, len(parts), "ground")
    if not cells:
        raise LidarError("found no ground returns: try --ground smrf")
    # Ground at height 0 nearly everywhere: the clouds contain heights above it, and no terrain is taken off again.
    normalised = level >= _NORMALISED_SHARE * cells
    elevation_m = tables.new("elevation", np.float64, 0, (window.height + 2, window.width + 2))
    gap_m = tables.new("gap", np.float32, np.inf)
    for number, block in enumerate(parts, 1):
        filled_m, distance_m = filled_ground(measured_m, block, job.cell_m)
        gap_m[slices(block.core)] = distance_m
        if not normalised:
            elevation_m[slices(_moved(block.core))] = filled_m
        tables.release()
        _report_block(job, number, len(parts), "terrain")
    extrapolated(elevation_m)
    tables.release()
    del measured_m
    tables.remove("measured")
    method = "normalised" if normalised else "classified" if classified else "smrf"
    return _Terrain(window, elevation_m, gap_m, method)


def _report_block(job: _Job, number: int, total: int, what: str) -> None:
    """Report a block, where there are several."""
    if total > 1:
        job.report(Progress(number, total, "blocks", f"{what}, block {number}/{total}"))


def _moved(window: PixelWindow) -> PixelWindow:
    """Return a window in a table that has a cell more on every side."""
    return PixelWindow(window.row0 + 1, window.col0 + 1, *window.shape)


def _heights_mm(returns: Returns, terrain: _Terrain, cell_m: float) -> NDArray[np.int32]:
    """Return the heights of returns above the terrain, 0 for surfaces without canopy."""
    row = -returns.y / cell_m - terrain.window.row0 + 0.5
    col = returns.x / cell_m - terrain.window.col0 + 0.5
    elevation_m = ndimage.map_coordinates(terrain.elevation_m, [row, col], order=1, mode="nearest")
    height_mm = np.clip(np.rint(returns.z_mm - 1000 * elevation_m), -1e9, 1e9)
    height_mm[np.isin(returns.role, (Role.BARE, Role.BARE_GROUND))] = 0
    return np.asarray(height_mm, np.int32)


def _surface(
    job: _Job,
    folder: Path,
    columns: Columns,
    count: NDArray[np.int32],
    terrain: _Terrain,
    tables: Sequence[Tables],
) -> tuple[dict[str, list[tuple[Path, int, int]]], _Sums]:
    """Write the tiles of all rasters, and return them with what was counted."""
    window, sums = terrain.window, _Sums()
    tiles: dict[str, list[tuple[Path, int, int]]] = {name: [] for name in job.outputs.rasters}
    parts = list(blocks(window.shape, _SURFACE_CELLS, math.ceil(HALO_M / job.cell_m)))
    for number, block in enumerate(parts, 1):
        around = replace(columns, **{name: block.of(getattr(columns, name)) for name in vars(columns)})
        counted = block.of(count)
        rows, cols = slices(block.core)
        far = terrain.gap_m[rows, cols] > MAX_GROUND_GAP_M
        heights_m = canopy_surface(around, counted, job.cell_m)[block.inner]
        heights_m[far] = np.nan
        layers = {HEIGHTS: [heights_m]}
        if TERRAIN in tiles:
            ground_m = terrain.elevation_m[slices(_moved(block.core))]
            layers[TERRAIN] = [np.where(far, np.nan, ground_m).astype(np.float32)]
        if QUALITY in tiles:
            density = counted[block.inner] / job.cell_m**2
            layers[QUALITY] = [density.astype(np.float32), terrain.gap_m[rows, cols]]
        geobox = job.lattice.geobox(
            PixelWindow(window.row0 + block.core.row0, window.col0 + block.core.col0, *block.core.shape)
        )
        for name, values in layers.items():
            tile = folder / f"{name}_{block.core.row0}_{block.core.col0}.tif"
            write_tile(tile, np.stack(values), geobox, plan="chm")
            tiles[name].append((tile, block.core.row0, block.core.col0))
        _count(sums, counted, heights_m, block, job.cell_m)
        for table in tables:
            table.release()
        _report_block(job, number, len(parts), "surface")
    return tiles, sums


def _count(
    sums: _Sums, counted: NDArray[np.int32], heights_m: NDArray[np.float32], block: Block, cell_m: float
) -> None:
    """Add a block to the sums; the ground that returns cover includes gaps of a few metres between them."""
    # A closing of what returns occupy: ponds stay out of the density, the gaps of a sparse cloud do not.
    square = np.ones((2 * round(_CLOSED_M / cell_m / 2) + 1,) * 2)
    occupied = counted > 0
    covered = ndimage.binary_erosion(ndimage.binary_dilation(occupied, square), square, border_value=1) | occupied
    sums.cells += heights_m.size
    sums.measured += int(np.count_nonzero(~np.isnan(heights_m)))
    sums.covered += int(np.count_nonzero(covered[block.inner]))
    sums.empty += int(np.count_nonzero((covered & ~occupied)[block.inner]))


def _warn_if_sparse(density: float, cell_m: float, sums: _Sums) -> None:
    """Say what a sparse cloud does to the result, and which cells fit it."""
    per_cell = density * cell_m**2
    if per_cell >= SPARSE_RETURNS:
        return
    fitting_m = min(RESOLUTIONS_M[1], math.ceil(2 * math.sqrt(2 * SPARSE_RETURNS / density)) / 2)
    remedy = f"; --resolution {fitting_m:g} fits better" if fitting_m > cell_m else ""
    _LOG.warning(
        "sparse clouds: %.2g returns/m2, %.2g a cell; %.0f %% of the cells have none, crowns are cut short, and few "
        "wires are recognised%s",
        density, per_cell, 100 * sums.empty / sums.covered, remedy,
    )  # fmt: skip


def _tags(chm: Chm, opened: Sequence[Cloud]) -> dict[str, str]:
    """Return the tags of all rasters."""
    days = chm.acquisition and sorted({day.isoformat() for day in chm.acquisition})
    return {
        "CANOPY_LIDAR": ", ".join(sorted(cloud.path.name for cloud in opened)),
        "CANOPY_LIDAR_POINTS": str(chm.point_count),
        "CANOPY_LIDAR_DENSITY": f"{chm.density:.2f}",
        "CANOPY_LIDAR_GROUND": chm.method,
        "CANOPY_LIDAR_FILE_YEARS": ", ".join(map(str, chm.file_years)) or "unknown",
        "CANOPY_ACQUISITION_DATETIME": "/".join(days) if days else "unknown",
        "CANOPY_VERSION": __version__,
    }
