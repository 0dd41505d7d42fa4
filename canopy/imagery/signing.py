"""Signatures of Planetary Computer's stores: asked for once an hour a container, and again where one has expired."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from canopy.credentials import Secret
from canopy.errors import SourceError
from canopy.http import Answer, HttpClient

_BLOBS = ".blob.core.windows.net"
_EARLY = timedelta(minutes=5)
"""A signature is replaced so long before it expires: clocks differ, and a request takes time."""
_SHORTEST = timedelta(minutes=15)
"""Life of a signature that does not say when it expires."""
_UNSIGNED = frozenset({403, 404, 409})
"""What a store answers without a signature or with an expired one: Azure says of a private blob that there is none."""


@dataclass(frozen=True)
class _Token:
    query: Secret
    expires: datetime


_tokens: dict[str, _Token] = {}
_lock = threading.Lock()


def now() -> datetime:
    """Return the time; tests turn this clock."""
    return datetime.now(UTC)


def sign(client: HttpClient, service: str, address: str, ask: Callable[[str], Answer]) -> Answer:
    """Ask for an address with a signature; with a new one, once, where the store does not accept it.

    Args:
        client: Client that asks for signatures.
        service: Address of the service, to which account and container are appended.
        address: Address without signature.
        ask: Sends the request to the signed address.

    Raises:
        SourceError: There is no signature, or the store refuses a new one too.
    """
    container = container_of(address)
    if container is None:
        return ask(address)
    token = _token(client, f"{service.rstrip('/')}/{container}", None)
    try:
        return ask(_signed(address, token))
    except SourceError as error:
        if error.status not in _UNSIGNED:
            raise
    renewed = _token(client, f"{service.rstrip('/')}/{container}", token)
    return ask(_signed(address, renewed))


def container_of(address: str) -> str | None:
    """Return ``account/container`` of an address of Azure's blob store; None for any other.

    The store's emulator, on this machine, has the account in the path.
    """
    parts = urlsplit(address)
    names = [name for name in parts.path.split("/") if name]
    host = parts.hostname or ""
    if host.endswith(_BLOBS) and names:
        return f"{host.removesuffix(_BLOBS)}/{names[0]}"
    if host in ("127.0.0.1", "localhost") and len(names) > 2:
        return "/".join(names[:2])
    return None


def forget_tokens() -> None:
    """Forget all signatures."""
    with _lock:
        _tokens.clear()


def _signed(address: str, token: _Token) -> str:
    plain = address.partition("?")[0]
    return f"{plain}?{token.query.reveal()}"


def _token(client: HttpClient, url: str, refused: _Token | None) -> _Token:
    """Return a signature that is valid for a while, and is not the one that was refused."""
    # One thread asks, the others wait for its answer: the service counts requests.
    with _lock:
        token = _tokens.get(url)
        if token is None or token is refused or token.expires - _EARLY <= now():
            document = client.get(url).json()
            if not isinstance(document, dict) or not isinstance(document.get("token"), str):
                raise SourceError(f"{url}: no token in the answer, expected a signature; try again later")
            query = document["token"].lstrip("?")
            _tokens[url] = _Token(Secret(query), _expiry(document.get("msft:expiry")))
        return _tokens[url]


def _expiry(text: object) -> datetime:
    """Return when a signature expires; the time is in UTC, also where the Z is missing."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return now() + _SHORTEST
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
