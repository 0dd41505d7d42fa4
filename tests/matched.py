"""Shots matched with a map, made up without files."""

import dataclasses
from typing import Any

import numpy as np
from pyproj import CRS

from canopy.calibration.matched_shots import MatchedShots, number_blocks

UTM = CRS(32611)
BLOCK_M = 250.0


def matched(count: int = 600, seed: int = 0, **changes: Any) -> MatchedShots:
    """Return a map that is a third too low, over 2 km; the lidar errs by a metre."""
    generator = np.random.default_rng(seed)
    truth_m = generator.gamma(2, 7, count)
    x, y = generator.uniform(0, 2000, (2, count))
    lidar_m = np.maximum(truth_m + generator.normal(0, 1, count), 0.5)
    shots = MatchedShots(truth_m / 1.5, lidar_m, x, y, UTM, number_blocks(x, y, BLOCK_M))
    return dataclasses.replace(shots, **changes)
