"""Quantiles by block have the definition of the module, and calibrations survive their file."""

from pathlib import Path

import numpy as np
import pytest

from canopy.errors import CalibrationError
from canopy.products.measuring import STATISTICS, Measures, Surface
from canopy.products.stand_intervals import (
    Scale,
    StandCalibration,
    StatisticIntervals,
    block_quantile,
    fit_statistic,
    read_stand_calibration,
    stand_scale,
    write_calibration,
)


def test_the_quantile_of_single_squares_is_that_of_split_conformal_prediction() -> None:
    """Of 19 scores, 90 % of 20 are 18: the 18th smallest."""
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20))
    assert block_quantile(scores, np.arange(19)) == 18
    assert block_quantile(scores[:8], np.arange(8)) is None


def test_blocks_count_the_same_however_many_squares_they_have() -> None:
    """A block with 100 scores of 5 weighs as much as each of nine others with one score of 1."""
    scores = np.array([5.0] * 100 + [1.0] * 9)
    blocks = np.array([0] * 100 + list(range(1, 10)))
    assert block_quantile(scores, blocks, level=0.8) == 1  # 9 of 11 blocks
    assert block_quantile(scores, blocks, level=0.9) == 5


def test_coverage_of_a_new_block_is_at_least_the_level() -> None:
    """Scores share an effect of their block; half of a new block's scores would not be enough."""
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(300):
        scores = np.abs(rng.normal(size=(31, 1)) * 2 + rng.normal(size=(31, 8)))
        quantile = block_quantile(scores[:30].ravel(), np.repeat(np.arange(30), 8))
        hits.append((scores[30] <= quantile).mean())
    assert 0.885 <= np.mean(hits) <= 0.945


def test_a_fit_has_a_scale_for_each_size_and_a_coverage() -> None:
    rng = np.random.default_rng(2)
    blocks, areas = np.repeat(np.arange(40), 5), np.tile([100.0, 100, 100, 100, 400], 40)
    errors = rng.normal(0.5, np.where(areas == 100, 2.0, 1.0))
    fitted = fit_statistic("mean_m", areas, blocks, errors, np.ones(200))
    assert fitted is not None and fitted.coverage is not None
    small, large = fitted.scales
    assert (small.squares, small.blocks, large.squares) == (160, 40, 40)
    assert small.quantile > large.quantile
    assert small.bias == pytest.approx(0.5, abs=0.4)
    assert fitted.quantile(200) == pytest.approx(np.sqrt(small.quantile * large.quantile))
    assert (fitted.quantile(1), fitted.quantile(1e6)) == (
        pytest.approx(small.quantile),
        pytest.approx(large.quantile),
    )
    assert 0.8 < fitted.coverage.share <= 1
    assert fit_statistic("mean_m", areas[:20], blocks[:20], errors[:20], np.ones(20)) is None


def measures(mean_m: float | None, cover: float | None, half_width_m: float | None) -> Measures:
    surface = Surface(dict(zip(STATISTICS, (mean_m, mean_m, mean_m, cover, cover), strict=True)))
    return Measures(1.0, surface, mean_m, 0.0, 1.0, None, half_width_m, None, None)


def calibration(relative: bool = True) -> StandCalibration:
    scale = Scale(area_m2=1e4, squares=20, blocks=20, quantile=0.5, bias=0, rmse=1)
    intervals = StatisticIntervals(scales=(scale,), coverage=None)
    return StandCalibration(
        relative=relative, block_m=200, map="a.tif", truth="b.tif",
        statistics={"mean_m": intervals, "cover_2m": intervals},
    )  # fmt: skip


def test_intervals_are_wider_where_cells_are_unsure_and_stay_in_range() -> None:
    assert calibration().interval("mean_m", measures(10, 0.5, 4), 1e4) == (8, 12)
    assert calibration().interval("mean_m", measures(1, 0.5, 4), 1e4) == (0, 3)
    assert calibration(relative=False).interval("mean_m", measures(10, 0.5, None), 1e4) == (9.5, 10.5)
    low, high = calibration().interval("cover_2m", measures(10, 0.98, 4), 1e4) or (0, 0)
    assert (low, high) == (pytest.approx(0.98 - 0.5 * np.sqrt(0.98 * 0.02 + 0.01)), 1)
    assert calibration().interval("p95_m", measures(10, 0.5, 4), 1e4) is None
    assert calibration().interval("mean_m", measures(None, None, None), 1e4) is None
    assert stand_scale("cover_2m", measures(1, None, 1), True) is None


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_calibration(calibration(), path)
    assert read_stand_calibration(path) == calibration()
    path.write_text(path.read_text().replace('"mean_m"', '"volume"'))
    with pytest.raises(CalibrationError, match="unknown figures volume"):
        read_stand_calibration(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_stand_calibration(tmp_path / "none.json")
