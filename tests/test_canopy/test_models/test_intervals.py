"""Intervals: quantiles of the bins against sampling, and coverage on ground that was never fitted."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canopy.models.bundle import HeightIntervals
from canopy.models.heads import HeightBins
from canopy.models.intervals import LEVELS, fit_intervals, interval_coverage, interval_m, raw_interval_m, widened

BINS = HeightBins(64, 70.0)


def logits(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, 64, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_quantiles_are_those_of_samples_from_the_bins() -> None:
    one = logits()[:1, :, :1, :1]
    shares = one.softmax(dim=1).flatten().double().numpy()
    generator = np.random.default_rng(0)
    position = generator.choice(64, 400_000, p=shares / shares.sum()) + generator.random(400_000)
    expected = np.quantile(70 * (position / 64) ** 2, LEVELS)
    np.testing.assert_allclose(BINS.quantiles_m(one, LEVELS).flatten().numpy(), expected, rtol=0.02)


@given(seed=st.integers(0, 50))
def test_quantiles_rise_with_their_level_and_stay_in_range(seed: int) -> None:
    quantiles_m = BINS.quantiles_m(logits(seed), (0.01, 0.05, 0.5, 0.95, 1.0))
    assert (quantiles_m[:, 1:] >= quantiles_m[:, :-1]).all()
    assert quantiles_m.min() >= 0
    assert quantiles_m.max() <= 70


def test_a_certain_bin_gives_its_own_edges() -> None:
    certain = torch.full((1, 64, 1, 1), -100.0)
    certain[0, 16] = 100.0
    low, high = BINS.quantiles_m(certain, (0.0001, 1.0)).flatten().tolist()
    assert low == pytest.approx(70 * (16 / 64) ** 2, abs=1e-2)
    assert high == pytest.approx(70 * (17 / 64) ** 2, abs=1e-2)


def held_out(seed: int, count: int = 60_000) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals far too narrow, above all in tall canopy, and the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.gamma(1.2, 8, count)
    height = np.clip(truth + generator.normal(0, 0.5 + 0.2 * truth), 0, None)
    return np.stack([height, height - 0.2, height + 0.2]), truth


def test_nine_of_ten_lie_inside_on_new_ground_and_in_each_class_of_predicted_height() -> None:
    intervals = fit_intervals(*held_out(0))
    raw, truth = held_out(1)
    calibrated = widened(raw, intervals)
    assert interval_coverage(raw, truth).coverage < 0.3
    assert interval_coverage(calibrated, truth).coverage == pytest.approx(0.9, abs=0.015)
    inside = (calibrated[1] <= truth) & (truth <= calibrated[2])
    for low, high in ((2, 5), (5, 10), (10, 20), (20, 30)):
        assert inside[(raw[0] > low) & (raw[0] < high)].mean() == pytest.approx(0.9, abs=0.04)
    assert (calibrated[1] <= calibrated[0]).all()
    assert (calibrated[0] <= calibrated[2]).all()
    assert calibrated.min() >= 0


def test_ends_are_not_drawn_in_past_trees_that_are_taller_than_ever_predicted() -> None:
    """One cell in thirty of a forest predicted at 15 m is twice as tall, and the model's own interval reaches there."""
    generator = np.random.default_rng(0)

    def ground(count: int) -> tuple[np.ndarray, np.ndarray]:
        meadow = np.stack([generator.uniform(0, 0.4, count), np.zeros(count), np.full(count, 3.0)])
        forest = np.stack([generator.uniform(14, 16, count), np.full(count, 1.0), np.full(count, 36.0)])
        tall = generator.random(count) < 1 / 30
        trees = np.where(tall, generator.uniform(32, 36, count), generator.uniform(4, 26, count))
        return np.hstack([meadow, forest]), np.hstack([generator.exponential(0.2, count), trees])

    raw, truth = ground(40_000)
    intervals = fit_intervals(raw, truth)
    raw, truth = ground(40_000)
    calibrated = widened(raw, intervals)
    coverage = interval_coverage(calibrated, truth)
    assert coverage.by_height["30-100"].coverage > 0.8
    assert coverage.coverage > 0.88
    assert (calibrated[2] - calibrated[1])[:40_000].mean() < 1.5, "meadows stay narrow"


def test_unknown_truth_counts_nowhere() -> None:
    raw, truth = held_out(0)
    holes = np.where(np.random.default_rng(1).random(len(truth)) < 0.5, np.nan, truth)
    valid = np.isfinite(holes)
    assert interval_coverage(raw, holes).n_px == valid.sum()
    assert interval_coverage(raw, holes) == interval_coverage(raw[:, valid], truth[valid])
    assert fit_intervals(raw, holes) == fit_intervals(raw[:, valid], truth[valid])


def test_coverage_is_counted_by_class_of_true_height() -> None:
    truth = np.repeat([1.0, 12.0, 40.0], [600, 800, 100])
    low, high = np.where(np.arange(1500) % 4 == 0, truth + 1, truth - 1), truth + 2
    coverage = interval_coverage(np.stack([truth, low, high]), truth)
    assert (coverage.coverage, coverage.n_px, coverage.width_m) == (0.75, 1500, 2.5)
    assert set(coverage.by_height) == {"0.5-2", "10-15"}, "a hundred trees are too few to state anything"
    assert (coverage.by_height["10-15"].coverage, coverage.by_height["10-15"].n_px) == (0.75, 800)
    assert list(asdict(coverage)) == ["coverage", "width_m", "n_px", "by_height"], "keys of a card"


def test_a_single_class_of_height_has_one_offset_everywhere() -> None:
    intervals = HeightIntervals(height_m=(5.0,), lower_m=(1.0,), upper_m=(2.0,))
    raw = raw_interval_m(BINS, logits())
    calibrated = interval_m(BINS, intervals, logits())
    torch.testing.assert_close(calibrated[:, 2], torch.maximum(raw[:, 2] + 2, raw[:, 0]))
    torch.testing.assert_close(calibrated[:, 1], torch.minimum(raw[:, 1] - 1, raw[:, 0]).clamp_min(0))


def test_networks_and_arrays_are_calibrated_to_the_same_values() -> None:
    intervals = HeightIntervals(height_m=(1.0, 10.0, 20.0), lower_m=(0.5, 2.0, 4.0), upper_m=(1.0, 3.0, -2.0))
    raw = raw_interval_m(BINS, logits())
    calibrated = interval_m(BINS, intervals, logits())
    expected = widened(raw.transpose(0, 1).reshape(3, -1).numpy(), intervals)
    np.testing.assert_allclose(calibrated.transpose(0, 1).reshape(3, -1).numpy(), expected, atol=1e-4)


def test_the_height_of_an_interval_is_decoded_as_asked_and_its_ends_are_those_of_the_calibration() -> None:
    intervals = HeightIntervals(height_m=(1.0,), lower_m=(0.0,), upper_m=(0.0,))
    ends = BINS.quantiles_m(logits(), LEVELS)
    for decode, height in (("median", BINS.median_m(logits())), ("mean", BINS.height_m(logits()))):
        result = interval_m(BINS, intervals, logits(), "median", decode)  # type: ignore[arg-type]
        torch.testing.assert_close(result[:, 0], height)
        torch.testing.assert_close(result[:, 1], torch.minimum(ends[:, 0], height))
        torch.testing.assert_close(result[:, 2], torch.maximum(ends[:, 1], height))


def test_offsets_belong_to_the_height_by_which_they_were_fitted() -> None:
    median = BINS.median_m(logits())
    intervals = HeightIntervals(height_m=(0.0, 70.0), lower_m=(0.0, 0.0), upper_m=(0.0, 70.0))
    result = interval_m(BINS, intervals, logits(), "median", "mean")
    high = BINS.quantiles_m(logits(), LEVELS)[:, 1] + median
    torch.testing.assert_close(result[:, 2], torch.maximum(high, BINS.height_m(logits())))
