"""Features of a view as GeoJSON: no more than a browser draws, no finer than it shows."""

import json
import math
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiles.server.feature_tables import Box, Features, Geometries
from tiles.server.layers import TILE_PX
from tiles.server.vector_layers import VectorLayer, read_features

MAX_FEATURES = 5000
"""Most features of an answer; a view with more of them gets none, because a part of them would look like all."""
MAX_VERTICES = 200_000
"""Most corners of an answer, after simplification."""
MEDIA_TYPE = "application/geo+json"
_TOLERANCE_PX = 0.5
_DECIMALS = 7
"""Decimals of degrees: 1 cm."""
_MAX_TEXT = 200


def view_features(layer: VectorLayer, bbox: Box, zoom: float) -> str:
    """Return the features of a view.

    Args:
        layer: Layer.
        bbox: West, south, east, north in degrees.
        zoom: Zoom of 512 px tiles, by which outlines are simplified to half a pixel.

    Returns:
        A GeoJSON FeatureCollection with the member `complete`: false where the view has more features or corners than
        the limits allow. It has no feature then.

    Raises:
        VectorError: The file can no longer be read.
    """
    box = clip_box(bbox, layer.bounds)
    if box is None:
        return _collection((), is_complete=True)
    features = read_features(layer, box, MAX_FEATURES + 1)
    if len(features.ids) > MAX_FEATURES:
        return _collection((), is_complete=False)
    geometries = simplify(features.geometries, zoom)
    if int(shapely.get_num_coordinates(geometries).sum()) > MAX_VERTICES:
        return _collection((), is_complete=False)
    return _collection(_documents(layer, features, geometries), is_complete=True)


def clip_box(view: Box, bounds: Box) -> Box | None:
    """Return the part of a view within bounds; None without one.

    Args:
        view: West, south, east, north in degrees, in increasing order.
        bounds: The same of a layer; west is greater than east across the antimeridian, of which the view gets one side.
    """
    west, south, east, north = bounds
    if west > east:
        west, east = (west, 180.0) if view[2] >= west else (-180.0, east)
    box = max(view[0], west), max(view[1], south), min(view[2], east), min(view[3], north)
    return box if box[0] <= box[2] and box[1] <= box[3] else None


def simplify(geometries: Geometries, zoom: float) -> Geometries:
    """Return geometries without what is smaller than half a pixel.

    Args:
        geometries: (N,) In longitude and latitude.
        zoom: Zoom of 512 px tiles.
    """
    tolerance_deg = _TOLERANCE_PX * 360 / (TILE_PX * 2**zoom)
    simple = shapely.simplify(geometries, tolerance_deg, preserve_topology=True)
    rounded: Geometries = shapely.transform(simple, lambda corners: np.round(corners, _DECIMALS))
    return rounded


def _documents(layer: VectorLayer, features: Features, geometries: Geometries) -> Iterable[str]:
    """Yield each feature as GeoJSON."""
    columns = [_json_values(features.columns[field.name]) for field in layer.fields]
    names = [field.name for field in layer.fields]
    for number, shape, *row in zip(features.ids.tolist(), shapely.to_geojson(geometries), *columns, strict=True):
        properties = json.dumps(dict(zip(names, row, strict=True)), allow_nan=False)
        yield f'{{"type":"Feature","id":{number},"geometry":{shape},"properties":{properties}}}'


def _json_values(values: NDArray[Any]) -> list[Any]:
    if np.issubdtype(values.dtype, np.datetime64):
        return [None if np.isnat(value) else str(value) for value in values]
    return [_json_value(value) for value in values.tolist()]


def _json_value(value: Any) -> str | float | bool | None:
    """Return a value as JSON has it: unknown numbers as null, dates and all else as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return value.isoformat() if isinstance(value, date | datetime) else str(value)[:_MAX_TEXT]


def _collection(documents: Iterable[str], *, is_complete: bool) -> str:
    complete = "true" if is_complete else "false"
    return (
        f'{{"type":"FeatureCollection","complete":{complete},"limit":{MAX_FEATURES},'
        f'"features":[{",".join(documents)}]}}'
    )
