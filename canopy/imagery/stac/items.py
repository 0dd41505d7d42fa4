"""Items of STAC catalogues: what of their many spellings decides which image is read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urljoin, urlsplit

import shapely
import shapely.geometry
from shapely import affinity
from shapely.geometry.base import BaseGeometry

_CLOUD = ("eo:cloud_cover", "tile:clouds_percent", "cloud_cover", "cloudCover")
_OFF_NADIR = ("view:off_nadir", "off_nadir", "offNadirAngle")
_SUN = ("view:sun_elevation", "sun_elevation", "sunElevation")
_GSD = ("gsd", "eo:gsd")
_IMAGE_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/x.geotiff")
_IMAGE_ENDS = (".tif", ".tiff", ".jp2")
_PICTURES = frozenset({"thumbnail", "overview", "preview", "metadata", "data-mask", "mask", "tiles"})
_COLOUR_NAMES = ("visual", "image", "ortho", "rgb", "true-color", "true_color", "TCI")
"""Names of assets that are colour pictures wherever they occur."""
_RGB = frozenset({"red", "green", "blue"})


@dataclass(frozen=True)
class Asset:
    """One file of an item."""

    key: str
    href: str
    """Absolute address."""
    media_type: str = ""
    roles: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    """Common names of its bands, where they are on record."""
    gsd_m: float | None = None
    """Pixel size that the catalogue states; not always that of the pixels."""

    @property
    def is_image(self) -> bool:
        """Whether it may be imagery: a raster that is no mask or preview."""
        kind = self.media_type.partition(";")[0].strip().lower()
        raster = kind in _IMAGE_TYPES or urlsplit(self.href).path.lower().endswith(_IMAGE_ENDS)
        # One publisher gives its pictures the role of a thumbnail; their name says what they are.
        return raster and (self.key in _COLOUR_NAMES or not _PICTURES.intersection(self.roles))


@dataclass(frozen=True)
class Item:
    """One acquisition, or one sheet of a mosaic."""

    id: str
    collection: str
    geometry: BaseGeometry
    """Outline of the pixels, longitude and latitude."""
    start: datetime | None
    """First moment of acquisition, UTC; None where unknown."""
    end: datetime | None
    cloud: float | None
    """Percent; None where the catalogue does not say."""
    off_nadir: float | None
    sun: float | None
    assets: tuple[Asset, ...]
    licence: str | None = None
    """Name of the licence, where the item has its own."""
    provider: str = ""
    """Whom to name for the item, where that differs from item to item."""

    @property
    def key(self) -> tuple[str, str]:
        """What no other item of its catalogue has: collection and name."""
        return self.collection, self.id

    @property
    def gsd_m(self) -> float | None:
        """Finest pixel size that the catalogue states."""
        return min((asset.gsd_m for asset in self.assets if asset.gsd_m is not None), default=None)

    @property
    def acquired(self) -> tuple[str, str] | None:
        """First and last moment, ISO 8601; None where unknown."""
        if self.start is None or self.end is None:
            return None
        return f"{self.start:%Y-%m-%dT%H:%M:%SZ}", f"{self.end:%Y-%m-%dT%H:%M:%SZ}"


def parse_item(document: Any, address: str) -> Item:
    """Read an item.

    Args:
        document: GeoJSON of the item.
        address: Where it was read, to which relative addresses are relative.

    Raises:
        ValueError: It has no identifier, place or asset.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("assets"), Mapping):
        raise ValueError("no item of STAC")
    properties = document.get("properties") or {}
    start, end = _times(properties)
    gsd = _number(properties, _GSD)
    assets = [
        _asset(key, asset, address, gsd)
        for key, asset in document["assets"].items()
        if isinstance(asset, Mapping) and asset.get("href")
    ]
    identifier = document.get("id")
    if not identifier or not assets:
        raise ValueError("no identifier or no asset")
    return Item(
        id=str(identifier),
        collection=str(document.get("collection") or ""),
        geometry=_geometry(document),
        start=start,
        end=end,
        cloud=_number(properties, _CLOUD),
        off_nadir=_number(properties, _OFF_NADIR),
        sun=_number(properties, _SUN),
        assets=tuple(assets),
        licence=str(properties["license"]) if properties.get("license") else None,
    )


def _geometry(document: Mapping[str, Any]) -> BaseGeometry:
    """Return the outline of an item; its box where it has none."""
    outline = document.get("geometry")
    box = document.get("bbox")
    if outline:
        shape = shapely.force_2d(shapely.from_geojson(json.dumps(outline)))
    elif isinstance(box, Sequence) and len(box) in (4, 6):
        half = len(box) // 2
        west, south, east, north = (float(value) for value in (*box[:2], *box[half : half + 2]))
        shape = lonlat_box(west, south, east, north)
    else:
        raise ValueError("no geometry")
    shape = within_turn(shapely.make_valid(shape))
    if shape.is_empty or not shape.area:
        raise ValueError("a geometry without area")
    return shape


def within_turn(shape: BaseGeometry) -> BaseGeometry:
    """Return an outline within -180 and 180 degrees of longitude; what goes beyond comes in on the other side."""
    west, _, east, _ = shape.bounds
    if west >= -180 and east <= 180:
        return shape
    world = shapely.box(-180, -90, 180, 90)
    return shapely.union_all([affinity.translate(shape, turn).intersection(world) for turn in (-360, 0, 360)])


def lonlat_box(west: float, south: float, east: float, north: float) -> BaseGeometry:
    """Return a box of longitudes and latitudes; one whose west is east of its east crosses 180 degrees."""
    return within_turn(shapely.box(west, south, east + 360 if west > east else east, north))


def _times(properties: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    """Return the first and last moment of an item, whose `datetime` may be null for an interval."""
    moment = parse_time(properties.get("datetime"))
    start = parse_time(properties.get("start_datetime")) or moment
    end = parse_time(properties.get("end_datetime")) or moment
    return start or end, end or start


def parse_time(text: object) -> datetime | None:
    """Return a moment in UTC, written with T or a blank, with or without Z; None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _number(properties: Mapping[str, Any], names: Iterable[str]) -> float | None:
    """Return the first of several properties that is a number, also one that is written as text."""
    for name in names:
        try:
            return float(properties[name])
        except (KeyError, TypeError, ValueError):
            continue
    return None


def _asset(key: str, document: Mapping[str, Any], address: str, gsd: float | None) -> Asset:
    bands = document.get("eo:bands") or document.get("bands") or ()
    names = [band.get("common_name") or band.get("eo:common_name") or "" for band in bands if isinstance(band, Mapping)]
    return Asset(
        key=str(key),
        href=_href(document, address),
        media_type=str(document.get("type") or ""),
        roles=tuple(str(role).lower() for role in document.get("roles") or ()),
        colours=tuple(str(name).lower() for name in names),
        gsd_m=_number(document, _GSD) or gsd,
    )


def _href(document: Mapping[str, Any], address: str) -> str:
    """Return the absolute address of an asset; that of a server where it is offered next to one of a store."""
    href = str(document["href"])
    alternates = document.get("alternate")
    for alternate in alternates.values() if isinstance(alternates, Mapping) else ():
        other = str(alternate.get("href", "")) if isinstance(alternate, Mapping) else ""
        if href.startswith("s3://") and other.startswith("https://"):
            href = other
    return href if urlsplit(href).scheme in ("s3", "gs", "az") else urljoin(address, href)


def choose_asset(item: Item, names: Sequence[str] = ()) -> Asset | None:
    """Return the colour picture of an item; None where it has none.

    Args:
        item: The item.
        names: Names of assets, or patterns of them, the first that the item has; by what they say by default.
    """
    for pattern in names:
        if matches := [asset for asset in item.assets if fnmatchcase(asset.key, pattern)]:
            return min(matches, key=_fineness)
    if names:
        return None
    images = [asset for asset in item.assets if asset.is_image]
    named = [asset for name in _COLOUR_NAMES for asset in images if asset.key == name]
    if named:
        return named[0]
    # An asset that lists its bands must list the three; one that lists none is judged when it is opened.
    coloured = [asset for asset in images if set(asset.colours) >= _RGB]
    silent = [asset for asset in images if not any(asset.colours)]
    return min(coloured or silent, key=_fineness, default=None)


def _fineness(asset: Asset) -> tuple[float, str]:
    return asset.gsd_m if asset.gsd_m is not None else float("inf"), asset.key
