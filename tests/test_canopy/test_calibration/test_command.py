"""The whole command on files: what it writes, says and refuses."""

import dataclasses
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from flights import fly
from gedi_shots import EVERYTHING, write_map

from canopy.calibration import calibrate_map, read_calibration
from canopy.calibration.command import Calibrated, _limits, calibrate
from canopy.errors import CalibrationError, ImageryError, OutputError
from canopy.evaluation import height_metrics
from canopy.gedi.shots import read_granules
from canopy.gedi.storage import read_shots, write_shots


@pytest.fixture(scope="module")
def calibrated(flight, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """Return the calibration of the faulty map by shots on hills, slopes judged."""
    out = tmp_path_factory.mktemp("calibrated") / "c.json"
    return calibrate(flight.pred, flight.hill_shots, out, dem=flight.dem)


def bands(path: Path) -> np.ndarray:
    with rasterio.open(path) as opened:
        return opened.read()


def test_the_file_says_what_it_was_fitted_on(flight, calibrated: Calibrated) -> None:
    calibration = read_calibration(calibrated.path)
    assert calibration.sha256 == calibrated.calibration.sha256
    about = calibration.fit
    assert about["map"] == "map.tif"
    assert about["n"] == calibrated.shots
    assert about["proven"] == "agreement with held-out shots"
    assert about["slope"]["dem"] == "dem.tif"
    assert about["slope"]["max_deg"] == 20
    assert about["slope"]["steep"] == calibrated.slopes.steep > 0
    assert about["representation"]["place_share"] == 1
    (chosen,) = (row for row in about["held_out"] if row["chosen"])
    assert chosen["name"] != "identity"
    assert chosen["coverage"] > 0.87
    assert calibrated.shots + calibrated.dropped == len(read_shots(flight.hill_shots))


def test_slopes_are_said_to_be_unjudged_without_a_terrain(flight, tmp_path: Path) -> None:
    result = calibrate(flight.pred, flight.shots, tmp_path / "c.json")
    assert result.slopes is None
    assert result.calibration.fit["slope"] == "not judged"


def test_heights_and_coverage_are_better_on_ground_that_calibration_never_saw(
    flight, calibrated: Calibrated, tmp_path: Path
) -> None:
    """The interval knows nothing of the truth; 10 m of misplacement, noise and hills of 30 degrees are in the way."""
    better = calibrate_map(flight.pred, calibrated.calibration, tmp_path / "better.tif")
    scores = [height_metrics([(bands(path)[0], flight.truth_m)], 1.0) for path in (flight.pred, better)]
    assert scores[1].mae_m < 0.9 * scores[0].mae_m
    assert abs(scores[1].bias_m) < 0.5 * abs(scores[0].bias_m)
    inside = []
    for path in (flight.pred, better):
        _, low_m, high_m = bands(path)
        inside.append((low_m <= flight.truth_m) & (flight.truth_m <= high_m))
    trees = flight.truth_m > 5
    assert inside[1].mean() > 0.9
    assert inside[1][trees].mean() > inside[0][trees].mean() - 0.02
    meadow = (flight.truth_m == 0) & (bands(flight.pred)[0] < 2)
    assert (bands(better)[0][meadow] >= 2).mean() < 0.03


def test_a_good_map_on_hills_is_not_made_worse(flight, tmp_path: Path) -> None:
    result = calibrate(flight.chm, flight.hill_shots, tmp_path / "c.json", dem=flight.dem)
    change_m = result.calibration.apply(flight.truth_m) - flight.truth_m
    assert np.abs(change_m).mean() < 0.3


@pytest.mark.parametrize("deg", [10, 17])
def test_slopes_are_not_learnt_as_height(flight, tmp_path: Path, deg: float) -> None:
    """RH98 is too tall on slopes; learnt as truth it cost 0.3 m at 10 degrees and 1.4 m at 20."""
    rise_m = np.tan(np.radians(deg)) * np.broadcast_to(np.arange(600.0), (600, 600))
    dem = write_map(tmp_path / "dem.tif", rise_m)
    low = write_map(tmp_path / "low.tif", flight.truth_m * 0.7)
    steep = fly(flight.chm, tmp_path / "steep.parquet", dem)
    calibration = calibrate(low, steep, tmp_path / "c.json", dem=dem).calibration
    error_m = calibration.apply(flight.truth_m * 0.7) - flight.truth_m
    assert abs(error_m.mean()) < 0.5
    assert np.abs(error_m).mean() < 0.25 * np.abs(0.3 * flight.truth_m).mean()


def moved(flight, tmp_path: Path, shots: gpd.GeoDataFrame) -> Path:
    reading = read_granules([flight.shots.with_suffix(".h5")], EVERYTHING)
    path = tmp_path / "moved.parquet"
    write_shots(dataclasses.replace(reading, shots=shots), path, EVERYTHING)
    return path


def test_shots_that_do_not_represent_the_map_are_refused_unless_forced(flight, tmp_path: Path) -> None:
    shots = read_shots(flight.shots).to_crs(32611)
    east = shots.set_geometry(shots.geometry.translate(40, 0)).to_crs(4326)
    path = moved(flight, tmp_path, east)
    with pytest.raises(CalibrationError, match="-45 m east"):
        calibrate(flight.chm, path, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()
    forced = calibrate(flight.chm, path, tmp_path / "c.json", force=True)
    change_m = forced.calibration.apply(flight.truth_m) - flight.truth_m
    assert np.abs(change_m).mean() < 0.4, "a true map stays, however little the shots agree with it"


def test_an_existing_file_is_kept(flight, calibrated: Calibrated) -> None:
    before = calibrated.path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        calibrate(flight.pred, flight.shots, calibrated.path)
    assert calibrated.path.read_bytes() == before


def test_the_command_prints_the_table_and_the_path(canopy, flight, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    code, printed, err = canopy(
        "calibrate", "--pred", flight.pred, "--shots", flight.hill_shots, "--out", out, "--dem", flight.dem,
        "--max-slope", 15,
    )  # fmt: skip
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out)
    assert "proven: agreement with held-out shots" in err
    assert "steeper than 15 degrees" in err
    assert "coverage" in err
    code, printed, err = canopy("calibrate", "--pred", flight.pred, "--apply", out, "--out", tmp_path / "b.tif")
    assert code == 0, err
    assert printed.splitlines()[-1] == str(tmp_path / "b.tif")
    code, _, _ = canopy("validate", tmp_path / "b.tif")
    assert code == 0


def test_the_command_prints_one_document(canopy, flight, tmp_path: Path) -> None:
    code, printed, err = canopy(
        "calibrate", "--pred", flight.chm, "--shots", flight.shots, "--out", tmp_path / "c.json", "--json"
    )
    assert code == 0, err
    assert json.loads(printed)["fit"]["slope"] == "not judged"


def test_a_map_in_centimetres_is_calibrated_as_the_same_map_in_metres(flight, tmp_path: Path) -> None:
    stored = tmp_path / "cm.tif"
    write_map(stored, np.round(flight.truth_m * 70))
    with rasterio.open(stored, "r+") as dataset:
        dataset.units = ("cm",)
    plain = write_map(tmp_path / "m.tif", np.round(flight.truth_m * 70) / 100)
    results = [calibrate(path, flight.shots, tmp_path / f"{path.stem}.json").calibration for path in (stored, plain)]
    assert results[0].kind == results[1].kind != "identity"
    np.testing.assert_allclose(results[0].knots_m, results[1].knots_m, atol=0.01)


def test_options_of_the_imagery_are_checked_before_it_is_read() -> None:
    assert _limits((3, 2, 1), (0, 2047)) == (0, 2047)
    assert _limits(None, None) is None
    with pytest.raises(ImageryError, match=r"--scale: the two values"):
        _limits(None, (0,))
    with pytest.raises(ImageryError, match=r"--bands: the numbers of three bands"):
        _limits((1, 2), None)
