"""How far a job is, for whoever draws it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Tiles and output pixels done of all."""

    tiles_done: int
    tiles: int
    pixels_done: int
    pixels: int
