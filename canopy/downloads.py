"""Downloads of whole files: to a draft, resumed after a failure or a killed run, checked, then named."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import httpx

from canopy.errors import CanopyError, SourceError
from canopy.http import (
    Answer,
    Exchange,
    Headers,
    HttpClient,
    redacted,
    status_failure,
    transport_failure,
    wanted_pause_s,
)
from canopy.progress import Progress, Report, ignore
from tiles.files import rename, reported, sync
from tiles.locks import hold

Address = str | Callable[[], str]
"""Address of a file, or a function that returns a fresh one: a signed address expires while a run waits."""
Statements = Sequence[Mapping[str, str]]
"""Headers of the answers that led to a file, redirects first; names in any case."""
Inspection = Callable[[Path, Statements], None]
"""Function that looks at a whole file before it gets its name, and raises a CanopyError where it is not to have it."""
_CHUNK = 2**20
_EXPIRED = frozenset({400, 401, 403})
_QUOTED_BYTES = 4000


class Digest(Protocol):
    """A checksum in the manner of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum of the bytes so far, hexadecimal."""
        ...


@dataclass(frozen=True)
class Checksum:
    """The checksum that a service states for a file."""

    name: str
    """Name of the algorithm, for messages: crc32c."""
    expected: str
    """Hexadecimal; leading zeros may be absent."""
    new: Callable[[], Digest]
    """Function that begins a checksum: ``hashlib.sha256``."""

    def matches(self, path: Path) -> bool:
        """Return whether a file has this checksum."""
        digest = self.new()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return int(digest.hexdigest(), 16) == int(self.expected, 16)


@dataclass(frozen=True)
class _Validator:
    """What says that the rest of a file belongs to its beginning."""

    etag: str = ""
    modified: str = ""
    address: str = ""
    """Address of the file; empty where each request has a new one. One tag may stand for files of two addresses."""

    @classmethod
    def of(cls, headers: httpx.Headers, address: str) -> "_Validator":
        etag = headers.get("etag", "")
        # A weak tag promises like content, not like bytes.
        return cls("" if etag.startswith("W/") else etag, headers.get("last-modified", ""), address)

    @property
    def condition(self) -> str:
        return self.etag or self.modified


class _Draft:
    """The bytes of a file so far, and the note of what file they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.part")
        self._note = path.with_name(f".{path.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> _Validator:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return _Validator(str(note["etag"]), str(note["modified"]), str(note["address"]))
        except (OSError, ValueError, KeyError, TypeError):
            return _Validator()

    def begin(self, validator: _Validator) -> None:
        """Empty the draft, and note the file that it is for."""
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps(asdict(validator)), encoding="utf-8")

    def drop(self) -> None:
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        sync(self.path)
        rename(self.path, path)
        self._note.unlink(missing_ok=True)


def download(
    client: HttpClient,
    address: Address,
    path: Path,
    *,
    headers: Headers | None = None,
    size: int | None = None,
    checksum: Checksum | None = None,
    inspect: Inspection | None = None,
    report: Report = ignore,
) -> Path:
    """Download a file; it gets its name when it is whole and its checksum agrees.

    What a failure or a killed run left is continued, where the server shows by its entity tag or date that the file is
    still the same, or a checksum would show that it is not.

    Args:
        client: Client, which knows the retries.
        address: Address, or a function that returns a fresh one, which is called again when the old one is refused.
        path: File to write; an existing one is replaced.
        headers: Headers in addition to the client's.
        size: Size that the service states, in bytes.
        checksum: Checksum that the service states.
        inspect: Looks at the whole file, with the headers of its answers; a file that it refuses is removed.
        report: Called with the bytes so far.

    Raises:
        SourceError: The file cannot be had, or is not the one that the service describes.
        CanopyError: The inspection refuses it.
        OutputError: It cannot be written, or another run downloads it.
    """
    job = _Download(client, address, _Draft(path), headers or {}, size, checksum, report)
    lock = path.with_name(f".{path.name}.lock")
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(lock, f"another run downloads {path}: wait for it"):
            job.run()
            if inspect is not None:
                try:
                    inspect(job.draft.path, job.statements)
                except CanopyError:
                    job.draft.drop()
                    raise
            job.draft.publish(path)
            lock.unlink(missing_ok=True)
    return path


@dataclass
class _Download:
    """One download under way."""

    client: HttpClient
    address: Address
    draft: _Draft
    headers: Headers
    size: int | None
    checksum: Checksum | None
    report: Report
    resumed: int = 0
    statements: list[Mapping[str, str]] = field(default_factory=list)
    """Headers of the last answers, redirects first."""

    def run(self) -> None:
        """Bring the draft to its end, and check it."""
        note = self.draft.validator()
        if self.draft.size() and (note.address != self._named() or not (note.condition or self.checksum)):
            self.draft.drop()
        self.resumed = self.draft.size()
        for last in (False, True):
            if self.size is None or not self.draft.path.is_file() or self.draft.size() != self.size:
                self._fetch()
            if self.checksum is None or self.checksum.matches(self.draft.path):
                return
            # The rest of another file may have been added to an old beginning: once more from the start.
            self.draft.drop()
            if last:
                raise SourceError(
                    f"{self._shown()}: {self.checksum.name} differs from the {self.checksum.expected} that the service "
                    "states, twice; try again later"
                )

    def _fetch(self) -> None:
        """Append to the draft until the file is whole; failures count as long as no byte arrives between them."""
        failures = 0
        while True:
            before, pause_s = self.draft.size(), None
            try:
                answer = self._attempt()
            except (httpx.TransportError, _ShortError) as error:
                failures = 1 if self.draft.size() > before else failures + 1
                failure = transport_failure(self._shown(), error, failures)
                failure.__cause__ = error
            else:
                if answer is None:
                    return
                failures += 1
                failure, pause_s = status_failure(answer, failures), wanted_pause_s(answer.headers)
                renewed = callable(self.address) and answer.status in _EXPIRED
                if answer.status not in self.client.retried and not renewed:
                    raise failure
            if failures >= self.client.retry.attempts:
                raise self._unfinished(failure)
            self.client.pause(failures, pause_s, failure)

    def _attempt(self) -> Answer | None:
        """Send one request; return its answer where it is an error, None where the file is whole."""
        url = self.address() if callable(self.address) else self.address
        offset, validator = self.draft.size(), self.draft.validator()
        headers = {"Accept-Encoding": "identity", **self.headers}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator.condition:
                headers["If-Range"] = validator.condition
        with self.client.opened(Exchange("GET", url, headers)) as response:
            status = response.status_code
            self.statements = [answer.headers for answer in (*response.history, response)]
            if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if validator.condition and response.headers.get("content-range") == f"bytes */{offset}":
                    return None  # all of it had arrived before the run was killed
                self.draft.drop()
                raise _ShortError("the file is not the one that was begun")
            if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                return Answer(redacted(url), status, response.headers, _beginning(response))
            self._append(response, offset if status == HTTPStatus.PARTIAL_CONTENT else 0, validator)
        return None

    def _append(self, response: httpx.Response, offset: int, validator: _Validator) -> None:
        """Write an answer's body behind the first `offset` bytes of the draft."""
        new = _Validator.of(response.headers, self._named())
        if offset and (not _starts_at(response, offset) or (validator.condition and new != validator)):
            self.draft.drop()
            raise _ShortError("the file has changed since it was begun")
        if not offset:
            self.draft.begin(new)
            self.resumed = 0
        total = _total(response, offset)
        if self.size is not None and total is not None and total != self.size:
            self.draft.drop()
            raise SourceError(f"{self._shown()}: {total} bytes, expected the {self.size} that the service states")
        position = offset
        with self.draft.path.open("ab") as file:
            # Not in pieces of one size: what had arrived when the connection breaks would be lost.
            for chunk in response.iter_raw():
                file.write(chunk)
                position += len(chunk)
                self.report(Progress(position / 1e6, (total or position) / 1e6, "MB", "", self.resumed / 1e6))
        goal = self.size if self.size is not None else total
        if goal is not None and position != goal:
            raise _ShortError(f"ended after {position} of {goal} bytes")

    def _unfinished(self, failure: SourceError) -> SourceError:
        """Return a failure that says what a later run goes on from."""
        size = self.draft.size()
        if not (size and self.draft.validator().condition):
            return failure
        error = SourceError(f"{failure}; {size} bytes are kept, run the same command to continue", failure.status)
        error.__cause__ = failure
        return error

    def _named(self) -> str:
        """Return the address of the file, where all requests have the same."""
        return "" if callable(self.address) else redacted(self.address)

    def _shown(self) -> str:
        return self._named() or self.draft.path.name[1:-5]


class _ShortError(Exception):
    """An answer that ended early, or the rest of another file."""


def _beginning(response: httpx.Response) -> bytes:
    """Return the beginning of an answer's body, for a message."""
    content = b""
    with contextlib.suppress(httpx.HTTPError):
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _QUOTED_BYTES:
                break
    return content


def _starts_at(response: httpx.Response, offset: int) -> bool:
    """Return whether a partial answer begins at a byte."""
    first = str(response.headers.get("content-range", "")).removeprefix("bytes").strip().partition("-")[0]
    return first == str(offset)


def _total(response: httpx.Response, offset: int) -> int | None:
    """Return the size of the whole file, None where the server does not say."""
    total = str(response.headers.get("content-range", "")).rpartition("/")[2]
    if offset and total.isdigit():
        return int(total)
    length = str(response.headers.get("content-length", ""))
    return int(length) + offset if length.isdigit() else None
