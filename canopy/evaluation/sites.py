"""Sites: polygons with a name, by which scores are split, because pooled scores hide the site that fails."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from shapely.geometry.base import BaseGeometry

from canopy.errors import EvaluationError, one_line
from tiles.vectors import read_vector

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

MAX_SITES = 256
"""Most sites that are scored at once: each keeps about 3 MB of sums."""


@dataclass(frozen=True)
class Site:
    """The ground of one site."""

    name: str
    """Value of the field that names it."""
    ground: BaseGeometry
    """Its polygons united, in the CRS they were asked for in."""

    def on(self, transform: Affine, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which cells of a window have their centre on the site, (H, W).

        Args:
            transform: From (column, row) of the window to the CRS.
            shape: Rows and columns of the window.
        """
        # Most sites are far from most windows: their bounds show that without drawing them.
        left, bottom, right, top = self.ground.bounds
        inverse = ~transform
        (col0, row0), (col1, row1) = inverse @ (left, top), inverse @ (right, bottom)
        if max(row0, row1) < 0 or max(col0, col1) < 0 or min(row0, row1) > shape[0] or min(col0, col1) > shape[1]:
            return np.zeros(shape, bool)
        return np.asarray(geometry_mask([self.ground], shape, transform, invert=True))


def read_sites(path: Path, field: str, crs: Any) -> tuple[Site, ...]:
    """Read sites from a vector file of polygons.

    Args:
        path: Vector file, or GeoParquet.
        field: Field that names the site of a polygon; polygons without a value belong to none.
        crs: CRS in which the sites are returned, as WKT.

    Returns:
        One site a value, in the order of the values as text.

    Raises:
        EvaluationError: No such field, no polygons, or too many sites.
        AOIError: The file cannot be read.
    """
    table = _read_table(path, field)
    table = table[table[field].notna()].to_crs(crs)
    table = table[table.geometry.geom_type.isin(("Polygon", "MultiPolygon"))]
    names = sorted({str(value) for value in table[field]})
    if not names:
        raise EvaluationError(f"{path}: no polygon with a value of {field}; polygons of sites expected")
    if len(names) > MAX_SITES:
        raise EvaluationError(f"{path}: {field} has {len(names)} values; at most {MAX_SITES} sites expected")
    # Numbers are names as words are; polygons of one name are one site, overlaps counted once.
    texts = table[field].astype(str)
    return tuple(Site(name, table.geometry[texts == name].make_valid().union_all()) for name in names)


def site_names(points: "GeoSeries", sites: tuple[Site, ...]) -> NDArray[np.object_]:
    """Return the site of each point, (n,) text, empty outside all; points and sites in one CRS."""
    names = np.full(len(points), "", object)
    for site in sites:
        names[points.within(site.ground).to_numpy() & (names == "")] = site.name
    return names


def _read_table(path: Path, field: str) -> "GeoDataFrame":
    import geopandas as gpd

    read_vector(path)  # refuses what is no vector file, or points elsewhere
    try:
        table = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
    except (ValueError, OSError, RuntimeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({one_line(error, 200)}); polygons of sites expected") from error
    if field not in table.columns:
        names = ", ".join(str(name) for name in table.columns if name != table.geometry.name)
        raise EvaluationError(f"{path}: no field {field!r}; one of {names or 'none'} expected with --by")
    if table.crs is None:
        raise EvaluationError(f"{path}: no CRS; expected one, assign it: ogr2ogr -a_srs EPSG:<code> NEW OLD")
    return table
