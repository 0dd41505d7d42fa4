"""90 % intervals of height: quantiles of the model's own bins, moved until held-out ground lies inside them.

Conformalized quantile regression (Romano, Patterson and Candes 2019), either end for itself and by predicted height
(Mondrian classes; Vovk 2012). Trees far taller than predicted are rare among cells of any predicted height, so by that
alone an interval could shrink past nearly all of them: an end is drawn in no further than most cells of each class of
true height allow (label-conditional scores; Vovk 2012).
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.models.bundle import HeightIntervals

Floats = NDArray[np.floating[Any]]
LEVELS = (0.05, 0.95)
EDGES_M = (0.0, 0.5, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 100.0)
FEWEST_CELLS = 500
OVERALL, EACH = 0.9, 0.85
"""Share of all held-out cells inside, and the least share of a class of true height that an end drawn in leaves."""
HOLDS = 0.05
"""Share of a class of true height that a class of predicted height must hold to be bound by it."""
TAIL_LEVELS = np.arange(0.8, 0.996, 0.005)
"""Levels of either end by predicted height, of which the lowest that reaches OVERALL is taken."""


class Bins(Protocol):
    """A distribution over heights."""

    def height_m(self, logits: Tensor) -> Tensor:
        """(B, bins, H, W) logits to the expected (B, H, W) metres."""
        ...

    def quantiles_m(self, logits: Tensor, levels: Sequence[float]) -> Tensor:
        """(B, bins, H, W) logits to (B, K, H, W) metres."""
        ...


def raw_interval_m(bins: Bins, logits: Tensor) -> Tensor:
    """Height and the quantiles of its bins: (B, bins, H, W) logits to (B, 3, H, W) metres."""
    return torch.cat([bins.height_m(logits)[:, None], bins.quantiles_m(logits, LEVELS)], dim=1)


def interval_m(bins: Bins, intervals: HeightIntervals, logits: Tensor) -> Tensor:
    """Height and its calibrated interval: (B, bins, H, W) logits to (B, 3, H, W) metres, low <= height <= high."""
    height, low, high = raw_interval_m(bins, logits).unbind(dim=1)
    low = low - _interpolated(height, intervals.height_m, intervals.lower_m)
    high = high + _interpolated(height, intervals.height_m, intervals.upper_m)
    return torch.stack([height, torch.minimum(low, height).clamp_min(0), torch.maximum(high, height)], dim=1)


def widened(raw_m: Floats, intervals: HeightIntervals) -> Floats:
    """Calibrated intervals of a raw one: (3, n) metres to (3, n)."""
    height, low, high = raw_m
    low = low - np.interp(height, intervals.height_m, intervals.lower_m)
    high = high + np.interp(height, intervals.height_m, intervals.upper_m)
    return np.stack([height, np.minimum(low, height).clip(0), np.maximum(high, height)])


def _interpolated(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """Linear between the knots and constant beyond them."""
    at, given = torch.tensor(knots, device=x.device), torch.tensor(values, device=x.device)
    if len(at) == 1:
        return torch.full_like(x, float(given[0]))
    right = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    share = ((x - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return given[right - 1] * (1 - share) + given[right] * share


def fit_intervals(raw_m: Floats, truth_m: Floats) -> HeightIntervals:
    """Offsets from held-out cells: as narrow as OVERALL allows, but drawn in no further than EACH does.

    Args:
        raw_m: (3, n) height and quantiles by `raw_interval_m`.
        truth_m: (n,).
    """
    known = ~np.isnan(truth_m)
    raw_m, truth_m = raw_m[:, known], truth_m[known]
    height, low, high = raw_m
    below, above = low - truth_m, truth_m - high
    classes = _classes(np.digitize(height, EDGES_M[1:-1]))
    true = np.digitize(truth_m, EDGES_M[1:-1])
    kinds = [kind for kind in (true == number for number in range(len(EDGES_M) - 1)) if kind.sum() >= FEWEST_CELLS]

    def least(scores: Floats, cells: NDArray[np.bool_]) -> float:
        """How far an end may be drawn in where heights are predicted as in these cells: 0 or negative."""
        here = [kind for kind in kinds if (kind & cells).sum() >= HOLDS * kind.sum()]
        return min(0.0, max((_conformal(scores[kind], EACH) for kind in here), default=-np.inf))

    bounds = [[least(scores, cells) for cells in classes] for scores in (below, above)]

    def at_level(level: float) -> HeightIntervals:
        lower, upper = (
            tuple(max(bound, _conformal(scores[cells], level)) for cells, bound in zip(classes, ends, strict=True))
            for scores, ends in zip((below, above), bounds, strict=True)
        )
        return HeightIntervals(
            height_m=tuple(float(height[cells].mean()) for cells in classes), lower_m=lower, upper_m=upper
        )

    def inside(level: float) -> float:
        _, low, high = widened(raw_m, at_level(level))
        return float(((low <= truth_m) & (truth_m <= high)).mean())

    # offsets grow with the level, and with them what lies inside
    return at_level(TAIL_LEVELS[bisect.bisect_left(TAIL_LEVELS[:-1], OVERALL, key=inside)])


def _classes(place: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Cells by class of predicted height, tall classes of few cells joined to the one below."""
    classes: list[NDArray[np.bool_]] = []
    for number in range(len(EDGES_M) - 1):
        members = place == number
        if classes and members.sum() < FEWEST_CELLS:
            classes[-1] |= members
        else:
            classes.append(members)
    return [members for members in classes if members.any()]


def _conformal(scores: Floats, level: float) -> float:
    """The score that a share of `level` does not exceed, with the correction for a finite sample."""
    share = min(1.0, np.ceil((len(scores) + 1) * level) / len(scores))
    return float(np.quantile(scores, share, method="higher"))


def coverage(interval: Floats, truth_m: Floats) -> dict[str, Any]:
    """Share of known cells inside, and the mean width, over all and by class of true height.

    Args:
        interval: (3, n) height, low and high.
        truth_m: (n,).
    """
    known = ~np.isnan(truth_m)
    inside = (interval[1] <= truth_m) & (truth_m <= interval[2])
    width = interval[2] - interval[1]
    place = np.digitize(truth_m, EDGES_M[1:-1])
    by_height = {}
    for number, (first, last) in enumerate(itertools.pairwise(EDGES_M)):
        members = known & (place == number)
        if members.sum() >= FEWEST_CELLS:
            by_height[f"{first:g}-{last:g}"] = _summary(inside[members], width[members])
    return {**_summary(inside[known], width[known]), "by_height": by_height}


def _summary(inside: NDArray[np.bool_], width: Floats) -> dict[str, Any]:
    return {"coverage": float(inside.mean()), "width_m": float(width.mean()), "n_px": int(inside.size)}
