"""Large files from their publishers: resumed, verified, and under their final name only when whole."""

import http.client
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from canopy.errors import ModelError, OutputError, one_line
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.files import file_sha256, rename, sync
from tiles.locks import hold

PIECE_BYTES = 2**20
"""Bytes that are read from a connection at a time."""
TIMEOUT_S = 60
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 5
"""Connections in a row that may bring nothing before the download fails."""
REPORT_S = 1.0
"""Seconds between two reports of progress."""
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Part:
    """A download in progress."""

    url: str
    """Address of the file."""
    path: Path
    """Path of the file once it is whole."""
    token: str | None = None
    """Bearer token, sent to the server named in `url` and to none that it redirects to."""

    @property
    def partial(self) -> Path:
        """Path of the bytes received so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def lock(self) -> Path:
        """Path of the lock of the process that writes the part."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def record(self) -> Path:
        """Path of the record of which version of the file the part belongs to."""
        return self.path.with_name(f"{self.path.name}.part.json")


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    token: str | None = None,
    report: Report = ignore,
) -> str:
    """Download a file; an interrupted download continues where it stopped.

    Args:
        url: Address, http or https.
        path: Path of the file. An existing file is taken to be whole, because no partial file has this name.
        sha256: Expected digest, where the publisher states one; the server's own statement is used otherwise.
        token: Bearer token, for gated files.
        report: Called with megabytes done and in total, about once a second.

    Returns:
        SHA-256 of the file.

    Raises:
        ModelError: The server refuses, the connection keeps breaking, or the file is not the expected one.
        OutputError: The file cannot be written.
    """
    part = Part(url, path, token)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            return _verify(path, url, sha256)
        busy = f"another run downloads {path}: wait for it"
        with hold(part.lock, busy), part.partial.open("ab") as partial:
            stated = _fill(part, partial, report)
            partial.flush()
            sync(part.partial)
            digest = _verify(part.partial, url, sha256 or stated)
            part.record.unlink(missing_ok=True)
            rename(part.partial, path)
            part.lock.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return digest


def _verify(path: Path, url: str, expected: str | None) -> str:
    """Return the digest of a file; remove a wrong file, so that the next run downloads it again."""
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        path.unlink()
        raise ModelError(f"{url}: sha256 {digest} came, {expected} expected; the file was removed")
    return digest


def _fill(part: Part, partial: IO[bytes], report: Report) -> str | None:
    """Fill the part, over several connections if need be; return the SHA-256 that the server states, if any."""
    failures, done_before = 0, -1
    while True:
        try:
            stated, total = _connect(part, partial, report)
            done = partial.tell()
            if done == total:
                return stated
            trouble = f"the connection ended at {done} of {total} bytes"
        except _BROKEN as error:
            done, trouble = partial.tell(), one_line(getattr(error, "reason", error))
        # A connection that brought bytes starts the count again: slow lines break often and still finish.
        failures = 1 if done > done_before else failures + 1
        done_before = done
        if failures >= ATTEMPTS:
            raise ModelError(f"{part.url}: {trouble}; {done} bytes are kept, run the same command to continue")
        time.sleep(min(10.0, 0.2 * 2**failures))


def _connect(part: Part, partial: IO[bytes], report: Report) -> tuple[str | None, int]:
    """Append what one connection brings; return the server's SHA-256 and the size of the whole file."""
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(_request(part, partial.tell()), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise _refusal(part, error) from None
        # Range not satisfiable: the part is whole, or longer than the server's file.
        if error.headers.get("Content-Range") == f"bytes */{partial.tell()}":
            return None, partial.tell()
        _empty(partial)
        return None, -1
    with response:
        if response.status != 206:
            _empty(partial)
        start = partial.tell()
        length = response.headers.get("Content-Length")
        if length is None:
            raise ModelError(f"{part.url}: the server does not say how long the file is, so it cannot be verified")
        total = start + int(length)
        part.record.write_text(json.dumps({"url": part.url, "etag": response.headers.get("ETag")}), encoding="utf-8")
        _copy(response, partial, total, report)
    return redirects.stated_sha256, total


def _empty(partial: IO[bytes]) -> None:
    partial.truncate(0)
    partial.seek(0)


def _copy(response: Any, partial: IO[bytes], total: int, report: Report) -> None:
    reported_s = 0.0
    while piece := response.read(PIECE_BYTES):
        partial.write(piece)
        partial.flush()
        if time.monotonic() - reported_s >= REPORT_S or partial.tell() == total:
            reported_s = time.monotonic()
            done_mb, total_mb = partial.tell() / 1e6, total / 1e6
            report(Progress(done_mb, total_mb, "MB", f"{done_mb:.0f} of {total_mb:.0f} MB"))


def _request(part: Part, received: int) -> urllib.request.Request:
    """Return a request for the missing bytes, provided that the server still has the same version of the file."""
    if not part.url.startswith(("https://", "http://")):
        raise ModelError(f"{part.url}: an http or https address expected")
    request = urllib.request.Request(part.url, headers={"User-Agent": f"canopy/{__version__}"})
    if part.token:
        request.add_unredirected_header("Authorization", f"Bearer {part.token}")
    version: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        version = json.loads(part.record.read_text(encoding="utf-8"))
    if received and version.get("url") == part.url and version.get("etag"):
        request.add_header("Range", f"bytes={received}-")
        request.add_header("If-Range", version["etag"])
    return request


def _refusal(part: Part, error: urllib.error.HTTPError) -> Exception:
    """Return the error that an HTTP status means; a fault of the server's is worth another attempt."""
    if error.code in (401, 403):
        return ModelError(
            f"{part.url}: HTTP {error.code}; the publisher gates this file: accept the terms on its page with your own "
            "account, then set HF_TOKEN, or download it in a browser and run canopy models convert"
        )
    if error.code >= 500 or error.code == 429:
        return ConnectionError(f"HTTP {error.code}")
    return ModelError(f"{part.url}: HTTP {error.code} {error.reason}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and remembers the SHA-256 that the model hub states in one."""

    stated_sha256: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Redirect as the standard library does, after a look at the headers."""
        stated = (headers.get("X-Linked-Etag") or "").strip('"')
        if len(stated) == 64:
            self.stated_sha256 = stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)
