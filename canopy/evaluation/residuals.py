"""The one definition of a map's residuals (map less reference): from two arrays, from sums, and with intervals."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.bootstrap import REPLICATES, Floats, draw_blocks, percentile_interval

Interval = tuple[float, float]
_FLAT = 1e-12
"""A spread below this share of the sum of squares is rounding."""


@dataclass(frozen=True)
class Residuals:
    """How far a map lies from its reference."""

    mae_m: float
    """Mean absolute residual, metres."""
    rmse_m: float
    """Root mean square residual, metres."""
    bias_m: float
    """Mean residual, metres; positive where the map is too high."""
    r2: float | None
    """Share of the reference's variance that the map explains; None where the reference does not vary."""


@dataclass(frozen=True)
class ResidualIntervals:
    """Interval of each figure of `Residuals`; None where there are too few blocks, or the figure is undefined."""

    mae_m: Interval | None
    """Interval of the mean absolute residual, metres."""
    rmse_m: Interval | None
    """Interval of the root mean square residual, metres."""
    bias_m: Interval | None
    """Interval of the mean residual, metres."""
    r2: Interval | None
    """Interval of R²."""


@dataclass(frozen=True)
class ResidualArrays:
    """The figures of `Residuals` of many samples at once, arrays of one shape; NaN where undefined."""

    mae_m: Floats
    """Mean absolute residuals, metres."""
    rmse_m: Floats
    """Root mean square residuals, metres."""
    bias_m: Floats
    """Mean residuals, metres."""
    r2: Floats
    """R² of the samples."""


def residual_metrics(map_m: Floats, reference_m: Floats) -> Residuals:
    """Return the residual metrics of a map against a reference.

    Args:
        map_m: (n,) heights of the map, metres, finite.
        reference_m: (n,) heights of the reference, metres, finite.

    Raises:
        ValueError: There is nothing to score, or the shapes differ.
    """
    if not len(map_m):
        raise ValueError("no residuals: at least one height expected")
    figures = from_sums(*residual_sums(map_m, reference_m).sum(axis=1))
    r2 = float(figures.r2)
    return Residuals(
        float(figures.mae_m), float(figures.rmse_m), float(figures.bias_m), r2 if np.isfinite(r2) else None
    )


def residual_intervals(
    map_m: Floats, reference_m: Floats, block: NDArray[np.int64], replicates: int = REPLICATES, seed: int = 0
) -> ResidualIntervals:
    """Return the 95 % intervals of the residual metrics, by the bootstrap over blocks of ground.

    Args:
        map_m: (n,) heights of the map, metres, finite.
        reference_m: (n,) heights of the reference, metres, finite.
        block: (n,) number of the block in which each height lies, from 0, none left out.
        replicates: Number of replicates.
        seed: Seed of the draws.
    """
    # Sums by block first: a replicate then costs as many operations as there are blocks, not heights.
    by_block = np.stack([np.bincount(block, column) for column in residual_sums(map_m, reference_m)])
    count = by_block.shape[1]
    figures = from_sums(*by_block @ draw_blocks(count, replicates, seed).T)
    return ResidualIntervals(
        **{field.name: percentile_interval(getattr(figures, field.name), count) for field in fields(figures)}
    )


def residual_sums(map_m: Floats, reference_m: Floats) -> Floats:
    """Return what `from_sums` adds up, (6, n): 1, |residual|, residual, residual², reference, reference²."""
    residual_m = map_m - reference_m
    return np.stack(
        [np.ones_like(residual_m), np.abs(residual_m), residual_m, residual_m**2, reference_m, reference_m**2]
    )


def from_sums(
    n: Floats, absolute: Floats, residual: Floats, square: Floats, ref: Floats, ref2: Floats
) -> ResidualArrays:
    """Return the residual metrics of samples of which only sums are kept.

    Args:
        n: (...) number of heights.
        absolute: (...) sum of absolute residuals, metres.
        residual: (...) sum of residuals, metres.
        square: (...) sum of squared residuals.
        ref: (...) sum of reference heights, metres.
        ref2: (...) sum of squared reference heights.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return ResidualArrays(absolute / n, np.sqrt(square / n), residual / n, r2_from_sums(square, n, ref, ref2))


def r2_from_sums(square: Floats, n: Floats, ref: Floats, ref2: Floats) -> Floats:
    """Return R² of samples of which only sums are kept; arguments as in `from_sums`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # Sum of squares around the mean, from the sums; one height, or heights that are all the same, have none.
        spread = ref2 - ref**2 / n
        return np.asarray(np.where((n > 1) & (spread > _FLAT * ref2), 1 - square / spread, np.nan))
