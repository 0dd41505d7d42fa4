"""OpenAerialMap's own search, whose answers become items like those of STAC."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import shapely
from shapely.geometry.base import BaseGeometry

from canopy.errors import SourceError
from canopy.http import HttpClient, redacted
from canopy.imagery.stac.items import Asset, Item, parse_time

_PAGE = 100
_MAX_PAGES = 50
_METRES_PER_DEGREE = 111_320.0
_DEGREES = 0.001
"""A pixel size below a millimetre is one in degrees: so the service states that of geographic images."""
_PLAIN_HOSTS = ("127.0.0.1", "localhost")


def search(client: HttpClient, address: str, box: tuple[float, float, float, float]) -> list[Item]:
    """Return the images that meet a box.

    Args:
        client: Client of all requests.
        address: Address of the service's ``meta``.
        box: West, south, east, north, degrees.

    Raises:
        SourceError: The service does not answer as expected; it reports errors as text with status 200.
    """
    items: list[Item] = []
    for page in range(1, _MAX_PAGES + 1):
        params = {"bbox": ",".join(map(str, box)), "limit": str(_PAGE), "page": str(page)}
        document = client.get(address, params=params).json()
        results = document.get("results") if isinstance(document, dict) else None
        if not isinstance(results, list):
            raise SourceError(f"{redacted(address)}: no list of images in the answer; try again later")
        items += [item for result in results if (item := _item(result)) is not None]
        if len(results) < _PAGE:
            return items
    raise SourceError(f"{redacted(address)}: over {_PAGE * _MAX_PAGES} images; map a smaller area")


def _item(result: Any) -> Item | None:
    """Return an image as an item; None where it has no address or place."""
    if not isinstance(result, Mapping) or not isinstance(result.get("uuid"), str):
        return None
    properties = result.get("properties") or {}
    outline = _outline(result)
    if outline is None or not outline.area:
        return None
    href = result["uuid"]
    if href.startswith("http://") and urlsplit(href).hostname not in _PLAIN_HOSTS:
        href = "https://" + href.removeprefix("http://")
    start, end = parse_time(result.get("acquisition_start")), parse_time(result.get("acquisition_end"))
    licence = str(properties.get("license") or "") or None
    return Item(
        id=href, collection="", geometry=outline, start=start or end, end=end or start, cloud=None, off_nadir=None,
        sun=None, assets=(Asset("image", href, "image/tiff", gsd_m=_gsd_m(result.get("gsd"))),), licence=licence,
        provider=str(result.get("provider") or ""),
    )  # fmt: skip


def _outline(result: Mapping[str, Any]) -> BaseGeometry | None:
    """Return the footprint of an image, else its box; None where it has neither."""
    try:
        footprint: BaseGeometry = shapely.make_valid(shapely.force_2d(shapely.from_wkt(str(result["footprint"]))))
        return footprint
    except (KeyError, shapely.errors.ShapelyError):
        pass
    try:
        west, south, east, north = map(float, result["bbox"])
    except (KeyError, TypeError, ValueError):
        return None
    return shapely.box(west, south, east, north)


def _gsd_m(value: object) -> float | None:
    """Return a pixel size in metres; the service states that of geographic images in degrees."""
    if not isinstance(value, int | float) or value <= 0:
        return None
    return value * _METRES_PER_DEGREE if value < _DEGREES else float(value)
