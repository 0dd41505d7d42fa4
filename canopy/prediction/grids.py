"""The lattice of the map, and the one on which the model runs, so that it sees its own GSD in true metres."""

import math

from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import AOIError
from tiles.aoi import to_crs, utm_crs
from tiles.grid import Lattice, rasterize
from tiles.ground import TRUE_SCALE, scale_error, unit_m

MAX_SIDE = 2**24
MAX_CELLS = 2**40
"""Longest side and most cells of a map: at 0.5 m, 8,388 km and the area of a country of 275,000 km2."""
MAX_TILES = 2**20
"""Most tiles that the rectangle around an area may have."""
MAX_SAMPLES = 1024
"""Most pixels of the model along a side of a cell."""


def check_grid_options(crs: str, resolution: float | None) -> None:
    """Refuse a CRS that does not exist and a resolution that is no length.

    Raises:
        AOIError: The CRS is unknown, or the resolution is not positive.
    """
    if crs != "auto":
        _parse(crs)
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise AOIError(f"--resolution {resolution}: a positive number in units of {crs} expected")


def output_lattice(area: Geometry, crs: str, resolution: float | None, gsd_m: float) -> Lattice:
    """Choose the lattice of the map.

    Args:
        area: Area of interest, in any CRS.
        crs: ``auto`` for the area's UTM zone, or any CRS.
        resolution: Cell size in units of the CRS; if None, `gsd_m` in the CRS's own metres, so that neighbouring
            areas share a lattice.
        gsd_m: GSD of the model, metres.

    Raises:
        AOIError: The CRS is unknown, the resolution is not positive, no cell centre lies in the area, or the map
            would have too many cells.
    """
    check_grid_options(crs, resolution)
    target = utm_crs(area) if crs == "auto" else _parse(crs)
    lattice = Lattice(target, resolution or gsd_m / unit_m(target.proj))
    projected = to_crs(area, target)
    _check_size(projected, lattice)
    window = lattice.window(projected)
    if max(window.shape) <= 2 and not rasterize(projected, lattice.geobox(window)).any():
        raise AOIError(f"no pixel centre of a grid of {lattice.resolution:g} lies in the AOI: draw a larger area")
    return lattice


def working_lattice(area: Geometry, output: Lattice, gsd_m: float) -> Lattice:
    """Choose the lattice on which the model runs: in the output's CRS where that keeps true distances, else UTM.

    Web mercator and geographic CRSs stretch the ground by a factor that grows with latitude; a model fed their
    pixels would see trees of the wrong size.
    """
    if not output.crs.geographic and _stretch(to_crs(area, output.crs), output.crs) < TRUE_SCALE:
        return Lattice(output.crs, gsd_m / unit_m(output.crs.proj))
    return Lattice(utm_crs(area), gsd_m)


def choose_tile_px(area: Geometry, output: Lattice, work: Lattice, tile_px: int) -> int:
    """Choose the side of a tile, in cells of the map, so that a tile's imagery stays small where cells are large.

    Args:
        area: Area of interest, in the CRS of the output.
        output: Lattice of the map.
        work: Lattice on which the model runs.
        tile_px: Side of a tile whose cells are as large as the model's pixels, or twice as large.

    Raises:
        AOIError: A cell covers too many pixels of the model, or the area too many tiles.
    """
    ratio = output.resolution * unit_m(output.crs.proj) / (work.resolution * unit_m(work.crs.proj))
    if ratio > MAX_SAMPLES:
        raise AOIError(
            f"--resolution {output.resolution:g}: a cell would cover {ratio:,.0f} pixels of the model along a side;"
            f" expected at most {MAX_SAMPLES:,}, map at a finer resolution and average the map"
        )
    side = tile_px
    while side > 1 and side * ratio > 2 * tile_px:
        side //= 2
    window = output.window(area)
    tiles = math.ceil(window.width / side) * math.ceil(window.height / side)
    if tiles > MAX_TILES:
        raise AOIError(
            f"map of {window.width:,} x {window.height:,} cells in {tiles:,} tiles; expected at most {MAX_TILES:,},"
            " map the AOI in parts"
        )
    return side


def _check_size(area: Geometry, lattice: Lattice) -> None:
    """Refuse a map with more cells than a run could plan, before anything is as large as the map."""
    left, bottom, right, top = area.boundingbox
    width, height = (max(1.0, (high - low) / lattice.resolution) for low, high in ((left, right), (bottom, top)))
    if max(width, height) > MAX_SIDE or width * height > MAX_CELLS:
        raise AOIError(
            f"map of {width:,.0f} x {height:,.0f} cells of {lattice.resolution:g}; expected at most {MAX_SIDE:,} along"
            f" a side and {MAX_CELLS:,} in all: choose a coarser --resolution, map the AOI in parts, or leave --crs out"
            " where the AOI crosses the edge of that CRS, such as the antimeridian"
        )


def _parse(name: str) -> CRS:
    try:
        crs = CRS(name)
    except Exception as error:
        raise AOIError(f"--crs {name!r} is not a CRS: auto or EPSG:n expected") from error
    if not (crs.geographic or crs.projected):
        raise AOIError(f"--crs {name} is neither geographic nor projected: a CRS of places on the ground expected")
    return crs


def _stretch(area: Geometry, crs: CRS) -> float:
    """Return the share by which the units of a CRS differ from true metres at the middle of an area."""
    x, y = area.centroid.coords[0]
    return scale_error(crs.proj, x, y)
