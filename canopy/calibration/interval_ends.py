"""Ends of the interval after a calibration: moved apart until held-out shots lie between them.

Conformal prediction on held-out shots, by calibrated height (Romano, Patterson and Candes 2019; Vovk 2012). The ends
only move apart: shots see the tallest of a footprint, whose interval is narrower than that of a cell.
"""

import bisect

import numpy as np
from numpy.typing import NDArray

from canopy.calibration.curves import Calibration, IntervalEnds
from canopy.calibration.matched_shots import FLOOR_M, MatchedShots
from canopy.calibration.methods import log_gain

Floats = NDArray[np.float64]

INSIDE = 0.9
"""Share of held-out shots that the interval contains."""
LEVELS = np.append(np.arange(0.0, 0.99, 0.01), 1.0)
"""Shares of each class that an end does not miss, of which the least that reaches INSIDE is taken."""
EDGES_M = (3.0, 10.0, 20.0)
"""Edges of the classes of calibrated height, metres."""
FEWEST_IN_CLASS = 50


def calibrated_ends(calibration: Calibration, shots: MatchedShots, height_m: Floats) -> Floats:
    """Return the 98th percentiles of the calibrated ends of the interval at each shot.

    Args:
        calibration: Calibration; its own widening is applied if it has one.
        shots: Shots with both ends of the map's interval.
        height_m: (n,) 98th percentile of the calibrated heights, metres.

    Returns:
        (2, n) low and high end, metres; low <= height <= high.
    """
    assert shots.lower_m is not None
    assert shots.upper_m is not None
    low_m, high_m = calibration.ends(height_m, shots.lower_m, shots.upper_m, log_gain=log_gain(calibration, shots))
    return np.stack([np.minimum(low_m, height_m), np.maximum(high_m, height_m)]).astype(np.float64)


def fit_ends(height_m: Floats, ends_m: Floats, lidar_m: Floats) -> IntervalEnds:
    """Fit how far the ends move apart: as little as it takes for nine of ten shots to lie between them.

    Args:
        height_m: (n,) calibrated heights by fits that never saw the shots, metres.
        ends_m: (2, n) ends of their intervals by the same fits, metres.
        lidar_m: (n,) RH98, metres.
    """
    misses_m = _misses_m(ends_m, lidar_m)
    classes = _classes(height_m)
    knots_m = tuple(float(height_m[members].mean()) for members in classes)

    def at_level(level: float) -> IntervalEnds:
        """Return ends that this share of each class does not miss, on either side."""
        lower_m, upper_m = (
            tuple(max(0.0, _conformal(side[members], level)) for members in classes) for side in misses_m
        )
        return IntervalEnds(height_m=knots_m, lower_m=lower_m, upper_m=upper_m)

    def share_inside(level: float) -> float:
        return float(inside(np.stack(at_level(level).widened(height_m, *ends_m)), lidar_m).mean())

    # Ends move apart as the level grows, and with them what lies inside.
    return at_level(float(LEVELS[bisect.bisect_left(LEVELS[:-1], INSIDE, key=share_inside)]))


def inside(ends_m: Floats, lidar_m: Floats) -> NDArray[np.bool_]:
    """Return whether each shot lies between the ends, (n,); heights below the floor count as equal."""
    below_m, above_m = _misses_m(ends_m, lidar_m)
    return np.asarray((below_m <= 0) & (above_m <= 0))


def held_out_ends(height_m: Floats, ends_m: Floats, lidar_m: Floats, fold: NDArray[np.int64]) -> Floats:
    """Return ends that were moved apart by the other folds alone, (2, n) metres.

    Args:
        height_m: (n,) calibrated heights by fits that never saw the shots, metres.
        ends_m: (2, n) ends of their intervals by the same fits, metres.
        lidar_m: (n,) RH98, metres.
        fold: (n,) fold of each shot.
    """
    moved_m = np.empty_like(ends_m)
    for number in np.unique(fold):
        test = fold == number
        ends = fit_ends(height_m[~test], ends_m[:, ~test], lidar_m[~test])
        moved_m[:, test] = np.stack(ends.widened(height_m[test], *ends_m[:, test]))
    return moved_m


def _misses_m(ends_m: Floats, lidar_m: Floats) -> tuple[Floats, Floats]:
    """Return how far shots lie below the low end and above the high end, metres; negative inside."""
    # Below the floor the pulse, not the plants, sets RH98: a bare shot must not widen meadows.
    (low_m, high_m), lidar_m = np.maximum(ends_m, FLOOR_M), np.maximum(lidar_m, FLOOR_M)
    return low_m - lidar_m, lidar_m - high_m


def _classes(height_m: Floats) -> list[NDArray[np.bool_]]:
    """Return the members of each class of height; classes of few shots join the one below, the first the next."""
    # By calibrated height, the only one that is known where no shot lies.
    number = np.digitize(height_m, EDGES_M)
    classes: list[NDArray[np.bool_]] = []
    for rank in range(len(EDGES_M) + 1):
        members = number == rank
        if classes and (members.sum() < FEWEST_IN_CLASS or classes[-1].sum() < FEWEST_IN_CLASS):
            classes[-1] |= members
        else:
            classes.append(members)
    return [members for members in classes if members.any()]


def _conformal(misses_m: Floats, level: float) -> float:
    """Return the miss that a share of the shots does not exceed, with the correction for a finite sample."""
    share = min(1.0, np.ceil((len(misses_m) + 1) * level) / len(misses_m))
    return float(np.quantile(misses_m, share, method="higher"))
