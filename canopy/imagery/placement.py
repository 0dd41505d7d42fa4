"""The place of a raster on the ground: its transform or ground control points, outline and true pixel size."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer

from canopy.errors import ImageryError
from tiles.ground import longer_side_m

Points = NDArray[np.float64]
_LONLAT = "OGC:CRS84"
_OUTLINE_POINTS = 21


@dataclass(frozen=True, eq=False)
class Placement:
    """Map between a raster's pixels and the ground. Pixel coordinates count from the raster's corner."""

    crs: str
    """WKT."""
    shape: tuple[int, int]
    """Rows, columns."""
    transform: Affine | None
    """Pixel to ground; None where the raster has ground control points instead."""
    gcps: tuple[GroundControlPoint, ...] = ()

    def to_ground(self, cols: Points, rows: Points) -> tuple[Points, Points]:
        """Return the CRS coordinates of pixel coordinates, (n,) each."""
        if self.transform is not None:
            return _affine(self.transform, cols, rows)
        with GCPTransformer(list(self.gcps)) as transformer:
            xs, ys = transformer.xy(rows, cols, offset="ul")
        return np.asarray(xs, float), np.asarray(ys, float)

    def to_pixel(self, xs: Points, ys: Points) -> tuple[Points, Points]:
        """Return the pixel coordinates (columns, rows) of CRS coordinates, (n,) each."""
        if self.transform is not None:
            return _affine(~self.transform, xs, ys)
        with GCPTransformer(list(self.gcps)) as transformer:
            rows, cols = transformer.rowcol(xs, ys, op=np.positive)
        return np.asarray(cols, float), np.asarray(rows, float)

    def window_options(self, col0: int, row0: int) -> dict[str, Any]:
        """Return the `rasterio.open` keywords that georeference a window whose first pixel is `(col0, row0)`."""
        if self.transform is not None:
            a, b, c, d, e, f = tuple(self.transform)[:6]
            corner = a * col0 + b * row0 + c, d * col0 + e * row0 + f
            return {"transform": Affine(a, b, corner[0], d, e, corner[1])}
        shifted = [GroundControlPoint(p.row - row0, p.col - col0, p.x, p.y) for p in self.gcps]
        return {"gcps": shifted}


def read_placement(dataset: DatasetReader) -> Placement:
    """Read the placement of a raster.

    Raises:
        ImageryError: The raster has no georeference or no CRS, or its CRS is not on Earth.
    """
    gcps, gcp_crs = dataset.gcps
    name, referenced = dataset.name, dataset.transform != Affine.identity()
    if not referenced and not gcps:
        raise ImageryError(_unplaced(name, bool(dataset.rpcs)))
    if referenced and dataset.transform.is_degenerate:
        raise ImageryError(f"{name}: its pixels have no area, expected a regular transform; georeference it again")
    crs = dataset.crs if referenced else gcp_crs
    if not crs:
        raise ImageryError(
            f"{name}: no CRS, expected one that says where its coordinates lie; assign it with "
            "`rio edit-info --crs EPSG:code FILE` or `gdal_edit.py -a_srs EPSG:code FILE`"
        )
    wkt = crs.to_wkt()
    _require_earth(name, wkt)
    return Placement(wkt, dataset.shape, dataset.transform if referenced else None, tuple(gcps))


def _unplaced(name: str, has_rpcs: bool) -> str:
    if has_rpcs:
        return f"{name}: only RPCs, expected an orthorectified image; run `gdalwarp -rpc` on it first"
    return f"{name}: no georeference (identity transform), expected a placed image; georeference it first"


def _require_earth(name: str, wkt: str) -> None:
    try:
        crs = CRS.from_wkt(wkt)
        local = crs.is_engineering or not (crs.is_projected or crs.is_geographic or crs.is_geocentric)
    except CRSError as error:
        raise ImageryError(f"{name}: its CRS is not understood ({error}); assign another") from error
    if local or crs.is_geocentric:
        raise ImageryError(
            f"{name}: CRS '{crs.name}' is local, expected a geographic or projected one; georeference it"
        )


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> Transformer:
    """Return the cached x, y transformer between two CRSs."""
    return Transformer.from_crs(source, target, always_xy=True)


def _affine(affine: Affine, xs: Points, ys: Points) -> tuple[Points, Points]:
    return affine.a * xs + affine.b * ys + affine.c, affine.d * xs + affine.e * ys + affine.f


def to_lonlat(placement: Placement, cols: Points, rows: Points) -> tuple[Points, Points]:
    """Return WGS84 longitude and latitude of pixel coordinates, degrees, (n,) each; inf where there is none."""
    return transformer(placement.crs, _LONLAT).transform(*placement.to_ground(cols, rows))


def gsd_m(placement: Placement) -> float:
    """Measure the longer side of the centre pixel, in metres along the WGS84 ellipsoid."""
    row, col = placement.shape[0] / 2, placement.shape[1] / 2
    lon, lat = to_lonlat(placement, np.array([col, col + 1, col]), np.array([row, row, row + 1]))
    return longer_side_m(lon, lat)


def outline(name: str, placement: Placement) -> Geometry:
    """Return the outline of a raster in WGS84 longitude and latitude, cut at the antimeridian.

    Raises:
        ImageryError: The raster lies outside the area of its CRS.
    """
    height, width = placement.shape
    t = np.linspace(0, 1, _OUTLINE_POINTS)[:-1]
    zero, one = np.zeros_like(t), np.ones_like(t)
    cols = np.concatenate([t, one, 1 - t, zero]) * width
    rows = np.concatenate([zero, t, one, 1 - t]) * height
    lon, lat = to_lonlat(placement, cols, rows)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90.0001):
        raise ImageryError(f"{name}: lies outside the area of its CRS; check the CRS and the transform")
    return Geometry(_cut(lon, lat), "EPSG:4326")


def _cut(lon: Points, lat: Points) -> Any:
    if np.ptp(lon) <= 180:
        return shapely.Polygon(np.column_stack([lon, lat]))
    ring = shapely.make_valid(shapely.Polygon(np.column_stack([np.where(lon < 0, lon + 360, lon), lat])))
    east = shapely.intersection(ring, shapely.box(0, -90, 180, 90))
    west = shapely.intersection(ring, shapely.box(180, -90, 540, 90))
    return shapely.union(east, shapely.transform(west, lambda xy: xy - [360, 0]))
