"""The place of a raster on the ground: its transform or ground control points, outline and true pixel size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer

from canopy.errors import ImageryError, one_line
from canopy.imagery.files import shown
from canopy.imagery.longitudes import polygon, recentred, turn
from tiles.ground import longer_side_m

Points = NDArray[np.float64]
_LONLAT = "OGC:CRS84"
_OUTLINE_POINTS = 21
_GCP_ERROR = 0.05
"""Largest distance between a control point and the fitted transform, as a share of the image's diagonal."""
_BEND = 0.25
"""Largest distance between a control point and a plane transform: perspective and terrain bend photographs."""


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


def read_placement(dataset: DatasetReader, crs: str | None = None) -> Placement:
    """Read the placement of a raster.

    Args:
        dataset: An open raster.
        crs: CRS to use in place of the raster's own.

    Raises:
        ImageryError: The raster has no georeference or no CRS, or its CRS is not on Earth.
    """
    name = shown(dataset.name)
    gcps, gcp_crs = dataset.gcps
    if not is_placed(dataset):
        raise ImageryError(_unplaced(name, bool(dataset.rpcs)))
    referenced = dataset.transform != Affine.identity()
    if referenced and (dataset.transform.is_degenerate or not np.isfinite(dataset.transform).all()):
        raise ImageryError(f"{name}: its pixels have no area, expected a regular transform; georeference it again")
    # A transform wins over control points, as in GDAL.
    own = dataset.crs if referenced else gcp_crs
    if crs is None and not own:
        raise ImageryError(
            f"{name}: no CRS, expected one that says where its coordinates lie; assign it with `rio edit-info --crs "
            "EPSG:code FILE` or `gdal_edit.py -a_srs EPSG:code FILE` (imagery of a map: or name it with --imagery-crs)"
        )
    wkt = own.to_wkt() if crs is None else _named_crs(crs)
    _require_earth(name, wkt)
    if referenced:
        return _recentred(Placement(wkt, dataset.shape, dataset.transform))
    # Points first onto one side of the antimeridian: a polynomial through both sides is meaningless.
    placement = _recentred(Placement(wkt, dataset.shape, None, _unwrapped(gcps, wkt)))
    _check_gcps(name, placement)
    return placement


def is_placed(dataset: DatasetReader) -> bool:
    """Return whether a raster has a transform or ground control points."""
    return dataset.transform != Affine.identity() or bool(dataset.gcps[0])


def _named_crs(name: str) -> str:
    """Return the WKT of a CRS that the user names."""
    try:
        return str(CRS.from_user_input(name).to_wkt())
    except CRSError as error:
        raise ImageryError(f"--imagery-crs {name!r} is not a CRS: EPSG:code or WKT expected") from error


def _recentred(placement: Placement) -> Placement:
    """Return a placement whose longitudes lie within one turn of its CRS."""
    if placement.transform is not None:
        height, width = placement.shape
        xs, _ = _affine(placement.transform, np.array([0.0, width, 0, width]), np.array([0.0, 0, height, height]))
    else:
        xs = np.array([point.x for point in placement.gcps])
    wkt, shift = recentred(placement.crs, float(xs.min()), float(xs.max()))
    if not shift:
        return placement
    transform = placement.transform and Affine.translation(shift, 0) @ placement.transform
    gcps = tuple(GroundControlPoint(p.row, p.col, p.x + shift, p.y) for p in placement.gcps)
    return replace(placement, crs=wkt, transform=transform, gcps=gcps)


def _unwrapped(gcps: Sequence[GroundControlPoint], wkt: str) -> tuple[GroundControlPoint, ...]:
    """Return control points on one side of the antimeridian."""
    measured = turn(wkt)
    if measured is None or not gcps:
        return tuple(gcps)
    length, first = measured[0], gcps[0].x
    return tuple(
        GroundControlPoint(p.row, p.col, p.x - length * round((p.x - first) / length), p.y)
        if np.isfinite(p.x - first) else p
        for p in gcps
    )  # fmt: skip


def _check_gcps(name: str, placement: Placement) -> None:
    """Refuse control points that are too few, on one line, not finite, or contradict each other."""
    remedy = "expected three or more that agree and are not on one line; georeference it again"
    points = np.array([(p.col, p.row, p.x, p.y) for p in placement.gcps], float)
    if not np.isfinite(points).all():
        raise ImageryError(f"{name}: its ground control points are not finite, {remedy}")
    try:
        cols, rows = placement.to_pixel(points[:, 2], points[:, 3])
        corners = placement.to_ground(*(np.array(placement.shape[::-1], float)[:, None] * [[0, 1, 0], [0, 0, 1]]))
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise ImageryError(
            f"{name}: its ground control points do not place it ({one_line(error)}), {remedy}"
        ) from error
    edges = np.array(corners)[:, 1:] - np.array(corners)[:, :1]
    diagonal_px = float(np.hypot(*placement.shape))
    error_px = float(np.max(np.hypot(cols - points[:, 0], rows - points[:, 1])))
    flat_px = _affine_error_px(points)
    if not (abs(np.linalg.det(edges)) > 0 and error_px <= _GCP_ERROR * diagonal_px and flat_px <= _BEND * diagonal_px):
        raise ImageryError(
            f"{name}: its {len(points)} ground control points contradict each other (by {max(error_px, flat_px):.0f} "
            f"px in an image {diagonal_px:.0f} px across) or lie on one line, {remedy}"
        )


def _affine_error_px(points: Points) -> float:
    """Return the largest distance of control points (n, 4: column, row, x, y) from the best plane transform, pixels.

    A polynomial of second order passes through any six points, a wrong one too.
    """
    ground = points[:, 2:] - points[:, 2:].mean(axis=0)
    design = np.column_stack([ground / max(np.ptp(ground), 1e-300), np.ones(len(points))])
    fitted, *_ = np.linalg.lstsq(design, points[:, :2], rcond=None)
    return float(np.max(np.hypot(*(design @ fitted - points[:, :2]).T)))


def _unplaced(name: str, has_rpcs: bool) -> str:
    if has_rpcs:
        return f"{name}: only RPCs, expected an orthorectified image; run `gdalwarp -rpc` on it first"
    return f"{name}: no georeference (identity transform), expected a placed image; georeference it first"


def _require_earth(name: str, wkt: str) -> None:
    """Refuse a CRS that is local or geocentric, or lies on another planet."""
    try:
        crs = CRS.from_wkt(wkt)
        local = crs.is_engineering or not (crs.is_projected or crs.is_geographic or crs.is_geocentric)
    except CRSError as error:
        raise ImageryError(f"{name}: its CRS is not understood ({one_line(error)}); assign another") from error
    if local or crs.is_geocentric:
        raise ImageryError(
            f"{name}: CRS '{crs.name}' is local, expected a geographic or projected one; georeference it"
        )
    try:
        transformer(wkt, _LONLAT)
    except ProjError as error:
        raise ImageryError(
            f"{name}: CRS '{crs.name}' has no way to longitude and latitude on Earth (imagery of another planet?), "
            "expected one on Earth; assign it with `rio edit-info --crs EPSG:code FILE`"
        ) from error


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
    # Points along each side: straight lines of a projected CRS are curves in degrees.
    t = np.linspace(0, 1, _OUTLINE_POINTS)[:-1]
    zero, one = np.zeros_like(t), np.ones_like(t)
    cols = np.concatenate([t, one, 1 - t, zero]) * width
    rows = np.concatenate([zero, t, one, 1 - t]) * height
    lon, lat = to_lonlat(placement, cols, rows)
    # A turn beyond 180 degrees is wrapped; more is no longitude.
    if not (np.isfinite(lon).all() and np.abs(lon).max() <= 540 and np.abs(lat).max() <= 90.0001):
        raise ImageryError(f"{name}: lies outside the area of its CRS; check the CRS and the transform")
    return Geometry(polygon(lon, lat), "EPSG:4326")
