"""Calibrations rise, keep what they were in files, and never let the interval collapse."""

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pydantic import ValidationError
from pyproj import CRS, Transformer

from canopy.calibration import Calibration, read_calibration, write_calibration
from canopy.calibration.curves import IDENTITY, GainGrid, IntervalEnds, raised_m
from canopy.errors import CalibrationError

UTM = CRS(32611)
GRID = GainGrid(crs=UTM.to_wkt(), left=500_000, top=4_000_000, step=100, log_gain=((0.0, 0.2), (-0.1, 0.4)))
CURVE = ((0.0, 0.0), (2.0, 3.0), (20.0, 30.0))
ENDS = IntervalEnds(height_m=(0, 10, 20), lower_m=(0, 1, 4), upper_m=(2, 3, 5))

finite = st.floats(0.01, 20, allow_nan=False)
curves = st.lists(st.tuples(finite, st.floats(0, 5)), min_size=1, max_size=8).map(
    lambda steps: ((0.0, 0.0), *(tuple(map(float, knot)) for knot in np.cumsum(steps, axis=0)))
)


@given(
    curve=curves,
    upper=st.sampled_from([0.0, 0.3]),
    doubt=st.floats(2, 40),
    low=st.floats(0, 60),
    rise=st.floats(0, 30),
)
def test_a_taller_map_never_becomes_lower(curve: tuple, upper: float, doubt: float, low: float, rise: float) -> None:
    calibration = Calibration(kind="quantile", knots_m=curve, upper=upper, doubt_m=doubt)
    p95, gain = np.full(2, 70.0), np.full(2, 0.3)
    heights_m = calibration.apply(np.array([low, low + rise]), p95_m=p95, log_gain=gain)
    assert heights_m[1] >= heights_m[0] >= 0


@given(curve=curves, gain=st.floats(-0.6, 0.6))
@settings(max_examples=30)
def test_json_is_exact(tmp_path_factory: pytest.TempPathFactory, curve: tuple, gain: float) -> None:
    grid = GRID.model_copy(update={"log_gain": ((gain, -gain), (0.1, 1 / 3))})
    calibration = Calibration(kind="local", knots_m=curve, gain=grid, interval=ENDS, doubt_m=7.5, fit={"shots": 3})
    path = tmp_path_factory.mktemp("json") / "c.json"
    write_calibration(calibration, path)
    assert read_calibration(path) == calibration
    assert read_calibration(path).sha256 == calibration.sha256


def test_files_of_earlier_versions_open_and_keep_their_identity(tmp_path: Path) -> None:
    """Written before calibrations had a threshold of doubt and refitted intervals; the hash is that of then."""
    document = {
        "version": 1,
        "kind": "isotonic",
        "knots_m": [[0, 0], [2, 2], [10, 14.5]],
        "upper": 0.5,
        "gain": None,
        "features": None,
        "fit": {"n": 3},
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    calibration = read_calibration(tmp_path / "c.json")
    assert calibration.sha256 == "b28d3d44f76fcdcdbc2705a54d8fe314d7be59bdb2efa31d8b72864a7d2e37ca"
    assert (calibration.doubt_m, calibration.interval) == (2.0, None)
    later = calibration.model_copy(update={"doubt_m": 5.0})
    assert later.sha256 != calibration.sha256 != calibration.model_copy(update={"interval": ENDS}).sha256


def test_curve_goes_through_its_knots_and_on_at_its_last_ratio() -> None:
    heights_m = Calibration(kind="linear", knots_m=CURVE).apply(np.array([0, 1, 2, 11, 40, np.nan]))
    np.testing.assert_allclose(heights_m, [0, 1.5, 3, 16.5, 60, np.nan])


def test_a_curve_goes_on_no_further_than_trees_do() -> None:
    """Past the last knot the ratio is kept: the high end of an interval once left what a map may contain."""
    calibration = Calibration(kind="quantile", knots_m=((0, 0), (20, 60)), interval=ENDS)
    bands_m = calibration.apply_bands(np.array([[[30.0, 60]], [[20, 50]], [[60, 80]]]))
    np.testing.assert_allclose(bands_m, [[[90, 130]], [[56, 126]], [[130, 130]]], rtol=1e-6)
    np.testing.assert_array_equal(IDENTITY.apply(np.array([140.0])), [140])


def test_p95_lifts_zeros_that_the_model_doubts_and_no_others() -> None:
    p95_m = np.array([0, 1.9, 16])
    heights_m = Calibration(kind="quantile", knots_m=CURVE, upper=0.5).apply(np.zeros(3), p95_m=p95_m)
    np.testing.assert_allclose(heights_m, [0, 0, 3 + 27 * 5 / 18], rtol=1e-6)


def test_doubt_below_its_level_lifts_nothing() -> None:
    p95_m, heights_m = np.array([5.0, 12, 30]), np.array([0.0, 0, 20])
    np.testing.assert_allclose(raised_m(heights_m, p95_m, 0.5, 12.0), [0, 0, 25])
    np.testing.assert_allclose(raised_m(heights_m, p95_m, 0.5, 2.0), [1.5, 5, 25])


def test_p95_is_required_where_it_is_read() -> None:
    with pytest.raises(CalibrationError, match="--uncertainty"):
        Calibration(kind="quantile", knots_m=CURVE, upper=0.5).apply(np.zeros(3))


def test_ends_take_the_curve_and_not_the_way_toward_p95() -> None:
    """A zero that is doubted keeps its low end; lifting that too would leave no interval."""
    bands_m = np.array([[[0.0, 8.0]], [[0.0, 4.0]], [[16.0, 12.0]]])
    straight = Calibration(kind="quantile", knots_m=((0, 0), (1, 1)), upper=0.95)
    np.testing.assert_allclose(straight.apply_bands(bands_m), [[[13.3, 11.8]], [[0, 4]], [[16, 12]]], rtol=1e-6)
    curved = Calibration(kind="quantile", knots_m=CURVE).apply_bands(bands_m)
    np.testing.assert_allclose(curved[:, 0, 1], [12, 6, 18], rtol=1e-6)


def test_ends_move_apart_by_calibrated_height() -> None:
    low_m, high_m = ENDS.widened(np.array([0.0, 5, 15, 40]), np.array([0.0, 2, 10, 30]), np.array([1.0, 8, 20, 50]))
    np.testing.assert_allclose(low_m, [0, 1.5, 7.5, 26])
    np.testing.assert_allclose(high_m, [3, 10.5, 24, 55])


@given(
    bands=st.tuples(st.floats(0, 40), st.floats(0, 20), st.floats(0, 30)),
    upper=st.sampled_from([0.0, 0.5, 0.95]),
    gain=st.floats(-0.6, 0.6),
)
def test_the_height_lies_within_its_interval(bands: tuple, upper: float, gain: float) -> None:
    height, below, above = bands
    bands_m = np.array([height, max(0, height - below), height + above])[:, None, None]
    calibration = Calibration(kind="quantile", knots_m=CURVE, upper=upper, interval=ENDS)
    calibrated_m, low_m, high_m = calibration.apply_bands(bands_m, log_gain=np.full((1, 1), gain))
    assert 0 <= low_m <= calibrated_m <= high_m


def test_a_map_without_interval_stays_without() -> None:
    bands_m = np.array([[[2.0, np.nan]]])
    calibrated_m = Calibration(kind="quantile", knots_m=CURVE, interval=ENDS).apply_bands(bands_m)
    np.testing.assert_allclose(calibrated_m, [[[3, np.nan]]])


@pytest.mark.parametrize(
    "ends",
    [
        {"height_m": (0, 1), "lower_m": (0,), "upper_m": (0, 0)},
        {"height_m": (1, 1), "lower_m": (0, 0), "upper_m": (0, 0)},
        {"height_m": (), "lower_m": (), "upper_m": ()},
        {"height_m": (0,), "lower_m": (-1,), "upper_m": (0,)},
    ],
)
def test_ends_that_contradict_themselves_are_refused(ends: dict) -> None:
    with pytest.raises(ValidationError):
        IntervalEnds(**ends)


def test_gain_is_bilinear_between_its_points_and_constant_beyond() -> None:
    x = np.array([500_000, 500_100, 500_050, 500_050, 499_000])
    y = np.array([4_000_000, 3_999_900, 3_999_950, 4_000_500, 4_000_000])
    np.testing.assert_allclose(GRID.log_gain_at(x, y), [0.0, 0.4, 0.125, 0.1, 0.0])


def test_gain_lies_on_the_same_ground_in_another_crs() -> None:
    square = GeoBox.from_bbox((500_000, 3_999_900, 500_100, 4_000_000), "EPSG:32611", resolution=10)
    lon, lat = Transformer.from_crs(32611, 4326, always_xy=True).transform(500_055, 3_999_945)
    degrees = GeoBox((3, 3), Affine(1e-9, 0, lon, 0, -1e-9, lat), "EPSG:4326")
    assert GRID.log_gain_on(degrees)[1, 1] == pytest.approx(GRID.log_gain_on(square)[5, 5], abs=1e-4)


def test_a_gain_needs_a_crs() -> None:
    with pytest.raises(CalibrationError, match="without CRS"):
        GRID.log_gain_on(GeoBox((3, 3), Affine.identity(), None))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "no json",
        '{"kind": "linear", "knots_m": [[0, 0], [2, 3], [1, 4]]}',
        '{"kind": "linear", "knots_m": [[0, 0], [2, 3], [3, 2]]}',
        '{"kind": "linear", "knots_m": [[0, 1], [2, 3]]}',
        '{"kind": "linear", "knots_m": [[0, 0], [2, NaN]]}',
        '{"kind": "linear", "knots_m": [[0, 0], [2, 3]], "more": 1}',
        '{"kind": "linear", "knots_m": [[0, 0], [2, 3]], "doubt_m": 1}',
        '{"kind": "local", "knots_m": [[0, 0], [2, 3]], "gain": {"crs": "", "left": 0, "top": 0, "step": 1, '
        '"log_gain": [[0], [0, 0]]}}',
    ],
)
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match="not a calibration") as error:
        read_calibration(tmp_path / "c.json")
    assert "\n" not in str(error.value)


def test_a_missing_calibration_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read the calibration"):
        read_calibration(tmp_path / "none.json")


def test_identity_changes_nothing() -> None:
    bands_m = np.array([[[0.0, 7]], [[0, 3]], [[2, 20]]])
    np.testing.assert_array_equal(IDENTITY.apply_bands(bands_m), bands_m)
