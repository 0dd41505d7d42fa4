"""The lattice of the map, and the one on which the model runs, so that it sees its own GSD in true metres."""

import math

from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import AOIError
from tiles.aoi import to_crs, utm_crs
from tiles.grid import Lattice, rasterize
from tiles.ground import TRUE_SCALE, scale_error, unit_m


def output_lattice(area: Geometry, crs: str, resolution: float | None, gsd_m: float) -> Lattice:
    """Choose the lattice of the map.

    Args:
        area: Area of interest, in any CRS.
        crs: ``auto`` for the area's UTM zone, or any CRS.
        resolution: Cell size in units of the CRS; if None, `gsd_m` in the CRS's own metres, so that neighbouring
            areas share a lattice.
        gsd_m: GSD of the model, metres.

    Raises:
        AOIError: The CRS is unknown, the resolution is not positive, or no cell centre lies in the area.
    """
    target = utm_crs(area) if crs == "auto" else _parse(crs)
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise AOIError(f"--resolution {resolution}: a positive number in units of {crs} expected")
    lattice = Lattice(target, resolution or gsd_m / unit_m(target.proj))
    projected = to_crs(area, target)
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
