"""Limits and headers: what every request must keep to, and what every answer says to browsers."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from rasterio.errors import RasterioError
from rio_tiler.errors import RioTilerError, TileOutsideBounds
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiles.errors import CanopyError, RasterError, VectorError, one_line
from tiles.server.queries import OutsideError

MAX_BODY_BYTES = 2**20
MAX_QUERY_BYTES = 4096
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # map libraries place their controls by style attributes
        "img-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A map may be replaced under its name at any time, so a browser asks again.
    "Cache-Control": "no-cache",
}

_PLAIN_TEXTS = {
    "Not Found": "no such page; /openapi.json lists the routes",
    "Method Not Allowed": "this route has no such method; /openapi.json lists them",
}

log = logging.getLogger(__name__)


class HeadersMiddleware:
    """Middleware that adds the security headers to every answer, and answers HEAD as GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # Routes know GET alone, and the page behind them would answer that there is no such file.
        await self.app({**scope, "method": "GET"} if is_head else scope, receive, send_with_headers)


async def read_body(request: Request) -> bytes:
    """Read a body piece by piece, so that one of any length costs no more memory than the limit."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES // 2**20} MiB; send polygons in parts")
        pieces.append(piece)
    return b"".join(pieces)


async def require_known_query(request: Request) -> None:
    """Refuse parameters that a route does not have: a misspelt one would be ignored, and `url=` never was one."""
    if len(request.scope.get("query_string", b"")) > MAX_QUERY_BYTES:
        raise HTTPException(414, f"the query is longer than {MAX_QUERY_BYTES} bytes, expected less")
    names = frozenset(_query_names(request.scope["route"].dependant))
    for name in request.query_params:
        if name not in names:
            expected = ", ".join(sorted(names)) or "none"
            raise HTTPException(400, f"unknown parameter {name[:60]!r}; expected {expected}")


def _query_names(dependant: Any) -> Iterator[str]:
    """Yield the parameters of a route's function and of all it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with a status and one line that names no file of this machine."""

    def answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": one_line(text, 500)}, status_code=status, headers=headers)

    def refuse_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        text = _PLAIN_TEXTS.get(error.detail, error.detail)
        return answer(error.status_code, text, error.headers)

    def refuse_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return answer(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    def refuse_outside(_: Request, error: Exception) -> JSONResponse:
        return answer(404, "the tile lies outside the layer" if isinstance(error, RioTilerError) else str(error))

    def refuse_input(_: Request, error: Exception) -> JSONResponse:
        return answer(400, str(error))

    def fail(_: Request, error: Exception) -> JSONResponse:
        log.error("request failed: %s", one_line(error))
        return answer(500, "the file of this layer cannot be read; the server's log says why")

    app.add_exception_handler(StarletteHTTPException, refuse_http)
    app.add_exception_handler(RequestValidationError, refuse_invalid)
    app.add_exception_handler(OutsideError, refuse_outside)
    app.add_exception_handler(TileOutsideBounds, refuse_outside)
    app.add_exception_handler(CanopyError, refuse_input)
    for kind in (RasterError, VectorError, RasterioError, RioTilerError):
        app.add_exception_handler(kind, fail)
