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
TIMEOUT_S = 60
ATTEMPTS = 5
REPORT_S = 1.0
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Part:
    """A download under way.

    Attributes:
        url: Where from.
        path: Where to, once it is whole.
        token: Sent to the server named in `url`, and to none that it redirects to.
    """

    url: str
    path: Path
    token: str | None = None

    @property
    def partial(self) -> Path:
        """What has arrived so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def lock(self) -> Path:
        """Lock file, held by the process that writes the part."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def record(self) -> Path:
        """Which version of the file that is."""
        return self.path.with_name(f"{self.path.name}.part.json")


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    token: str | None = None,
    report: Report = ignore,
) -> str:
    """Bring a file; an interrupted download goes on where it stopped.

    Args:
        url: http or https.
        path: Where to. A file that is there already is taken to be whole, for none is ever partial.
        sha256: Expected digest, where known; a server's own statement of it is used otherwise.
        token: Bearer token, for gated files.
        report: Called with bytes done and bytes in all, about once a second.

    Returns:
        sha256 of the file.

    Raises:
        ModelError: The server refuses, the connection keeps breaking, or the file is not the expected one.
        OutputError: It cannot be written.
    """
    part = Part(url, path, token)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            return _verify(path, url, sha256)
        busy = f"another run downloads {path}: wait for it"
        with hold(part.lock, busy), part.partial.open("ab") as written:
            stated = _bring(part, written, report)
            written.flush()
            sync(part.partial)
            digest = _verify(part.partial, url, sha256 or stated)
            part.record.unlink(missing_ok=True)
            rename(part.partial, path)
            part.lock.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return digest


def _verify(path: Path, url: str, expected: str | None) -> str:
    """Digest of a file; a wrong one is removed, so that the next run starts afresh."""
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        path.unlink()
        raise ModelError(f"{url}: sha256 {digest} came, {expected} expected; what came was removed")
    return digest


def _bring(part: Part, written: IO[bytes], report: Report) -> str | None:
    """Fill the part, over several connections if need be; the sha256 that the server states, if any."""
    failures, before = 0, -1
    while True:
        try:
            stated, total = _connect(part, written, report)
            done = written.tell()
            if done == total:
                return stated
            trouble = f"the connection ended at {done} of {total} bytes"
        except _BROKEN as error:
            done, trouble = written.tell(), one_line(getattr(error, "reason", error))
        failures = 1 if done > before else failures + 1
        before = done
        if failures >= ATTEMPTS:
            raise ModelError(f"{part.url}: {trouble}; {done} bytes are kept, the same command goes on from there")
        time.sleep(min(10.0, 0.2 * 2**failures))


def _connect(part: Part, written: IO[bytes], report: Report) -> tuple[str | None, int]:
    """One connection: append what it brings. The server's sha256 and the size of the whole file."""
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(_request(part, written.tell()), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise _refusal(part, error) from error
        if error.headers.get("Content-Range") == f"bytes */{written.tell()}":
            return None, written.tell()
        _empty(written)  # more is here than the server has
        return None, -1
    with response:
        if response.status != 206:
            _empty(written)
        start = written.tell()
        length = response.headers.get("Content-Length")
        if length is None:
            raise ModelError(f"{part.url}: the server does not say how long the file is, so it cannot be verified")
        total = start + int(length)
        part.record.write_text(json.dumps({"url": part.url, "etag": response.headers.get("ETag")}), encoding="utf-8")
        _copy(response, written, total, report)
    return redirects.stated_sha256, total


def _empty(written: IO[bytes]) -> None:
    written.truncate(0)
    written.seek(0)


def _copy(response: Any, written: IO[bytes], total: int, report: Report) -> None:
    told = 0.0
    while piece := response.read(PIECE_BYTES):
        written.write(piece)
        written.flush()
        if time.monotonic() - told >= REPORT_S or written.tell() == total:
            told = time.monotonic()
            done_mb, total_mb = written.tell() / 1e6, total / 1e6
            report(Progress(done_mb, total_mb, "MB", f"{done_mb:.0f} of {total_mb:.0f} MB"))


def _request(part: Part, have: int) -> urllib.request.Request:
    """A request for what is missing, provided that the server still has the same version of the file."""
    if not part.url.startswith(("https://", "http://")):
        raise ModelError(f"{part.url}: an http or https address expected")
    request = urllib.request.Request(part.url, headers={"User-Agent": f"canopy/{__version__}"})
    if part.token:
        request.add_unredirected_header("Authorization", f"Bearer {part.token}")
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(part.record.read_text(encoding="utf-8"))
    if have and known.get("url") == part.url and known.get("etag"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known["etag"])
    return request


def _refusal(part: Part, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP status means; a server's own trouble is worth another attempt."""
    if error.code in (401, 403):
        return ModelError(
            f"{part.url}: HTTP {error.code}; the publisher gates this file: accept the terms on its page with your own "
            "account, then set HF_TOKEN, or download it in a browser and run canopy models convert"
        )
    if error.code >= 500 or error.code == 429:
        return ConnectionError(f"HTTP {error.code}")
    return ModelError(f"{part.url}: HTTP {error.code} {error.reason}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the sha256 that the model hub states in one."""

    stated_sha256: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As the standard library does, with an eye on the headers."""
        stated = (headers.get("X-Linked-Etag") or "").strip('"')
        if len(stated) == 64:
            self.stated_sha256 = stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)
