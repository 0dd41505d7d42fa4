"""Values of a layer: under a point, in polygons, in a view. Each reads a bounded number of cells."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, cast

import numpy as np
import rasterio
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from rasterio.warp import transform, transform_bounds
from shapely.geometry.base import BaseGeometry

from tiles.errors import AOIError
from tiles.heights import rasterio_window
from tiles.server.layers import Acquired, Band, Layer, read_values
from tiles.windows import PixelWindow
from tiles.zonal import INTERVAL_LEVEL, ZoneStatistics, zone_statistics

MAX_POLYGONS, MAX_CORNERS, MAX_CELLS = 100, 10_000, 20_000_000
VIEW_PX = 1024
_EPOCH = date(1970, 1, 1)
_LONLAT = CRS("EPSG:4326")


class OutsideError(Exception):
    """A question about ground that the layer does not cover."""


def point(layer: Layer, lon: float, lat: float) -> dict[str, Any]:
    """Read the cell under a point: the values of all bands, and its date.

    Raises:
        OutsideError: The point lies outside the raster.
    """
    with rasterio.open(layer.path) as src:
        (x,), (y,) = transform("OGC:CRS84", src.crs, [lon], [lat])
        row, col = _cell(layer, x, y)
        window = PixelWindow(row, col, 1, 1)
        indexes = sorted({index for band in layer.bands for index in band.indexes})
        cells = dict(zip(indexes, read_values(layer, src, indexes, window, (1, 1))[:, 0, 0].tolist(), strict=True))
    values = {band.name: _band_value(band, cells) for band in layer.bands}
    low_m, high_m = (values[name] for name in layer.interval) if layer.interval else (None, None)
    center_x, center_y = layer.transform @ (col + 0.5, row + 0.5)
    return {
        "layer": layer.id,
        "lon": lon,
        "lat": lat,
        "values": values,
        "interval": None
        if low_m is None or high_m is None
        else {"low_m": low_m, "high_m": high_m, "level": INTERVAL_LEVEL},
        "unit": layer.unit,
        "acquired": _acquired(layer, window).to_json(),
        "cell": {"row": row, "col": col, "x": center_x, "y": center_y},
    }


def _cell(layer: Layer, x: float, y: float) -> tuple[int, int]:
    if math.isfinite(x) and math.isfinite(y):
        col, row = (math.floor(value) for value in ~layer.transform @ (x, y))
        if 0 <= row < layer.shape[0] and 0 <= col < layer.shape[1]:
            return row, col
    raise OutsideError(f"the point lies outside layer {layer.id!r}; its bounds are {_degrees(layer.bounds)}")


def _degrees(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.5f}" for value in bounds)


def _band_value(band: Band, cells: Mapping[int, float]) -> float | None:
    first, *rest = (cells[index] for index in band.indexes)
    value = first - rest[0] if rest else first
    return value if math.isfinite(value) else None


def _acquired(layer: Layer, window: PixelWindow) -> Acquired:
    """Return the date of a cell; that of the layer where its cells have no dates of their own."""
    if layer.dates_path is None:
        return layer.acquired
    with rasterio.open(layer.dates_path) as src:
        days = int(src.read(1, window=rasterio_window(window))[0, 0])
    if days <= 0:
        return Acquired("unknown")
    text = (_EPOCH + timedelta(days=days)).isoformat()
    return Acquired(text, f"{text}T00:00:00Z", f"{text}T23:59:59Z")


def read_polygons(document: Any) -> tuple[list[str], list[Geometry]]:
    """Read the polygons of a GeoJSON document in longitude and latitude.

    Args:
        document: Geometry, Feature or FeatureCollection.

    Returns:
        Ids and polygons, as many of each.

    Raises:
        AOIError: The document has no polygon, has too many, or is no GeoJSON.
    """
    features = _features(document)
    if not features:
        raise AOIError("the body has no polygon, expected a GeoJSON Polygon, Feature or FeatureCollection")
    if len(features) > MAX_POLYGONS:
        raise AOIError(f"the body has {len(features):,} polygons, expected at most {MAX_POLYGONS}; send them in parts")
    polygons, corners = [], 0
    for geometry in (feature.get("geometry") for feature in features):
        polygon = _polygon(geometry)
        corners += int(shapely.get_num_coordinates(polygon))
        if corners > MAX_CORNERS:
            raise AOIError(f"the polygons have more than {MAX_CORNERS:,} corners, expected at most that; simplify them")
        polygons.append(Geometry(polygon, _LONLAT))
    ids = [str(feature.get("id", number))[:100] for number, feature in enumerate(features)]
    return ids, polygons


def _features(document: Any) -> list[Mapping[str, Any]]:
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "FeatureCollection" and isinstance(document.get("features"), list):
        features = document["features"]
    elif kind == "Feature":
        features = [document]
    elif kind in ("Polygon", "MultiPolygon"):
        features = [{"geometry": document}]
    else:
        raise AOIError(
            f"the body is of type {str(kind)[:40]!r}, expected a GeoJSON Polygon, MultiPolygon, Feature or "
            "FeatureCollection"
        )
    if not all(isinstance(feature, dict) for feature in features):
        raise AOIError("the collection has a member that is no feature, expected GeoJSON Features")
    return cast(list[Mapping[str, Any]], features)


def _polygon(geometry: Any) -> BaseGeometry:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise AOIError(f"a feature has the geometry {str(kind)[:40]!r}, expected Polygon or MultiPolygon")
    try:
        polygon: BaseGeometry = shapely.force_2d(shapely.geometry.shape(geometry))
        coordinates = shapely.get_coordinates(polygon)
    except (ValueError, TypeError, AttributeError, LookupError, shapely.errors.ShapelyError) as error:
        raise AOIError("a polygon has unreadable coordinates, expected rings of [longitude, latitude]") from error
    if not coordinates.size or not (np.abs(coordinates) <= (180, 90)).all():
        raise AOIError("a polygon has corners that are no place on earth, expected longitudes and latitudes in degrees")
    return polygon


def statistics(layer: Layer, band: Band, document: Any, threshold_m: float, edges_m: Sequence[float]) -> dict[str, Any]:
    """Compute the statistics of the polygons of a GeoJSON document.

    Raises:
        AOIError: The polygons cannot be used.
        OutsideError: No polygon meets the raster.
    """
    ids, polygons = read_polygons(document)
    results = zone_statistics(
        layer.path, polygons, band=band.indexes[0], threshold_m=threshold_m, edges_m=edges_m, max_cells=MAX_CELLS
    )
    if not any(result.meets_map for result in results):
        raise OutsideError(f"no polygon meets layer {layer.id!r}; its bounds are {_degrees(layer.bounds)}")
    return {
        "layer": layer.id,
        "band": band.name,
        "threshold_m": threshold_m,
        "acquired": layer.acquired.to_json(),
        "polygons": [_zone_json(name, result) for name, result in zip(ids, results, strict=True)],
    }


def _zone_json(name: str, result: ZoneStatistics) -> dict[str, Any]:
    interval = result.interval
    return {
        "id": name,
        "area_m2": result.area_m2,
        "known_share": result.known_share,
        "mean_m": result.mean_m,
        "p95_m": result.p95_m,
        "max_m": result.max_m,
        "h100_m": result.h100_m,
        "cover": result.cover,
        "interval": interval
        and {"low_m": interval.low_m, "high_m": interval.high_m, "width_m": interval.width_m, "level": INTERVAL_LEVEL},
        "histogram": {"edges_m": list(result.edges_m), "area_m2": list(result.histogram_m2)},
    }


def statistics_csv(answer: Mapping[str, Any]) -> str:
    """Return an answer of `statistics` as a CSV table, one row for each polygon."""
    names = ("area_m2", "known_share", "mean_m", "p95_m", "max_m", "h100_m", "cover")
    bounds = ("low_m", "high_m", "width_m")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(
        ["id", "layer", "band", "threshold_m", "acquired", *names, *(f"interval_{name}" for name in bounds)]
    )
    for polygon in answer["polygons"]:
        interval = polygon["interval"] or {}
        # A spreadsheet would run an id that begins like a formula.
        name = polygon["id"] if polygon["id"][:1] not in ("=", "+", "-", "@", "\t", "\r") else f"'{polygon['id']}"
        writer.writerow(
            [name, answer["layer"], answer["band"], answer["threshold_m"], answer["acquired"]["text"]]
            + [polygon[key] for key in names]
            + [interval.get(key) for key in bounds]
        )
    return buffer.getvalue()


def view_histogram(
    layer: Layer, band: Band, bbox: tuple[float, float, float, float], edges: Sequence[float]
) -> dict[str, Any]:
    """Count the cells of a view by value, at most 1024 x 1024 of them.

    Raises:
        OutsideError: The view lies outside the raster.
    """
    with rasterio.open(layer.path) as src:
        window = _view(layer, transform_bounds("OGC:CRS84", src.crs, *bbox, densify_pts=21))
        shrink = max(1.0, max(window.height, window.width) / VIEW_PX)
        rows, cols = (max(1, round(side / shrink)) for side in window.shape)
        values = read_values(layer, src, band.indexes, window, (rows, cols))
    values = values[0] if len(values) == 1 else values[0] - values[1]
    finite = values[np.isfinite(values)]
    counts, _ = np.histogram(finite, edges)
    return {
        "layer": layer.id,
        "band": band.name,
        "unit": layer.unit,
        "edges": list(edges),
        "counts": counts.tolist(),
        "known": int(finite.size),
        "unknown": int(values.size - finite.size),
        "below": int((finite < edges[0]).sum()),
        "above": int((finite > edges[-1]).sum()),
    }


def _view(layer: Layer, bounds: tuple[float, float, float, float]) -> PixelWindow:
    """Return the window of cells whose centres may lie in bounds of the layer's CRS."""
    left, bottom, right, top = bounds
    corners = [~layer.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    (col0, row0), (col1, row1) = np.clip([np.min(corners, axis=0), np.max(corners, axis=0)], 0, layer.shape[::-1])
    if not (row0 < row1 and col0 < col1):
        raise OutsideError(f"the view lies outside layer {layer.id!r}; its bounds are {_degrees(layer.bounds)}")
    row, col = math.floor(row0), math.floor(col0)
    return PixelWindow(row, col, math.ceil(row1) - row, math.ceil(col1) - col)


def parse_json(body: bytes) -> Any:
    """Parse a JSON document strictly: NaN and infinities, which JSON does not have, are refused.

    Raises:
        AOIError: The body is no JSON.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise AOIError(f"the body is no JSON ({text}), expected GeoJSON") from error
