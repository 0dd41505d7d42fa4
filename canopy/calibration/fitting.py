"""Fits calibrations to shots and chooses by ground that was held out; the map as it is stays unless clearly beaten.

GEDI cannot tell bare ground from heights below about 3 m: its pulse alone spreads RH98 that far. Heights below that
floor count as equal, so no calibration is rewarded for lifting meadows.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from scipy.optimize import isotonic_regression
from scipy.stats import norm

from canopy.calibration.curves import IDENTITY, LIMIT, TREE_M, Calibration, FeatureGain, GainGrid, raised_m
from canopy.errors import CalibrationError

Floats = NDArray[np.float64]
Fit = Callable[["Footprints"], Calibration]

FLOOR_M = 3.0
FEWEST_SHOTS, FEWEST_BLOCKS, FOLDS = 50, 5, 5
UPPER = (0.25, 0.5, 0.75, 0.95)
REPLICATES = 1000
KNOTS = 16
TIE = 0.01
PERCENTILE = 95
"""Of the scaling in Tolan et al. (2024)."""
SHRUNK_BY = 20
"""Shots at which a local gain is half its own, half the global one."""
RIDGES = (1.0, 10.0, 100.0, 1000.0)
CLASSES_M = (0, 3, 5, 10, 15, 20, 25, 30, np.inf)


@dataclass(frozen=True)
class Footprints:
    """What the map and the lidar say of each shot, one array element a shot.

    Attributes:
        map_m: 98th percentile of the map in the footprint.
        lidar_m: RH98.
        x: Of the footprint, units of `crs`.
        y: Likewise.
        crs: Projected CRS.
        block: Index of the block of ground, from 0.
        upper_m: 98th percentile of the map's p95 band, if it has one.
        features: (n, C) of the encoder, averaged over the footprint, if they were read.
        model_sha256: Whose features.
    """

    map_m: Floats
    lidar_m: Floats
    x: Floats
    y: Floats
    crs: CRS
    block: NDArray[np.int64]
    upper_m: Floats | None = None
    features: Floats | None = None
    model_sha256: str = ""

    def __len__(self) -> int:
        return len(self.map_m)

    def take(self, which: NDArray[Any]) -> "Footprints":
        """Some of the shots."""
        parts = {
            field.name: value[which]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return dataclasses.replace(self, **parts)

    def seen_m(self, upper: float) -> Floats:
        """What the curve of a calibration reads."""
        return self.map_m if self.upper_m is None else np.asarray(raised_m(self.map_m, self.upper_m, upper), np.float64)

    @cached_property
    def _sorted(self) -> "Footprints":
        return self.take(np.lexsort((self.y, self.x, self.lidar_m, self.map_m)))


@dataclass(frozen=True)
class Row:
    """A line of the table: a method on held-out ground.

    Attributes:
        name: Of the method.
        mae_m: Mean absolute difference from RH98, heights below the floor equal.
        bias_m: Mean difference, likewise.
        rmse_m: Root of the mean squared one.
        gain_m: Identity's absolute difference less the method's: mean, and its 95 % interval by blocks.
        by_height: Bias by class of RH98.
        chosen: Whether the calibration is this.
    """

    name: str
    mae_m: float
    bias_m: float
    rmse_m: float
    gain_m: tuple[float, float, float]
    by_height: dict[str, float]
    chosen: bool = False


def blocks(x: Floats, y: Floats, side: float) -> NDArray[np.int64]:
    """Index (n,) of the square block of ground that holds each place; `side` in the places' units."""
    places = np.stack([np.floor(x / side), np.floor(y / side)], axis=1)
    return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def fit(shots: Footprints, block_side: float) -> tuple[Calibration, list[Row]]:
    """Fit every method with blocks held out, and choose.

    Args:
        shots: On known cells, with finite values.
        block_side: Of the blocks, units of the CRS; also the scale of the local method.

    Returns:
        The calibration fitted on all shots, and the table.

    Raises:
        CalibrationError: Too few shots or blocks.
    """
    shots = shots._sorted
    _require_enough(shots)
    fold = _folds(shots)
    rivals = {"identity": lambda _: IDENTITY, **dict(_methods(shots, block_side))}
    held = {name: _held_out(method, shots, fold) for name, method in rivals.items()}
    errors = {name: np.abs(_difference(made, shots)) for name, made in held.items()}
    gains = {name: _gain(errors["identity"] - error, shots.block, 0.95) for name, error in errors.items()}
    # The more methods are tried, the more likely one looks better by luck: each must be surer (Bonferroni).
    level = 1 - 0.05 / (len(rivals) - 1)
    sure = {name: _gain(errors["identity"] - error, shots.block, level)[1] > 0 for name, error in errors.items()}
    best = _choice([name for name in rivals if sure[name]], errors)
    calibration = rivals[best](shots)
    return calibration, [_row(name, made, shots, gains[name], name == best) for name, made in held.items()]


def _choice(better: list[str], errors: dict[str, Floats]) -> str:
    """The simplest of those clearly better than the map as it is that no other beats by more than a hundredth."""
    least = min((errors[name].mean() for name in better), default=0.0)
    return next((name for name in better if errors[name].mean() <= (1 + TIE) * least), "identity")


def predicted_m(calibration: Calibration, shots: Footprints) -> Floats:
    """The calibrated map's 98th percentile at each shot."""
    log_gain = np.zeros(len(shots))
    if calibration.gain is not None:
        log_gain = log_gain + calibration.gain.at(shots.x, shots.y)
    if calibration.features is not None and shots.features is not None:
        log_gain = log_gain + shots.features @ np.array(calibration.features.weights) + calibration.features.bias
    made = calibration.apply(shots.map_m, p95_m=shots.upper_m, log_gain=log_gain)
    return made.astype(np.float64)


def _require_enough(shots: Footprints) -> None:
    count = len(np.unique(shots.block))
    if len(shots) < FEWEST_SHOTS or count < FEWEST_BLOCKS:
        raise CalibrationError(
            f"{len(shots)} usable shots in {count} blocks: at least {FEWEST_SHOTS} in {FEWEST_BLOCKS} are needed; "
            "read more granules, loosen the filter, or make the blocks smaller with --block-m"
        )


def _folds(shots: Footprints) -> NDArray[np.int64]:
    """Fold of each shot: whole blocks, dealt from the fullest to the emptiest fold by fold."""
    counts = np.bincount(shots.block)
    order = np.lexsort((np.arange(len(counts)), -counts))
    dealt = np.empty(len(counts), np.int64)
    dealt[order] = np.arange(len(counts)) % FOLDS
    fold: NDArray[np.int64] = dealt[shots.block]
    return fold


def _methods(shots: Footprints, block_side: float) -> Iterator[tuple[str, Fit]]:
    yield "percentile", _percentile
    uppers = (0.0,) if shots.upper_m is None else (0.0, *UPPER)
    for upper in uppers:
        label = f" + {upper:g} p95" if upper else ""
        for name, method in (("linear", _linear), ("quantile", _quantile), ("isotonic", _isotonic)):
            yield name + label, lambda given, method=method, upper=upper: method(given, upper)  # type: ignore[misc]
        for factor in (1, 3):
            scale = factor * block_side
            name = f"local {scale:g}{label}"
            yield name, lambda given, scale=scale, upper=upper: _local(given, scale, upper)  # type: ignore[misc]
        if shots.features is not None:
            for ridge in RIDGES:
                name = f"features {ridge:g}{label}"
                yield name, lambda given, ridge=ridge, upper=upper: _features(given, ridge, upper)  # type: ignore[misc]


def _held_out(method: Fit, shots: Footprints, fold: NDArray[np.int64]) -> Floats:
    """Calibrated 98th percentile of each shot by a fit that never saw its fold."""
    made = np.empty(len(shots))
    for number in np.unique(fold):
        test = fold == number
        made[test] = predicted_m(method(shots.take(~test)), shots.take(test))
    return made


def _difference(made_m: Floats, shots: Footprints) -> Floats:
    return np.maximum(made_m, FLOOR_M) - np.maximum(shots.lidar_m, FLOOR_M)


def _gain(gain_m: Floats, block: NDArray[np.int64], level: float) -> tuple[float, float, float]:
    """Mean, and its interval by a bootstrap over blocks, as wide as a normal distribution of their spread."""
    sums, counts = np.bincount(block, gain_m), np.bincount(block)
    drawn = np.random.default_rng(0).integers(0, len(counts), (REPLICATES, len(counts)))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
    mean, half = float(gain_m.mean()), float(norm.ppf((1 + level) / 2) * means.std())
    return mean, mean - half, mean + half


def _row(name: str, made_m: Floats, shots: Footprints, gain_m: tuple[float, float, float], chosen: bool) -> Row:
    difference = _difference(made_m, shots)
    place = np.digitize(shots.lidar_m, CLASSES_M[1:-1])
    bounds = [f"{low:g}-{high:g}" if np.isfinite(high) else f">{low:g}" for low, high in itertools.pairwise(CLASSES_M)]
    by_height = {bounds[k]: float(difference[place == k].mean()) for k in np.unique(place)}
    mae, rmse = float(np.abs(difference).mean()), float(np.sqrt(np.mean(difference**2)))
    return Row(name, mae, float(difference.mean()), rmse, gain_m, by_height, chosen)


def _percentile(shots: Footprints) -> Calibration:
    """One factor that brings the map's 95th percentile to the lidar's (Tolan et al. 2024)."""
    ours, theirs = np.percentile(shots.map_m, PERCENTILE), np.percentile(shots.lidar_m, PERCENTILE)
    factor = float(np.clip(theirs / ours, 0.25, 4)) if ours > 0 else 1.0
    return Calibration(kind="percentile", knots_m=((0, 0), (1, factor)))


def _linear(shots: Footprints, upper: float) -> Calibration:
    """Offset and slope for trees, by least squares; ground below them stays."""
    seen, lidar = _trees(shots, upper)
    slope, offset = np.polyfit(seen, lidar, 1) if len(np.unique(seen)) > 1 else (1.0, 0.0)
    slope = max(0.0, float(slope))
    offset = float(lidar.mean() - slope * seen.mean()) if slope == 0 else float(offset)
    far = max(60.0, float(seen.max(initial=0)))
    points = [(x, offset + slope * x) for x in (2 * TREE_M, far)]
    return Calibration(kind="linear", knots_m=_rising(points), upper=upper)


def _isotonic(shots: Footprints, upper: float) -> Calibration:
    """The rising curve nearest to the shots (Barlow et al. 1972), thinned to a few knots."""
    seen, lidar = _trees(shots, upper)
    order = np.argsort(seen, kind="stable")
    fitted = isotonic_regression(lidar[order]).x
    return Calibration(kind="isotonic", knots_m=_thinned(seen[order], fitted), upper=upper)


def _quantile(shots: Footprints, upper: float) -> Calibration:
    """Quantiles of the map to those of the lidar: needs no shot in its place, so misplaced ones do little harm."""
    seen, lidar = _trees(shots, upper)
    return Calibration(kind="quantile", knots_m=_thinned(np.sort(seen), np.sort(lidar)), upper=upper)


def _local(shots: Footprints, scale: float, upper: float) -> Calibration:
    """The quantile curve times a gain that varies smoothly over `scale`, shrunk to 1 where shots are few."""
    base = _quantile(shots, upper)
    made = predicted_m(base, shots)
    tall = (made > FLOOR_M) & (shots.lidar_m > FLOOR_M)
    ratio = np.log(shots.lidar_m[tall] / made[tall])
    x, y = shots.x[tall], shots.y[tall]
    cols = max(1, round(np.ptp(shots.x) / scale)) + 1
    rows = max(1, round(np.ptp(shots.y) / scale)) + 1
    left, top = float(shots.x.min()), float(shots.y.max())
    grid = np.zeros((rows, cols))
    for row, col in np.ndindex(rows, cols):
        away2 = ((x - left - col * scale) ** 2 + (y - top + row * scale) ** 2) / scale**2
        weight = np.exp(-away2 / 2)
        grid[row, col] = (weight * ratio).sum() / (weight.sum() + SHRUNK_BY)
    values = tuple(tuple(map(float, line)) for line in np.clip(grid, -LIMIT, LIMIT))
    gain = GainGrid(crs=shots.crs.to_wkt(), left=left, top=top, step=float(scale), log_gain=values)
    return base.model_copy(update={"kind": "local", "gain": gain})


def _features(shots: Footprints, ridge: float, upper: float) -> Calibration:
    """The quantile curve times a gain that the encoder's features foretell, by ridge regression."""
    assert shots.features is not None
    base = _quantile(shots, upper)
    made = predicted_m(base, shots)
    tall = (made > FLOOR_M) & (shots.lidar_m > FLOOR_M)
    ratio = np.clip(np.log(shots.lidar_m[tall] / made[tall]), -LIMIT, LIMIT)
    given = shots.features[tall]
    mean, std = given.mean(axis=0), given.std(axis=0) + 1e-6
    normal = (given - mean) / std
    weights = np.linalg.solve(normal.T @ normal + ridge * np.eye(normal.shape[1]), normal.T @ (ratio - ratio.mean()))
    weights = weights / std
    bias = float(ratio.mean() - mean @ weights)
    gain = FeatureGain(
        model_sha256=shots.model_sha256, weights=tuple(map(float, weights)), bias=bias, sigma_m=FOOTPRINT_SIGMA_M
    )
    return base.model_copy(update={"kind": "features", "features": gain})


FOOTPRINT_SIGMA_M = 6.25


def _trees(shots: Footprints, upper: float) -> tuple[Floats, Floats]:
    """What the curve reads and RH98, where both say tree: a shot on ground says nothing of the height of trees."""
    seen = shots.seen_m(upper)
    both = (seen > TREE_M) & (shots.lidar_m > FLOOR_M)
    return seen[both], shots.lidar_m[both]


def _thinned(x: Floats, y: Floats) -> tuple[tuple[float, float], ...]:
    """A few knots of a rising curve through sorted points: means of equally many of them."""
    if len(x) < 2:
        return IDENTITY.knots_m
    groups = [group for group in np.array_split(np.arange(len(x)), min(KNOTS, len(x) // 5 or 1)) if len(group)]
    points = [(float(x[group].mean()), float(y[group].mean())) for group in groups]
    return _rising(points)


def _rising(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Knots of a curve that leaves heights below trees as they are, rises with its points and never falls.

    RH98 holds the tallest of a footprint and the width of the pulse; it says nothing of the height of grass.
    """
    knots = [(0.0, 0.0), (TREE_M, TREE_M)]
    for x, y in points:
        if x > knots[-1][0] + 1e-6:
            knots.append((x, max(y, knots[-1][1])))
    return tuple(knots)


def digest(shots: Footprints) -> str:
    """Identity of the shots, whatever their order."""
    columns = np.stack([shots.x, shots.y, shots.map_m, shots.lidar_m])
    return hashlib.sha256(columns[:, np.lexsort(columns)].tobytes()).hexdigest()
