"""The HTTP client of sources and `canopy fetch`: what is asked again, and what of an address a message may show.

    client = HttpClient(headers={"X-API-TOKEN": require_secret("NEON_TOKEN")})
    answer = client.get("https://data.neonscience.org/api/v0/sites/TEAK")
    download(client, answer.json()["url"], Path("chm.tif"), size=123)      # canopy.downloads

Connect and read errors, 408, 429 and the usual 5xx are asked again with growing pauses; what remains becomes a
`SourceError` of one line. A client is safe to share between threads, and is built again in a forked process.
"""

import json
import logging
import os
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import httpx

from canopy.credentials import Secret, hide_secrets
from canopy.errors import SourceError, one_line
from canopy.version import __version__

Headers = Mapping[str, str | Secret]

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be gone a moment later."""
MAX_BYTES = 64 * 2**20
"""Largest answer that is kept in memory by default."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_QUOTED = 160
"""Characters of a server's own words that a message quotes."""

# httpx logs whole addresses, whose query may be a signature, at the level of information.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Retry:
    """How often and after what pauses a request is sent again."""

    attempts: int = 5
    """Requests in all."""
    pause_s: float = 0.5
    """Pause after the first failure; it doubles with each, up to `longest_s`."""
    longest_s: float = 60.0
    """Longest pause. A server that asks for a longer one gets no further request."""

    def backoff_s(self, failures: int, draw: float) -> float:
        """Return the pause after so many failures; half of it is drawn, so that clients do not return together."""
        pause = min(self.longest_s, self.pause_s * 2.0 ** (failures - 1))
        return pause * (0.5 + draw / 2)


@dataclass(frozen=True)
class Answer:
    """A server's answer, read to its end."""

    url: str
    """Address that answered, redirects followed, without user, query and fragment."""
    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """Headers; names in any case."""
    content: bytes = field(repr=False)
    """Body, decompressed."""

    @property
    def etag(self) -> str | None:
        """Entity tag of what was sent."""
        return self.headers.get("etag")

    @property
    def total_bytes(self) -> int | None:
        """Size of the whole file of which this may be a range; None where the server does not say."""
        total = self.headers.get("content-range", "").rpartition("/")[2]
        if total.isdigit():
            return int(total)
        length = self.headers.get("content-length", "")
        return int(length) if length.isdigit() and self.status != HTTPStatus.PARTIAL_CONTENT else None

    def text(self) -> str:
        """Return the body as text, in UTF-8; what is none is replaced."""
        return self.content.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            SourceError: It is something else, such as a login page with status 200.
        """
        try:
            return json.loads(self.content)
        except ValueError as error:
            kind = self.headers.get("content-type", "no content type")
            raise SourceError(f"{self.url}: expected JSON, got {kind}: {excerpt(self.content)}", self.status) from error


@dataclass(frozen=True)
class Exchange:
    """A request as it goes out, and again after a failure or a redirect."""

    method: str
    url: str
    headers: Headers = field(default_factory=dict)
    body: bytes | None = None
    range: tuple[int, int] | None = None
    """First byte, and the one after the last."""

    def redirected(self, status: int, location: str, origin: httpx.URL) -> "Exchange":
        """Return the request to the address that a redirect names.

        Raises:
            SourceError: It leads out of HTTP, or from encrypted to plain.
        """
        url = urljoin(str(origin), location)
        target = urlsplit(url)
        plain = target.scheme == "http" and origin.scheme == "https"
        if target.scheme not in ("http", "https") or (plain and not is_loopback(target.hostname)):
            raise SourceError(f"{redacted(self.url)}: redirected to {redacted(url)}, expected an https address", status)
        headers = self.headers
        if (target.scheme, target.netloc.rpartition("@")[2]) != (origin.scheme, origin.netloc.decode()):
            # A key is for the host that it was given for: signed stores even refuse a request that carries one.
            headers = {
                name: value
                for name, value in headers.items()
                if not isinstance(value, Secret) and name.lower() not in ("authorization", "cookie")
            }
        if status == HTTPStatus.SEE_OTHER or (self.method == "POST" and status in (301, 302)):
            return Exchange("GET", url, headers, None, self.range)
        return Exchange(self.method, url, headers, self.body, self.range)


class HttpClient:
    """Requests to any host over a bounded number of connections."""

    def __init__(
        self,
        *,
        headers: Headers | None = None,
        connections: int = 16,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
        retried: Collection[int] = RETRIED,
    ) -> None:
        """Describe a client; nothing is opened before the first request.

        Args:
            headers: Headers of every request; a `Secret` is dropped where a redirect leads to another host.
            connections: Most connections at a time; further requests wait for one.
            timeout_s: Longest wait for a connection, and between two parts of an answer.
            retry: Attempts and pauses.
            retried: Statuses that are asked again.
        """
        self._settings = {
            "headers": dict(headers or {}), "connections": connections, "timeout_s": timeout_s,
            "retry": retry or Retry(), "retried": frozenset(retried),
        }  # fmt: skip
        self.retry = retry or Retry()
        self.retried = frozenset(retried)
        self._headers = {"User-Agent": f"canopy/{__version__}", **(headers or {})}
        self._limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        # A thread that waits for a free connection of the pool waits as long as it takes: its turn comes.
        self._timeout = httpx.Timeout(timeout_s, pool=None)
        self._lock = threading.Lock()
        self._draws = random.Random(0)
        self._client: httpx.Client | None = None
        self._process = -1

    def __reduce__(self) -> tuple[Callable[..., "HttpClient"], tuple[dict[str, Any]]]:
        return _rebuilt, (self._settings,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def get(self, url: str, **options: Any) -> Answer:
        """Send a GET request; the options are those of `request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Any) -> Answer:
        """Send a HEAD request; the options are those of `request`."""
        return self.request("HEAD", url, **options)

    def post_json(self, url: str, document: Any, **options: Any) -> Answer:
        """Send a JSON document; the other options are those of `request`."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.request("POST", url, body=json.dumps(document).encode(), headers=headers, **options)

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Headers | None = None,
        body: bytes | None = None,
        accept: Collection[int] = (),
        limit_bytes: int = MAX_BYTES,
    ) -> Answer:
        """Send a request, again where that may help, and return its answer.

        Args:
            method: HTTP method. What is sent must do no harm when it arrives twice.
            url: Address, http or https.
            params: Query, in addition to that of the address.
            headers: Headers in addition to the client's.
            body: Body of the request.
            accept: Statuses besides 200 to 299 that mean something, and are returned: (204, 404).
            limit_bytes: Largest body that is read.

        Raises:
            SourceError: No answer, an answer of another status, or a larger one.
        """
        exchange = Exchange(method, with_params(url, params), headers or {}, body)
        return self.repeated(url, accept, lambda: self._answer(exchange, limit_bytes))

    def read_range(
        self, url: str, start: int, stop: int, *, etag: str | None = None, headers: Headers | None = None
    ) -> Answer:
        """Read bytes `start` to `stop` (exclusive) of a file; fewer where it ends before.

        Args:
            url: Address of the file.
            start: First byte.
            stop: Byte after the last.
            etag: Entity tag of the file's first answer; another one is an error.
            headers: Headers in addition to the client's.

        Raises:
            SourceError: No answer, no support of ranges, other bytes than asked, or a file that has changed.
        """
        exchange = Exchange("GET", url, {"Accept-Encoding": "identity", **(headers or {})}, range=(start, stop))
        answer = self.repeated(url, (), lambda: self._answer(exchange, stop - start))
        if etag is not None and answer.etag is not None and answer.etag != etag:
            raise SourceError(f"{answer.url}: replaced while it is read; start the run again", answer.status)
        return answer

    def repeated(self, url: str, accept: Collection[int], send: Callable[[], Answer]) -> Answer:
        """Return what `send` brings, sent again after failures that may pass.

        Raises:
            SourceError: The last attempt failed, or one whose repetition is of no use.
        """
        for attempt in range(1, self.retry.attempts + 1):
            pause_s: float | None = None
            try:
                answer = send()
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure = transport_failure(url, error, attempt)
                failure.__cause__ = error
            else:
                if HTTPStatus(200) <= answer.status < HTTPStatus(300) or answer.status in accept:
                    return answer
                failure = status_failure(answer, attempt)
                if answer.status not in self.retried:
                    raise failure
                pause_s = wanted_pause_s(answer.headers)
            if attempt < self.retry.attempts:
                self.pause(attempt, pause_s, failure)
        raise failure

    def pause(self, failures: int, wanted_s: float | None, failure: SourceError) -> None:
        """Wait before the next attempt, as long as the server asks for if it does.

        Raises:
            SourceError: The failure, where the server asks for more patience than `Retry.longest_s`.
        """
        if wanted_s is not None and wanted_s > self.retry.longest_s:
            raise SourceError(f"{failure}; the server asks to wait {wanted_s:.0f} s", failure.status) from failure
        with self._lock:
            pause_s = self.retry.backoff_s(failures, self._draws.random())
        time.sleep(pause_s if wanted_s is None else max(pause_s, wanted_s))

    def _answer(self, exchange: Exchange, limit_bytes: int) -> Answer:
        """Send one request and read its answer to the end."""
        with self.opened(exchange) as response:
            url = redacted(str(response.url))
            parts, size = [], 0
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > limit_bytes:
                    # A server that ignores the range sends the whole file: `check_range` says so.
                    if exchange.range is not None:
                        break
                    raise SourceError(f"{url}: over {limit_bytes} bytes, expected at most that", response.status_code)
            answer = Answer(url, response.status_code, response.headers, b"".join(parts))
        if exchange.range is not None:
            check_range(answer, exchange.range)
        return answer

    @contextmanager
    def opened(self, exchange: Exchange) -> Iterator[httpx.Response]:
        """Send a request once, follow redirects, and give the open answer, whose `history` has the redirects."""
        redirects: list[httpx.Response] = []
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(exchange)
            try:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    response.history = redirects
                    yield response
                    return
                redirects.append(response)
                exchange = exchange.redirected(response.status_code, location, response.url)
            finally:
                response.close()
        raise SourceError(f"{redacted(exchange.url)}: over {_MAX_REDIRECTS} redirects, expected an answer")

    def _send(self, exchange: Exchange) -> httpx.Response:
        """Send a request once; the answer's body is not read yet."""
        headers = {**self._headers, **exchange.headers}
        if exchange.range is not None:
            headers["Range"] = f"bytes={exchange.range[0]}-{exchange.range[1] - 1}"
        plain = {name: value.reveal() if isinstance(value, Secret) else value for name, value in headers.items()}
        try:
            request = self._pool().build_request(exchange.method, exchange.url, headers=plain, content=exchange.body)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise SourceError(f"{redacted(exchange.url)}: no address ({one_line(error, _QUOTED)})") from None
        if request.url.scheme not in ("http", "https"):
            raise SourceError(f"{redacted(exchange.url)}: an http or https address expected")
        return self._pool().send(request, stream=True, follow_redirects=False)

    def _pool(self) -> httpx.Client:
        """Return the connections of this process."""
        with self._lock:
            if self._client is None or self._process != os.getpid():
                # What another process opened is its own; a proxy of the environment is not asked for this machine.
                direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}
                self._client = httpx.Client(
                    verify=_certificates(), limits=self._limits, timeout=self._timeout, mounts=direct
                )
                self._process = os.getpid()
                weakref.finalize(self, self._client.close)
            return self._client


@cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates, whose reading takes a fifth of a second."""
    return httpx.create_ssl_context()


def _rebuilt(settings: dict[str, Any]) -> HttpClient:
    """Return a client of the same settings in another process."""
    return HttpClient(**settings)


def redacted(url: str) -> str:
    """Return an address without user, password, query and fragment, which may contain a key or a signature."""
    parts = urlsplit(url)
    return hide_secrets(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine, to which plain HTTP is as safe as any."""
    return host in _LOOPBACK


def with_params(url: str, params: Mapping[str, str] | None) -> str:
    """Return an address with parameters added to its query."""
    if not params:
        return url
    base, mark, fragment = url.partition("#")
    joint = "&" if urlsplit(base).query else "" if base.endswith("?") else "?"
    return f"{base}{joint}{urlencode(params, quote_via=quote)}{mark}{fragment}"


def excerpt(content: bytes) -> str:
    """Return the beginning of a server's own words, in one line and without secrets."""
    text = hide_secrets(" ".join(content[:4000].decode("utf-8", errors="replace").split()))
    text = "".join(letter for letter in text if letter.isprintable())
    return f"{text[:_QUOTED]}..." if len(text) > _QUOTED else text or "nothing"


def transport_failure(url: str, error: Exception, attempts: int) -> SourceError:
    """Return the error of a request that got no whole answer."""
    reason = hide_secrets(one_line(error, _QUOTED))
    if isinstance(error, httpx.TimeoutException):
        reason = "no answer in time"
    return SourceError(f"{redacted(url)}: {reason}, asked {_times(attempts)}; check the address and the network")


def status_failure(answer: Answer, attempts: int) -> SourceError:
    """Return the error of an answer whose status is no success."""
    try:
        phrase = f" {HTTPStatus(answer.status).phrase}"
    except ValueError:
        phrase = ""
    said = f" ({excerpt(answer.content)})" if answer.content.strip() else ""
    again = f", asked {_times(attempts)}" if attempts > 1 else ""
    return SourceError(f"{answer.url}: answered {answer.status}{phrase}{said}{again}, expected 200", answer.status)


def _times(attempts: int) -> str:
    return "once" if attempts == 1 else f"{attempts} times"


def wanted_pause_s(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to wait, in seconds; None where it does not say.

    NEON writes the header as one word.
    """
    value = headers.get("retry-after") or headers.get("retryafter") or ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def check_range(answer: Answer, window: tuple[int, int]) -> None:
    """Refuse an answer that is not the range that was asked for; an error status is left to the caller.

    Raises:
        SourceError: The server ignores ranges, or sends other bytes.
    """
    start, stop = window
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        first = answer.headers.get("content-range", "").removeprefix("bytes").strip().partition("-")[0]
        end = min(stop, answer.total_bytes) if answer.total_bytes is not None else stop
        if first == str(start) and len(answer.content) == end - start:
            return
    elif answer.status != HTTPStatus.OK or (start == 0 and len(answer.content) <= stop):
        return
    raise SourceError(
        f"{answer.url}: asked for bytes {start} to {stop - 1}, got {len(answer.content)} bytes with status "
        f"{answer.status}; the server must support ranges: download the file and name it",
        answer.status,
    )
