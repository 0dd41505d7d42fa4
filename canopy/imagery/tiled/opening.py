"""Opening of tiles: from a URI to a source, with every option checked before a tile is fetched."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import cast
from urllib.parse import urljoin, urlsplit

from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from PIL import Image

from canopy.errors import ImageryError, SourceError
from canopy.http import Retry, is_loopback, redacted
from canopy.imagery.calendar import Calendar
from canopy.imagery.licences import Licence
from canopy.imagery.rescale import choose_rescale, requested_rescale
from canopy.imagery.tiled.address import TileTemplate, TileUri
from canopy.imagery.tiled.cache import TileCache
from canopy.imagery.tiled.client import CONNECTIONS, HttpTiles, Service, TileStore
from canopy.imagery.tiled.decoding import FORMATS, Unknown, declared_blanks
from canopy.imagery.tiled.features import product_filter, read_calendar
from canopy.imagery.tiled.folder import FolderTiles, Layout, recognise
from canopy.imagery.tiled.matrices import TileMatrix, mercator_matrix
from canopy.imagery.tiled.reader import TileReader
from canopy.imagery.tiled.source import Bounds, TiledImagery, clipped, matrix_bounds
from canopy.imagery.tiled.wmts import WmtsChoice, WmtsLayer, capabilities_address, parse_capabilities
from tiles.aoi import to_crs

_DEEPEST = 24
_TILE_PX = (256, 512, 1024)
_MAX_CAPABILITIES_BYTES = 64 * 2**20
_VIVID_BLANK_BYTES = 1670
"""Length of the tile that Vantor sends with status 200 where it has no imagery, or none of the product."""
_VIVID_DEEPEST = 18
_VIVID_FEATURES = "/streaming/v1/ogc/wfs"

_LOG = logging.getLogger(__name__)


def is_tiled(uri: str | Path) -> bool:
    """Return whether a URI means tiles: by its scheme, or a folder laid out as tiles are."""
    text = str(uri)
    try:
        return TileUri.parse(text) is not None or recognise(Path(text)) is not None
    except (OSError, ValueError):
        return False
    except ImageryError:
        # An address of tiles with a fault, which `open_tiles` reports.
        return True


def open_tiles(
    uri: str | Path,
    *,
    scale: tuple[float, float] | None = None,
    datetime: str | None = None,
    nodata: float | None = None,
    licence: Licence | None = None,
    area: Geometry | None = None,
    retry: Retry | None = None,
) -> TiledImagery:
    """Open a tile service or a folder of tiles.

    Args:
        uri: ``xyz+https://``, ``tms+https://``, ``quadkey+https://`` or ``wmts+https://`` address with options behind
            ``#``, the same with ``file:`` for a folder (not for WMTS), or a folder whose layout is recognised.
        scale: Values that become 0 and 1; 0 and 255 by default.
        datetime: Acquisition time, ISO 8601.
        nodata: Value of all three colours of an unknown pixel.
        licence: What the provider permits, if on record.
        area: Area that is mapped, in any CRS: where the GSD is measured, and dates are asked for.
        retry: Attempts and pauses of requests.

    Raises:
        ImageryError: The address, an option, the folder or the capabilities are not as expected.
        SourceError: The capabilities cannot be had.
        ConfigError: The service wants a key and there is none.
    """
    parsed = TileUri.parse(str(uri))
    if parsed is None:
        layout = recognise(Path(uri))
        if layout is None:
            raise ImageryError(f"{uri}: no folder of tiles, expected zoom/column/row.jpg or quadkey.jpg")
        parsed = TileUri(layout, "file", str(uri))
    Image.init()  # the decoders' first call, on one thread
    if parsed.scheme == "file":
        layer = _folder(parsed)
    elif parsed.kind == "wmts":
        layer = _wmts(parsed, licence, retry)
    else:
        layer = _xyz(parsed, licence, retry)
    matrices = _zooms(parsed, layer.matrices)
    bounds = _clip(parsed, layer.bounds or matrix_bounds(matrices[-1]))
    blanks = declared_blanks([text for text in (parsed.option("blank") or "").split(",") if text])
    sizes = (*blanks.sizes, *((_VIVID_BLANK_BYTES,) if parsed.option("product") else ()))
    rescale = requested_rescale(*scale) if scale is not None else choose_rescale((), "uint8")
    reader = TileReader(layer.store, matrices, Unknown(sizes, blanks.hashes, nodata))
    near = _near(area, bounds)
    calendar = _calendar(parsed, near, retry) if area is not None else None
    datetime = datetime or layer.datetime or (calendar.span if calendar is not None else None)
    return TiledImagery(parsed.shown, reader, matrices, rescale, bounds, datetime, licence, near, calendar)


@dataclass(frozen=True)
class _Layer:
    """Tiles that an address leads to."""

    store: TileStore
    matrices: tuple[TileMatrix, ...]
    """Matrices, the coarsest first."""
    bounds: Bounds | None = None
    """West, south, east, north in degrees, where the service says so."""
    datetime: str | None = None
    """Acquisition, where the service says so."""


def _folder(uri: TileUri) -> _Layer:
    """List the tiles of a folder, and look at one for their size."""
    folder = Path(uri.base)
    if not folder.is_dir():
        raise ImageryError(f"{uri.shown}: no such folder, expected one of tiles; check the path")
    tiles = FolderTiles(folder, cast(Layout, uri.kind))
    zooms = tiles.zooms()
    name = next(entry[0] for key, entry in tiles.tiles.items() if key.zoom == zooms[-1])
    side = uri.number("tile", 0) or _side(folder / name)
    matrices = []
    for zoom in zooms:
        matrix = mercator_matrix(zoom, side)
        matrices.append(
            TileMatrix(
                matrix.identifier, zoom, matrix.crs, matrix.left, matrix.top, matrix.pixel, matrix.tile_px,
                matrix.columns, matrix.rows, tiles.extent(zoom),
            )
        )  # fmt: skip
    return _Layer(tiles, tuple(matrices))


def _side(path: Path) -> int:
    """Return the side of a tile in a file."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageryError(f"{path}: no picture, expected a tile in {', '.join(FORMATS)}; deliver it again") from error
    if width != height or width not in _TILE_PX:
        raise ImageryError(f"{path}: {width} x {height} px, expected a tile of {', '.join(map(str, _TILE_PX))} px")
    return width


def _xyz(uri: TileUri, licence: Licence | None, retry: Retry | None) -> _Layer:
    """Describe an XYZ, TMS or quadkey service."""
    template = TileTemplate(uri.base, uri.kind == "tms", uri.numbered("query"))
    template.check(uri.shown)
    side = uri.number("tile", 512 if "@2x" in uri.base else 256)
    if side not in _TILE_PX:
        raise ImageryError(f"{uri.shown}: tile={side}, expected one of {', '.join(map(str, _TILE_PX))}")
    # A quadkey of zoom 0 would be empty.
    first = 1 if "{q}" in uri.base else 0
    matrices = tuple(mercator_matrix(zoom, side) for zoom in range(first, _DEEPEST + 1))
    return _Layer(HttpTiles(template, _service(uri, retry), _cache(licence)), matrices)


def _wmts(uri: TileUri, licence: Licence | None, retry: Retry | None) -> _Layer:
    """Ask a WMTS service for its capabilities, and choose a layer."""
    service = _service(uri, retry)
    answer = service.client().get(capabilities_address(uri.base), limit_bytes=_MAX_CAPABILITIES_BYTES)
    choice = WmtsChoice(
        uri.option("layer"), uri.option("set"), uri.option("style"), uri.option("format"), uri.numbered("dim")
    )
    layer = parse_capabilities(answer.content, uri.shown, choice)
    params = uri.numbered("query")
    if product := uri.option("product"):
        params["cql_filter"] = product_filter(product)
    template = TileTemplate(_same_host(uri, layer.template), params=params)
    template.check(uri.shown)
    store = HttpTiles(template, service, _cache(licence))
    return _Layer(store, layer.matrices, layer.bounds, _time(layer))


def _same_host(uri: TileUri, template: str) -> str:
    """Return a template encrypted as the capabilities were; refuse one that would carry the key to another host.

    Servers behind a proxy often state their own plain address.
    """
    parts, own = urlsplit(template), urlsplit(uri.base)
    if parts.scheme == "http" and own.scheme == "https":
        template = f"https:{template.partition(':')[2]}"
    elif parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ImageryError(f"{uri.shown}: its tiles are at {redacted(template)}, expected an https address")
    if uri.option("key") and parts.hostname != own.hostname:
        raise ImageryError(
            f"{uri.shown}: its tiles are at {parts.hostname}, expected {own.hostname}, for which the key is; name the "
            "tiles as xyz+https:"
        )
    return template


def _time(layer: WmtsLayer) -> str | None:
    """Return the time dimension of a layer where it is a day; a year or "current" is none."""
    text = next((value for name, value in layer.dimensions.items() if name.lower() == "time"), "")
    try:
        return date.fromisoformat(text[:10]).isoformat() if len(text) >= 10 else None
    except ValueError:
        return None


def _service(uri: TileUri, retry: Retry | None) -> Service:
    """Return what requests to a service need: the header of its key, and how many go out at a time."""
    key = uri.option("key")
    if key is not None and not all(key.partition(":")):
        raise ImageryError(f"{uri.shown}: key={key}, expected HEADER:VARIABLE, such as maxar-api-key:VANTOR_API_KEY")
    header, _, variable = (key or "").partition(":")
    connections = uri.number("connections", CONNECTIONS)
    if connections > 64:
        raise ImageryError(f"{uri.shown}: connections={connections}, expected 1 to 64: services refuse more")
    return Service((header, variable) if key else None, connections, retry or Retry())


def _cache(licence: Licence | None) -> TileCache | None:
    """Return the cache of tiles: none unless the environment names one, and none where a licence forbids copies."""
    return None if licence is not None and not licence.redistribute else TileCache.of_environment()


def _zooms(uri: TileUri, matrices: Sequence[TileMatrix]) -> tuple[TileMatrix, ...]:
    """Return the matrices that the ``zoom`` option leaves: ``17`` or ``12-18``, by name or by place in the order."""
    # The mosaic's detail ends there; deeper tiles are upsampled, and billed.
    text = uri.option("zoom") or (f"0-{_VIVID_DEEPEST}" if uri.option("product") else None)
    if text is None:
        return tuple(matrices)
    first, dash, last = text.partition("-")
    ends = [int(end) for end in (first, last if dash else first) if end.isdecimal()]
    left = [one for one in matrices if len(ends) == 2 and ends[0] <= one.zoom <= ends[1]]
    if not left:
        raise ImageryError(
            f"{uri.shown}: zoom={text} leaves none of its zooms, {matrices[0].zoom} to {matrices[-1].zoom}; name one, "
            "or two with a dash"
        )
    return tuple(left)


def _clip(uri: TileUri, bounds: Bounds) -> Bounds:
    """Return the box of the tiles, less what the ``bounds`` option leaves out."""
    text = uri.option("bounds")
    if text is None:
        return bounds
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise ImageryError(f"{uri.shown}: bounds={text}, expected west,south,east,north in degrees") from None
    common = clipped(bounds, (west, south, east, north)) if west < east and south < north else None
    if common is None:
        raise ImageryError(f"{uri.shown}: bounds={text} leaves nothing of {', '.join(f'{one:.6g}' for one in bounds)}")
    return common


def _near(area: Geometry | None, bounds: Bounds) -> Bounds:
    """Return the box of an area in degrees, as far as the tiles reach; that of the tiles without an area."""
    if area is None:
        return bounds
    west, south, east, north = to_crs(area, CRS("EPSG:4326")).boundingbox.bbox
    return clipped((west, south, east, north), bounds) or bounds


def _calendar(uri: TileUri, near: Bounds, retry: Retry | None) -> Calendar | None:
    """Ask the feature service of a product for dates; without an answer the map goes on, its dates unknown."""
    product, address = uri.option("product"), uri.option("dates")
    if product is None or address == "none":
        return None
    address = address or urljoin(uri.base, _VIVID_FEATURES)
    if urlsplit(address).hostname != urlsplit(uri.base).hostname:
        raise ImageryError(f"{uri.shown}: dates={redacted(address)}, expected an address of the host that has the key")
    try:
        calendar = read_calendar(_service(uri, retry).client(), address, product, near)
    except SourceError as error:
        _LOG.warning("imagery: acquisition dates unknown: %s", error)
        return None
    if not calendar.days:
        _LOG.warning("imagery: acquisition dates unknown: %s has no features of %s there", redacted(address), product)
    return calendar
