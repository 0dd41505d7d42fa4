"""The choice: nearer to held-out shots, surely, in height, spread and cover; else the map as it is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matched import BLOCK_M, matched
from scipy.stats import norm

from canopy.calibration.curves import IDENTITY, Calibration
from canopy.calibration.fitting import HeldOut, MethodRow, _objection, block_gain, calibrated_cover, choose, fit
from canopy.calibration.matched_shots import Cells, number_blocks
from canopy.calibration.methods import predicted_m
from canopy.errors import CalibrationError


def rows(table: tuple[MethodRow, ...]) -> tuple[dict[str, MethodRow], MethodRow]:
    """Return the rows by name, and the chosen one."""
    (chosen,) = (row for row in table if row.chosen)
    return {row.name: row for row in table}, chosen


def test_a_clear_fault_is_corrected() -> None:
    calibration, table = fit(matched(), BLOCK_M)
    by_name, chosen = rows(table)
    assert calibration.kind == chosen.name == "quantile"
    assert chosen.mae_m < 0.3 * by_name["identity"].mae_m
    assert chosen.gain_m[1] > 0
    assert calibration.apply(np.array([10.0]))[0] == pytest.approx(15, abs=0.7)
    other = matched(seed=1)
    assert np.abs(predicted_m(calibration, other) - other.lidar_m).mean() < 1.1


def test_a_good_map_stays_as_it_is() -> None:
    calibration, table = fit(matched(map_m=matched().map_m * 1.5), BLOCK_M)
    assert calibration == IDENTITY
    assert rows(table)[1].name == "identity"


@pytest.mark.parametrize("seed", range(5))
def test_a_map_without_relation_to_the_lidar_is_not_drawn_to_its_middle(seed: int) -> None:
    """Shots that lie anywhere agree best with their own mean; the map of the right heights must not become flat."""
    noise = matched(map_m=np.random.default_rng(seed).permutation(matched().map_m) * 1.5)
    calibration, _ = fit(noise, BLOCK_M)
    np.testing.assert_allclose(predicted_m(calibration, noise), noise.map_m, atol=1.0, rtol=0.08)


@given(seed=st.integers(0, 100))
@settings(max_examples=5)
def test_the_order_of_shots_is_of_no_account(seed: int) -> None:
    shots = matched(200)
    order = np.random.default_rng(seed).permutation(200)
    assert fit(shots.take(order), BLOCK_M) == fit(shots, BLOCK_M)


def test_a_fault_of_one_half_of_the_land_takes_a_local_gain() -> None:
    west = matched(1500).x < 1000
    calibration, table = fit(matched(1500, map_m=matched(1500).map_m * np.where(west, 1.0, 1.5)), BLOCK_M)
    by_name, chosen = rows(table)
    assert calibration.kind == "local"
    assert chosen.mae_m < 0.8 * by_name["quantile"].mae_m


def test_features_that_predict_the_fault_are_used() -> None:
    features = np.random.default_rng(3).normal(size=(1500, 6))
    map_m = matched(1500).map_m * 1.5 / np.exp(0.3 * features[:, 2].clip(-1, 1))
    calibration, table = fit(matched(1500, map_m=map_m, features=features, model_sha256="a" * 64), BLOCK_M)
    by_name, _ = rows(table)
    assert calibration.kind == "features"
    assert by_name["features 10"].mae_m < 0.7 * by_name["quantile"].mae_m


def test_false_zeros_are_lifted_where_the_interval_says_forest() -> None:
    generator = np.random.default_rng(4)
    shots = matched(1500)
    missed, bare = generator.random(1500) < 0.25, shots.lidar_m < 4
    lidar_m = np.where(bare, 2.0, shots.lidar_m)
    map_m = np.where(missed | bare, 0, shots.map_m)
    upper_m = np.where(bare, 1.0, shots.map_m * 1.4)
    calibration, table = fit(matched(1500, map_m=map_m, lidar_m=lidar_m, upper_m=upper_m), BLOCK_M)
    by_name, chosen = rows(table)
    assert calibration.upper > 0
    assert chosen.mae_m < 0.6 * by_name["quantile"].mae_m


def test_coverage_after_calibration_is_a_column_and_reaches_nine_tenths() -> None:
    """Lifted toward p95 with the height, the low end once left 57 % inside."""
    generator = np.random.default_rng(4)
    shots = matched(1500)
    bare = shots.lidar_m < 4
    map_m = np.where((generator.random(1500) < 0.25) | bare, 0, shots.map_m)
    upper_m = np.where(bare, 1.0, shots.map_m * 1.4)
    shots = matched(1500, map_m=map_m, lidar_m=np.where(bare, 2.0, shots.lidar_m), lower_m=0.6 * map_m, upper_m=upper_m)
    calibration, table = fit(shots, BLOCK_M)
    by_name, chosen = rows(table)
    assert calibration.upper > 0
    assert calibration.interval is not None
    assert by_name["identity"].coverage is not None
    assert by_name["identity"].coverage < 0.5
    assert chosen.coverage == pytest.approx(0.9, abs=0.03)


def test_without_an_interval_there_is_no_coverage() -> None:
    calibration, table = fit(matched(), BLOCK_M)
    assert calibration.interval is None
    assert {row.coverage for row in table} == {None}
    assert {row.cover_error for row in table} == {None}


def errors_of(gains: dict[str, float], spread: float = 0.3, blocks: int = 40) -> tuple[dict, np.ndarray]:
    """Return errors of methods whose gain over identity is, block by block, a mean and one fixed scatter."""
    scatter = norm.ppf((np.arange(blocks) + 0.5) / blocks) * spread
    block = np.repeat(np.arange(blocks), 10)
    identity = np.full(len(block), 5.0)
    return {"identity": identity, **{name: identity - gain - scatter[block] for name, gain in gains.items()}}, block


def test_a_method_must_be_surer_the_more_are_tried() -> None:
    """Bonferroni: 95 % together. One method of one is sure at 1.96 deviations, one of twenty at 3.02."""
    errors, block = errors_of({"quantile": 1.0})
    deviation = (1.0 - block_gain(errors["identity"] - errors["quantile"], block, 0.95).low) / norm.ppf(0.975)
    gain = 2.5 * deviation
    errors, block = errors_of({"quantile": gain})
    assert choose(errors, block, {}) == "quantile"
    many = {f"rival {number}": -1.0 for number in range(19)}
    errors, block = errors_of({"quantile": gain, **many})
    assert choose(errors, block, {}) == "identity"
    errors, block = errors_of({"quantile": 3.3 * deviation, **many})
    assert choose(errors, block, {}) == "quantile"


@pytest.mark.parametrize(("better", "name"), [(0.9, "simple"), (1.1, "complicated")])
def test_the_simplest_within_a_hundredth_of_the_best_is_chosen(better: float, name: str) -> None:
    """Errors of 2 m: the complicated method is better by just less, and just more, than a hundredth of its own."""
    complicated_m = 2.0
    errors, block = errors_of({"simple": 5 - complicated_m * (1 + better / 100), "complicated": 5 - complicated_m})
    assert choose(errors, block, {}) == name


def test_what_is_ruled_out_is_not_chosen() -> None:
    errors, block = errors_of({"quantile": 1.0, "local": 2.0})
    assert choose(errors, block, {}) == "local"
    assert choose(errors, block, {"local": "cover"}) == "quantile"
    assert choose(errors, block, {"local": "cover", "quantile": "flattens"}) == "identity"


def test_a_gain_is_a_mean_with_an_interval_of_blocks() -> None:
    generator = np.random.default_rng(0)
    block = np.repeat(np.arange(50), 20)
    values = 1 + generator.normal(0, 1, 50)[block]
    gain = block_gain(values, block, 0.95)
    assert gain.mean == pytest.approx(values.mean())
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(50), rel=0.1)


def test_a_method_that_flattens_is_ruled_out() -> None:
    shots = matched()
    mean_m = shots.lidar_m.mean()
    identity = HeldOut(shots.lidar_m, None, None)
    flat = HeldOut(mean_m + 0.7 * (shots.lidar_m - mean_m), None, None)
    assert _objection(flat, identity, shots) == "flattens"
    assert _objection(flat, HeldOut(shots.lidar_m * 0.5, None, None), shots) == "", "it spreads a map that has less"
    assert _objection(identity, identity, shots) == ""


def test_a_method_that_fills_gaps_is_ruled_out() -> None:
    cover = np.linspace(0, 1, 600)
    shots = matched(cover=cover)
    identity, filled = HeldOut(shots.lidar_m, None, cover), HeldOut(shots.lidar_m, None, np.minimum(cover + 0.02, 1))
    assert _objection(filled, identity, shots) == "cover"
    silent = dataclasses.replace(shots, cover=np.full(600, np.nan))
    assert _objection(filled, identity, silent) == ""
    assert _objection(identity, filled, shots) == ""


def test_cover_is_that_of_the_calibrated_cells() -> None:
    cells = Cells(np.array([[0.0, 1.5, 5, 9]] * 600), np.array([[9.0, 1, 1, 9]] * 600))
    shots = matched(cells=cells, upper_m=matched().map_m)
    np.testing.assert_allclose(calibrated_cover(IDENTITY, shots), 0.5)
    lifting = Calibration(kind="quantile", knots_m=((0, 0), (1, 1)), upper=0.5, doubt_m=3)
    np.testing.assert_allclose(calibrated_cover(lifting, shots), 0.75)


def test_classes_of_height_have_their_bias() -> None:
    _, table = fit(matched(), BLOCK_M)
    identity = rows(table)[0]["identity"]
    tall = matched().lidar_m > 30
    assert identity.by_height[">30"] == pytest.approx((matched().map_m - matched().lidar_m)[tall].mean())


@pytest.mark.parametrize(("count", "side", "words"), [(20, 250, "20 usable shots"), (200, 5000, "1 blocks")])
def test_too_little_ground_is_an_error(count: int, side: float, words: str) -> None:
    shots = matched(count)
    with pytest.raises(CalibrationError, match=words):
        fit(matched(count, block=number_blocks(shots.x, shots.y, side)), side)
