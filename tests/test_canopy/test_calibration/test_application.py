"""A calibration changes a map as its JSON says, in predict and after it, and says so in the map."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from rasters import make_raster
from tiny_models import save_tiny_model

from canopy.calibration import (
    Calibration,
    application,
    apply_to_bands,
    calibrate_map,
    describe_calibration,
    write_calibration,
)
from canopy.calibration.curves import IDENTITY, FeatureGain, GainGrid, IntervalEnds
from canopy.errors import CalibrationError, OutputError, RasterError
from canopy.prediction import predict

CURVE = ((0.0, 0.0), (2.0, 3.0), (20.0, 30.0))
LINEAR = Calibration(kind="linear", knots_m=CURVE)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Return imagery, and the bounds and CRS of its area."""
    path = tmp_path_factory.mktemp("region") / "scene.tif"
    scene = make_raster(path, values=np.random.default_rng(0).integers(0, 255, (3, 160, 160)))
    with rasterio.open(scene) as opened:
        return scene, {"bounds": opened.bounds, "crs": opened.crs.to_string()}


@pytest.fixture(scope="module")
def model(region: tuple[Path, dict]) -> Path:
    return save_tiny_model(region[0].with_name("tiny.safetensors"))


@pytest.fixture(scope="module")
def plain(region: tuple[Path, dict], model: Path) -> Path:
    """Return the map of the region without calibration."""
    scene, area = region
    out = scene.with_name("plain.tif")
    return predict(box(*area["bounds"], area["crs"]), scene, model, out, crs=area["crs"], backend="eager").path


def test_predict_and_apply_agree_and_say_so(
    tmp_path: Path, region: tuple[Path, dict], model: Path, plain: Path
) -> None:
    scene, area = region
    write_calibration(LINEAR, tmp_path / "c.json")
    ground = box(*area["bounds"], area["crs"])
    predicted = predict(
        ground,
        scene,
        out=tmp_path / "predicted.tif",
        crs=area["crs"],
        calibration=tmp_path / "c.json",
        model=model,
        backend="eager",
    ).path
    applied = calibrate_map(plain, LINEAR, tmp_path / "applied.tif")
    with rasterio.open(plain) as a, rasterio.open(predicted) as b, rasterio.open(applied) as c:
        np.testing.assert_array_equal(b.read(1), LINEAR.apply(a.read(1)))
        np.testing.assert_array_equal(b.read(1), c.read(1))
        assert b.tags()["CANOPY_CALIBRATION_SHA256"] == c.tags()["CANOPY_CALIBRATION_SHA256"] == LINEAR.sha256
        assert "CANOPY_CALIBRATION_SHA256" not in a.tags()
        assert np.nanmax(a.read(1)) > 0
    for path in (predicted, applied):
        item = json.loads(path.with_suffix(".json").read_text())
        assert item["properties"]["canopy:calibration_sha256"] == LINEAR.sha256
        assert item["properties"]["canopy:calibration_kind"] == "linear"
        assert item["geometry"] == json.loads(plain.with_suffix(".json").read_text())["geometry"]
    with pytest.raises(CalibrationError, match="calibrated already"):
        calibrate_map(applied, LINEAR, tmp_path / "twice.tif")
    with pytest.raises(OutputError, match="exists"):
        calibrate_map(plain, LINEAR, applied)
    assert not (tmp_path / "twice.tif").exists()


def test_what_identifies_a_calibration() -> None:
    assert describe_calibration(LINEAR) == {"kind": "linear", "sha256": LINEAR.sha256}


def test_a_large_map_is_calibrated_tile_by_tile(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate_map(plain, LINEAR, tmp_path / "whole.tif")
    monkeypatch.setattr(application, "TILE_PX", 64)
    reports: list = []
    parts = calibrate_map(plain, LINEAR, tmp_path / "parts.tif", report=reports.append)
    with rasterio.open(whole) as a, rasterio.open(parts) as b:
        np.testing.assert_array_equal(a.read(), b.read())
    assert len(reports) == reports[-1].total == reports[-1].done > 1


def test_replacing_a_calibrated_map_leaves_it_valid(plain: Path, tmp_path: Path, canopy) -> None:
    out = calibrate_map(plain, LINEAR, tmp_path / "c.tif")
    other = LINEAR.model_copy(update={"knots_m": ((0.0, 0.0), (2.0, 2.0), (20.0, 25.0))})
    calibrate_map(plain, other, out, overwrite=True)
    code, _, err = canopy("validate", out)
    assert code == 0, err
    assert json.loads(out.with_suffix(".json").read_text())["properties"]["canopy:calibration_sha256"] == other.sha256


def test_gains_of_the_land_and_of_features_multiply() -> None:
    geobox = GeoBox.from_bbox((500_000, 3_999_990, 500_010, 4_000_000), "EPSG:32611", resolution=1)
    gain = GainGrid(crs=str(geobox.crs), left=500_000, top=4_000_000, step=100, log_gain=((0.1,),))
    calibration = Calibration(
        kind="local", knots_m=((0, 0), (1, 1)), gain=gain,
        interval=IntervalEnds(height_m=(0,), lower_m=(1,), upper_m=(2,)),
    )  # fmt: skip
    bands_m = np.stack([np.full((10, 10), height_m, np.float32) for height_m in (10, 5, 20)])
    factor = np.exp(0.1)
    expected = np.array([10 * factor, 5 * factor - 1, 20 * factor + 2])
    np.testing.assert_allclose(apply_to_bands(calibration, bands_m, geobox)[:, 4, 4], expected, rtol=1e-5)
    both = apply_to_bands(calibration, bands_m, geobox, log_gain=np.full((10, 10), 0.2))
    np.testing.assert_allclose(both[0], 10 * np.exp(0.3), rtol=1e-5)


def test_what_a_map_cannot_take_is_refused(region: tuple[Path, dict], model: Path, plain: Path, tmp_path: Path) -> None:
    scene, area = region
    ground = box(*area["bounds"], area["crs"])
    foreign = Calibration(
        kind="features", knots_m=CURVE,
        features=FeatureGain(model_sha256="0" * 64, weights=(1.0,), bias=0, sigma_m=6),
    )  # fmt: skip
    out = tmp_path / "map.tif"
    with pytest.raises(CalibrationError, match="another model"):
        predict(ground, scene, out=out, crs=area["crs"], calibration=foreign, model=model, backend="eager")
    with pytest.raises(CalibrationError, match="--uncertainty"):
        predict(
            ground, scene, out=out, calibration=IDENTITY.model_copy(update={"upper": 0.5}), model=model, backend="eager"
        )
    with pytest.raises(CalibrationError, match="with canopy predict"):
        calibrate_map(plain, foreign, out)
    with pytest.raises(CalibrationError, match="--uncertainty"):
        calibrate_map(plain, IDENTITY.model_copy(update={"upper": 0.5}), out)
    with pytest.raises(RasterError, match="bands"):
        calibrate_map(scene, IDENTITY, out)
    with pytest.raises(RasterError, match="height map of canopy predict"):
        calibrate_map(make_raster(tmp_path / "one.tif", bands=1), IDENTITY, out)
    assert not out.exists()
