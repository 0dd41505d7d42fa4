"""Shots matched with a map: what both say of each footprint."""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from canopy.calibration.curves import CANOPY_M, raised_m

Floats = NDArray[np.float64]

UNKNOWN_SHARE = 0.02
"""Largest share of a beam that may fall on unknown cells of the map."""
FLOOR_M = 3.0
"""Height below which GEDI cannot separate plants from bare ground: its pulse alone spreads RH98 that far."""


@dataclass(frozen=True)
class Cells:
    """A sample of the map's cells in each footprint, from which its cover follows."""

    height_m: Floats
    """(n, k) heights, metres."""
    upper_m: Floats | None = None
    """(n, k) 95th percentiles, metres, if the map has them."""


@dataclass(frozen=True)
class MatchedShots:
    """What map and lidar say of each shot, one array element a shot."""

    map_m: Floats
    """98th percentile of the map under the beam, metres: like RH98, the height below which lies 98 % of its energy."""
    lidar_m: Floats
    """RH98, metres; less what the slope adds, where that is known."""
    x: Floats
    """First coordinate of the footprint, units of `crs`."""
    y: Floats
    """Second coordinate of the footprint."""
    crs: CRS
    """Projected CRS."""
    block: NDArray[np.int64]
    """Number of the block of ground, from 0."""
    lower_m: Floats | None = None
    """98th percentile of the map's p05 band, if it has one."""
    upper_m: Floats | None = None
    """98th percentile of the map's p95 band, if it has one."""
    cover: Floats | None = None
    """Canopy cover of the footprint by the lidar, in [0, 1], NaN where it does not say."""
    cells: Cells | None = None
    """Sample of the map's cells in the footprint."""
    features: Floats | None = None
    """(n, C) features of the encoder, averaged over the footprint, if they were read."""
    model_sha256: str = ""
    """Bundle whose encoder gave the features."""

    def __len__(self) -> int:
        return len(self.map_m)

    def take(self, rows: NDArray[Any]) -> "MatchedShots":
        """Return some of the shots, by number or by mask."""
        parts = {
            field.name: value[rows]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        if self.cells is not None:
            upper_m = self.cells.upper_m
            parts["cells"] = Cells(self.cells.height_m[rows], None if upper_m is None else upper_m[rows])
        return dataclasses.replace(self, **parts)

    def ordered(self) -> "MatchedShots":
        """Return the same shots in an order that does not depend on that of their file."""
        # Ties in height are rare, and then broken by place; folds and quantiles depend on the order.
        return self.take(np.lexsort((self.y, self.x, self.lidar_m, self.map_m)))

    def read_m(self, upper: float, doubt_m: float) -> Floats:
        """Return what the curve of a calibration reads: heights, moved toward p95 where that is beyond doubt."""
        if self.upper_m is None:
            return self.map_m
        return np.asarray(raised_m(self.map_m, self.upper_m, upper, doubt_m), np.float64)

    @cached_property
    def bare(self) -> NDArray[np.bool_]:
        """Whether the lidar sees nothing that it can separate from bare ground."""
        return self.lidar_m < FLOOR_M

    def digest(self) -> str:
        """Return the identity of the shots, whatever their order."""
        columns = np.stack([self.x, self.y, self.map_m, self.lidar_m])
        return hashlib.sha256(columns[:, np.lexsort(columns)].tobytes()).hexdigest()


def number_blocks(x: Floats, y: Floats, side: float) -> NDArray[np.int64]:
    """Return the number (n,) of the square block of ground in which each point lies; `side` in the points' units."""
    # Anchored to the CRS origin: the same ground is one block, whatever the shots.
    squares = np.stack([np.floor(x / side), np.floor(y / side)], axis=1)
    return np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def canopy_share(height_m: Floats) -> Floats:
    """Return the share of known cells that are canopy: (n, k) metres to (n,), NaN without known cells."""
    valid = np.isfinite(height_m)
    with np.errstate(invalid="ignore"):
        return np.asarray((height_m >= CANOPY_M).sum(axis=1) / valid.sum(axis=1), np.float64)
