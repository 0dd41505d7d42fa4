"""Small WMTS services: capabilities with the oddities of real ones, and a route that answers queries."""

from collections.abc import Callable, Sequence

from servers.web import Call, Reply
from tile_pyramids import TileRoute

from canopy.imagery.tiled.matrices import TileKey

SCALE_0 = 559_082_264.0287178


def matrix_xml(
    zoom: int, name: str = "{}", corner: str = "-20037508 20037508", tile: int = 256, scale: float = 1
) -> str:
    """A matrix of web mercator, its corner rounded as services do."""
    return f"""<TileMatrix><ows:Identifier>{name.format(zoom)}</ows:Identifier>
      <ScaleDenominator>{SCALE_0 / 2**zoom * scale}</ScaleDenominator><TopLeftCorner>{corner}</TopLeftCorner>
      <TileWidth>{tile}</TileWidth><TileHeight>{tile}</TileHeight>
      <MatrixWidth>{2**zoom}</MatrixWidth><MatrixHeight>{2**zoom}</MatrixHeight></TileMatrix>"""


def set_xml(name: str, matrices: Sequence[str], crs: str = "urn:ogc:def:crs:EPSG:6.18:3:3857") -> str:
    return f"""<TileMatrixSet><ows:Identifier>{name}</ows:Identifier>
      <ows:SupportedCRS>{crs}</ows:SupportedCRS>{"".join(matrices)}</TileMatrixSet>"""


def limits_xml(limits: dict[str, tuple[int, int, int, int]]) -> str:
    """Limits of a layer by matrix: first column, first row, last column, last row."""
    parts = "".join(
        f"""<TileMatrixLimits><TileMatrix>{name}</TileMatrix><MinTileRow>{r0}</MinTileRow><MaxTileRow>{r1}</MaxTileRow>
        <MinTileCol>{c0}</MinTileCol><MaxTileCol>{c1}</MaxTileCol></TileMatrixLimits>"""
        for name, (c0, r0, c1, r1) in limits.items()
    )
    return f"<TileMatrixSetLimits>{parts}</TileMatrixSetLimits>" if parts else ""


def layer_xml(name: str = "ortho", sets: Sequence[str] = ("PM",), extra: str = "", limits: str = "") -> str:
    links = "".join(
        f"<TileMatrixSetLink><TileMatrixSet>{one}</TileMatrixSet>{limits}</TileMatrixSetLink>" for one in sets
    )
    return f"""<Layer><ows:Title>Photographs</ows:Title><ows:Identifier>{name}</ows:Identifier>
      <Style isDefault="true"><ows:Identifier>normal</ows:Identifier></Style>
      <Format>image/png</Format>{links}{extra}</Layer>"""


def document(layers: Sequence[str], sets: Sequence[str], base: str = "http://plain.example.org/wmts?") -> bytes:
    return f"""<?xml version="1.0"?><Capabilities xmlns="http://www.opengis.net/wmts/1.0" version="1.0.0"
      xmlns:ows="http://www.opengis.net/ows/1.1" xmlns:xlink="http://www.w3.org/1999/xlink">
      <ows:OperationsMetadata><ows:Operation name="GetTile"><ows:DCP><ows:HTTP><ows:Get xlink:href="{base}">
      <ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>KVP</ows:Value></ows:AllowedValues>
      </ows:Constraint></ows:Get></ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata>
      <Contents>{"".join(layers)}{"".join(sets)}</Contents></Capabilities>""".encode()


# Listed as services do: by name, not by number.
PM = set_xml("PM", [matrix_xml(zoom) for zoom in (0, 1, 10, 16, 17, 2, 3)])


def kvp(service: TileRoute, content: bytes) -> Callable[[Call], Reply]:
    """Answer a WMTS that takes queries."""

    def reply(call: Call) -> Reply:
        if call.query.get("request") == "GetCapabilities":
            return Reply(content, headers={"Content-Type": "application/xml"})
        zoom = int(call.query["tilematrix"].rpartition(":")[2])
        return service.answer(TileKey(zoom, int(call.query["tilecol"]), int(call.query["tilerow"])))

    return reply
