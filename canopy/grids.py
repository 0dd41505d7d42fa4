"""Which lattice the map lies on, and on which one the model runs so that it sees its own GSD in true metres."""

import math

from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from pyproj import Geod, Transformer

from canopy.errors import AOIError
from tiles.aoi import to_crs, utm_crs
from tiles.grid import Lattice, rasterize

TRUE_SCALE = 0.02
"""A CRS whose units are within this share of true metres over the AOI can carry the model's lattice."""
_METRES_PER_DEGREE = 111_319.49079327358
_GEOD = Geod(ellps="WGS84")


def output_lattice(area: Geometry, crs: str, resolution: float | None, gsd_m: float) -> Lattice:
    """Lattice of the map.

    Args:
        area: The AOI, in any CRS.
        crs: ``auto`` for the AOI's UTM zone, or any CRS.
        resolution: Cell size in units of the CRS; if None, `gsd_m` in the CRS's own metres, so that neighbouring
            areas share a lattice.
        gsd_m: The model's GSD.

    Raises:
        AOIError: The CRS is unknown, the resolution is not positive, or the AOI holds no cell centre.
    """
    target = utm_crs(area) if crs == "auto" else _parse(crs)
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise AOIError(f"--resolution {resolution}: a positive number in units of {crs} expected")
    lattice = Lattice(target, resolution or gsd_m / _unit_m(target))
    placed = to_crs(area, target)
    window = lattice.window(placed)
    if max(window.shape) <= 2 and not rasterize(placed, lattice.geobox(window)).any():
        raise AOIError(f"the AOI holds no pixel centre at {lattice.resolution:g}: draw a larger one")
    return lattice


def working_lattice(area: Geometry, output: Lattice, gsd_m: float) -> Lattice:
    """Lattice on which the model runs: in the output's CRS where that keeps true distances, else in the UTM zone.

    Web mercator and geographic CRSs stretch the ground by a factor that grows with latitude; a model fed their
    pixels would see trees of the wrong size.
    """
    if not output.crs.geographic and _stretch(to_crs(area, output.crs), output.crs) < TRUE_SCALE:
        return Lattice(output.crs, gsd_m / _unit_m(output.crs))
    return Lattice(utm_crs(area), gsd_m)


def _parse(name: str) -> CRS:
    try:
        crs = CRS(name)
    except Exception as error:
        raise AOIError(f"--crs {name!r} is not a CRS: auto or EPSG:n expected") from error
    if not (crs.geographic or crs.projected):
        raise AOIError(f"--crs {name} is neither geographic nor projected: it has no place on the ground")
    return crs


def _unit_m(crs: CRS) -> float:
    """Metres in a unit of the CRS, at the equator for degrees."""
    if crs.geographic:
        return _METRES_PER_DEGREE
    return float(crs.proj.axis_info[0].unit_conversion_factor)


def _stretch(area: Geometry, crs: CRS) -> float:
    """Largest share by which steps of 100 m at the area's middle, east and north, differ from true metres."""
    middle, step = area.centroid.coords[0], 100 / _unit_m(crs)
    to_lonlat = Transformer.from_crs(crs.to_wkt(), "EPSG:4326", always_xy=True)
    x, y = middle
    lons, lats = to_lonlat.transform([x, x + step, x], [y, y, y + step])
    lengths = (_GEOD.inv(lons[0], lats[0], lons[i], lats[i])[2] for i in (1, 2))
    return max(abs(float(length) / 100 - 1) for length in lengths)
