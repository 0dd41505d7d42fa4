"""WMTS capabilities: the matrices of a layer as they are meant, whatever their order, rounding and axes."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import pyproj
from pyproj.exceptions import CRSError

from canopy.errors import ImageryError, one_line
from canopy.http import with_params
from canopy.imagery.tiled.matrices import TileMatrix, mercator_crs, mercator_matrix
from tiles.ground import unit_m

_PIXEL_M = 0.00028
"""Side of the pixel that the standard's scale denominators are meant for (OGC 07-057r7, 6.1)."""
_MERCATOR_CODES = frozenset({3857, 900913, 3785, 102100, 102113})
_ROUNDED_M = 2.0
"""Servers round web mercator's corner to whole metres, which is several pixels."""
_SAME_SCALE = 1e-4
_FORMATS = ("image/jpeg", "image/jpg", "image/png", "image/webp")
_MOST_LISTED = 8
_DOCTYPE = re.compile(rb"<!(DOCTYPE|ENTITY)")
_KVP = {"service": "WMTS", "request": "GetCapabilities", "version": "1.0.0"}


@dataclass(frozen=True)
class WmtsLayer:
    """A layer of a service, in one of its matrix sets."""

    identifier: str
    matrix_set: str
    matrices: tuple[TileMatrix, ...]
    """Matrices, the coarsest first."""
    template: str
    """Address of a tile, with ``{TileMatrix}``, ``{TileRow}`` and ``{TileCol}``."""
    bounds: tuple[float, float, float, float] | None
    """West, south, east, north in degrees; None where the service does not say."""
    dimensions: Mapping[str, str]
    """Values of the layer's dimensions, such as its time."""


@dataclass(frozen=True)
class WmtsChoice:
    """What a user chooses of a service; None for what the service prefers."""

    layer: str | None = None
    matrix_set: str | None = None
    style: str | None = None
    format: str | None = None
    dimensions: Mapping[str, str] | None = None


def capabilities_address(address: str) -> str:
    """Return the address of the capabilities: as it is where it names them, else with the query that asks for them."""
    parts = urlsplit(address)
    if parts.path.lower().endswith(".xml") or "getcapabilities" in address.lower():
        return address
    return with_params(address, _KVP)


def parse_capabilities(content: bytes, shown: str, choice: WmtsChoice) -> WmtsLayer:
    """Return a layer of a service.

    Args:
        content: Capabilities document, version 1.0.0.
        shown: Address for messages.
        choice: Layer, set, style and format that the user wants.

    Raises:
        ImageryError: The document is none, or has no such layer, set, style, format or dimension.
    """
    root = _root(content, shown)
    contents = _child(root, "Contents")
    layers = (
        {_text(layer, "Identifier"): layer for layer in _children(contents, "Layer")} if contents is not None else {}
    )
    if contents is None or not layers:
        raise ImageryError(f"{shown}: no layers in its capabilities, expected a WMTS 1.0.0 service; check the address")
    layer = layers[_pick(shown, "layer", choice.layer, list(layers))]
    sets = {_text(one, "Identifier"): one for one in _children(contents, "TileMatrixSet")}
    links = {_text(link, "TileMatrixSet"): link for link in _children(layer, "TileMatrixSetLink")}
    usable = [name for name in links if name in sets] or list(sets)
    set_name = _pick(shown, "set", choice.matrix_set, usable, preferred=_mercator_set(sets, usable))
    dimensions = _dimensions(layer, shown, choice.dimensions or {})
    template = _template(root, layer, shown, choice, set_name, dimensions)
    matrices = _matrices(sets[set_name], links.get(set_name), shown)
    return WmtsLayer(_text(layer, "Identifier"), set_name, matrices, template, _bounds(layer), dimensions)


def _root(content: bytes, shown: str) -> ElementTree.Element:
    """Parse a document; refuse one that defines entities, which may grow without end."""
    if _DOCTYPE.search(content[:4096]) or b"<!ENTITY" in content:
        raise ImageryError(f"{shown}: a document with a DOCTYPE, expected WMTS capabilities; check the address")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ImageryError(
            f"{shown}: no XML ({one_line(error)}), expected WMTS capabilities; check the address"
        ) from error
    if _name(root) != "Capabilities":
        said = one_line(" ".join(text.strip() for text in root.itertext() if text.strip()) or "nothing", 160)
        raise ImageryError(
            f"{shown}: {_name(root)} ({said}), expected WMTS capabilities; check the address and its key"
        )
    return root


def _pick(shown: str, kind: str, wanted_name: str | None, names: Sequence[str], preferred: str | None = None) -> str:
    """Return the wanted name, or the only or preferred one."""
    if wanted_name is None:
        if len(names) == 1 or preferred is not None:
            return preferred or names[0]
        raise ImageryError(f"{shown}: {len(names)} {kind}s, expected a choice: #{kind}= one of {_listed(names)}")
    if wanted_name in names:
        return wanted_name
    near = difflib.get_close_matches(wanted_name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {_listed(names)}"
    raise ImageryError(f"{shown}: no {kind} {wanted_name}; {hint}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _mercator_set(sets: Mapping[str, ElementTree.Element], names: Sequence[str]) -> str | None:
    """Return the first set in web mercator, in which a service has the most zooms; None without one."""
    return next((name for name in names if _is_mercator(_text(sets[name], "SupportedCRS"))), None)


def _is_mercator(crs: str) -> bool:
    code = crs.rpartition(":")[2]
    return "EPSG" in crs.upper() and code.isdecimal() and int(code) in _MERCATOR_CODES


def _dimensions(layer: ElementTree.Element, shown: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return a value for each dimension of a layer: the chosen one, else its default."""
    values = {}
    for dimension in _children(layer, "Dimension"):
        name = _text(dimension, "Identifier")
        value = next((text for key, text in chosen.items() if key.lower() == name.lower()), None)
        value = value or _text(dimension, "Default") or (_text(dimension, "Value"))
        if not value:
            raise ImageryError(f"{shown}: dimension {name} has no default, expected a value: #dim.{name}=")
        values[name] = value
    unknown = {key for key in chosen if key.lower() not in {name.lower() for name in values}}
    if unknown:
        raise ImageryError(f"{shown}: no dimension {min(unknown)}; it has {_listed(list(values)) or 'none'}")
    return values


def _template(
    root: ElementTree.Element, layer: ElementTree.Element, shown: str, choice: WmtsChoice, set_name: str,
    dimensions: Mapping[str, str],
) -> str:  # fmt: skip
    """Return the address of a tile: the layer's own template, else the query of the service's GetTile."""
    styles = {_text(style, "Identifier"): style for style in _children(layer, "Style")}
    default = next((name for name, style in styles.items() if style.get("isDefault") in ("true", "1")), None)
    style = _pick(shown, "style", choice.style, list(styles), default or next(iter(styles))) if styles else ""
    templates = {
        one.get("format", ""): one.get("template", "")
        for one in reversed(_children(layer, "ResourceURL"))
        if one.get("resourceType", "tile") == "tile"
    }
    offered = list(reversed(templates)) or [(one.text or "").strip() for one in _children(layer, "Format")]
    readable = [name for name in offered if name.partition(";")[0].strip().lower() in _FORMATS]
    if not readable:
        raise ImageryError(f"{shown}: tiles in {_listed(offered) or 'no format'}, expected {', '.join(_FORMATS)}")
    kind = _pick(shown, "format", choice.format, readable, readable[0])
    if templates:
        values = {"Style": style, "TileMatrixSet": set_name, "Layer": _text(layer, "Identifier"), **dimensions}
        return _filled(templates[kind], values)
    query = {
        "service": "WMTS", "request": "GetTile", "version": "1.0.0", "layer": _text(layer, "Identifier"),
        "style": style, "format": kind, "tilematrixset": set_name, **dimensions,
    }  # fmt: skip
    tile = "tilematrix={TileMatrix}&tilerow={TileRow}&tilecol={TileCol}"
    address = with_params(_get_tile(root, shown), query)
    return f"{address}{'' if address.endswith(('?', '&')) else '&'}{tile}"


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Fill the placeholders that are the same for all tiles; servers write their names in any case."""
    lower = {name.lower(): value for name, value in values.items()}
    tile_names = {"tilematrix": "TileMatrix", "tilerow": "TileRow", "tilecol": "TileCol"}

    def replacement(match: re.Match[str]) -> str:
        name = match[1].lower()
        return quote(lower[name], safe=":") if name in lower else "{" + tile_names.get(name, match[1]) + "}"

    return re.sub(r"\{([^{}]*)\}", replacement, template)


def _get_tile(root: ElementTree.Element, shown: str) -> str:
    """Return the address that takes GetTile as a query."""
    for operation in root.iter():
        if _name(operation) == "Operation" and operation.get("name") == "GetTile":
            for get in operation.iter():
                href = next((value for key, value in get.attrib.items() if key.endswith("href")), None)
                encodings = [(one.text or "").strip() for one in get.iter() if _name(one) == "Value"]
                if _name(get) == "Get" and href and (not encodings or "KVP" in encodings):
                    return href
    raise ImageryError(
        f"{shown}: no address of GetTile in its capabilities, expected one; name the tiles as xyz+https:"
    )


def _matrices(matrix_set: ElementTree.Element, link: ElementTree.Element | None, shown: str) -> tuple[TileMatrix, ...]:
    """Return the matrices of a set, the coarsest first, with the limits that the layer states."""
    declared = _text(matrix_set, "SupportedCRS")
    crs = _crs(declared, shown)
    identifiers = {_text(one, "Identifier") for one in _children(matrix_set, "TileMatrix")}
    limits = {}
    for one in link.iter() if link is not None else ():
        if _name(one) == "TileMatrixLimits":
            sides = ("MinTileCol", "MinTileRow", "MaxTileCol", "MaxTileRow")
            name = _text(one, "TileMatrix")
            # Some servers write SET:0 for the matrix 0 of the set SET.
            name = name if name in identifiers else name.removeprefix(f"{_text(matrix_set, 'Identifier')}:")
            limits[name] = tuple(int(_text(one, side)) for side in sides)
    limits = limits if identifiers & set(limits) else {}
    try:
        parsed = [_matrix(one, crs, declared, limits) for one in _children(matrix_set, "TileMatrix")]
    except (ValueError, IndexError) as error:
        raise ImageryError(f"{shown}: a tile matrix that is not understood ({one_line(error)})") from error
    # Some servers list 0, 1, 10, 11, ..., 2. A layer with limits has no tiles in matrices without.
    ordered = sorted((one for one in parsed if not limits or one.identifier in limits), key=lambda one: -one.pixel)
    if not ordered:
        raise ImageryError(f"{shown}: no tile matrices in the set {_text(matrix_set, 'Identifier')}")
    return tuple(replace(one, zoom=zoom) for zoom, one in zip(_zooms(ordered), ordered, strict=True))


def _zooms(matrices: Sequence[TileMatrix]) -> list[int]:
    """Return the numbers of matrices: the zooms of XYZ tiles where they are those, else from 0 on."""
    top = mercator_matrix(0).pixel
    exact = [math.log2(top * 256 / (one.pixel * one.tile_px[0])) for one in matrices]
    zooms = [round(zoom) for zoom in exact]
    mercator = matrices[0].crs == mercator_crs() and all(abs(a - b) < 1e-3 for a, b in zip(exact, zooms, strict=True))
    return zooms if mercator and len(set(zooms)) == len(zooms) and zooms[0] >= 0 else list(range(len(matrices)))


def _matrix(
    element: ElementTree.Element, crs: pyproj.CRS, declared: str, limits: Mapping[str, tuple[int, ...]]
) -> TileMatrix:
    """Read one matrix."""
    identifier = _text(element, "Identifier")
    pixel = float(_text(element, "ScaleDenominator")) * _PIXEL_M / unit_m(crs)
    first, second = (float(text) for text in _text(element, "TopLeftCorner").split())
    left, top = (second, first) if _north_first(crs, first, second) else (first, second)
    tile_px = int(_text(element, "TileWidth")), int(_text(element, "TileHeight"))
    columns, rows = int(_text(element, "MatrixWidth")), int(_text(element, "MatrixHeight"))
    if not (math.isfinite(pixel) and pixel > 0 and min(*tile_px, columns, rows) >= 1 and max(tile_px) <= 4096):
        raise ValueError(f"matrix {identifier}: pixel {pixel:g}, tiles of {tile_px[0]} x {tile_px[1]} px")
    wkt = str(crs.to_wkt())
    if _is_mercator(declared):
        wkt = mercator_crs()
        left, top, pixel = _exact(left, top, pixel, tile_px[0])
    limit = limits.get(identifier)
    bounds = (limit[0], limit[1], limit[2], limit[3]) if limit is not None else None
    return TileMatrix(identifier, 0, wkt, left, top, pixel, tile_px, columns, rows, bounds)


def _exact(left: float, top: float, pixel: float, tile_px: int) -> tuple[float, float, float]:
    """Return web mercator's own corner and pixel where a server states them rounded."""
    zoom = round(math.log2(mercator_matrix(0, tile_px).pixel / pixel))
    exact = mercator_matrix(zoom, tile_px) if 0 <= zoom <= 24 else None
    if exact is None or abs(pixel / exact.pixel - 1) > _SAME_SCALE:
        return left, top, pixel
    near = abs(left - exact.left) <= _ROUNDED_M and abs(top - exact.top) <= _ROUNDED_M
    return (exact.left, exact.top, exact.pixel) if near else (left, top, exact.pixel)


def _crs(declared: str, shown: str) -> pyproj.CRS:
    """Return the CRS that a set declares as a URN, with or without a version, or as a code."""
    if _is_mercator(declared):
        return pyproj.CRS.from_epsg(3857)
    match = re.search(r"(EPSG|CRS|IGNF)[:/][^:/]*?[:/]?([A-Za-z0-9]+)$", declared)
    text = declared
    if declared.upper().endswith("CRS84"):
        text = "OGC:CRS84"
    elif match and match[1] != "CRS":
        text = f"{match[1]}:{match[2]}"
    elif code := re.search(r"EPSG.*?(\d+)$", declared):
        text = f"EPSG:{code[1]}"
    try:
        return pyproj.CRS.from_user_input(text)
    except CRSError as error:
        raise ImageryError(f"{shown}: CRS {declared} of its tiles is not known; choose another #set=") from error


def _north_first(crs: pyproj.CRS, first: float, second: float) -> bool:
    """Return whether a corner's first number is the northing or latitude."""
    # A number beyond 90 is no latitude, whatever is declared: servers write either order for either CRS.
    if crs.is_geographic and max(abs(first), abs(second)) > 90.0001:
        return abs(second) > abs(first)
    axis = crs.axis_info[0].direction.lower() if crs.axis_info else "east"
    return axis in ("north", "south")


def _bounds(layer: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """Return the WGS84 box of a layer, None where it states none that makes sense."""
    box = _child(layer, "WGS84BoundingBox")
    if box is None:
        return None
    try:
        (west, south), (east, north) = (
            (float(one) for one in _text(box, name).split()) for name in ("LowerCorner", "UpperCorner")
        )
    except ValueError:
        return None
    return (west, south, east, north) if west < east and south < north and max(abs(south), abs(north)) <= 90 else None


def _name(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace: servers use several."""
    return str(element.tag).rpartition("}")[2]


def _children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element if _name(child) == name]


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    return next(iter(_children(element, name)), None)


def _text(element: ElementTree.Element, name: str) -> str:
    """Return the text of a child, empty where there is none."""
    child = _child(element, name)
    return (child.text or "").strip() if child is not None else ""
