"""Intervals of stands, from the errors of a map in squares of ground where the truth is known.

Errors of neighbouring cells go together, so the error of a stand's mean is far larger than that of independent cells,
and no single model of their correlation is right everywhere. So nothing is modelled: squares of several sizes are
measured on the map and on the truth, and the interval of a stand is the quantile of their absolute errors, relative to
the mean half-width of the cells' own intervals (Romano et al. 2019, Conformalized Quantile Regression, give such scores
their coverage; Lei et al. 2018 the locally weighted form). Squares of one block are not independent of each other. So
the quantile is taken by block: with F_k the distribution of the scores of block k of K, it is the smallest q with

    (F_1(q) + ... + F_K(q)) / (K + 1) >= level

which covers a stand of a new block with at least that probability (Dunn et al. 2023, Distribution-Free Prediction Sets
for Two-Layer Hierarchical Models, section 4; Lee et al. 2023, Distribution-Free Inference with Hierarchical Data).
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from canopy.errors import CalibrationError, one_line
from canopy.evaluation.bootstrap import draw_blocks, percentile_interval
from canopy.products.measuring import STATISTICS, Measures
from canopy.version import __version__
from tiles.cog import write_json

LEVEL = 0.9
FEWEST_BLOCKS = 9
"""With fewer blocks, no quantile of their errors covers 90 % of stands of another block."""
_FOLDS = 10
_COVER_FLOOR = 0.01

Floats = NDArray[np.float64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scale(_Frozen):
    """Intervals of stands of one size."""

    area_m2: float
    """Area of the squares."""
    squares: int
    """Number of squares."""
    blocks: int
    """Number of blocks in which they lie."""
    quantile: float
    """Half the width of an interval, in units of the stand's own scale."""
    bias: float
    """Mean of map less truth: metres, or a share for cover."""
    rmse: float
    """Root mean square of map less truth."""


class Coverage(_Frozen):
    """How often intervals contain the truth, each block left out of the fit in its turn."""

    share: float
    """Share of the squares whose interval contains the truth."""
    low: float | None
    """Lower end of the 95 % interval of that share, from a bootstrap of blocks; None with few blocks."""
    high: float | None
    """Upper end."""


class StatisticIntervals(_Frozen):
    """Intervals of one figure."""

    scales: tuple[Scale, ...]
    """By area, from the smallest."""
    coverage: Coverage | None
    """Coverage where blocks are left out; None with too few blocks to leave any out."""

    def quantile(self, area_m2: float) -> float:
        """Return the quantile for an area: a power of it between two sizes, the nearest size's beyond them."""
        areas = [scale.area_m2 for scale in self.scales]
        # A map without an error has quantiles of 0, which have no logarithm.
        quantiles = np.maximum([scale.quantile for scale in self.scales], 1e-9)
        return float(np.exp(np.interp(np.log(area_m2), np.log(areas), np.log(quantiles))))


class StandCalibration(_Frozen):
    """Intervals of the figures of stands on one kind of map."""

    kind: Literal["stand_intervals"] = "stand_intervals"
    """Kind of the document."""
    level: float = LEVEL
    """Share of stands that the intervals are meant to cover."""
    relative: bool
    """Whether errors are relative to the half-widths of the cells' intervals; else they are metres."""
    block_m: float
    """Side of a block, metres."""
    map: str
    """Name of the map."""
    truth: str
    """Name of the truth."""
    canopy_version: str = __version__
    """Version that fitted it."""
    statistics: dict[str, StatisticIntervals]
    """Intervals of each figure."""

    def interval(self, name: str, measures: Measures, area_m2: float) -> tuple[float, float] | None:
        """Return the interval of a figure of a stand; None where it has no value or no calibration.

        Args:
            name: Figure, one of `STATISTICS`.
            measures: Figures of the stand.
            area_m2: Area of the stand.
        """
        value, scale = measures.surface.values[name], stand_scale(name, measures, self.relative)
        if value is None or scale is None or name not in self.statistics:
            return None
        half = self.statistics[name].quantile(area_m2) * scale
        ceiling = 1.0 if name.startswith("cover") else np.inf
        return max(0.0, value - half), float(min(ceiling, value + half))


def stand_scale(name: str, measures: Measures, relative: bool) -> float | None:
    """Return the unit of errors of a stand: the mean half-width of its cells, or that of a share for cover.

    Args:
        name: Figure.
        measures: Figures of the stand.
        relative: Whether the half-widths are used; else heights have the unit of 1 m.
    """
    if name.startswith("cover"):
        share = measures.surface.values[name]
        # A share near 0 or 1 can be wrong by less than one of a half, as the binomial's spread says.
        return None if share is None else float(np.sqrt(share * (1 - share) + _COVER_FLOOR))
    return measures.half_width_m if relative else 1.0


def fit_statistic(
    name: str, areas: Floats, blocks: NDArray[np.int64], errors: Floats, scales: Floats
) -> StatisticIntervals | None:
    """Fit the intervals of one figure.

    Args:
        name: Figure, for messages.
        areas: (N,) nominal areas of the squares, square metres.
        blocks: (N,) number of the block of each square.
        errors: (N,) map less truth.
        scales: (N,) unit of each error.

    Returns:
        Intervals; None where no size has squares in enough blocks.
    """
    fitted = []
    for area in np.unique(areas):
        chosen = areas == area
        quantile = block_quantile(np.abs(errors[chosen]) / scales[chosen], blocks[chosen])
        if quantile is not None:
            error, count = errors[chosen], len(np.unique(blocks[chosen]))
            rmse = float(np.sqrt((error**2).mean()))
            fitted.append(
                Scale(
                    area_m2=float(area), squares=int(chosen.sum()), blocks=count, quantile=quantile,
                    bias=float(error.mean()), rmse=rmse,
                )
            )  # fmt: skip
    if not fitted:
        return None
    usable = np.isin(areas, [scale.area_m2 for scale in fitted])
    coverage = _coverage(areas[usable], blocks[usable], np.abs(errors[usable]) / scales[usable])
    return StatisticIntervals(scales=tuple(fitted), coverage=coverage)


def block_quantile(scores: Floats, blocks: NDArray[np.int64], level: float = LEVEL) -> float | None:
    """Return the smallest value that at least `level` of the scores of a new block does not exceed.

    Args:
        scores: (N,) scores.
        blocks: (N,) number of the block of each score.
        level: Share to cover.

    Returns:
        The quantile; None with too few blocks for the level.
    """
    _, index, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(counts) < FEWEST_BLOCKS:
        return None
    order = np.argsort(scores)
    # Each block has the same weight, and one more block stands for the stand's own, whose score may be anything.
    reached = np.cumsum(1 / counts[index[order]]) / (len(counts) + 1)
    rank = int(np.searchsorted(reached, level * (1 - 1e-12)))
    return float(scores[order][rank]) if rank < len(scores) else None


def _coverage(areas: Floats, blocks: NDArray[np.int64], scores: Floats) -> Coverage | None:
    """Measure how often scores are within the quantile of blocks that are left out of the fit, in ten folds."""
    names, index = np.unique(blocks, return_inverse=True)
    folds = np.random.default_rng(0).permutation(len(names)) % min(_FOLDS, len(names))
    inside = np.full(len(scores), np.nan)
    for fold in range(folds.max() + 1):
        is_out = folds[index] == fold
        for area in np.unique(areas):
            fit, test = ~is_out & (areas == area), is_out & (areas == area)
            quantile = block_quantile(scores[fit], blocks[fit])
            if quantile is not None:
                inside[test] = scores[test] <= quantile
    tested = np.isfinite(inside)
    if not tested.any():
        return None
    hits = np.bincount(index[tested], inside[tested], len(names))
    counts = np.bincount(index[tested], minlength=len(names)).astype(float)
    draws = draw_blocks(len(names))
    with np.errstate(invalid="ignore"):
        interval = percentile_interval(draws @ hits / (draws @ counts), len(names))
    low, high = interval if interval is not None else (None, None)
    return Coverage(share=float(hits.sum() / counts.sum()), low=low, high=high)


def write_calibration(calibration: StandCalibration, path: Path) -> None:
    """Write a calibration of stands as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    write_json(path, calibration.model_dump(mode="json"))


def read_stand_calibration(path: Path) -> StandCalibration:
    """Read what `write_calibration` wrote.

    Raises:
        CalibrationError: There is no such file, or it is no calibration of stands.
    """
    try:
        calibration = StandCalibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error.strerror}); a calibration of stands expected"
        ) from error
    except ValidationError as error:
        reason = one_line(str(error.errors()[0]["msg"]), 100)
        raise CalibrationError(
            f"{path}: no calibration of stands ({reason}); canopy derive stands --calibrate writes one"
        ) from error
    unknown = sorted(set(calibration.statistics) - set(STATISTICS))
    if unknown:
        raise CalibrationError(f"{path}: unknown figures {', '.join(unknown)}; {', '.join(STATISTICS)} expected")
    return calibration
