"""90 % intervals of height: quantiles of the model's own bins, moved until held-out ground lies inside them.

Conformalized quantile regression (Romano, Patterson and Candes 2019), for each end separately and by predicted height
(Mondrian classes; Vovk 2012). Trees far taller than predicted are rare among cells of any predicted height, so by that
alone an interval could shrink past nearly all of them: an end is drawn in no further than most cells of each class of
true height allow (label-conditional scores; Vovk 2012).
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.models.bundle import Decode, HeightIntervals

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
LEVELS = (0.05, 0.95)
"""Levels of the quantiles of the bins that are moved."""
EDGES_M = (0.0, 0.5, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 100.0)
"""Edges of the classes of height, metres."""
FEWEST_CELLS = 500
"""Fewest cells of a class of height for which anything is fitted or stated."""
OVERALL, EACH = 0.9, 0.85
"""Share of all held-out cells inside, and the least share of a class of true height that an end drawn in leaves."""
BINDING_SHARE = 0.05
"""Share of a class of true height in a class of predicted height from which on the former binds the latter."""
TAIL_LEVELS = np.arange(0.8, 0.996, 0.005)
"""Levels of either end by predicted height, of which the lowest that reaches OVERALL is used."""


@dataclass(frozen=True)
class Coverage:
    """Coverage and width of intervals over a set of cells."""

    coverage: float
    """Share of the cells whose true height lies inside."""
    width_m: float
    """Mean width, metres."""
    n_px: int
    """Number of cells."""


@dataclass(frozen=True)
class CoverageByHeight(Coverage):
    """Coverage and width of intervals over all cells, and by class of true height."""

    by_height: dict[str, Coverage]
    """Coverage by class, under ``first-last`` metres; classes of few cells are left out."""


class Bins(Protocol):
    """A distribution over heights."""

    def decoded_m(self, logits: Tensor, decode: Decode) -> Tensor:
        """Return the median or the mean height: (B, bins, H, W) logits to (B, H, W) metres."""
        ...

    def quantiles_m(self, logits: Tensor, levels: Sequence[float]) -> Tensor:
        """Return quantiles: (B, bins, H, W) logits to (B, K, H, W) metres."""
        ...


def raw_interval_m(bins: Bins, logits: Tensor, decode: Decode = "mean") -> Tensor:
    """Return height and the quantiles of its bins: (B, bins, H, W) logits to (B, 3, H, W) metres."""
    return torch.cat([bins.decoded_m(logits, decode)[:, None], bins.quantiles_m(logits, LEVELS)], dim=1)


def interval_m(
    bins: Bins, intervals: HeightIntervals, logits: Tensor, fitted: Decode = "mean", decode: Decode | None = None
) -> Tensor:
    """Return height and its calibrated interval.

    Args:
        bins: Height bins of the network.
        intervals: Calibration of the interval.
        logits: (B, bins, H, W) unnormalised log-probabilities.
        fitted: How the heights were decoded by which the offsets were fitted.
        decode: How the height is decoded; as `fitted` if None. The ends stay those of the calibration.

    Returns:
        (B, 3, H, W) metres: height, low and high, with low <= height <= high.
    """
    height, low, high = raw_interval_m(bins, logits, fitted).unbind(dim=1)
    low = low - _interpolate(height, intervals.height_m, intervals.lower_m)
    high = high + _interpolate(height, intervals.height_m, intervals.upper_m)
    if decode not in (None, fitted):
        height = bins.decoded_m(logits, decode)
    # An end drawn in may pass the height itself, and a low end may pass the ground.
    return torch.stack([height, torch.minimum(low, height).clamp_min(0), torch.maximum(high, height)], dim=1)


def around_m(height_m: Tensor, intervals: HeightIntervals) -> Tensor:
    """Return heights and the interval that the offsets alone make around them, for a model without bins of ours.

    Args:
        height_m: (B, H, W) metres.
        intervals: Calibration, fitted around heights.

    Returns:
        (B, 3, H, W) metres: height, low and high, with low <= height <= high.
    """
    low = height_m - _interpolate(height_m, intervals.height_m, intervals.lower_m)
    high = height_m + _interpolate(height_m, intervals.height_m, intervals.upper_m)
    return torch.stack([height_m, torch.minimum(low, height_m).clamp_min(0), torch.maximum(high, height_m)], dim=1)


def widened(raw_m: Floats, intervals: HeightIntervals) -> Floats:
    """Return calibrated intervals of raw ones: (3, n) metres to (3, n), as `interval_m` does of logits."""
    height, low, high = raw_m
    low = low - np.interp(height, intervals.height_m, intervals.lower_m)
    high = high + np.interp(height, intervals.height_m, intervals.upper_m)
    return np.stack([height, np.minimum(low, height).clip(0), np.maximum(high, height)])


def _interpolate(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """Interpolate linearly between the knots; beyond them, the value of the outermost knot."""
    knot, value = torch.tensor(knots, device=x.device), torch.tensor(values, device=x.device)
    if len(knot) == 1:
        return torch.full_like(x, float(value[0]))
    right = torch.searchsorted(knot, x.contiguous()).clamp(1, len(knot) - 1)
    share = ((x - knot[right - 1]) / (knot[right] - knot[right - 1])).clamp(0, 1)
    return value[right - 1] * (1 - share) + value[right] * share


def fit_intervals(raw_m: Floats, truth_m: Floats) -> HeightIntervals:
    """Fit offsets to held-out cells: as narrow as OVERALL allows, but drawn in no further than EACH does.

    Args:
        raw_m: (3, n) height and quantiles by `raw_interval_m`, metres.
        truth_m: (n,) true heights, metres; NaN where unknown.
    """
    valid = ~np.isnan(truth_m)
    raw_m, truth_m = raw_m[:, valid], truth_m[valid]
    height, low, high = raw_m
    # Scores of Romano et al.: how far the truth lies outside an end, negative inside.
    below, above = low - truth_m, truth_m - high
    classes = _joined_classes(np.digitize(height, EDGES_M[1:-1]))
    true_class = np.digitize(truth_m, EDGES_M[1:-1])
    true_classes = [
        cells for cells in (true_class == n for n in range(len(EDGES_M) - 1)) if cells.sum() >= FEWEST_CELLS
    ]

    def least_offset(scores: Floats, cells: Mask) -> float:
        """Return how far an end may be drawn in where heights are predicted as in these cells: 0 or negative."""
        binding = [true for true in true_classes if (true & cells).sum() >= BINDING_SHARE * true.sum()]
        return min(0.0, max((_conformal(scores[true], EACH) for true in binding), default=-np.inf))

    # Bounds of both ends first: they do not depend on the level that is searched for below.
    bounds = [[least_offset(scores, cells) for cells in classes] for scores in (below, above)]

    def at_level(level: float) -> HeightIntervals:
        lower, upper = (
            tuple(max(bound, _conformal(scores[cells], level)) for cells, bound in zip(classes, ends, strict=True))
            for scores, ends in zip((below, above), bounds, strict=True)
        )
        return HeightIntervals(
            height_m=tuple(float(height[cells].mean()) for cells in classes), lower_m=lower, upper_m=upper
        )

    def share_inside(level: float) -> float:
        _, low, high = widened(raw_m, at_level(level))
        return float(((low <= truth_m) & (truth_m <= high)).mean())

    # Offsets rise with the level, and the share inside with them, so the lowest level is found by bisection.
    return at_level(TAIL_LEVELS[bisect.bisect_left(TAIL_LEVELS[:-1], OVERALL, key=share_inside)])


def _joined_classes(number: NDArray[np.int64]) -> list[Mask]:
    """Return cells by class of predicted height, tall classes of few cells joined to the one below."""
    classes: list[Mask] = []
    for index in range(len(EDGES_M) - 1):
        members = number == index
        # The lowest class stays whatever its size: there is none below it to join.
        if classes and members.sum() < FEWEST_CELLS:
            classes[-1] |= members
        else:
            classes.append(members)
    return [members for members in classes if members.any()]


def _conformal(scores: Floats, level: float) -> float:
    """Return the score that a share of `level` does not exceed, with the correction for a finite sample."""
    # Of n scores the ceil((n + 1) level)-th smallest (Romano et al. 2019, equation 8).
    share = min(1.0, np.ceil((len(scores) + 1) * level) / len(scores))
    return float(np.quantile(scores, share, method="higher"))


def interval_coverage(intervals_m: Floats, truth_m: Floats) -> CoverageByHeight:
    """Return coverage and mean width of intervals, over all cells and by class of true height.

    Args:
        intervals_m: (3, n) height, low and high, metres.
        truth_m: (n,) true heights, metres; NaN where unknown.
    """
    valid = ~np.isnan(truth_m)
    _, low, high = intervals_m
    inside, width = (low <= truth_m) & (truth_m <= high), high - low
    number = np.digitize(truth_m, EDGES_M[1:-1])
    by_height = {}
    for index, (first, last) in enumerate(itertools.pairwise(EDGES_M)):
        members = valid & (number == index)
        if members.sum() >= FEWEST_CELLS:
            by_height[f"{first:g}-{last:g}"] = Coverage(*_summary(inside[members], width[members]))
    return CoverageByHeight(*_summary(inside[valid], width[valid]), by_height)


def _summary(inside: Mask, width_m: Floats) -> tuple[float, float, int]:
    return float(inside.mean()), float(width_m.mean()), int(inside.size)
