"""A server of files on this machine, which can break, change, refuse or redirect."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Publisher(ThreadingHTTPServer):
    """Serves one file under any name, others under their own, and records its requests.

    Attributes:
        content: Bytes of the file.
        files: Bytes of other files, by name.
        revision: Revision of the repository to state, if any.
        etag: Version of the file.
        status: Status of every response; 200 to serve the file.
        cuts: Bytes after which the next connections break.
        requests: Headers of the requests so far, in lower case, and their path.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.etag, self.status = content, '"one"', 200
        self.files: dict[str, bytes] = {}
        self.revision: str | None = None
        self.cuts: list[int] = []
        self.requests: list[dict[str, str]] = []

    def url(self, name: str = "SSLtiny.pth") -> str:
        """Return the address of the file; the name ``moved`` redirects to it, on another host."""
        return f"http://127.0.0.1:{self.server_port}/{name}"


@contextmanager
def serve(content: bytes) -> Iterator[Publisher]:
    """Serve a file in a thread while the block runs."""
    with Publisher(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(headers | {"path": self.path})
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
            self.send_header("Location", self.server.url().replace("127.0.0.1", "localhost"))
            self.end_headers()
        elif self.server.status != 200:
            self.send_error(self.server.status)
        else:
            self._send()

    def _send(self) -> None:
        content, start = self.server.files.get(self.path.rpartition("/")[2], self.server.content), 0
        if "Range" in self.headers and self.headers.get("If-Range") == self.server.etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.etag)
        if self.server.revision is not None:
            self.send_header("X-Repo-Commit", self.server.revision)
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: Any) -> None:
        pass
