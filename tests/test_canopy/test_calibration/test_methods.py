"""Each method corrects the fault that it is made for, and leaves ground and meadows as they are."""

import numpy as np
import pytest
from matched import BLOCK_M, matched

from canopy.calibration.curves import CANOPY_M
from canopy.calibration.matched_shots import MatchedShots
from canopy.calibration.methods import methods, predicted_m


def fitted(shots: MatchedShots, name: str):
    return dict(methods(shots, BLOCK_M))[name](shots)


def test_methods_that_shots_allow_are_tried_the_simplest_first() -> None:
    names = [name for name, _ in methods(matched(), BLOCK_M)]
    assert names == ["percentile", "quantile", "local 250", "local 750"]
    bare = matched(lidar_m=np.where(np.arange(600) < 100, 2.0, matched().lidar_m), upper_m=matched().map_m + 9)
    assert [name for name, _ in methods(bare, BLOCK_M)][4:7] == ["quantile + 0.25 p95", "local 250 + 0.25 p95",
                                                                  "local 750 + 0.25 p95"]  # fmt: skip
    featured = matched(features=np.ones((600, 3)))
    assert "features 10" in dict(methods(featured, BLOCK_M))


def test_p95_is_not_read_where_no_bare_ground_says_what_it_means() -> None:
    forest = matched(lidar_m=np.maximum(matched().lidar_m, 4), upper_m=matched().map_m + 9)
    assert not any("p95" in name for name, _ in methods(forest, BLOCK_M))


def test_the_percentile_scales_to_the_lidars() -> None:
    calibration = fitted(matched(), "percentile")
    assert calibration.knots_m[-1][1] == pytest.approx(1.5, rel=0.05)
    assert fitted(matched(map_m=np.zeros(600)), "percentile").knots_m == ((0, 0), (1, 1))


def test_quantiles_correct_a_map_that_is_too_low() -> None:
    calibration = fitted(matched(), "quantile")
    np.testing.assert_allclose(calibration.apply(np.array([0, 1, 2, 10])), [0, 1, 2, 15], atol=0.7)


def test_quantiles_do_not_flatten_what_lies_elsewhere() -> None:
    """Shots in the wrong place regress to the mean; their quantiles do not."""
    generator = np.random.default_rng(1)
    truth_m = generator.gamma(4, 4, 2000)
    elsewhere_m = np.where(generator.random(2000) < 0.6, generator.permutation(truth_m), truth_m)
    shots = matched(2000, map_m=truth_m, lidar_m=elsewhere_m)
    heights_m = fitted(shots, "quantile").apply(np.array([5.0, 15, 30]))
    np.testing.assert_allclose(heights_m, [5, 15, 30], rtol=0.1)
    slope, _ = np.polyfit(truth_m, elsewhere_m, 1)
    assert slope < 0.5, "a regression would halve the spread"


def test_a_gain_follows_a_fault_of_one_half_of_the_land() -> None:
    shots = matched(1500)
    west = shots.x < 1000
    shots = matched(1500, map_m=shots.map_m * np.where(west, 1.0, 1.5))
    calibration = fitted(shots, "local 250")
    assert calibration.gain is not None
    x, y = np.array([200.0, 1800]), np.array([1000.0, 1000])
    low, high = calibration.gain.log_gain_at(x, y)[::-1]
    assert high > low + 0.1


def test_features_that_predict_the_fault_get_the_weight() -> None:
    features = np.random.default_rng(3).normal(size=(1500, 6))
    map_m = matched(1500).map_m * 1.5 / np.exp(0.3 * features[:, 2].clip(-1, 1))
    calibration = fitted(matched(1500, map_m=map_m, features=features, model_sha256="a" * 64), "features 10")
    assert calibration.features is not None
    assert calibration.features.model_sha256 == "a" * 64
    assert np.argmax(np.abs(calibration.features.weights)) == 2


def meadows(doubt_m: float) -> MatchedShots:
    """Return shots of which two fifths are meadows, whose p95 scatters up to `doubt_m`, and a quarter missed forest."""
    generator = np.random.default_rng(2)
    shots = matched(1500)
    kind = generator.random(1500)
    bare, missed = kind < 0.4, kind > 0.75
    return matched(
        1500,
        map_m=np.where(bare, 0.1, np.where(missed, 0, shots.map_m)),
        lidar_m=np.where(bare, generator.uniform(2, 3, 1500), np.maximum(shots.lidar_m, 4)),
        upper_m=np.where(bare, generator.uniform(0, doubt_m, 1500), shots.map_m * 1.4 + doubt_m),
    )


@pytest.mark.parametrize("upper", [0.25, 0.95])
def test_meadows_never_become_canopy(upper: float) -> None:
    """With the floor of 3 m, shots would not notice: the level of doubt does."""
    shots = meadows(6.0)
    calibration = fitted(shots, f"quantile + {upper:g} p95")
    assert calibration.doubt_m == pytest.approx(6, abs=0.6)
    raised = predicted_m(calibration, shots)[shots.bare]
    assert (raised < CANOPY_M).mean() > 0.95
    assert raised.max() < 1
    missed = shots.map_m == 0
    assert (predicted_m(calibration, shots)[missed] > CANOPY_M).mean() > 0.9 or upper == 0.25


def test_the_curve_leaves_what_is_below_canopy() -> None:
    for name in ("quantile", "local 250"):
        calibration = fitted(matched(), name)
        assert calibration.knots_m[:2] == ((0, 0), (CANOPY_M, CANOPY_M))


def test_too_few_trees_leave_the_curve_straight() -> None:
    ground = matched(map_m=np.zeros(600), lidar_m=np.full(600, 2.0))
    assert fitted(ground, "quantile").apply(np.array([7.0]))[0] == pytest.approx(7)
