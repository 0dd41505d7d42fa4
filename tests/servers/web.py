"""A web server of this process, for tests that play a service: routes, files with ranges, faults, and what was asked.

    with WebServer() as server:
        server.route("/api", lambda call: Reply.json({"sites": call.query["site"]}))
        server.files("/data", tmp_path)
        server.fail(Fault(status=503), Fault(truncate=True), path="/data")     # the next two requests of /data
        client.get(f"{server.url}/api?site=TEAK")
    assert server.count("/api") == 1

The longest route that begins a path answers it. Handlers run in the server's threads.
"""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True)
class Call:
    """A request that arrived."""

    method: str
    path: str
    """Path, decoded, without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Headers; names in lower case."""
    body: bytes = b""

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First byte and the one after the last (None: to the end) of a Range header."""
        value = self.headers.get("range", "")
        if not value.startswith("bytes="):
            return None
        first, _, last = value.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 if last else None


@dataclass(frozen=True)
class Reply:
    """What a route answers."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: Any, status: int = 200, **headers: str) -> "Reply":
        return cls(json.dumps(document).encode(), status, {"Content-Type": "application/json", **headers})

    @classmethod
    def text(cls, text: str, status: int = 200, kind: str = "text/plain", **headers: str) -> "Reply":
        return cls(text.encode(), status, {"Content-Type": kind, **headers})


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int | None = None
    """Status to answer in place of the route's reply."""
    body: bytes = b"broken"
    headers: Mapping[str, str] = field(default_factory=dict)
    truncate: bool = False
    """Whether the connection closes half way through the body."""
    drop: bool = False
    """Whether the connection closes without an answer."""
    stall: bool = False
    """Whether nothing is sent until the server closes."""


Handler = Callable[[Call], Reply]

PATIENCE_S = 10.0
"""Time that a request waits for others to arrive, where a test wants them together."""


class WebServer:
    """A server on a free port of 127.0.0.1."""

    def __init__(self, latency_s: float = 0.0) -> None:
        """Start serving.

        Args:
            latency_s: Time before each answer.
        """
        self.latency_s = latency_s
        self.calls: list[Call] = []
        self.most_at_a_time = 0
        """Largest number of requests that were answered at the same time."""
        self.together = 1
        """Number of requests that are answered only when so many are there at a time, or when PATIENCE_S is over."""
        self._routes: dict[str, Handler] = {}
        self._faults: list[tuple[str, deque[Fault]]] = []
        self._running = 0
        self.closing = threading.Event()
        self._lock = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "WebServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and close every connection."""
        self.closing.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def route(self, prefix: str, handler: Handler | Reply) -> None:
        """Answer all paths that begin with a prefix."""
        self._routes[prefix] = handler if callable(handler) else lambda call: handler

    def files(self, prefix: str, folder: Path, *, ranges: bool = True, etags: bool = True) -> None:
        """Serve a folder's files below a prefix; those that are written later too."""

        def reply(call: Call) -> Reply:
            path = folder / call.path.removeprefix(prefix).lstrip("/")
            if not path.is_file():
                return Reply.text("no such file", 404)
            return file_reply(call, path.read_bytes(), ranges=ranges, etags=etags)

        self.route(prefix, reply)

    def fail(self, *faults: Fault, path: str = "/") -> None:
        """Let the next requests of paths that begin so fail, in turn."""
        with self._lock:
            self._faults.append((path, deque(faults)))

    def count(self, prefix: str = "/") -> int:
        """Return how many requests of paths that begin so arrived."""
        return len(self.asked(prefix))

    def asked(self, prefix: str = "/") -> list[Call]:
        """Return the requests of paths that begin so."""
        return [call for call in list(self.calls) if call.path.startswith(prefix)]

    def forget(self) -> None:
        """Forget the requests so far and the faults to come."""
        self.calls.clear()
        self._faults.clear()
        self.most_at_a_time = 0
        self.together = 1

    def answer(self, call: Call) -> tuple[Reply, Fault]:
        """Return the reply to a request and what goes wrong with it."""
        with self._lock:
            self.calls.append(call)
            self._running += 1
            self.most_at_a_time = max(self.most_at_a_time, self._running)
            self._lock.notify_all()
            waiting = [faults for prefix, faults in self._faults if faults and call.path.startswith(prefix)]
            fault = waiting[0].popleft() if waiting else Fault()
            # Once they met, later ones need not: the last may be alone.
            self._lock.wait_for(lambda: self.most_at_a_time >= self.together, PATIENCE_S)
        try:
            if self.latency_s:
                time.sleep(self.latency_s)
            if fault.status is not None:
                return Reply(fault.body, fault.status, fault.headers), fault
            route = max((prefix for prefix in self._routes if call.path.startswith(prefix)), key=len, default=None)
            return (self._routes[route](call) if route is not None else Reply.text("no such path", 404)), fault
        finally:
            with self._lock:
                self._running -= 1


def file_reply(call: Call, content: bytes, *, ranges: bool = True, etags: bool = True) -> Reply:
    """Answer a request for a file as stores do: Range, If-Range, If-Match and entity tags."""
    etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
    headers = {"Accept-Ranges": "bytes" if ranges else "none"} | ({"ETag": etag} if etags else {})
    if call.headers.get("if-match", etag) != etag:
        return Reply(b"", 412, headers)
    wanted = call.range if ranges and call.headers.get("if-range", etag) == etag else None
    if wanted is None:
        return Reply(content, 200, headers)
    start, stop = wanted[0], min(wanted[1] or len(content), len(content))
    if start >= len(content):
        return Reply(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    return Reply(content[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: WebServer) -> None:
        self.owner = owner
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's own, which asks the network for this machine's name.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    server: _Server

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        call = Call(
            self.command,
            unquote(parts.path),
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(length) if length else b"",
        )
        reply, fault = self.server.owner.answer(call)
        if fault.stall:
            self.server.owner.closing.wait()
        if fault.stall or fault.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if not {"content-length", "transfer-encoding"} & {name.lower() for name in reply.headers}:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if fault.truncate else reply.body)
        self.close_connection = self.close_connection or fault.truncate
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *arguments: Any) -> None:
        """Keep the tests' output clean."""
