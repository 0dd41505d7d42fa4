"""WMTS 1.0.0 capabilities, from which QGIS and other clients learn the layers and the addresses of their tiles."""

from collections.abc import Iterable
from xml.etree import ElementTree

from morecantile import TileMatrixSet

from tiles.server.layers import MAX_ZOOM, Layer

_WMTS, _OWS, _XLINK = (
    "http://www.opengis.net/wmts/1.0",
    "http://www.opengis.net/ows/1.1",
    "http://www.w3.org/1999/xlink",
)
_PIXEL_M = 0.00028
"""Side of a pixel by which OGC defines scales, metres."""
WMTS_TILE_PX = 256
REST_PATH = "wmts/1.0.0/WMTSCapabilities.xml"
"""Path by whose end QGIS knows a WMTS; of any other address without SERVICE=WMTS it asks for a WMS."""
MEDIA_TYPE = "application/xml"


def capabilities(layers: Iterable[Layer], base_url: str, tile_set: TileMatrixSet) -> bytes:
    """Return the capabilities of the server.

    Args:
        layers: Layers.
        base_url: Address of the server, with the slash at its end.
        tile_set: Tile matrix set of the tiles.
    """
    for prefix, uri in (("", _WMTS), ("ows", _OWS), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.Element(f"{{{_WMTS}}}Capabilities", version="1.0.0")
    identification = _ows(root, "ServiceIdentification")
    _ows(identification, "Title", "Canopy height maps")
    _ows(identification, "ServiceType", "OGC WMTS")
    _ows(identification, "ServiceTypeVersion", "1.0.0")
    contents = ElementTree.SubElement(root, f"{{{_WMTS}}}Contents")
    for layer in layers:
        _add_layer(contents, layer, base_url, tile_set.id or "")
    _add_tile_set(contents, tile_set)
    metadata = ElementTree.SubElement(root, f"{{{_WMTS}}}ServiceMetadataURL")
    metadata.set(f"{{{_XLINK}}}href", f"{base_url}{REST_PATH}")
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _ows(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, f"{{{_OWS}}}{name}")
    child.text = text
    return child


def _wmts(parent: ElementTree.Element, name: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, f"{{{_WMTS}}}{name}", attributes)
    child.text = text
    return child


def _add_layer(contents: ElementTree.Element, layer: Layer, base_url: str, tile_set: str) -> None:
    element = _wmts(contents, "Layer")
    west, south, east, north = layer.bounds
    if west > east:  # across the antimeridian: a box of WGS84 cannot say that
        west, east = -180.0, 180.0
    _ows(element, "Title", layer.title)
    _ows(element, "Abstract", f"{layer.content}; imagery of {layer.acquired.text}")
    box = _ows(element, "WGS84BoundingBox")
    _ows(box, "LowerCorner", f"{west} {south}")
    _ows(box, "UpperCorner", f"{east} {north}")
    _ows(element, "Identifier", layer.id)
    style = _wmts(element, "Style", isDefault="true")
    _ows(style, "Identifier", "default")
    _wmts(element, "Format", "image/png")
    link = _wmts(element, "TileMatrixSetLink")
    _wmts(link, "TileMatrixSet", tile_set)
    path = f"layers/{layer.id}/tiles/{tile_set}/{{TileMatrix}}/{{TileCol}}/{{TileRow}}.png?tilesize={WMTS_TILE_PX}"
    _wmts(element, "ResourceURL", format="image/png", resourceType="tile", template=base_url + path)


def _add_tile_set(contents: ElementTree.Element, tile_set: TileMatrixSet) -> None:
    element = _wmts(contents, "TileMatrixSet")
    _ows(element, "Identifier", tile_set.id)
    _ows(element, "SupportedCRS", "urn:ogc:def:crs:EPSG::3857")
    for matrix in tile_set.tileMatrices[: MAX_ZOOM + 1]:
        entry = _wmts(element, "TileMatrix")
        scale = matrix.cellSize * matrix.tileWidth / WMTS_TILE_PX / _PIXEL_M
        left, top = matrix.pointOfOrigin
        _ows(entry, "Identifier", matrix.id)
        _wmts(entry, "ScaleDenominator", repr(scale))
        _wmts(entry, "TopLeftCorner", f"{left} {top}")
        _wmts(entry, "TileWidth", str(WMTS_TILE_PX))
        _wmts(entry, "TileHeight", str(WMTS_TILE_PX))
        _wmts(entry, "MatrixWidth", str(matrix.matrixWidth))
        _wmts(entry, "MatrixHeight", str(matrix.matrixHeight))
