"""Failures of tiles: what can pass is tried again, what cannot is listed with its reason."""

import contextlib
import errno
import json
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from canopy.batch.plan import prefix_of
from canopy.batch.store import Entry, Store, StoreError
from canopy.errors import CanopyError, ImageryError, ModelError, OutputError, SourceError, one_line
from canopy.version import __version__

Reason = Literal["network", "store", "disk", "memory", "time", "killed", "imagery", "model", "output", "error"]
PASSING: frozenset[str] = frozenset({"network", "store", "disk", "memory", "time"})
"""Reasons that may be gone when the tile is tried again."""
ATTEMPTS = 4
"""Attempts of a tile whose failures can pass."""
_REMOTE = ("http://", "https://", "s3://", "gs://", "az://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz")
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_OUT_OF_MEMORY = ("out of memory", "cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class TileLimitError(CanopyError):
    """A tile takes more time or memory than it may."""

    def __init__(self, message: str, reason: Reason) -> None:
        """Keep the message and the limit that was reached."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Failure:
    """One failed attempt, as its object's name says it: a listing is enough for a ledger."""

    tile: str
    """Name of the tile."""
    reason: str
    """Kind of failure."""
    final: bool
    """Whether the tile is not tried again."""
    seconds: float
    """Time that the attempt took."""
    key: str
    """Key of its record, which has the message."""


def reason_of(error: BaseException) -> Reason:
    """Return the kind of a failure."""
    if isinstance(error, TileLimitError):
        return error.reason
    if isinstance(error, SourceError):
        return "network"
    text = _chain(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _any(text, _OUT_OF_MEMORY):
        return "memory"
    if _any(text, _DISK_FULL) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if isinstance(error, StoreError):
        return "store"
    if isinstance(error, ImageryError):
        return "network" if _any(text, _REMOTE) and "not the file that was planned" not in text else "imagery"
    if isinstance(error, ModelError):
        return "model"
    return "output" if isinstance(error, OutputError) else "error"


def write_failure(
    store: Store, tile: str, reason: str, message: str, seconds: float, *, final: bool | None = None
) -> Failure:
    """Record a failed attempt under a name of its own.

    Args:
        store: Store of the batch.
        tile: Name of the tile.
        reason: Kind of failure.
        message: What went wrong, in one line.
        seconds: Time that the attempt took.
        final: Whether the tile is not tried again; by the reason if None.
    """
    final = reason not in PASSING if final is None else final
    kind = "final" if final else "passing"
    nonce = uuid.uuid4().hex[:12]
    key = f"failures/{prefix_of(tile)}/{tile}/{reason}.{kind}.{seconds:.0f}.{nonce}.json"
    record = {
        "tile": tile, "reason": reason, "final": final, "seconds": round(seconds, 3), "message": message,
        "host": socket.gethostname(), "canopy_version": __version__, "nonce": nonce,
    }  # fmt: skip
    store.create(key, json.dumps(record).encode())
    return Failure(tile, reason, final, seconds, key)


def parse_failure(entry: Entry) -> Failure | None:
    """Read the name of a failure's record; None where it is none."""
    parts = entry.key.split("/")
    with contextlib.suppress(ValueError):
        _, _, tile, name = parts
        reason, kind, seconds, _, _ = name.split(".")
        return Failure(tile, reason, kind == "final", float(seconds), entry.key)
    return None


def failed_tiles(failures: Iterable[Failure], attempts: int = ATTEMPTS) -> dict[str, Failure]:
    """Return the tiles that are not tried again, with the failure that decided it.

    Args:
        failures: Failures of all tiles.
        attempts: Attempts after which a tile fails for good, whatever the reason.
    """
    by_tile: dict[str, list[Failure]] = {}
    for failure in failures:
        by_tile.setdefault(failure.tile, []).append(failure)
    decided = {}
    for tile, group in by_tile.items():
        final = [failure for failure in group if failure.final]
        if final or len(group) >= attempts:
            decided[tile] = (final or group)[-1]
    return decided


def message_of(store: Store, failure: Failure) -> str:
    """Return what went wrong, in one line."""
    content = store.read(failure.key)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(content[0])["message"]) if content else failure.reason
    return failure.reason


def forget_failures(store: Store, failures: Iterable[Failure]) -> int:
    """Set failures aside, so that their tiles are tried again; return how many tiles that are.

    Their records go to ``retried/``, where the time that they cost is still counted.
    """
    tiles = set()
    for failure in failures:
        content = store.read(failure.key)
        if content is not None:
            store.create(failure.key.replace("failures/", "retried/", 1), content[0])
            store.delete([failure.key])
            tiles.add(failure.tile)
    return len(tiles)


def describe(error: BaseException) -> str:
    """Return the text of an error in one line, with its kind where it is not one of ours."""
    text = one_line(error, 400)
    return text if isinstance(error, CanopyError) else f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> str:
    """Return the texts of an error and of its causes."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 8:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return "\n".join(texts)


def _any(text: str, parts: tuple[str, ...]) -> bool:
    return any(part.lower() in text.lower() for part in parts)
