"""Acquisition dates of a tile mosaic, from the feature service (WFS 2.0) that its provider runs next to the tiles.

Facts of Vantor's service, which this is written for: the box belongs inside `cql_filter` (a `bbox` next to it is
answered with 500), in the order latitude, longitude (the other order finds nothing, in silence); a mosaic has a feature
for each of its parts, so products and dates repeat.
"""

import re
from collections.abc import Iterator
from typing import Any

import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from canopy.errors import SourceError
from canopy.http import HttpClient, excerpt, redacted
from canopy.imagery.calendar import UNKNOWN_DAY, Calendar, day_number

_PAGE = 1000
_MOST_PAGES = 100
_TYPE = "Maxar:FinishedFeature"
_PRODUCT = re.compile(r"[\w. -]+")
Box = tuple[float, float, float, float]


def product_filter(product: str) -> str:
    """Return the filter of a product's tiles. A misspelt property gives blank tiles, so users do not write it."""
    if not _PRODUCT.fullmatch(product):
        raise SourceError(f"product={product}: letters, digits, blanks, dots and dashes expected")
    return f"productName='{product}'"


def read_calendar(client: HttpClient, address: str, product: str, bounds: Box) -> Calendar:
    """Ask a feature service for the footprints and dates of a mosaic.

    Args:
        client: Client that carries the key.
        address: Address of the WFS.
        product: Product of the mosaic.
        bounds: West, south, east, north, degrees.

    Raises:
        SourceError: The service does not answer as expected.
    """
    footprints: dict[str, tuple[BaseGeometry, int]] = {}
    wanted_box = shapely.box(*bounds)
    for feature in _features(client, address, product, bounds):
        properties = feature.get("properties") or {}
        day = day_number(str(properties.get("acquisitionDate") or ""))
        outline = _outline(feature, wanted_box, address)
        if outline is not None and day != UNKNOWN_DAY:
            name = str(properties.get("featureId") or feature.get("id") or f"{outline.wkt} {day}")
            footprints.setdefault(name, (outline, day))
    # Newest on top, as the service stacks them by default.
    ordered = sorted(footprints.values(), key=lambda pair: -pair[1])
    return Calendar(tuple(outline for outline, _ in ordered), tuple(day for _, day in ordered))


def _features(client: HttpClient, address: str, product: str, bounds: Box) -> Iterator[dict[str, Any]]:
    """Yield the features of a box, page by page."""
    west, south, east, north = bounds
    condition = f"BBOX(featureGeometry,{south!r},{west!r},{north!r},{east!r}) AND {product_filter(product)}"
    for page in range(_MOST_PAGES):
        params = {
            "service": "WFS", "version": "2.0.0", "request": "GetFeature", "typeNames": _TYPE,
            "outputFormat": "application/json", "srsName": "EPSG:4326", "cql_filter": condition,
            "count": str(_PAGE), "startIndex": str(page * _PAGE),
        }  # fmt: skip
        answer = client.get(address, params=params)
        # An exception report comes with status 200.
        if not answer.content.lstrip().startswith(b"{"):
            raise SourceError(f"{answer.url}: {excerpt(answer.content)}, expected features in JSON", answer.status)
        features = answer.json().get("features")
        if not isinstance(features, list):
            raise SourceError(f"{answer.url}: no list of features, expected a FeatureCollection", answer.status)
        yield from features
        if len(features) < _PAGE:
            return
    raise SourceError(f"{redacted(address)}: over {_MOST_PAGES * _PAGE} features, expected fewer; map a smaller AOI")


def _outline(feature: dict[str, Any], wanted_box: BaseGeometry, address: str) -> BaseGeometry | None:
    """Return a feature's outline in x, y order; None where it lies elsewhere."""
    try:
        outline = shape(feature["geometry"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{redacted(address)}: a feature without geometry, expected a polygon") from error
    # Coordinates come in either order: the one that meets the box is meant.
    swapped = shapely.transform(outline, lambda points: points[:, ::-1])
    return next((one for one in (outline, swapped) if shapely.intersects(one, wanted_box)), None)
