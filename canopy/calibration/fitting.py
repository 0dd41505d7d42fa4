"""Fits calibrations to shots and chooses by ground that was held out; the map as it is stays unless clearly beaten.

What is proven is agreement with held-out shots, in height, in cover and in spread; whether shots are right is another
question, which `representation` and `terrain` ask first.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from canopy.calibration.curves import IDENTITY, Calibration
from canopy.calibration.interval_ends import calibrated_ends, fit_ends, held_out_ends, inside
from canopy.calibration.matched_shots import FLOOR_M, MatchedShots, canopy_share
from canopy.calibration.methods import Fit, log_gain, methods, predicted_m
from canopy.errors import CalibrationError
from canopy.evaluation.bootstrap import LEVEL, draw_blocks
from canopy.evaluation.residuals import residual_metrics

Floats = NDArray[np.float64]

FEWEST_SHOTS, FEWEST_BLOCKS, FOLDS = 50, 5, 5
TIE = 0.01
"""Share by which a simpler method may err more than the best and still be chosen."""
LEAST_SPREAD = 0.9
"""Least spread of calibrated trees, in that of the lidar's, unless the map has less: tall trees are not traded for a
smaller mean error."""
COVER_LOSS = 0.01
"""Largest rise of the mean error in cover that a method may bring."""
CLASSES_M = (0, 3, 5, 10, 15, 20, 25, 30, np.inf)


@dataclass(frozen=True)
class Gain:
    """What a method takes off the map's error on held-out ground."""

    mean: float
    """Mean over shots."""
    low: float
    """Low end of its interval by blocks of ground."""
    high: float
    """High end of its interval."""


@dataclass(frozen=True)
class MethodRow:
    """A line of the table: a method on held-out ground."""

    name: str
    """Name of the method."""
    mae_m: float
    """Mean absolute difference from RH98, heights below the floor equal, metres."""
    bias_m: float
    """Mean difference from RH98, metres."""
    rmse_m: float
    """Root mean square difference from RH98, metres."""
    gain_m: tuple[float, float, float]
    """Identity's absolute difference less the method's: mean, low and high end of its 95 % interval, metres."""
    by_height: dict[str, float]
    """Bias by class of RH98, metres."""
    chosen: bool = False
    """Whether the calibration is this."""
    spread: float | None = None
    """Spread of the calibrated heights of trees, in that of their RH98; None with too few trees."""
    cover_error: float | None = None
    """Mean absolute difference of canopy cover from the lidar's; None where no shot says its cover."""
    coverage: float | None = None
    """Share of held-out shots within the calibrated interval; None without an interval."""
    ruled_out: str = ""
    """Why the method cannot be chosen although it is nearer to the shots; empty where it can, or is not nearer."""


@dataclass(frozen=True)
class HeldOut:
    """What a method says of each shot by a fit that never saw its fold."""

    height_m: Floats
    """(n,) 98th percentile of the calibrated heights, metres."""
    ends_m: Floats | None
    """(2, n) 98th percentiles of the ends of the interval, before they move apart; None without an interval."""
    cover: Floats | None
    """(n,) share of canopy cells after the calibration; None without a sample of cells."""


def fit(shots: MatchedShots, block_side: float) -> tuple[Calibration, tuple[MethodRow, ...]]:
    """Fit every method with blocks held out, and choose.

    Args:
        shots: Shots on known cells, with finite values.
        block_side: Side of the blocks, units of the CRS; also the scale of the local method.

    Returns:
        The calibration fitted on all shots, and the table.

    Raises:
        CalibrationError: Too few shots or blocks.
    """
    # Order: every method predicts each fold from the others; the predictions are judged; the winner is fitted again, on
    # all shots; its interval follows from the held-out predictions, never from shots that the fit has seen.
    shots = shots.ordered()
    _require_enough(shots)
    fold = _folds(shots.block)
    fits: dict[str, Fit] = {"identity": lambda _: IDENTITY, **dict(methods(shots, block_side))}
    held_out = {name: predict_held_out(method, shots, fold) for name, method in fits.items()}
    errors_m = {name: np.abs(_difference_m(each.height_m, shots)) for name, each in held_out.items()}
    ruled_out = {name: _objection(held_out[name], held_out["identity"], shots) for name in fits if name != "identity"}
    best = choose(errors_m, shots.block, ruled_out)
    calibration = fits[best](shots)
    ends_m = {name: _ends(name, each, shots, fold) for name, each in held_out.items()}
    calibration = _with_interval(calibration, held_out[best], shots)
    rows = []
    for name, each in held_out.items():
        gain = block_gain(errors_m["identity"] - errors_m[name], shots.block, LEVEL)
        row = _row(name, each, shots, gain, ends_m[name])
        rows.append(dataclasses.replace(row, chosen=name == best, ruled_out=ruled_out.get(name, "")))
    return calibration, tuple(rows)


def choose(errors_m: Mapping[str, Floats], block: NDArray[np.int64], ruled_out: Mapping[str, str]) -> str:
    """Return the simplest method that is clearly better than the map as it is and that no other clearly beats.

    Args:
        errors_m: (n,) absolute error of each method on held-out shots, the simplest first, `identity` among them.
        block: (n,) block of each shot.
        ruled_out: Why a method cannot be chosen; empty or absent where it can.
    """
    rivals = [name for name in errors_m if name != "identity"]
    # The more methods are tried, the more likely one looks better by luck: each must be surer (Bonferroni).
    level = 1 - (1 - LEVEL) / max(1, len(rivals))
    better = [
        name
        for name in rivals
        if not ruled_out.get(name) and block_gain(errors_m["identity"] - errors_m[name], block, level).low > 0
    ]
    least_m = min((errors_m[name].mean() for name in better), default=0.0)
    return next((name for name in better if errors_m[name].mean() <= (1 + TIE) * least_m), "identity")


def block_gain(gain: Floats, block: NDArray[np.int64], level: float) -> Gain:
    """Return a mean over shots and its interval by the bootstrap over blocks.

    The interval is that of a normal distribution with the replicates' spread: percentiles as far out as many methods
    demand would need more replicates than there are.

    Args:
        gain: (n,) what is averaged.
        block: (n,) block of each shot, from 0.
        level: Level of the interval.
    """
    # Blocks are drawn, so a replicate's mean is a ratio of two random sums.
    sums, counts = np.bincount(block, gain), np.bincount(block)
    draws = draw_blocks(len(counts))
    means = (draws @ sums) / np.maximum(draws @ counts, 1)
    mean, half = float(gain.mean()), float(norm.ppf((1 + level) / 2) * means.std())
    return Gain(mean, mean - half, mean + half)


def predict_held_out(method: Fit, shots: MatchedShots, fold: NDArray[np.int64]) -> HeldOut:
    """Return what a method says of each shot, by fits that never saw its fold.

    Args:
        method: Fit of the method.
        shots: All shots.
        fold: (n,) fold of each.
    """
    height_m = np.empty(len(shots))
    ends_m = np.empty((2, len(shots))) if shots.lower_m is not None and shots.upper_m is not None else None
    cover = np.empty(len(shots)) if shots.cells is not None else None
    for number in np.unique(fold):
        test = fold == number
        calibration, part = method(shots.take(~test)), shots.take(test)
        height_m[test] = predicted_m(calibration, part)
        if ends_m is not None:
            ends_m[:, test] = calibrated_ends(calibration, part, height_m[test])
        if cover is not None:
            cover[test] = calibrated_cover(calibration, part)
    return HeldOut(height_m, ends_m, cover)


def calibrated_cover(calibration: Calibration, shots: MatchedShots) -> Floats:
    """Return the share of canopy cells in each footprint after a calibration, (n,), from the sample of its cells."""
    assert shots.cells is not None
    cells = shots.cells
    gain = np.broadcast_to(log_gain(calibration, shots)[:, None], cells.height_m.shape)
    return canopy_share(calibration.apply(cells.height_m, p95_m=cells.upper_m, log_gain=gain).astype(np.float64))


def _require_enough(shots: MatchedShots) -> None:
    count = len(np.unique(shots.block))
    if len(shots) < FEWEST_SHOTS or count < FEWEST_BLOCKS:
        raise CalibrationError(
            f"{len(shots)} usable shots in {count} blocks: at least {FEWEST_SHOTS} in {FEWEST_BLOCKS} are needed; "
            "read more granules, loosen the filter, or make the blocks smaller with --block-m"
        )


def _folds(block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each shot, (n,): whole blocks, dealt from the fullest to the emptiest fold by fold."""
    # The fullest blocks first, one a fold in turn: folds of about the same number of shots.
    counts = np.bincount(block)
    order = np.lexsort((np.arange(len(counts)), -counts))
    fold = np.empty(len(counts), np.int64)
    fold[order] = np.arange(len(counts)) % FOLDS
    return np.asarray(fold[block])


def _objection(method: HeldOut, identity: HeldOut, shots: MatchedShots) -> str:
    """Return why a method must not be chosen however near to the shots it comes; empty if nothing speaks against it.

    Shots lie metres away from where they say, so the mean error is least for heights drawn to their middle; and a
    footprint's 98th percentile does not notice gaps that are filled. Spread and cover do.
    """
    spread, before = _spread(method.height_m, shots), _spread(identity.height_m, shots)
    if spread is not None and before is not None and spread < min(LEAST_SPREAD, before):
        return "flattens"
    if shots.cover is None or method.cover is None or identity.cover is None:
        return ""
    said = np.isfinite(shots.cover) & np.isfinite(method.cover) & np.isfinite(identity.cover)
    if not said.any():
        return ""
    rise = np.abs(method.cover - shots.cover) - np.abs(identity.cover - shots.cover)
    return "cover" if rise[said].mean() > COVER_LOSS else ""


def _spread(height_m: Floats, shots: MatchedShots) -> float | None:
    """Return the spread of calibrated heights where the lidar sees trees, in that of RH98; None with too few."""
    tall = ~shots.bare
    lidar_m = shots.lidar_m[tall]
    if tall.sum() < FEWEST_SHOTS // 2 or lidar_m.std() == 0:
        return None
    return float(height_m[tall].std() / lidar_m.std())


def _ends(name: str, method: HeldOut, shots: MatchedShots, fold: NDArray[np.int64]) -> Floats | None:
    """Return the ends of a method's interval on held-out ground, moved apart by other ground; identity's stay."""
    if method.ends_m is None or name == "identity":
        return method.ends_m
    return held_out_ends(method.height_m, method.ends_m, shots.lidar_m, fold)


def _with_interval(calibration: Calibration, method: HeldOut, shots: MatchedShots) -> Calibration:
    """Return a calibration that moves the ends of the interval apart as held-out shots demand; identity moves none."""
    if method.ends_m is None or calibration == IDENTITY:
        return calibration
    ends = fit_ends(method.height_m, method.ends_m, shots.lidar_m)
    return calibration.model_copy(update={"interval": ends})


def _difference_m(height_m: Floats, shots: MatchedShots) -> Floats:
    """Return calibrated heights less RH98, (n,) metres; heights below the floor count as equal."""
    return np.maximum(height_m, FLOOR_M) - np.maximum(shots.lidar_m, FLOOR_M)


def _row(name: str, method: HeldOut, shots: MatchedShots, gain: Gain, ends_m: Floats | None) -> MethodRow:
    difference_m = _difference_m(method.height_m, shots)
    residuals = residual_metrics(np.maximum(method.height_m, FLOOR_M), np.maximum(shots.lidar_m, FLOOR_M))
    rank = np.digitize(shots.lidar_m, CLASSES_M[1:-1])
    names = [f"{low:g}-{high:g}" if np.isfinite(high) else f">{low:g}" for low, high in itertools.pairwise(CLASSES_M)]
    cover_error = None
    if shots.cover is not None and method.cover is not None:
        difference = np.abs(method.cover - shots.cover)
        cover_error = float(np.nanmean(difference)) if np.isfinite(difference).any() else None
    return MethodRow(
        name,
        residuals.mae_m,
        residuals.bias_m,
        residuals.rmse_m,
        (gain.mean, gain.low, gain.high),
        {names[k]: float(difference_m[rank == k].mean()) for k in np.unique(rank)},
        spread=_spread(method.height_m, shots),
        cover_error=cover_error,
        coverage=None if ends_m is None else float(inside(ends_m, shots.lidar_m).mean()),
    )
