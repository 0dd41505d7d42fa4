"""The services of docs/imagery.md on 127.0.0.1, with one image of a place that no bundled imagery covers.

The page names `https://imagery.example.org`; its reader's commands get this server's address instead, and a list of
sources that leads here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import rasterio
import shapely
import yaml
from moto.server import ThreadedMotoServer
from obstore.store import S3Store
from pyproj import Transformer
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from servers.web import Call, Reply, WebServer, file_reply
from stac_service import StacApi, item_of, outline_of, signed
from tile_pyramids import picture

from canopy.http import HttpClient
from canopy.imagery.registry import _SHIPPED
from canopy.imagery.tiled.matrices import mercator_matrix

PLACEHOLDER = "https://imagery.example.org"
ORIGIN = (500_000.0, 5_000_000.0)
ZOOM = 18


class ImageryServices:
    """Every kind of source, of one image."""

    def __init__(self, server: WebServer, folder: Path, sample: Path) -> None:
        """Write the image, an area and the routes.

        Args:
            server: Server.
            folder: Folder for the image, a folder of tiles, the list of sources and the area.
            sample: Image whose pixels are put elsewhere.
        """
        self.server, self.folder = server, folder
        self.image = folder / "scene.tif"
        with rasterio.open(sample) as dataset:
            values, profile = dataset.read(), dataset.profile
        profile |= {"crs": "EPSG:32631", "transform": rasterio.Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1])}
        folder.mkdir(parents=True, exist_ok=True)
        with rasterio.open(folder / "plain.tif", "w", **profile) as target:
            target.write(values)
        copy(folder / "plain.tif", self.image, driver="COG", COMPRESS="JPEG", QUALITY=95)
        (folder / "plain.tif").unlink()
        clouds = (np.arange(values.shape[1])[:, None] < 100) & np.ones(values.shape[1:], bool)
        with rasterio.open(folder / "clouds.tif", "w", **profile | {"count": 1, "dtype": "uint8"}) as target:
            target.write(clouds.astype("uint8"), 1)
        self._write_area()
        self._route()
        self._write_sources()

    def environment(self) -> dict[str, str]:
        """Variables with which a command finds these services and nothing else."""
        return {"CANOPY_SOURCES": str(self.folder / "sources.yaml"), "CANOPY_CACHE": str(self.folder / "cache"),
                "VANTOR_API_KEY": "a-key-of-tests"}  # fmt: skip

    def adapt(self, page: str) -> str:
        """Return a page whose addresses lead to this server."""
        return page.replace(PLACEHOLDER, self.server.url)

    def _write_area(self) -> None:
        x, y = ORIGIN
        corners = np.array([(x + 30, y - 30), (x + 90, y - 30), (x + 90, y - 80), (x + 30, y - 80), (x + 30, y - 30)])
        lon, lat = Transformer.from_crs("EPSG:32631", "OGC:CRS84", always_xy=True).transform(*corners.T)
        feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(
            shapely.Polygon(np.column_stack([lon, lat])))}  # fmt: skip
        document = {"type": "FeatureCollection", "features": [feature]}
        (self.folder / "area.geojson").write_text(json.dumps(document))

    def _route(self) -> None:
        server, url = self.server, self.server.url
        server.files("/scenes", self.folder)
        survey = item_of(self.image, f"{url}/scenes/scene.tif", collection="survey")
        survey["assets"]["clouds"] = {"href": f"{url}/scenes/clouds.tif", "type": "image/tiff", "roles": ["cloud-mask"]}
        StacApi(server, [survey], prefix="/stac")
        StacApi(server, [item_of(self.image, f"{url}/account/naip/scene.tif")], prefix="/pc")
        signed(server, self.folder, lambda signature: signature == "good")
        expiry = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
        server.route("/sas", Reply.json({"token": "sig=good", "msft:expiry": expiry}))
        outline = outline_of(self.image)
        result = {"uuid": f"{url}/scenes/scene.tif", "footprint": outline.wkt, "gsd": 0.5, "provider": "a pilot",
                  "acquisition_start": "2023-05-31T10:00:00.000Z", "acquisition_end": "2023-05-31T11:00:00.000Z",
                  "properties": {"license": "CC-BY 4.0"}}  # fmt: skip
        server.route("/meta", Reply.json({"results": [result]}))
        item = item_of(self.image, "./10-visual.tif", "2022-10-03 16:02:35Z", asset="visual", collection="Flood")
        server.route("/events/catalog.json", Reply.json({"type": "Catalog", "id": "events", "links": [
            {"rel": "item", "href": "./Flood/10.json"}]}))  # fmt: skip
        server.route("/events/Flood/10.json", Reply.json(item))
        server.route("/events/Flood/10-visual.tif", lambda call: file_reply(call, self.image.read_bytes()))
        server.route("/tiles", self._tile)
        server.route("/wmts", self._wmts)
        for key in self._keys():
            path = self.folder / "tiles" / str(ZOOM) / str(key[0]) / f"{key[1]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.tile(ZOOM, *key))

    def _write_sources(self) -> None:
        url = self.server.url
        capabilities = f"wmts+{url}/wmts?SERVICE=WMTS&REQUEST=GetCapabilities"
        here = {
            "naip": f"stac+{url}/pc?collection=naip&asset=image&signing={url}/sas",
            "swissimage": f"stac+{url}/stac?collection=survey", "openaerialmap": f"oam+{url}/meta?layers=3",
            "maxar-open-data": f"stac+{url}/events/catalog.json?asset=visual",
            "ign-bdortho": f"{capabilities}#layer=imagery&set=PM", "pdok": f"{capabilities}#layer=imagery&set=PM",
            "vivid": f"{capabilities}#layer=imagery&set=PM&key=maxar-api-key:VANTOR_API_KEY",
        }  # fmt: skip
        sources: dict[str, Any] = yaml.safe_load(_SHIPPED.read_text(encoding="utf-8"))["sources"]
        for name, uri in here.items():
            sources[name] = {**sources[name], "uri": uri, "extent": []}
        (self.folder / "sources.yaml").write_text(yaml.safe_dump({"sources": sources}))

    def _keys(self) -> list[tuple[int, int]]:
        """Columns and rows of the tiles that show the image."""
        matrix = mercator_matrix(ZOOM)
        west, south, east, north = outline_of(self.image).bounds
        to_matrix = Transformer.from_crs("OGC:CRS84", "EPSG:3857", always_xy=True)
        (left, right), (bottom, top) = to_matrix.transform([west, east], [south, north])
        side = 256 * matrix.pixel
        cols = range(int((left - matrix.left) // side), int((right - matrix.left) // side) + 1)
        rows = range(int((matrix.top - top) // side), int((matrix.top - bottom) // side) + 1)
        return [(col, row) for col in cols for row in rows]

    def tile(self, zoom: int, col: int, row: int) -> bytes:
        """A tile of the image, transparent outside."""
        matrix = mercator_matrix(zoom)
        side = 256 * matrix.pixel
        transform = rasterio.Affine(
            matrix.pixel, 0, matrix.left + col * side, 0, -matrix.pixel, matrix.top - row * side
        )
        options = {"crs": "EPSG:3857", "transform": transform, "width": 256, "height": 256, "add_alpha": True}
        with rasterio.open(self.image) as dataset, WarpedVRT(dataset, **options) as warped:
            return picture(warped.read())

    def _tile(self, call: Call) -> Reply:
        zoom, col, row = (int(part) for part in call.path.removesuffix(".png").split("/")[-3:])
        return Reply(self.tile(zoom, col, row), headers={"Content-Type": "image/png"})

    def _wmts(self, call: Call) -> Reply:
        query = {name.lower(): value for name, value in call.query.items()}
        if query.get("request") == "GetCapabilities":
            return Reply.text(self._capabilities(), kind="text/xml")
        return Reply(self.tile(int(query["tilematrix"]), int(query["tilecol"]), int(query["tilerow"])))

    def _capabilities(self) -> str:
        matrices = "".join(
            f"<TileMatrix><ows:Identifier>{zoom}</ows:Identifier><ScaleDenominator>{559082264.0287178 / 2**zoom!r}"
            "</ScaleDenominator><TopLeftCorner>-20037508 20037508</TopLeftCorner><TileWidth>256</TileWidth>"
            f"<TileHeight>256</TileHeight><MatrixWidth>{2**zoom}</MatrixWidth><MatrixHeight>{2**zoom}</MatrixHeight>"
            "</TileMatrix>"
            for zoom in sorted(range(20), key=str)
        )
        west, south, east, north = outline_of(self.image).bounds
        return (
            '<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.0.0"><ows:OperationsMetadata>'
            f'<ows:Operation name="GetTile"><ows:DCP><ows:HTTP><ows:Get xlink:href="{self.server.url}/wmts?">'
            '<ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>KVP</ows:Value></ows:AllowedValues>'
            "</ows:Constraint></ows:Get></ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata><Contents><Layer>"
            f"<ows:Identifier>imagery</ows:Identifier><ows:WGS84BoundingBox><ows:LowerCorner>{west} {south}"
            f"</ows:LowerCorner><ows:UpperCorner>{east} {north}</ows:UpperCorner></ows:WGS84BoundingBox>"
            '<Style isDefault="true"><ows:Identifier>normal</ows:Identifier></Style><Format>image/png</Format>'
            "<TileMatrixSetLink><TileMatrixSet>PM</TileMatrixSet></TileMatrixSetLink></Layer><TileMatrixSet>"
            "<ows:Identifier>PM</ows:Identifier><ows:SupportedCRS>EPSG:3857</ows:SupportedCRS>"
            f"{matrices}</TileMatrixSet></Contents></Capabilities>"
        )


@contextmanager
def imagery_services(folder: Path, sample: Path) -> Iterator[ImageryServices]:
    """Serve the sources of the page."""
    with WebServer() as server:
        yield ImageryServices(server, folder, sample)


@contextmanager
def bucket(image: Path) -> Iterator[dict[str, str]]:
    """Serve ``s3://scenes/scene.tif``; gives the variables of its credentials and endpoint."""
    store_server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store_server.start()
    try:
        endpoint = "http://{}:{}".format(*store_server.get_host_and_port())
        variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
                     "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}  # fmt: skip
        HttpClient().request("PUT", f"{endpoint}/scenes")
        store = S3Store("scenes", endpoint=endpoint, access_key_id="key", secret_access_key="a-secret-of-tests",
                        region="us-east-1", client_options={"allow_http": True})  # fmt: skip
        obstore.put(store, "scene.tif", image.read_bytes())
        yield variables
    finally:
        store_server.stop()
