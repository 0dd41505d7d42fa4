"""Tiles of a service: one request each, a few at a time; what is no tile is unknown or an error, never ground."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from canopy.credentials import require_secret
from canopy.errors import SourceError
from canopy.http import Headers, HttpClient, Retry, redacted
from canopy.imagery.tiled.address import TileTemplate
from canopy.imagery.tiled.cache import TileCache
from canopy.imagery.tiled.matrices import TileKey, TileMatrix

CONNECTIONS = 16
_ABSENT = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_MAX_TILE_BYTES = 16 * 2**20


class TileStore(Protocol):
    """Where the bytes of tiles come from."""

    connections: int
    """Tiles to ask for at a time."""

    def fetch(self, key: TileKey, matrix: TileMatrix, again: bool = False) -> bytes | None:
        """Return the bytes of a tile, None where there is none.

        Args:
            key: The tile.
            matrix: Its matrix.
            again: Whether what was returned before is no picture.

        Raises:
            SourceError: The tile cannot be had.
            ImageryError: A file is not the one that was opened.
        """
        ...

    def name(self, key: TileKey, matrix: TileMatrix) -> str:
        """Return the name of a tile for messages."""
        ...

    def identity(self) -> str:
        """Return a text that changes when the tiles do, as far as can be known without reading them."""
        ...


@dataclass
class Service:
    """What requests to a service need besides an address: pickled without its connections and its key."""

    key: tuple[str, str] | None = None
    """Header, and the variable of the secret that it carries."""
    connections: int = CONNECTIONS
    retry: Retry = field(default_factory=Retry)
    _client: HttpClient | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {"key": self.key, "connections": self.connections, "retry": self.retry}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state, _client=None, _lock=threading.Lock())

    def client(self) -> HttpClient:
        """Return the client of this process.

        Raises:
            ConfigError: The service wants a key and there is none.
        """
        with self._lock:
            if self._client is None:
                headers: Headers = {self.key[0]: require_secret(self.key[1])} if self.key else {}
                self._client = HttpClient(headers=headers, connections=self.connections, retry=self.retry)
            return self._client


class HttpTiles:
    """Tiles of a service."""

    def __init__(self, template: TileTemplate, service: Service, cache: TileCache | None = None) -> None:
        """Describe a service; nothing is asked yet."""
        self.connections = service.connections
        self._template, self._service, self._cache = template, service, cache

    def fetch(self, key: TileKey, matrix: TileMatrix, again: bool = False) -> bytes | None:
        """Return the bytes of a tile; see `TileStore.fetch`."""
        address = self._template.address(key, matrix)
        if self._cache is not None and not again and (cached := self._cache.get(address)) is not None:
            return cached or None
        answer = self._service.client().get(address, accept=_ABSENT, limit_bytes=_MAX_TILE_BYTES)
        content = b"" if answer.status in _ABSENT else answer.content
        if self._cache is not None:
            self._cache.put(address, content)
        return content or None

    def name(self, key: TileKey, matrix: TileMatrix) -> str:
        """Return the name of a tile for messages."""
        return f"{redacted(self._template.address(key, matrix))} (zoom {matrix.identifier}, {key.col}, {key.row})"

    def identity(self) -> str:
        """Return the template: a service does not say when its tiles change."""
        text = f"{redacted(self._template.text)} {self._template.south_up} {sorted(self._template.params.items())}"
        return hashlib.sha256(text.encode()).hexdigest()


def broken_tile(name: str, reason: str) -> SourceError:
    """Return the error of a tile that is no picture, twice."""
    return SourceError(f"{name}: {reason}, twice; check the address, its key and its options")
