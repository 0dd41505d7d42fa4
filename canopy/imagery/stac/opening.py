"""Images of a STAC catalogue as scenes: search, choice of items and files, and what each file really is."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from canopy.errors import CoverageError, ImageryError, SourceError, one_line
from canopy.http import HttpClient, redacted
from canopy.imagery.files import shown
from canopy.imagery.licences import Licence, permits_derived
from canopy.imagery.references import Reach
from canopy.imagery.remote import DIRECT, Access
from canopy.imagery.scene import Overrides, RasterScene, inspect
from canopy.imagery.search import Search
from canopy.imagery.selection import Skipped
from canopy.imagery.stac import openaerialmap
from canopy.imagery.stac.api import RETRIED_IN_SEARCHES, Question, list_collections, pages, search_link
from canopy.imagery.stac.catalogue import walk
from canopy.imagery.stac.items import Item, choose_asset, parse_item, within_turn
from canopy.imagery.stac.mosaic import Sifted, covering, sift, unjudged
from canopy.progress import Report, ignore
from tiles.aoi import to_crs

SCHEMES = ("stac+https://", "stac+http://", "oam+https://", "oam+http://")
_OPTIONS = ("collection", "asset", "date", "cloud", "off-nadir", "sun", "order", "layers", "signing")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PARALLEL = 8

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogueUri:
    """A catalogue that a user names, and what is asked of it."""

    kind: str
    """``stac`` or ``oam``."""
    address: str
    """Address of the first document."""
    collections: tuple[str, ...] = ()
    search: Search = field(default_factory=Search)
    layers: int = 1
    """How many images shall lie over each place."""
    access: Access = DIRECT
    """How files are asked for."""

    @property
    def shown(self) -> str:
        """The address for messages, with the collections."""
        return f"{', '.join(self.collections)} of {redacted(self.address)}" if self.collections else (
            redacted(self.address))  # fmt: skip


def is_catalogue(uri: str) -> bool:
    """Return whether a URI is one of a catalogue that is searched."""
    return uri.lower().startswith(SCHEMES)


def parse_uri(uri: str) -> CatalogueUri:
    """Read ``stac+https://host/path?collection=NAME&...``, or the same of OpenAerialMap, ``oam+https://...``.

    Raises:
        ImageryError: An option is unknown or cannot be, or the address is not encrypted.
    """
    kind, _, rest = uri.partition("+")
    parts = urlsplit(rest)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ImageryError(
            f"{kind}+http://{parts.hostname}: not encrypted, expected {kind}+https:// (plain http on loopback only)"
        )
    options: dict[str, list[str]] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ImageryError(f"{redacted(uri)}: unknown option {name}, expected {', '.join(_OPTIONS)}")
        options.setdefault(name, []).append(value)
    one = {name: values[-1] for name, values in options.items()}
    search = Search.read(
        one.get("date"), _number(one, "cloud"), _number(one, "off-nadir"), _number(one, "sun"), one.get("order"),
        tuple(options.get("asset", ())),
    )  # fmt: skip
    layers = one.get("layers", "1")
    if not layers.isdecimal() or not 1 <= int(layers) <= 10:
        raise ImageryError(f"{redacted(uri)}: layers={layers}, expected 1 to 10")
    address = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    collections = tuple(name for value in options.get("collection", ()) for name in value.split(",") if name)
    return CatalogueUri(kind.lower(), address, collections, search, int(layers), Access(one.get("signing", "")))


def _number(options: dict[str, str], name: str) -> float | None:
    try:
        return float(options[name]) if name in options else None
    except ValueError:
        raise ImageryError(f"{name}={options[name]}: a number expected") from None


@lru_cache(maxsize=1)
def client() -> HttpClient:
    """Return the client of all searches."""
    return HttpClient(retried=RETRIED_IN_SEARCHES)


def find_items(uri: CatalogueUri, area: Geometry, search: Search, report: Report = ignore) -> Sifted:
    """Return the items over an area that a search asks for, in order.

    Args:
        uri: The catalogue.
        area: The area, in any CRS.
        search: What the user asks, in addition to what the URI says.
        report: Called while a static catalogue is walked.

    Raises:
        SourceError: The catalogue does not answer.
        ImageryError: It wants a collection to be named.
    """
    outline = lonlat_outline(area)
    combined = search.over(uri.search)
    if uri.kind == "oam":
        items = [item for box in _boxes(outline) for item in openaerialmap.search(client(), uri.address, box)]
    else:
        items = _search(uri, outline, combined, report)
    for name in unjudged(items, combined) if items else ():
        _LOG.warning("imagery: %s does not say the %s of its images, so --%s is not applied", uri.shown, name, name)
    return sift(items, outline, combined, uri.collections)


def lonlat_outline(area: Geometry) -> BaseGeometry:
    """Return an area in longitude and latitude, both parts of one that crosses 180 degrees."""
    return within_turn(to_crs(area, CRS("EPSG:4326")).geom)


def _search(uri: CatalogueUri, outline: BaseGeometry, search: Search, report: Report) -> list[Item]:
    """Return what a catalogue of STAC has over an area, as it answers."""
    landing = client().get(uri.address).json()
    if not isinstance(landing, dict):
        raise SourceError(f"{redacted(uri.address)}: no catalogue of STAC; check the address")
    start = search_link(landing, uri.address)
    if start is None:
        return walk(client(), landing, uri.address, outline, report)
    if not uri.collections:
        names = ", ".join(list_collections(client(), landing, uri.address)) or "those that its documentation lists"
        raise ImageryError(f"{redacted(uri.address)}: no collection named, expected ?collection=NAME, such as {names}")
    items = []
    for box in _boxes(outline):
        for features in pages(client(), start, Question(uri.collections, box, str(search.dates))):
            items += _parsed(features, uri)
    return items


def _boxes(outline: BaseGeometry) -> list[tuple[float, float, float, float]]:
    """Return the box of an area; two for one that lies on both sides of the antimeridian."""
    parts = list(getattr(outline, "geoms", [outline]))
    west = [part for part in parts if part.bounds[2] >= 180 - 1e-9]
    east = [part for part in parts if part.bounds[0] <= -180 + 1e-9]
    groups = [west, [p for p in parts if p not in west]] if west and east else [parts]
    return [
        (min(p.bounds[0] for p in group), min(p.bounds[1] for p in group), max(p.bounds[2] for p in group),
         max(p.bounds[3] for p in group))
        for group in groups if group
    ]  # fmt: skip


def _parsed(features: Sequence[object], uri: CatalogueUri) -> list[Item]:
    """Read the items of a page; what is none is left out and said."""
    items, faults = [], []
    for feature in features:
        try:
            items.append(parse_item(feature, uri.address))
        except (ValueError, TypeError, AttributeError) as error:
            faults.append(one_line(error))
    if faults:
        _LOG.warning("imagery: %d items of %s cannot be read: %s", len(faults), uri.shown, faults[0])
    return items


@dataclass(frozen=True)
class Opened:
    """Scenes of a catalogue over an area."""

    scenes: tuple[RasterScene, ...]
    skipped: tuple[Skipped, ...]
    """Files of the catalogue that are no imagery."""
    items: tuple[Item, ...]
    """Items of the scenes."""


def open_items(sifted: Sifted, uri: CatalogueUri, area: Geometry, search: Search, overrides: Overrides) -> Opened:
    """Open the images that cover an area.

    Args:
        sifted: Items that the search asks for, in order.
        uri: The catalogue.
        area: The area, in any CRS.
        search: What the user asks.
        overrides: What the user says of the files.

    Raises:
        CoverageError: No item has an image of the area.
        SourceError: A file cannot be read.
    """
    outline = lonlat_outline(area)
    combined = search.over(uri.search)
    scenes: dict[tuple[str, str], RasterScene] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    candidates = list(sifted.items)
    # An image that turns out to be none leaves a hole, which others may fill: so until nothing changes.
    while True:
        needed = covering([item for item in candidates if item.key not in skipped], outline, uri.layers)
        fresh = [item for item in needed if item.key not in scenes]
        if not fresh:
            break
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="headers") as pool:
            results = list(pool.map(lambda item: _open(item, combined, uri.access, overrides), fresh))
        for item, result in zip(fresh, results, strict=True):
            if isinstance(result, Skipped):
                skipped[item.key] = result
            else:
                scenes[item.key] = result
    if not needed:
        raise CoverageError(_nothing(uri, sifted, list(skipped.values())))
    for one in skipped.values():
        _LOG.warning("imagery: left out %s (%s)", shown(one.path), one.reason)
    return Opened(tuple(scenes[item.key] for item in needed), tuple(skipped.values()), tuple(needed))


def _open(item: Item, search: Search, access: Access, overrides: Overrides) -> RasterScene | Skipped:
    """Open the image of an item; return why it is left out where it is no imagery or not there."""
    asset = choose_asset(item, search.assets)
    if asset is None:
        names = ", ".join(asset.key for asset in item.assets[:8])
        return Skipped(item.id, f"no picture in colours among {names}; name one with ?asset=")
    try:
        scene = inspect(asset.href, Reach(), overrides, access)
    except SourceError as error:
        if error.status not in (404, 410):
            raise
        return Skipped(shown(asset.href), "listed in the catalogue and not there")
    except ImageryError as error:
        return Skipped(shown(asset.href), one_line(error, 200))
    if len(scene.bands.colours) < 3 and scene.table is None and overrides.bands is None:
        return Skipped(shown(asset.href), "one band, expected red, green and blue")
    others = tuple((other.key, other.href) for other in item.assets if other is not asset)
    return replace(scene, acquired=item.acquired or scene.acquired, assets=others)


def find_files(uri: CatalogueUri, area: Geometry, search: Search) -> tuple[str, ...]:
    """Return the addresses of one asset of each item that an area needs, those that the search puts on top first.

    Args:
        uri: The catalogue, with the name of the asset.
        area: The area, in any CRS.
        search: What the user asks, in addition to what the URI says.

    Raises:
        CoverageError: No item over the area has the asset.
        SourceError: The catalogue does not answer.
    """
    sifted = find_items(uri, area, search)
    assets = {item.key: asset for item in sifted.items if (asset := choose_asset(item, uri.search.assets))}
    outline = lonlat_outline(area)
    needed = covering([item for item in sifted.items if item.key in assets], outline, uri.layers)
    addresses = dict.fromkeys(assets[item.key].href for item in needed)
    if not addresses:
        raise CoverageError(
            f"no file {', '.join(uri.search.assets)} over the AOI in {uri.shown}: {sifted.describe_rest() or 'no item'}"
            "; check ?asset= and the dates"
        )
    return tuple(addresses)


def terms_of(items: Sequence[Item], licence: Licence | None) -> Licence | None:
    """Return the licence of images that each have their own, else that of their source.

    Args:
        items: Images that are used.
        licence: Licence of the source, as far as it is on record.
    """
    names = list(dict.fromkeys(item.licence for item in items if item.licence))
    providers = list(dict.fromkeys(item.provider for item in items if item.provider))
    if not providers:
        return licence
    if silent := sum(item.licence is None for item in items):
        _LOG.warning(
            "imagery: %d image(s) without a licence of their own; ask their provider before you publish", silent
        )
    base = licence or Licence(" and ".join(names) or "not on record", derive=bool(names))
    attribution = ", ".join(providers)
    return replace(
        base,
        name=" and ".join(names) or base.name,
        derive=all(map(permits_derived, names)) and base.derive,
        attribution=f"{base.attribution}: {attribution}" if base.attribution else attribution,
    )


def _nothing(uri: CatalogueUri, sifted: Sifted, skipped: Sequence[Skipped]) -> str:
    rest = sifted.describe_rest()
    faults = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:2])
    details = "; ".join(text for text in (rest and f"left out {rest}", faults) if text) or "no item there"
    return (
        f"no imagery over the AOI in {uri.shown}: {details}; relax --date, --cloud or --off-nadir, or name another "
        "source with --imagery"
    )
