"""Catalogues of imagery on 127.0.0.1, with the oddities of the services that they play."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import shapely.geometry
from pyproj import Transformer
from servers.web import Call, Reply, WebServer


def outline_of(path: Path) -> shapely.Polygon:
    """Outline of a raster, longitude and latitude."""
    with rasterio.open(path) as dataset:
        to_lonlat = Transformer.from_crs(dataset.crs, "OGC:CRS84", always_xy=True).transform
        corners = shapely.get_coordinates(shapely.box(*dataset.bounds))
    return shapely.Polygon(np.column_stack(to_lonlat(*corners.T)))


def item_of(path: Path, href: str, date: str = "2022-07-01T16:00:00Z", **options: Any) -> dict[str, Any]:
    """An item of one image.

    Args:
        path: The image.
        href: Its address.
        date: Acquisition.
        options: `id`, `collection`, `properties`, `asset` (name), `asset_options`, `geometry`.
    """
    outline = options.get("geometry") or outline_of(path)
    asset = {"href": href, "type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": options.get("id", path.stem), "links": [],
        "collection": options.get("collection", "naip"), "geometry": shapely.geometry.mapping(outline),
        "bbox": list(outline.bounds),
        "properties": {"datetime": date, "gsd": 0.6000000000000024, "proj:epsg": 32631} | options.get("properties", {}),
        "assets": {
            options.get("asset", "image"): asset | options.get("asset_options", {}),
            "thumbnail": {"href": f"{href}.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
            "tilejson": {"href": "tilejson.json?item=a", "type": "application/json", "roles": ["tiles"]},
        },
    }  # fmt: skip


class StacApi:
    """A search that answers by POST or GET, in pages, and ignores what it is told to ignore."""

    def __init__(
        self,
        server: WebServer,
        items: Sequence[dict[str, Any]],
        *,
        prefix: str = "/api",
        page: int = 250,
        post: bool = True,
        merge: bool = False,
        deaf: bool = False,
    ) -> None:
        """Serve items.

        Args:
            server: Server.
            items: Items, in the order of the answer.
            prefix: Path of the landing page.
            page: Most items of a page.
            post: Whether searches go by POST; else by GET.
            merge: Whether the next page's body is a token alone, to be merged with the question.
            deaf: Whether the question is ignored: all items come.
        """
        self.items, self.page, self.merge, self.deaf = list(items), page, merge, deaf
        self.server, self.prefix = server, prefix
        self.questions: list[dict[str, Any]] = []
        methods = ["POST", "GET"] if post else ["GET"]
        landing = {
            "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "search", "method": name, "href": f"{server.url}{prefix}/search"} for name in methods]
            + [{"rel": "child", "href": f"{server.url}{prefix}/collections/naip"}],
        }  # fmt: skip
        server.route(prefix, Reply.json(landing))
        server.route(f"{prefix}/search", self._search)

    @property
    def uri(self) -> str:
        return f"stac+{self.server.url}{self.prefix}"

    def _search(self, call: Call) -> Reply:
        question = json.loads(call.body) if call.method == "POST" else dict(call.query)
        self.questions.append(question)
        if not question.get("collections") and "token" not in question:
            return Reply.json({"detail": [{"msg": "field required"}]}, 422)
        if isinstance(question.get("bbox"), str):
            question["bbox"] = [float(value) for value in question["bbox"].split(",")]
        start = int(question.get("token", 0))
        chosen = self.items if self.deaf else [one for one in self.items if self._meets(one, question)]
        links = []
        if start + self.page < len(chosen):
            token = str(start + self.page)
            url = f"{self.server.url}{self.prefix}/search"
            if call.method == "GET":
                links = [{"rel": "next", "href": f"{url}?{call_query(call, token)}"}]
            else:
                body = {"token": token} if self.merge else {**question, "token": token}
                links = [{"rel": "next", "method": "POST", "href": url, "body": body}]
        return Reply.json({"type": "FeatureCollection", "features": chosen[start : start + self.page], "links": links})

    @staticmethod
    def _meets(item: dict[str, Any], question: dict[str, Any]) -> bool:
        if not question.get("bbox"):
            return True
        if item["collection"] not in question["collections"]:
            return False
        start, _, end = question.get("datetime", "../..").partition("/")
        date = str(item["properties"]["datetime"]).replace(" ", "T")
        inside = (start == ".." or date >= start) and (end == ".." or date <= end)
        return inside and shapely.box(*question["bbox"]).intersects(shapely.geometry.shape(item["geometry"]))


def call_query(call: Call, token: str) -> str:
    """The query of a request, with another token."""
    from urllib.parse import urlencode

    return urlencode({**call.query, "token": token})


def signed(server: WebServer, folder: Path, accept: Callable[[str], bool], prefix: str = "/account/naip") -> None:
    """Serve files that want a signature, as Azure's store does."""
    from servers.web import file_reply

    def reply(call: Call) -> Reply:
        signature = call.query.get("sig")
        if signature is None:
            return Reply.text("<Error><Code>PublicAccessNotPermitted</Code></Error>", 409, "application/xml")
        if not accept(signature):
            return Reply.text("<Error><Code>AuthenticationFailed</Code></Error>", 403, "application/xml")
        return file_reply(call, (folder / call.path.removeprefix(prefix).lstrip("/")).read_bytes())

    server.route(prefix, reply)
