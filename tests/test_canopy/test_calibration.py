"""Calibrations rise, keep what they were, never harm held-out ground, and change a map as their JSON says."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from pyproj import CRS, Transformer
from rasters import make_raster

from canopy.calibration import Calibration, calibrate_map, read_calibration, write_calibration
from canopy.calibration.curves import IDENTITY, FeatureGain, GainGrid
from canopy.calibration.fitting import Footprints, blocks, fit, predicted_m
from canopy.errors import CalibrationError, OutputError, RasterError
from canopy.prediction.entry import predict

UTM = CRS(32611)
GRID = GainGrid(crs=UTM.to_wkt(), left=500_000, top=4_000_000, step=100, log_gain=((0.0, 0.2), (-0.1, 0.4)))
CURVE = ((0.0, 0.0), (2.0, 3.0), (20.0, 30.0))

finite = st.floats(0.01, 20, allow_nan=False)
curves = st.lists(st.tuples(finite, st.floats(0, 5)), min_size=1, max_size=8).map(
    lambda steps: ((0.0, 0.0), *(tuple(map(float, knot)) for knot in np.cumsum(steps, axis=0)))
)


def shots(count: int = 600, seed: int = 0, **changes: object) -> Footprints:
    """A map that is a third too low, over 2 km; the lidar errs by a metre."""
    generator = np.random.default_rng(seed)
    truth = generator.gamma(2, 7, count)
    x, y = generator.uniform(0, 2000, (2, count))
    lidar = np.maximum(truth + generator.normal(0, 1, count), 0.5)
    made = Footprints(truth / 1.5, lidar, x, y, UTM, blocks(x, y, 250))
    return made if not changes else Footprints(**{**made.__dict__, **changes})


@given(curve=curves, upper=st.sampled_from([0.0, 0.3]), low=st.floats(0, 60), rise=st.floats(0, 30))
def test_a_taller_map_never_becomes_lower(curve: tuple, upper: float, low: float, rise: float) -> None:
    calibration = Calibration(kind="isotonic", knots_m=curve, upper=upper)
    p95, gain = np.full(2, 70.0), np.full(2, 0.3)
    made = calibration.apply(np.array([low, low + rise]), p95_m=p95, log_gain=gain)
    assert made[1] >= made[0] >= 0


@given(curve=curves, gain=st.floats(-0.6, 0.6))
@settings(max_examples=30)
def test_json_is_exact(tmp_path_factory: pytest.TempPathFactory, curve: tuple, gain: float) -> None:
    grid = GRID.model_copy(update={"log_gain": ((gain, -gain), (0.1, 1 / 3))})
    made = Calibration(kind="local", knots_m=curve, gain=grid, fit={"shots": 3})
    path = tmp_path_factory.mktemp("json") / "c.json"
    write_calibration(made, path)
    assert read_calibration(path) == made
    assert read_calibration(path).sha256 == made.sha256


def test_curve_goes_through_its_knots_and_on_at_its_last_ratio() -> None:
    made = Calibration(kind="linear", knots_m=CURVE).apply(np.array([0, 1, 2, 11, 40, np.nan]))
    np.testing.assert_allclose(made, [0, 1.5, 3, 16.5, 60, np.nan])


def test_the_upper_end_lifts_zeros_that_the_model_doubts_and_no_others() -> None:
    made = Calibration(kind="quantile", knots_m=CURVE, upper=0.5).apply(np.zeros(3), p95_m=np.array([0, 1.9, 16]))
    np.testing.assert_allclose(made, [0, 0, 3 + 27 * 5 / 18], rtol=1e-6)


def test_gain_is_bilinear_between_its_points_and_constant_beyond() -> None:
    x = np.array([500_000, 500_100, 500_050, 500_050, 499_000])
    y = np.array([4_000_000, 3_999_900, 3_999_950, 4_000_500, 4_000_000])
    np.testing.assert_allclose(GRID.at(x, y), [0.0, 0.4, 0.125, 0.1, 0.0])


def test_gain_lies_at_the_same_place_in_another_crs() -> None:
    square = GeoBox.from_bbox((500_000, 3_999_900, 500_100, 4_000_000), "EPSG:32611", resolution=10)
    lon, lat = Transformer.from_crs(32611, 4326, always_xy=True).transform(500_055, 3_999_945)
    degrees = GeoBox((3, 3), Affine(1e-9, 0, lon, 0, -1e-9, lat), "EPSG:4326")
    assert GRID.on(degrees)[1, 1] == pytest.approx(GRID.on(square)[5, 5], abs=1e-4)


def test_a_clear_fault_is_mended() -> None:
    calibration, table = fit(shots(), 250)
    rows = {row.name: row for row in table}
    chosen = next(row for row in table if row.chosen)
    assert calibration.kind == chosen.name != "identity"
    assert chosen.mae_m < 0.3 * rows["identity"].mae_m
    assert calibration.apply(np.array([10.0]))[0] == pytest.approx(15, abs=0.7)
    other = shots(seed=1)
    assert np.abs(predicted_m(calibration, other) - other.lidar_m).mean() < 1.1


def test_a_good_map_stays_as_it_is() -> None:
    given = shots()
    calibration, table = fit(shots(map_m=given.map_m * 1.5), 250)
    assert calibration.is_identity
    assert [row.name for row in table if row.chosen] == ["identity"]


def test_a_map_without_relation_to_the_lidar_stays_as_it_is_or_gains_on_held_out_ground() -> None:
    noise = np.random.default_rng(5).permutation(shots().map_m)
    _, table = fit(shots(map_m=noise), 250)
    rows = {row.name: row for row in table}
    chosen = next(row for row in table if row.chosen)
    assert chosen.mae_m <= rows["identity"].mae_m


@given(seed=st.integers(0, 100))
@settings(max_examples=5)
def test_the_order_of_shots_is_of_no_account(seed: int) -> None:
    given = shots(200)
    order = np.random.default_rng(seed).permutation(200)
    assert fit(given.take(order), 250) == fit(given, 250)


def test_meadows_are_not_lifted_to_the_floor_of_the_lidar() -> None:
    generator = np.random.default_rng(2)
    given = shots()
    meadow = generator.random(600) < 0.4
    lidar = np.where(meadow, generator.uniform(2, 3, 600), given.lidar_m)
    calibration, _ = fit(shots(map_m=np.where(meadow, 0.1, given.map_m), lidar_m=lidar), 250)
    assert not calibration.is_identity
    assert calibration.apply(np.array([0.0]))[0] == 0
    assert calibration.apply(np.array([0.5]))[0] < 1


def test_a_fault_of_one_half_of_the_land_takes_a_local_gain() -> None:
    given = shots(1500)
    west = given.x < 1000
    calibration, table = fit(shots(1500, map_m=given.map_m * np.where(west, 1.0, 1.5)), 250)
    rows = {row.name: row for row in table}
    assert calibration.kind == "local"
    assert min(row.mae_m for name, row in rows.items() if "local" in name) < 0.8 * rows["quantile"].mae_m
    assert calibration.gain is not None
    assert calibration.gain.at(np.array([200.0]), np.array([1000.0])) > 0.1 + calibration.gain.at(
        np.array([1800.0]), np.array([1000.0])
    )


def test_features_that_foretell_the_fault_are_used() -> None:
    given = shots(1500)
    features = np.random.default_rng(3).normal(size=(1500, 6))
    map_m = given.map_m * 1.5 / np.exp(0.3 * features[:, 2].clip(-1, 1))
    calibration, table = fit(shots(1500, map_m=map_m, features=features, model_sha256="a" * 64), 250)
    assert calibration.kind == "features"
    assert calibration.features is not None
    assert calibration.features.model_sha256 == "a" * 64
    assert np.argmax(np.abs(calibration.features.weights)) == 2
    rows = {row.name: row for row in table}
    assert rows["features 10"].mae_m < 0.7 * rows["quantile"].mae_m


def test_false_zeros_are_lifted_where_the_interval_says_forest() -> None:
    given = shots(1500)
    missed = np.random.default_rng(4).random(1500) < 0.25
    map_m = np.where(missed, 0, given.map_m)
    upper_m = given.map_m * 1.4
    calibration, table = fit(shots(1500, map_m=map_m, upper_m=upper_m), 250)
    rows = {row.name: row for row in table}
    chosen = next(row for row in table if row.chosen)
    assert calibration.upper > 0
    assert chosen.mae_m < 0.6 * rows["quantile"].mae_m


@pytest.mark.parametrize(("count", "side", "words"), [(20, 250, "20 usable shots"), (200, 5000, "1 blocks")])
def test_too_little_ground_is_said(count: int, side: float, words: str) -> None:
    given = shots(count)
    with pytest.raises(CalibrationError, match=words):
        fit(shots(count, block=blocks(given.x, given.y, side)), side)


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
    ],
)
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match="not a calibration") as caught:
        read_calibration(tmp_path / "c.json")
    assert "\n" not in str(caught.value)


def _region(tmp_path: Path) -> tuple[Path, dict]:
    scene = make_raster(tmp_path / "scene.tif", values=np.random.default_rng(0).integers(0, 255, (3, 160, 160)))
    with rasterio.open(scene) as opened:
        bounds = opened.bounds
        crs = opened.crs.to_string()
    return scene, {"bounds": bounds, "crs": crs}


def test_predict_applies_a_calibration_and_says_so(tmp_path: Path) -> None:
    scene, place = _region(tmp_path)
    area = box(*place["bounds"], place["crs"])
    calibration = Calibration(kind="linear", knots_m=CURVE)
    write_calibration(calibration, tmp_path / "c.json")
    plain = predict(area, scene, out=tmp_path / "plain.tif", crs=place["crs"]).path
    mended = predict(area, scene, out=tmp_path / "mended.tif", crs=place["crs"], calibration=tmp_path / "c.json").path
    applied = calibrate_map(plain, calibration, tmp_path / "applied.tif")
    with rasterio.open(plain) as a, rasterio.open(mended) as b, rasterio.open(applied) as c:
        np.testing.assert_array_equal(b.read(1), calibration.apply(a.read(1)))
        np.testing.assert_array_equal(b.read(1), c.read(1))
        assert b.tags()["CANOPY_CALIBRATION_SHA256"] == c.tags()["CANOPY_CALIBRATION_SHA256"] == calibration.sha256
        assert "CANOPY_CALIBRATION_SHA256" not in a.tags()
        assert np.nanmax(a.read(1)) > 0
    item = json.loads(mended.with_suffix(".json").read_text())
    assert item["properties"]["canopy:calibration_sha256"] == calibration.sha256
    assert item["properties"]["canopy:calibration_kind"] == "linear"
    with pytest.raises(CalibrationError, match="calibrated already"):
        calibrate_map(applied, calibration, tmp_path / "twice.tif")
    with pytest.raises(OutputError, match="exists"):
        calibrate_map(plain, calibration, applied)
    assert not (tmp_path / "twice.tif").exists()


def test_features_of_another_model_are_refused(tmp_path: Path) -> None:
    scene, place = _region(tmp_path)
    area = box(*place["bounds"], place["crs"])
    foreign = Calibration(
        kind="features", knots_m=CURVE,
        features=FeatureGain(model_sha256="0" * 64, weights=(1.0,), bias=0, sigma_m=6),
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="another model"):
        predict(area, scene, out=tmp_path / "map.tif", crs=place["crs"], calibration=foreign)
    with pytest.raises(CalibrationError, match="--uncertainty"):
        predict(area, scene, out=tmp_path / "map.tif", calibration=IDENTITY.model_copy(update={"upper": 0.5}))
    with pytest.raises(RasterError, match="height map"):
        calibrate_map(scene, IDENTITY, tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()
