"""Map and shots meet in their footprints, in any unit, with their interval, cover and slopes."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from gedi_shots import points, write_map

from canopy.calibration.matched_shots import FLOOR_M
from canopy.calibration.shots import CELLS, gather, lidar_cover
from canopy.errors import CalibrationError
from canopy.gedi.footprints import footprint_statistics
from canopy.gedi.storage import read_shots


@pytest.fixture(scope="module")
def shots(flight) -> gpd.GeoDataFrame:
    return read_shots(flight.shots)


def test_shots_meet_the_map_in_their_footprints(flight, shots: gpd.GeoDataFrame) -> None:
    gathered = gather(flight.pred, shots)
    matched, count = gathered.shots, len(gathered.points)
    assert count == len(matched) > 300
    np.testing.assert_array_equal(matched.lidar_m, gathered.points["rh98"].to_numpy(float))
    statistics = footprint_statistics(flight.pred, gathered.points, weighting="gaussian")
    np.testing.assert_array_equal(matched.map_m, statistics["p98"].to_numpy())
    assert (matched.lower_m <= matched.map_m).all()
    assert (matched.upper_m >= matched.map_m).all()
    assert matched.cells.height_m.shape == matched.cells.upper_m.shape == (count, CELLS)
    sampled = (matched.cells.height_m >= 2).mean(axis=1)
    assert np.abs(sampled - statistics["cover"]).mean() < 0.03
    assert gathered.slopes is None
    assert gathered.block_m == 200
    assert len(np.unique(matched.block)) >= 9


def test_a_map_without_interval_has_none(flight, shots: gpd.GeoDataFrame) -> None:
    matched = gather(flight.chm, shots).shots
    assert matched.lower_m is None
    assert matched.upper_m is None
    assert matched.cells.upper_m is None


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (100, {"dtype": "int16", "nodata": -1, "units": "cm"}),
        (1 / 0.3048, {"units": "ft"}),
        (50, {"dtype": "uint16", "nodata": 9999, "scales": 0.02}),
        (1 / 0.3048, {"crs": "EPSG:32611+8228"}),
    ],
)
def test_heights_are_metres_whatever_the_file_stores(
    tmp_path: Path, flight, shots: gpd.GeoDataFrame, factor: float, options: dict
) -> None:
    tags = {name: options.pop(name) for name in ("units", "scales") if name in options}
    path = tmp_path / "map.tif"
    values = flight.truth_m * factor
    from rasters import make_raster

    settings = {"dtype": "float32", "crs": "EPSG:32611", "origin": (500_000.0, 4_000_000.0), "resolution": 1.0}
    make_raster(path, values=values[None], **{**settings, **options})
    with rasterio.open(path, "r+") as dataset:
        for name, value in tags.items():
            setattr(dataset, name, (value,))
    stored, plain = gather(path, shots).shots, gather(flight.chm, shots).shots
    np.testing.assert_allclose(stored.map_m, plain.map_m, atol=0.011)
    np.testing.assert_allclose(stored.cells.height_m, plain.cells.height_m, atol=0.011)


def test_steep_shots_are_dropped_and_the_others_corrected(flight) -> None:
    shots = read_shots(flight.hill_shots)
    plain, judged = gather(flight.chm, shots), gather(flight.chm, shots, dem=flight.dem, max_slope_deg=15)
    slopes = judged.slopes
    assert slopes is not None
    assert slopes.steep > 30
    assert slopes.unknown == 0
    assert len(judged.shots) == len(plain.shots) - slopes.steep
    taken_off = judged.points["rh98"].to_numpy(float) - judged.shots.lidar_m
    assert taken_off.min() >= 0
    assert taken_off.mean() == pytest.approx(slopes.taken_off_m)
    assert 0.1 < slopes.taken_off_m < 1.0
    flat = gather(flight.chm, read_shots(flight.shots))
    bias_m = [np.mean(each.shots.lidar_m - each.shots.map_m) for each in (flat, plain, judged)]
    assert abs(bias_m[2] - bias_m[0]) < abs(bias_m[1] - bias_m[0])


def test_ground_that_is_nowhere_flat_enough_is_an_error(flight) -> None:
    with pytest.raises(CalibrationError, match=r"flatter than 0\.01 degrees"):
        gather(flight.chm, read_shots(flight.hill_shots), dem=flight.dem, max_slope_deg=0.01)


def test_shots_elsewhere_are_an_error(tmp_path: Path, shots: gpd.GeoDataFrame) -> None:
    elsewhere = write_map(tmp_path / "far.tif", np.ones((60, 60), np.float32))
    far = points(np.array([600_000.0]), np.array([4_100_000.0])).to_crs(4326).assign(rh98=5.0, cover=np.nan)
    with pytest.raises(CalibrationError, match="same ground"):
        gather(elsewhere, far)


def test_cover_is_measured_or_the_energy_of_the_canopy() -> None:
    """RH at percentiles: half of the energy comes from above 3 m where RH50 is 3 m."""
    profile = {"rh25": 0.0, "rh50": 3.0, "rh75": 9.0, "rh98": 15.0}
    shots = points(np.zeros(5), np.zeros(5)).assign(**profile, cover=[np.nan, 0.8, np.nan, np.nan, np.nan])
    shots.loc[2, ["rh50", "rh75", "rh98"]] = [0.5, 1.0, 2.0]
    shots.loc[3, "rh25"] = 6.0
    shots.loc[4, "rh25"] = np.nan
    np.testing.assert_allclose(lidar_cover(shots, np.full(5, FLOOR_M)), [0.5, 0.8, 0, 1, np.nan])
    np.testing.assert_allclose(lidar_cover(shots.drop(columns="cover"), np.full(5, 6.0))[:2], [0.375, 0.375])


def test_cover_of_simulated_shots_is_that_of_the_ground(flight, shots: gpd.GeoDataFrame) -> None:
    gathered = gather(flight.chm, shots)
    truth = footprint_statistics(flight.chm, gathered.points, weighting="gaussian")["cover"]
    assert np.corrcoef(gathered.shots.cover, truth)[0, 1] > 0.8
