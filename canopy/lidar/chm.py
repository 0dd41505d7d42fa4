"""From point clouds to a canopy height model: two passes over the returns, rasters in between."""

import datetime as dt
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from scipy import ndimage

from canopy.errors import LidarError, OutputError
from canopy.lidar.clouds import (
    BARE_CODES,
    GROUND_CODES,
    Cloud,
    Returns,
    open_cloud,
    read_returns,
    require_one_crs,
)
from canopy.lidar.ground import distance_to, fill_gaps, find_ground
from canopy.lidar.placement import output_crs, placed_bounds, union
from canopy.lidar.surface import Columns, canopy_surface
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.cog import BANDS, assemble, read_every_block, write_tile
from tiles.grid import Lattice
from tiles.validation import validate
from tiles.windows import PixelWindow

_Core = tuple[slice, slice]
METHODS = ("auto", "classified", "smrf")
RESOLUTIONS_M = (0.2, 2.0)
MAX_CELLS = 400_000_000
MAX_GROUND_GAP_M = 50.0
CLASSIFIED_SHARE = 0.01
"""A cloud with fewer ground returns than this is not a classified one."""
_NORMALISED_M, _NORMALISED_SHARE = 0.1, 0.98
_QUALITY_BANDS = {"return_density": "1/m2", "ground_gap": "m"}


@dataclass(frozen=True)
class Chm:
    """A canopy height model on disk."""

    path: Path
    """File."""
    point_count: int
    """Returns used, noise left out."""
    density: float
    """Returns per square metre of the cells that have any."""
    method: str
    """Source of the ground: classified, smrf, or normalised where the clouds contain heights above it."""
    acquisition: tuple[dt.date, dt.date] | None
    """First and last day of the flights; None where GPS times are no dates."""
    file_years: tuple[int, ...]
    """Years of the files."""
    known_share: float
    """Share of cells with a height."""


@dataclass(frozen=True)
class _Ground:
    """What the first pass leaves of the returns in each cell; grows in place."""

    count: NDArray[np.int32]
    """(H * W,) number of returns."""
    lowest_mm: NDArray[np.float64]
    """(H * W,) elevation of the lowest return."""
    ground_sum_mm: NDArray[np.float64]
    """(H * W,) sum of the elevations of ground returns."""
    ground_count: NDArray[np.int32]
    """(H * W,) number of ground returns."""
    east_sum_mm: NDArray[np.int32]
    """(H * W,) sum of the distances of ground returns from the cell's centre, eastward."""
    south_sum_mm: NDArray[np.int32]
    """(H * W,) sum of the distances of ground returns from the cell's centre, southward."""
    flown: list[dt.date] = field(default_factory=list)
    """Days of the flights."""

    @classmethod
    def empty(cls, cells: int) -> "_Ground":
        count, ground_count, east, south = (np.zeros(cells, np.int32) for _ in range(4))
        return cls(count, np.full(cells, np.inf), np.zeros(cells), ground_count, east, south)

    def add(self, cell: NDArray[np.int64], returns: Returns, cell_m: float) -> None:
        np.add.at(self.count, cell, 1)
        np.minimum.at(self.lowest_mm, cell, returns.z_mm)
        ground = np.isin(returns.code, GROUND_CODES)
        np.add.at(self.ground_sum_mm, cell[ground], returns.z_mm[ground])
        np.add.at(self.ground_count, cell[ground], 1)
        np.add.at(self.east_sum_mm, cell[ground], _off_centre_mm(returns.x[ground], cell_m))
        np.add.at(self.south_sum_mm, cell[ground], _off_centre_mm(-returns.y[ground], cell_m))
        self.flown.extend(returns.flown or ())


@dataclass(frozen=True)
class _Terrain:
    """Ground under every cell of a window."""

    window: PixelWindow
    """Window of the lattice."""
    elevation_m: NDArray[np.float64]
    """(H, W) elevation of the cells' centres."""
    gap_m: NDArray[np.float64]
    """(H, W) distance to the nearest cell with a ground return."""
    method: str
    """Source of the ground, as in `Chm`."""


def build_chm(
    clouds: Sequence[Path],
    out: Path,
    *,
    resolution_m: float = 1.0,
    crs: str | None = None,
    ground: str = "auto",
    ground_out: Path | None = None,
    quality: bool = False,
    overwrite: bool = False,
    report: Report = ignore,
) -> Chm:
    """Make a canopy height model of point clouds, as one mosaic on the lattice of its CRS.

    The result does not depend on how the returns are cut into files. Memory follows the raster, not the clouds.

    Args:
        clouds: LAS, LAZ or COPC files in one CRS.
        out: Cloud-Optimized GeoTIFF to write: float32 metres, NaN where unknown.
        resolution_m: Cell size, metres.
        crs: CRS of clouds that carry none, and of the output.
        ground: One of `METHODS`; `auto` takes the classification if there is one, else the filter `smrf`.
        ground_out: File for the terrain model, if it is wanted.
        quality: Whether to write `<stem>_quality.tif`: returns per square metre, and metres to the nearest ground cell.
        overwrite: Whether to replace existing outputs.
        report: Called as returns are read.

    Raises:
        LidarError: A cloud cannot be read or placed, or has no ground.
        OutputError: An output exists or cannot be written.
    """
    outputs = [out, *([ground_out] if ground_out else []), *([_quality_path(out)] if quality else [])]
    _check(clouds, outputs, resolution_m, ground, overwrite)
    opened = [open_cloud(path, crs) for path in clouds]
    target = output_crs(require_one_crs(opened), opened[0].bounds, crs)
    lattice = Lattice(CRS(target.to_wkt()), resolution_m)
    count_read = _counter(report, 2 * sum(cloud.point_count for cloud in opened))
    window = _window(opened, target, lattice)
    # Every return is read twice: terrain needs all of them before the first height can be measured.
    lows = _lows(opened, target, lattice, window, count_read)
    terrain = _terrain(lows, window, resolution_m, ground)
    columns = _columns(opened, target, lattice, terrain, count_read)
    density = lows.count.reshape(window.shape)[terrain.window.slices_in(window)] / resolution_m**2
    heights = canopy_surface(columns, terrain.window.shape, resolution_m)
    heights[terrain.gap_m > MAX_GROUND_GAP_M] = np.nan
    chm = _summary(out, opened, lows, density, terrain.method, heights)
    geobox, tags = lattice.geobox(terrain.window), _tags(chm, opened)
    if ground_out:
        elevation = np.where(terrain.gap_m > MAX_GROUND_GAP_M, np.nan, terrain.elevation_m)
        _write(ground_out, [elevation], geobox, {"ground_elevation": "m"}, tags)
    if quality:
        _write(_quality_path(out), [density, terrain.gap_m], geobox, _QUALITY_BANDS, tags)
    _write(out, [heights], geobox, {BANDS[0]: "m"}, tags)
    return chm


def _check(clouds: Sequence[Path], outputs: Sequence[Path], resolution_m: float, ground: str, overwrite: bool) -> None:
    if not clouds:
        raise LidarError("found no point clouds, expected at least one LAS, LAZ or COPC file")
    if len({path.resolve() for path in clouds}) < len(clouds):
        raise LidarError("a point cloud is named twice: name each once")
    if ground not in METHODS:
        raise LidarError(f"--ground {ground}: one of {', '.join(METHODS)} expected")
    if not RESOLUTIONS_M[0] <= resolution_m <= RESOLUTIONS_M[1]:
        raise LidarError(f"--resolution {resolution_m:g}: {RESOLUTIONS_M[0]:g} to {RESOLUTIONS_M[1]:g} m expected")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise OutputError(f"{outputs[0]} is named for two outputs: name another for each")
    for path in outputs:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: name another output or pass --overwrite")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: there is no folder {path.parent}")


def _quality_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_quality.tif")


def _counter(report: Report, total: int) -> Callable[[int], None]:
    """Return a function that adds to the returns read and reports them."""
    done = 0

    def count_read(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(done / 1e6, total / 1e6, "M returns", f"{done / total:.0%} of returns read"))

    return count_read


def _window(opened: Sequence[Cloud], target: pyproj.CRS, lattice: Lattice) -> PixelWindow:
    """Return the window of the lattice that contains the clouds."""
    bounds = union([placed_bounds(cloud.bounds, cloud.crs, target) for cloud in opened], target)
    window = lattice.window(bounds)
    if window.height * window.width > MAX_CELLS:
        raise LidarError(
            f"the clouds span {window.width} x {window.height} cells, at most {MAX_CELLS:,} expected: a stray "
            "coordinate in a header, or too large an area for one raster; give fewer files"
        )
    return window


def _cells(
    opened: Sequence[Cloud], target: pyproj.CRS, lattice: Lattice, window: PixelWindow
) -> Iterator[tuple[Returns, NDArray[np.int64]]]:
    """Yield the returns of all clouds with the index of each one's cell in the window."""
    for cloud in opened:
        for returns in read_returns(cloud, target):
            col = np.floor(returns.x / lattice.resolution).astype(np.int64) - window.col0
            row = np.floor(-returns.y / lattice.resolution).astype(np.int64) - window.row0
            # The far edge of the last row and column belongs to them.
            col, row = np.clip(col, 0, window.width - 1), np.clip(row, 0, window.height - 1)
            yield returns, row * window.width + col


def _off_centre_mm(position_m: NDArray[np.float64], cell_m: float) -> NDArray[np.int32]:
    """Return the distance beyond the centre of the cell, in whole millimetres: sums do not depend on their order."""
    return np.rint(1000 * (position_m - (np.floor(position_m / cell_m) + 0.5) * cell_m)).astype(np.int32)


def _terrain(lows: _Ground, window: PixelWindow, cell_m: float, ground: str) -> _Terrain:
    """Return the terrain under the smallest window that contains all returns."""
    count = lows.count.reshape(window.shape)
    if not count.any():
        raise LidarError("the clouds contain nothing but noise: a return of another class expected")
    rows, cols = np.flatnonzero(count.any(axis=1)), np.flatnonzero(count.any(axis=0))
    core = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    trimmed = PixelWindow(
        window.row0 + int(rows[0]), window.col0 + int(cols[0]), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
    )
    classified = ground == "classified" or (
        ground == "auto" and lows.ground_count.sum() > CLASSIFIED_SHARE * lows.count.sum()
    )
    method = "classified" if classified else "smrf"
    elevation_m = (_classified if classified else _filtered)(lows, window, core, cell_m)
    measured = ~np.isnan(elevation_m)
    if not measured.any():
        raise LidarError("found no ground returns: try --ground smrf")
    if (np.abs(elevation_m[measured]) <= _NORMALISED_M).mean() >= _NORMALISED_SHARE:
        return _Terrain(trimmed, np.zeros(trimmed.shape), distance_to(measured, cell_m), "normalised")
    return _Terrain(trimmed, fill_gaps(elevation_m), distance_to(measured, cell_m), method)


def _classified(lows: _Ground, window: PixelWindow, core: _Core, cell_m: float) -> NDArray[np.float64]:
    """Return the elevation of the centres of the cells with ground returns, NaN elsewhere.

    The mean of a cell's returns is the elevation of their mean position; the slope leads from there to the centre.
    """
    tables = lows.ground_count, lows.ground_sum_mm, lows.east_sum_mm, lows.south_sum_mm
    count, total, east, south = (table.reshape(window.shape)[core] for table in tables)
    if not count.any():
        return np.full(count.shape, np.nan)
    with np.errstate(invalid="ignore"):
        elevation_m, east_m, south_m = total / count / 1000, east / count / 1000, south / count / 1000
    if min(count.shape) < 2:
        return np.asarray(elevation_m)
    southward, eastward = np.gradient(fill_gaps(elevation_m), cell_m)
    return np.asarray(elevation_m - eastward * east_m - southward * south_m)


def _filtered(lows: _Ground, window: PixelWindow, core: _Core, cell_m: float) -> NDArray[np.float64]:
    """Return the lowest return of the cells where the ground filter says that it is ground, NaN elsewhere."""
    lowest_mm = lows.lowest_mm.reshape(window.shape)[core]
    lowest_m = np.where(np.isinf(lowest_mm), np.nan, lowest_mm / 1000)
    return np.where(find_ground(lowest_m, cell_m), lowest_m, np.nan)


def _lows(
    opened: Sequence[Cloud],
    target: pyproj.CRS,
    lattice: Lattice,
    window: PixelWindow,
    count_read: Callable[[int], None],
) -> _Ground:
    """Read all returns for their lowest in each cell, and for the ground."""
    lows = _Ground.empty(window.height * window.width)
    for returns, cell in _cells(opened, target, lattice, window):
        lows.add(cell, returns, lattice.resolution)
        count_read(returns.read_count)
    return lows


def _columns(
    opened: Sequence[Cloud],
    target: pyproj.CRS,
    lattice: Lattice,
    terrain: _Terrain,
    count_read: Callable[[int], None],
) -> Columns:
    """Read all returns again for their heights above the terrain."""
    window = terrain.window
    columns = Columns.empty(window.height * window.width)
    # Half of each border cell lies outside the outermost centres: the slope goes on there.
    wide_m = _extrapolated(terrain.elevation_m)
    for returns, cell in _cells(opened, target, lattice, window):
        row = -returns.y / lattice.resolution - window.row0 + 0.5
        col = returns.x / lattice.resolution - window.col0 + 0.5
        elevation_m = ndimage.map_coordinates(wide_m, [row, col], order=1, mode="nearest")
        height_mm = np.rint(returns.z_mm - 1000 * elevation_m)
        height_mm[np.isin(returns.code, BARE_CODES)] = 0
        columns.add(cell, height_mm.astype(np.int32))
        count_read(returns.read_count)
    return columns


def _extrapolated(elevation_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return elevation with a cell more on every side."""
    if min(elevation_m.shape) < 2:
        return np.pad(elevation_m, 1, mode="edge")
    return np.pad(elevation_m, 1, mode="reflect", reflect_type="odd")


def _summary(
    out: Path,
    opened: Sequence[Cloud],
    lows: _Ground,
    density: NDArray[np.float64],
    method: str,
    heights: NDArray[np.float32],
) -> Chm:
    return Chm(
        path=out,
        point_count=int(lows.count.sum()),
        density=float(density[density > 0].mean()),
        method=method,
        acquisition=(min(lows.flown), max(lows.flown)) if lows.flown else None,
        file_years=tuple(sorted({cloud.file_year for cloud in opened if cloud.file_year})),
        known_share=float((~np.isnan(heights)).mean()),
    )


def _tags(chm: Chm, opened: Sequence[Cloud]) -> dict[str, str]:
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


def _write(
    path: Path,
    bands: Sequence[NDArray[np.floating]],
    geobox: GeoBox,
    names: dict[str, str],
    tags: dict[str, str],
) -> None:
    """Write a raster under a temporary name, read every block of it back, and give it its name."""
    values = np.stack([np.asarray(band, np.float32) for band in bands])
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            tile, draft = Path(folder) / "tile.tif", Path(folder) / "map.tif"
            write_tile(tile, values, geobox, plan="chm")
            assemble([(tile, 0, 0)], draft, geobox, tuple(names), tags, units=tuple(names.values()))
            if problems := [*_problems(draft, tuple(names))]:
                raise OutputError(f"{path} is not valid and was not written: {'; '.join(problems)}")
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; check that the folder is writable") from error


def _problems(draft: Path, bands: tuple[str, ...]) -> Iterator[str]:
    if bands == BANDS:
        yield from validate(draft)
        return
    for _ in read_every_block(draft):
        pass
