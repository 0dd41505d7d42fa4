"""A tile for a worker, what it may take, and how it ended: small values that schedulers pass on."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from canopy.batch.leases import TERM_S
from canopy.batch.plan import PlannedTile

State = Literal["done", "empty", "lost", "present", "busy", "failed"]
PAUSE_S = 20.0
"""Pause of a worker whose disk is full: it would fail tile after tile, faster than others compute them."""


@dataclass(frozen=True)
class Limits:
    """What a tile may take, and how workers deal with each other."""

    time_s: float | None = None
    """Longest time of a tile."""
    memory_gb: float | None = None
    """Largest memory of a worker process."""
    term_s: float = TERM_S
    """Seconds without a sign of life after which another worker takes a tile over."""
    pause_s: float = PAUSE_S
    """Pause of a worker whose disk is full."""
    scratch: str | None = None
    """Folder for unfinished tiles; the system's own if None."""
    expendable: bool = False
    """Whether the process is a worker's own, which may be ended where a tile never returns."""
    isolate: bool = True
    """Whether a tile whose last worker died is computed in a process of its own."""


@dataclass(frozen=True)
class Task:
    """A tile for a worker: under a kilobyte, however large the plan."""

    url: str
    """Store of the batch."""
    tile: PlannedTile
    """Tile to compute."""
    limits: Limits = Limits()
    """What the tile may take."""
    small: bool = False
    """Whether to take less memory than usual."""

    def to_json(self) -> str:
        """Return the task as text, for a process of its own."""
        return json.dumps({**asdict(self), "tile": self.tile.to_json()})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Read a task that `to_json` wrote."""
        document = json.loads(text)
        tile, limits = PlannedTile.from_json(document["tile"]), Limits(**document["limits"])
        return cls(**{**document, "tile": tile, "limits": limits})


@dataclass(frozen=True)
class Outcome:
    """How a task ended: small, because schedulers keep results."""

    tile: str
    """Name of the tile."""
    state: State
    """``done``; ``empty`` without imagery; ``lost`` to another worker; ``present`` already; ``busy``; ``failed``."""
    seconds: float = 0.0
    """Time that it took."""
    reason: str = ""
    """Kind of failure."""
    final: bool = False
    """Whether the tile is not tried again."""
    left_s: float = 0.0
    """Seconds after which a busy tile may be taken over."""
    overhead_s: float = 0.0
    """Part of the time that went into lease and commit."""
