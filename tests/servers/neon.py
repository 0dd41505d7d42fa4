"""A server that plays NEON: one small forest in 1 km tiles, with the oddities of the real listings.

Files come in random order with outlines mixed in, checksums lack leading zeros and md5 is null, a later visit lacks its
point clouds, another site's flight is published under this one's name, and every answer wants the token.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import rasterio
from affine import Affine
from forest import Forest, make_forest, write_laz
from servers.web import Call, Reply, WebServer, file_reply

TOKEN = "neon-token-7d1f0c2ab95e"
CRS = "EPSG:32611"
FOREST_CORNER = (319_936, 4_099_900)
SIDE_M = 128
TILES = ((319_000, 4_099_000), (320_000, 4_099_000))
GSD_M = 0.5
"""Coarser than NEON's 0.1 m, so that a tile is small."""
VISIT, OLD_VISIT, BARE_VISIT = "2018_TEAK_3", "2017_TEAK_2", "2021_TEAK_5"
_CODES = {"image": "DP3.30010.001", "chm": "DP3.30015.001", "clouds": "DP1.30003.001"}
_FOLDERS = {"image": "L3/Camera/Mosaic", "chm": "L3/DiscreteLidar/CanopyHeightModelGtif", "clouds": "L1/ClassifiedLaz"}


@dataclass
class NeonServer:
    """The service, and the store that it signs addresses of."""

    web: WebServer
    store: WebServer
    folder: Path
    forest: Forest
    wrong_crc: set[str] = field(default_factory=set)
    """Names whose checksum is another file's."""
    expired: set[str] = field(default_factory=set)
    """Signatures that the store refuses."""
    listings: int = 0

    @property
    def api(self) -> str:
        return f"{self.web.url}/api/v0"

    @property
    def aoi(self) -> str:
        """Bounds of the forest in degrees."""
        from pyproj import Transformer

        x, y = FOREST_CORNER
        move = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
        west, south, east, north = move.transform_bounds(x + 2, y - SIDE_M + 2, x + SIDE_M - 2, y - 2)
        return f"{west:.6f},{south:.6f},{east:.6f},{north:.6f}"


def start(folder: Path, web: WebServer, store: WebServer) -> NeonServer:
    """Write the files, and answer for them."""
    forest = make_forest(SIDE_M, seed=3, origin=FOREST_CORNER, crs=CRS, buildings=0)
    server = NeonServer(web, store, folder, forest)
    for number, tile in enumerate(TILES):
        _write_tile(server, tile, VISIT, number)
    _write_tile(server, TILES[0], OLD_VISIT, 7)
    for kind in ("image", "chm"):
        content = _path(server, kind, TILES[0], VISIT).read_bytes()
        path = _path(server, kind, TILES[0], BARE_VISIT)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    web.route("/api/v0/", lambda call: _answer(server, call))
    store.route("/", lambda call: _stored(server, call))
    return server


def file_name(kind: str, tile: tuple[int, int], visit: str) -> str:
    x, y = tile
    return {
        "image": f"{visit}_{x}_{y}_image.tif",
        "chm": f"NEON_D17_TEAK_DP3_{x}_{y}_CHM.tif",
        "clouds": f"NEON_D17_TEAK_DP1_{x}_{y}_classified_point_cloud_colorized.laz",
    }[kind]


def _path(server: NeonServer, kind: str, tile: tuple[int, int], visit: str) -> Path:
    bucket = "neon-aop-provisional-products" if visit == BARE_VISIT else "neon-aop-products"
    return server.folder / bucket / visit[:4] / "FullSite/D17" / visit / _FOLDERS[kind] / file_name(kind, tile, visit)


def _write_tile(server: NeonServer, tile: tuple[int, int], visit: str, seed: int) -> None:
    """Write a tile: the forest where it lies in it, 0 (mosaic: black) elsewhere."""
    forest, scale = server.forest, round(1 / GSD_M)
    col, row = FOREST_CORNER[0] - tile[0], tile[1] + 1000 - FOREST_CORNER[1]
    image = np.zeros((3, 1000 * scale, 1000 * scale), np.uint8)
    heights = np.full((1000, 1000), -9999, np.float32)
    first, last = max(0, -col), min(SIDE_M, 1000 - col)
    known = forest.chm_m[:, first:last]
    heights[row : row + SIDE_M, col + first : col + last] = np.where(known < 2, 0, known)
    window = slice(scale * (col + first), scale * (col + last))
    image[:, scale * row : scale * (row + SIDE_M), window] = forest.rgb[:, :, scale * first : scale * last]
    for kind, values, gsd_m in (("image", image, GSD_M), ("chm", heights[None], 1.0)):
        path = _path(server, kind, tile, visit)
        path.parent.mkdir(parents=True, exist_ok=True)
        profile: dict[str, Any] = {
            "driver": "GTiff", "crs": CRS, "dtype": values.dtype, "count": len(values), "height": values.shape[1],
            "width": values.shape[2], "transform": Affine(gsd_m, 0, tile[0], 0, -gsd_m, tile[1] + 1000),
            "nodata": -9999 if kind == "chm" else None, "compress": "deflate", "zlevel": 1, "tiled": True,
        }  # fmt: skip
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(values)
    write_laz(forest, _path(server, "clouds", tile, visit), density=4, seed=seed)


def _answer(server: NeonServer, call: Call) -> Reply:
    """Answer the API."""
    if call.headers.get("x-api-token") != TOKEN:
        return Reply.json({"message": "Unauthorized"}, 401)
    parts = call.path.removeprefix("/api/v0/").split("/")
    if parts == ["sites"]:
        return Reply.json(
            {"data": [_site("TEAK", -119.02, 37.03), _site("TECR", -119.03, 37.02), _site("HARV", -72, 42)]}
        )
    if parts == ["sites", "TEAK"]:
        months = {"image": ["2017-06", "2018-06", "2021-07"], "chm": ["2017-06", "2018-06", "2021-07"]}
        months["clouds"] = ["2017-06", "2018-06"]
        products = [{"dataProductCode": _CODES[kind], "availableMonths": known} for kind, known in months.items()]
        return Reply.json({"data": {"siteCode": "TEAK", "dataProducts": [{"dataProductCode": "DP1.1"}, *products]}})
    if len(parts) == 4 and parts[0] == "data" and parts[2] == "TEAK":
        kind = next(kind for kind, code in _CODES.items() if code == parts[1])
        visit = {"2017-06": OLD_VISIT, "2018-06": VISIT, "2021-07": BARE_VISIT}[parts[3]]
        server.listings += 1
        release = "PROVISIONAL" if visit == BARE_VISIT else "RELEASE-2026"
        files = _listing(server, kind, visit)
        return Reply.json({"data": {"productCode": parts[1], "siteCode": "TEAK", "month": parts[3], "release": release,
                                    "packages": [], "files": files}})  # fmt: skip
    return Reply.json({"errors": [{"detail": f"Site not found: {parts[-1]}", "status": "400"}]}, 400)


def _site(code: str, lon: float, lat: float) -> dict[str, Any]:
    return {"siteCode": code, "siteName": code.title(), "siteLongitude": lon, "siteLatitude": lat}


def _listing(server: NeonServer, kind: str, visit: str) -> list[dict[str, Any]]:
    """List files as the service does."""
    entries = []
    for tile in TILES:
        path = _path(server, kind, tile, visit)
        if not path.is_file():
            continue
        content = path.read_bytes()
        crc = google_crc32c.value(content) ^ (path.name in server.wrong_crc)
        base = f"{server.store.url}/{path.relative_to(server.folder).as_posix()}"
        url = f"{base}?X-Goog-Expires=604800&X-Goog-Signature=sig{server.listings}"
        entries.append({"name": path.name, "size": len(content), "md5": None, "crc32": None, "crc32c": f"{crc:x}",
                        "url": url})  # fmt: skip
        outline = path.name.rpartition(".")[0]
        for suffix in ("kml", "shp", "shx", "prj"):
            entries.append({"name": f"{outline}.{suffix}", "size": 108, "md5": None, "crc32": None,
                            "crc32c": "8ed01654", "url": f"{base}.{suffix}"})  # fmt: skip
    random.Random(server.listings).shuffle(entries)
    return entries


def _stored(server: NeonServer, call: Call) -> Reply:
    """Answer for a file of the store, which signs its addresses and wants no token."""
    if "x-api-token" in call.headers:
        return Reply.text("a key of another host", 400)
    if call.query.get("X-Goog-Signature") in server.expired:
        code = "<Code>ExpiredToken</Code><Message>Invalid argument.</Message>"
        return Reply.text(f"<?xml version='1.0' encoding='UTF-8'?><Error>{code}</Error>", 400, "application/xml")
    path = server.folder / call.path.lstrip("/")
    return file_reply(call, path.read_bytes()) if path.is_file() else Reply.text("NoSuchKey", 404)
