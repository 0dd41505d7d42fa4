"""The application: routes, each of which checks its request, asks once and answers JSON."""

import html
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from morecantile import tms
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from tiles.server import feature_queries, queries, wmts
from tiles.server.catalog import Catalog
from tiles.server.layers import MAX_ZOOM, Layer
from tiles.server.legends import product_legend
from tiles.server.limits import HeadersMiddleware, add_error_handlers, read_body, require_known_query
from tiles.server.tiler import (
    MATRIX_SET,
    DrawingOfRequest,
    LayerOfRequest,
    RangeText,
    create_tiler,
    find_band,
    parse_range,
)
from tiles.server.vector_layers import VectorLayer
from tiles.zonal import COVER_ABOVE_M

WEB = Path(__file__).resolve().parent.parent / "web" / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[")
"""Host headers of this machine, up to their first colon: that is how Starlette reads the port off."""
HISTOGRAM_RANGE = (0.0, 40.0)
MAX_BINS = 200
THREADS = 8
"""Requests that are worked on at the same time; others wait. Bounds memory: a tile or a strip each."""

Bins = Annotated[int, Query(ge=1, le=MAX_BINS, description="Bins of the histogram.")]
BandName = Annotated[str | None, Query(max_length=100, description="Band of the layer.")]
BoxText = Annotated[str, Query(max_length=120, description="west,south,east,north in degrees.")]
Body = Annotated[bytes, Depends(read_body)]

_WMTS_QUERY = {"service": ("wmts",), "request": ("getcapabilities",), "version": ("1.0.0",)}

router = APIRouter(dependencies=[Depends(require_known_query)])
plain_router = APIRouter()
"""Routes that check their query by themselves."""


def create_app(catalog: Catalog, *, local_only: bool = True, web: Path = WEB) -> FastAPI:
    """Return the application that serves a catalog.

    Args:
        catalog: Layers.
        local_only: Whether to answer only requests that name this machine itself. Without that, a page of another
            site could point its own name to this machine and read the answers.
        web: Folder of the page.
    """
    app = FastAPI(
        title="Canopy height maps", docs_url=None, redoc_url=None, openapi_url="/openapi.json", lifespan=_lifespan
    )
    app.state.catalog = catalog
    app.include_router(router)
    app.include_router(plain_router)
    app.include_router(create_tiler().router, prefix="/layers/{layer_id}", dependencies=[Depends(require_known_query)])
    add_error_handlers(app)
    if web.is_dir():
        for suffix in (".js", ".mjs"):  # modules of another media type are not run, and a system's table may differ
            mimetypes.add_type("text/javascript", suffix)
        app.mount("/", StaticFiles(directory=web, html=True), name="page")
    if local_only:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK_NAMES], www_redirect=False)
    app.add_middleware(HeadersMiddleware)
    return app


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


@router.get("/healthz")
def healthz(request: Request) -> dict[str, Any]:
    """Say that the server answers."""
    return {"status": "ok", "layers": len(request.app.state.catalog)}


@router.get("/layers")
def layers(request: Request) -> dict[str, Any]:
    """List the layers."""
    return {"layers": [_with_links(layer, request) for layer in request.app.state.catalog]}


@router.get("/layers/{layer_id}")
def layer_document(layer: LayerOfRequest, request: Request) -> dict[str, Any]:
    """Describe a layer."""
    return _with_links(layer, request)


def _with_links(layer: Layer, request: Request) -> dict[str, Any]:
    base = f"{request.base_url}layers/{layer.id}"
    links = {
        "self": base,
        "tilejson": f"{base}/tilejson.json",
        "tiles": f"{base}/tiles/{MATRIX_SET}/{{z}}/{{x}}/{{y}}.png",
        "point": f"{base}/point",
    }
    if not layer.is_picture:
        links["histogram"] = f"{base}/histogram"
    if layer.kind == "height":
        links["statistics"] = f"{base}/statistics"
    legend = product_legend(layer)
    return {**layer.to_json(), "legend": legend and legend.to_json(), "links": links}


@router.get("/layers/{layer_id}/tilejson.json")
def tilejson(
    drawing: DrawingOfRequest, request: Request, tilesize: Annotated[int | None, Query(ge=64, le=512)] = None
) -> dict[str, Any]:
    """Describe the tiles of a layer as TileJSON 3.0; the query is that of its tiles."""
    layer = drawing.source.layer
    west, south, east, north = layer.bounds
    if west > east:  # TileJSON has no way to cross the antimeridian
        west, east = -180.0, 180.0
    query = f"?{urlencode(list(request.query_params.multi_items()))}" if request.query_params else ""
    return {
        "tilejson": "3.0.0",
        "name": layer.title,
        "tiles": [f"{request.base_url}layers/{layer.id}/tiles/{MATRIX_SET}/{{z}}/{{x}}/{{y}}.png{query}"],
        "bounds": [west, south, east, north],
        "center": [(west + east) / 2, (south + north) / 2, layer.zooms[1]],
        "minzoom": layer.zooms[0],
        "maxzoom": layer.zooms[1],
        **({"attribution": html.escape(layer.attribution)} if layer.attribution else {}),
    }


@router.get("/layers/{layer_id}/point")
def point(
    layer: LayerOfRequest,
    lon: Annotated[float, Query(ge=-180, le=180, allow_inf_nan=False, description="Longitude, degrees.")],
    lat: Annotated[float, Query(ge=-90, le=90, allow_inf_nan=False, description="Latitude, degrees.")],
) -> dict[str, Any]:
    """Read the cell under a point."""
    return queries.point(layer, lon, lat)


@router.post("/layers/{layer_id}/statistics", openapi_extra={"requestBody": {"content": {"application/geo+json": {}}}})
def statistics(
    layer: LayerOfRequest,
    request: Request,
    body: Body,
    band: BandName = None,
    threshold: Annotated[float, Query(ge=-1000, le=1000, allow_inf_nan=False)] = COVER_ABOVE_M,
    bins: Bins = 20,
    range: RangeText = None,
    format: Annotated[Literal["json", "csv"] | None, Query(description="Format of the answer.")] = None,
) -> Response:
    """Compute statistics of the polygons in the body."""
    if layer.kind == "imagery":
        raise HTTPException(400, f"layer {layer.id!r} is {layer.content}; expected a layer of heights")
    chosen = find_band(layer, band)
    if chosen.is_derived:
        raise HTTPException(400, f"band {chosen.name!r} is derived; expected a band of the file")
    edges = _edges(range, bins)
    answer = queries.statistics(layer, chosen, queries.parse_json(body), threshold, edges)
    if format == "csv" or (format is None and "text/csv" in request.headers.get("accept", "")):
        headers = {"Content-Disposition": f'attachment; filename="{layer.id}_polygons.csv"'}
        return Response(queries.statistics_csv(answer), media_type="text/csv; charset=utf-8", headers=headers)
    return JSONResponse(answer)


@router.get("/layers/{layer_id}/histogram")
def histogram(
    layer: LayerOfRequest,
    bbox: BoxText,
    band: BandName = None,
    bins: Bins = 40,
    range: RangeText = None,
) -> dict[str, Any]:
    """Count the cells of a view by height."""
    if layer.is_picture:
        raise HTTPException(400, f"layer {layer.id!r} is {layer.content}; expected a layer of values")
    return queries.view_histogram(layer, find_band(layer, band), _parse_bbox(bbox), _edges(range, bins))


def find_vector(request: Request, vector_id: Annotated[str, PathParameter(max_length=200)]) -> VectorLayer:
    """Return a layer of features by its id, or answer 404."""
    try:
        vector: VectorLayer = request.app.state.catalog.vector(vector_id)
    except KeyError:
        raise HTTPException(404, f"no layer of features {vector_id[:100]!r}; /vectors lists them") from None
    return vector


VectorOfRequest = Annotated[VectorLayer, Depends(find_vector)]


@router.get("/vectors")
def vectors(request: Request) -> dict[str, Any]:
    """List the layers of features."""
    return {"vectors": [_with_feature_links(vector, request) for vector in request.app.state.catalog.vectors]}


@router.get("/vectors/{vector_id}")
def vector_document(vector: VectorOfRequest, request: Request) -> dict[str, Any]:
    """Describe a layer of features."""
    return _with_feature_links(vector, request)


def _with_feature_links(vector: VectorLayer, request: Request) -> dict[str, Any]:
    base = f"{request.base_url}vectors/{vector.id}"
    return {**vector.to_json(), "links": {"self": base, "features": f"{base}/features"}}


@router.get("/vectors/{vector_id}/features")
def features(
    vector: VectorOfRequest,
    bbox: BoxText,
    zoom: Annotated[float, Query(ge=0, le=MAX_ZOOM, allow_inf_nan=False, description="Zoom of 512 px tiles.")],
) -> Response:
    """Return the features of a view as GeoJSON; none where the view has more than an answer may have."""
    document = feature_queries.view_features(vector, _parse_bbox(bbox), zoom)
    return Response(document, media_type=feature_queries.MEDIA_TYPE)


@plain_router.get("/wmts")
@plain_router.get(f"/{wmts.REST_PATH}")
def wmts_capabilities(request: Request) -> Response:
    """Return WMTS 1.0.0 capabilities; clients may add the parameters of GetCapabilities in any case."""
    for name, value in request.query_params.items():
        expected = _WMTS_QUERY.get(name.lower())
        if expected is None or value.lower() not in expected:
            raise HTTPException(400, f"{name[:40]!r} is {value[:40]!r}; expected service=WMTS&request=GetCapabilities")
    document = wmts.capabilities(request.app.state.catalog, str(request.base_url), tms.get(MATRIX_SET))
    return Response(document, media_type=wmts.MEDIA_TYPE)


def _edges(text: str | None, bins: int) -> list[float]:
    low, high = parse_range(text) if text else HISTOGRAM_RANGE
    edges: list[float] = np.linspace(low, high, bins + 1).tolist()
    return edges


def _parse_bbox(text: str) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise HTTPException(400, f"bbox is {text[:60]!r}, expected west,south,east,north in degrees") from None
    # Comparisons with NaN are false, so that NaN is refused as well.
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise HTTPException(400, f"bbox is {text[:60]!r}, expected west,south,east,north in increasing degrees")
    return west, south, east, north
