"""Methods of calibration, the simplest first: each fits a curve, perhaps with a gain, to matched shots.

None of them regresses heights on heights. Shots lie metres away from where they say, and a regression on what is
measured elsewhere draws every height toward the middle (regression dilution; Fuller 1987, Measurement Error Models):
it comes nearest to the shots and farthest from the truth. Quantiles of both sides are the same wherever shots lie.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from canopy.calibration.curves import CANOPY_M, IDENTITY, LIMIT, Calibration, FeatureGain, GainGrid
from canopy.calibration.matched_shots import FLOOR_M, MatchedShots
from canopy.gedi.footprints import FOOTPRINT_SIGMA_M

Floats = NDArray[np.float64]
Fit = Callable[[MatchedShots], Calibration]

UPPER = (0.25, 0.5, 0.75, 0.95)
KNOTS = 16
PERCENTILE = 95
"""Percentile that the scaling in Tolan et al. (2024) matches."""
SHRUNK_BY = 20
"""Shots at which a local gain is half its own, half the global one."""
RIDGES = (1.0, 10.0, 100.0, 1000.0)
FEWEST_BARE = 20
"""Fewest shots on bare ground from which it follows where the model's doubt means forest."""
DOUBT_LEVEL = 0.95
"""Share of bare ground whose 95th percentile stays below `Calibration.doubt_m`."""


def methods(shots: MatchedShots, block_side: float) -> Iterator[tuple[str, Fit]]:
    """Yield the name and the fit of each method that the shots allow, the simplest first.

    Args:
        shots: Shots that will be fitted; decide which methods are tried.
        block_side: Side of the blocks, units of the CRS: the scale of the local methods.
    """
    yield "percentile", _percentile
    # Without bare ground nothing says what the model's doubt looks like there.
    doubting = shots.upper_m is not None and shots.bare.sum() >= FEWEST_BARE
    for upper in (0.0, *UPPER) if doubting else (0.0,):
        label = f" + {upper:g} p95" if upper else ""
        yield "quantile" + label, lambda part, upper=upper: _quantile(part, upper)  # type: ignore[misc]
        for factor in (1, 3):
            scale = factor * block_side
            name = f"local {scale:g}{label}"
            yield name, lambda part, scale=scale, upper=upper: _local(part, scale, upper)  # type: ignore[misc]
        if shots.features is not None:
            for ridge in RIDGES:
                name = f"features {ridge:g}{label}"
                yield name, lambda part, ridge=ridge, upper=upper: _features(part, ridge, upper)  # type: ignore[misc]


def log_gain(calibration: Calibration, shots: MatchedShots) -> Floats:
    """Return the logarithm of a calibration's gain at each shot, (n,)."""
    gain = np.zeros(len(shots))
    if calibration.gain is not None:
        gain = gain + calibration.gain.log_gain_at(shots.x, shots.y)
    if calibration.features is not None and shots.features is not None:
        gain = gain + shots.features @ np.array(calibration.features.weights) + calibration.features.bias
    return np.asarray(gain, np.float64)


def predicted_m(calibration: Calibration, shots: MatchedShots) -> Floats:
    """Return the calibrated map's 98th percentile at each shot, (n,) metres."""
    heights_m = calibration.apply(shots.map_m, p95_m=shots.upper_m, log_gain=log_gain(calibration, shots))
    return heights_m.astype(np.float64)


def _percentile(shots: MatchedShots) -> Calibration:
    """Fit one factor that brings the map's 95th percentile to the lidar's (Tolan et al. 2024)."""
    map_m, lidar_m = np.percentile(shots.map_m, PERCENTILE), np.percentile(shots.lidar_m, PERCENTILE)
    # A map without trees has no scale to correct.
    factor = float(np.clip(lidar_m / map_m, 0.25, 4)) if map_m > 0 else 1.0
    return Calibration(kind="percentile", knots_m=((0, 0), (1, factor)))


def _quantile(shots: MatchedShots, upper: float) -> Calibration:
    """Match quantiles of the map to those of the lidar."""
    doubt_m = _doubt_m(shots)
    read_m, lidar_m = _trees(shots, upper, doubt_m)
    # Both sorted by themselves: the k-th tallest of the map meets the k-th tallest of the lidar.
    knots_m = _thinned(np.sort(read_m), np.sort(lidar_m))
    return Calibration(kind="quantile", knots_m=knots_m, upper=upper, doubt_m=doubt_m if upper else CANOPY_M)


def _local(shots: MatchedShots, scale: float, upper: float) -> Calibration:
    """Fit the quantile curve times a gain that varies smoothly over `scale`, shrunk to 1 where shots are few."""
    base = _quantile(shots, upper)
    tall, log_ratio = _log_ratio(base, shots)
    x, y = shots.x[tall], shots.y[tall]
    cols = max(1, round(np.ptp(shots.x) / scale)) + 1
    rows = max(1, round(np.ptp(shots.y) / scale)) + 1
    left, top = float(shots.x.min()), float(shots.y.max())
    grid = np.zeros((rows, cols))
    for row, col in np.ndindex(rows, cols):
        distance2 = ((x - left - col * scale) ** 2 + (y - top + row * scale) ** 2) / scale**2
        # A kernel mean of log ratios, drawn toward 0 as if 20 shots without any fault lay at the point.
        weight = np.exp(-distance2 / 2)
        grid[row, col] = (weight * log_ratio).sum() / (weight.sum() + SHRUNK_BY)
    values = tuple(tuple(map(float, line)) for line in np.clip(grid, -LIMIT, LIMIT))
    gain = GainGrid(crs=shots.crs.to_wkt(), left=left, top=top, step=float(scale), log_gain=values)
    return base.model_copy(update={"kind": "local", "gain": gain})


def _features(shots: MatchedShots, ridge: float, upper: float) -> Calibration:
    """Fit the quantile curve times a gain that the encoder's features predict, by ridge regression."""
    assert shots.features is not None
    base = _quantile(shots, upper)
    tall, log_ratio = _log_ratio(base, shots)
    log_ratio = np.clip(log_ratio, -LIMIT, LIMIT)
    features = shots.features[tall]
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    # Standardised, so that one penalty suits all features; the weights are scaled back for the raw ones.
    normal = (features - mean) / std
    penalty = ridge * np.eye(normal.shape[1])
    weights = np.linalg.solve(normal.T @ normal + penalty, normal.T @ (log_ratio - log_ratio.mean())) / std
    bias = float(log_ratio.mean() - mean @ weights)
    gain = FeatureGain(
        model_sha256=shots.model_sha256, weights=tuple(map(float, weights)), bias=bias, sigma_m=FOOTPRINT_SIGMA_M
    )
    return base.model_copy(update={"kind": "features", "features": gain})


def _doubt_m(shots: MatchedShots) -> float:
    """Return the 95th percentile of height below which nearly all bare ground stays; at least that of canopy."""
    if shots.upper_m is None or not shots.bare.any():
        return CANOPY_M
    return max(CANOPY_M, float(np.quantile(shots.upper_m[shots.bare], DOUBT_LEVEL)))


def _log_ratio(base: Calibration, shots: MatchedShots) -> tuple[NDArray[np.bool_], Floats]:
    """Return which shots are trees by both, (n,), and the log of RH98 over the calibrated height of those."""
    heights_m = predicted_m(base, shots)
    tall = (heights_m > FLOOR_M) & (shots.lidar_m > FLOOR_M)
    return tall, np.log(shots.lidar_m[tall] / heights_m[tall])


def _trees(shots: MatchedShots, upper: float, doubt_m: float) -> tuple[Floats, Floats]:
    """Return what the curve reads and RH98 where both say tree: a shot on ground says nothing of trees' heights."""
    read_m = shots.read_m(upper, doubt_m)
    # The lidar's bound is its floor, the map's is canopy: neither side can be ground.
    both = (read_m > CANOPY_M) & (shots.lidar_m > FLOOR_M)
    return read_m[both], shots.lidar_m[both]


def _thinned(x: Floats, y: Floats) -> tuple[tuple[float, float], ...]:
    """Return a few knots of a rising curve through sorted points: means of equally many of them."""
    if len(x) < 2:
        return IDENTITY.knots_m
    # At least five shots a knot, and at most 16 knots.
    groups = [group for group in np.array_split(np.arange(len(x)), min(KNOTS, len(x) // 5 or 1)) if len(group)]
    return _rising([(float(x[group].mean()), float(y[group].mean())) for group in groups])


def _rising(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return knots of a curve that leaves heights below trees as they are, rises with its points and never falls.

    RH98 is the tallest of a footprint and the width of the pulse; it says nothing of the height of grass.
    """
    knots_m = [(0.0, 0.0), (CANOPY_M, CANOPY_M)]
    for x, y in points:
        if x > knots_m[-1][0] + 1e-6:
            knots_m.append((x, max(y, knots_m[-1][1])))
    return tuple(knots_m)
