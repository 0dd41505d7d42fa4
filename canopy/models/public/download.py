"""Large files from their publishers: resumed, verified, and under their final name only when whole."""

import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from canopy.errors import ModelError, OutputError, one_line
from canopy.models.public.content import content_fault
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
_LOG = logging.getLogger(__name__)
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Download:
    """A downloaded file."""

    sha256: str
    """SHA-256 of the file."""
    revision: str | None = None
    """Revision of the repository that the model hub states, if the file was downloaded from there now."""


@dataclass
class Stated:
    """Statements of a server on a file."""

    sha256: str | None = None
    """SHA-256 of the file."""
    revision: str | None = None
    """Revision of the repository that the file belongs to."""


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
    def name(self) -> str:
        """Name of the file, as its address states it."""
        return self.url.partition("?")[0].rpartition("/")[2]

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
) -> Download:
    """Download a file; an interrupted download continues where it stopped.

    The file gets its name once its digest and its content are as expected. What is not is removed, so that the same
    command downloads it again; an existing file that is not as expected is downloaded again at once.

    Args:
        url: Address, http or https. The suffix of its name says what the file should be.
        path: Path of the file.
        sha256: Expected digest, where the publisher states one; the server's own statement is used otherwise.
        token: Bearer token, for gated files.
        report: Called with megabytes done and in total, about once a second.

    Returns:
        The file's digest, and its revision where the server states one.

    Raises:
        ModelError: The server refuses, the connection keeps breaking, or the file is not the expected one.
        OutputError: The file cannot be written.
    """
    part = Part(url, path, token)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(part.lock, f"another run downloads {path}: wait for it"):
            if path.is_file():
                digest = file_sha256(path)
                fault = _fault(part, path, digest, sha256)
                if fault is None:
                    return Download(digest)
                _LOG.warning("%s: %s; it is downloaded again", path, fault)
                path.unlink()
            result = _download_new(part, sha256, report)
        part.lock.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return result


def _download_new(part: Part, sha256: str | None, report: Report) -> Download:
    with part.partial.open("ab") as partial:
        stated = _fill(part, partial, report)
        partial.flush()
    # On the disk before it gets its name: a machine that fails between the two leaves no file of zeros.
    sync(part.partial)
    digest = file_sha256(part.partial)
    fault = _fault(part, part.partial, digest, sha256 or stated.sha256)
    part.record.unlink(missing_ok=True)
    if fault is not None:
        part.partial.unlink()
        raise ModelError(f"{part.url}: {fault}; it was removed, run the same command to download it again")
    rename(part.partial, part.path)
    return Download(digest, stated.revision)


def _fault(part: Part, path: Path, digest: str, expected: str | None) -> str | None:
    """Return what is wrong with a file, or None."""
    fault = content_fault(path, part.name)  # first: it says more than that digests differ
    if fault is None and expected is not None and digest != expected:
        fault = f"sha256 {digest} came, {expected} expected"
    return fault


def _fill(part: Part, partial: IO[bytes], report: Report) -> Stated:
    """Fill the part, over several connections if need be; return what the server states of the file."""
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


def _connect(part: Part, partial: IO[bytes], report: Report) -> tuple[Stated, int]:
    """Append what one connection brings; return what the server states of the file, and the size of all of it."""
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(_request(part, partial.tell()), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise _refusal(part, error) from None
        # Range not satisfiable: the part is whole, or longer than the server's file.
        if error.headers.get("Content-Range") == f"bytes */{partial.tell()}":
            return redirects.stated, partial.tell()
        _empty(partial)
        return redirects.stated, -1
    redirects.read_revision(response.headers)
    with response:
        # Only "partial content" continues: any other answer is the whole file, and the part starts again.
        if response.status != 206:
            _empty(partial)
        start = partial.tell()
        length = response.headers.get("Content-Length")
        if length is None:
            raise ModelError(f"{part.url}: the server does not say how long the file is, so it cannot be verified")
        total = start + int(length)
        part.record.write_text(json.dumps({"url": part.url, "etag": response.headers.get("ETag")}), encoding="utf-8")
        _copy(response, partial, total, report)
    return redirects.stated, total


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
    """Follows redirects, and remembers what the model hub states of the file in one."""

    def __init__(self) -> None:
        self.stated = Stated()

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Redirect as the standard library does, after a look at the headers."""
        sha256 = (headers.get("X-Linked-Etag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", sha256):
            self.stated.sha256 = sha256
        self.read_revision(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def read_revision(self, headers: Any) -> None:
        """Remember the revision that the hub states, of a file that it sends or redirects to."""
        revision = headers.get("X-Repo-Commit") or ""
        if re.fullmatch("[0-9a-f]{40}", revision):
            self.stated.revision = revision
