"""What each ASPRS class of a return means for canopy height: one table, that of LAS 1.4 R16 (July 2019).

Codes 40 to 45 are those of its domain profile for topo-bathymetric lidar. 8 and 12 are reserved since 1.4 and remain in
use for model key-points and overlap, as in earlier versions.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Role(IntEnum):
    """Part that a return plays."""

    LEFT_OUT = 0
    """The return counts nowhere."""
    CANOPY = 1
    """The return has its height."""
    BARE = 2
    """A surface without canopy: height 0, whatever lies below it."""
    GROUND = 3
    """Terrain: heights count from it."""
    BARE_GROUND = 4
    """Terrain and a surface without canopy: water and snow, from whose surface trees are measured."""


NAMES = {
    0: "never classified", 1: "unclassified", 2: "ground", 3: "low vegetation", 4: "medium vegetation",
    5: "high vegetation", 6: "building", 7: "low noise", 8: "model key-point", 9: "water", 10: "rail",
    11: "road surface", 12: "overlap", 13: "guard wire", 14: "conductor wire", 15: "transmission tower",
    16: "insulator", 17: "bridge deck", 18: "high noise", 19: "overhead structure", 20: "ignored ground", 21: "snow",
    22: "temporal exclusion", 40: "bathymetric bottom", 41: "water surface", 42: "derived water surface",
    43: "submerged object", 44: "IHO S-57 object", 45: "water column",
}  # fmt: skip
"""Names of the standard classes."""

_ROLES = {
    **dict.fromkeys((0, 1, 3, 4, 5, 12), Role.CANOPY),
    **dict.fromkeys((2, 8), Role.GROUND),
    **dict.fromkeys((9, 21, 41, 42), Role.BARE_GROUND),
    # Conveyors, traffic lights and decks hide what is below them; roads, rails and breakline ground lie on the terrain.
    **dict.fromkeys((6, 10, 11, 17, 19, 20), Role.BARE),
}
ROLES: NDArray[np.uint8] = np.array([_ROLES.get(code, Role.LEFT_OUT) for code in range(256)], np.uint8)
"""(256,) role of each class: whatever is above 18 and has no name here is no canopy."""
FIRST_USER_CODE = 64


def unknown_codes(counts: Sequence[int]) -> dict[int, int]:
    """Return the number of returns of each class that the table does not know: reserved and user-defined ones.

    Args:
        counts: Number of returns of each of the 256 classes.
    """
    return {code: int(count) for code, count in enumerate(counts) if count and code not in NAMES}


def spelled(counts: dict[int, int]) -> str:
    """Return numbers of returns by class in words, the most frequent class first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} of class {code} ({_kind(code)})" for code, count in ordered)


def _kind(code: int) -> str:
    return NAMES.get(code, "user-defined" if code >= FIRST_USER_CODE else "reserved")
