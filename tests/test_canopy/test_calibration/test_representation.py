"""Shots from a corner, of low trees alone, or 40 m away do not represent a map."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from gedi_shots import woodland, write_map

from canopy.calibration.representation import Representation, represent, sample_points
from canopy.calibration.shots import Gathered, gather
from canopy.errors import CalibrationError
from canopy.gedi.storage import read_shots

GOOD = Representation(1.0, 1.0, 0.8, (0.0, 0.0))


@pytest.fixture(scope="module")
def shots(flight) -> gpd.GeoDataFrame:
    return read_shots(flight.shots)


def of(path: Path, shots: gpd.GeoDataFrame) -> Representation:
    gathered: Gathered = gather(path, shots)
    return represent(path, gathered.shots, gathered.points)


def test_shots_all_over_the_map_represent_it(flight, shots: gpd.GeoDataFrame) -> None:
    representation = of(flight.pred, shots)
    assert representation.place_share == 1
    assert representation.height_share > 0.99
    assert representation.correlation > 0.5
    assert representation.shift_m == (0, 0)
    assert representation.objections() == []


def test_shots_of_a_corner_do_not(flight, shots: gpd.GeoDataFrame) -> None:
    x, y = shots.to_crs(32611).geometry.x, shots.to_crs(32611).geometry.y
    corner = shots[(x < 500_200) & (y > 3_999_800)]
    representation = of(flight.pred, corner)
    assert representation.place_share == pytest.approx(4 / 25)
    assert "16% of the map's parts" in representation.objections()[0]


def test_shots_of_low_trees_do_not(flight, shots: gpd.GeoDataFrame) -> None:
    gathered = gather(flight.chm, shots)
    low = gathered.shots.map_m < 15
    representation = represent(flight.chm, gathered.shots.take(low), gathered.points[low])
    assert representation.height_share < 0.8


@pytest.mark.parametrize(("east_m", "north_m"), [(40, 0), (-30, 30)])
def test_shots_that_lie_elsewhere_do_not(flight, shots: gpd.GeoDataFrame, east_m: float, north_m: float) -> None:
    moved = shots.to_crs(32611)
    moved = moved.set_geometry(moved.geometry.translate(east_m, north_m)).to_crs(4326)
    representation = of(flight.pred, moved)
    # 15 m steps: the shift back is found to half a step.
    np.testing.assert_allclose(representation.shift_m, (-east_m, -north_m), atol=8)
    assert "of where they say" in representation.objections()[-1]


def test_a_map_of_another_forest_does_not_correlate(flight, shots: gpd.GeoDataFrame, tmp_path: Path) -> None:
    other = write_map(tmp_path / "other.tif", woodland(600, 11))
    representation = of(other, shots)
    assert representation.correlation < 0.3
    assert any("correlate" in fault for fault in representation.objections())


def test_a_flat_map_has_no_correlation(flight, shots: gpd.GeoDataFrame, tmp_path: Path) -> None:
    flat = write_map(tmp_path / "flat.tif", np.full((600, 600), 5, np.float32))
    representation = of(flat, shots)
    assert np.isnan(representation.correlation)
    assert any("correlate" in fault for fault in representation.objections())


def test_objections_are_one_line_unless_forced() -> None:
    GOOD.require(force=False)
    bad = Representation(0.1, 0.5, 0.1, (40.0, -15.0))
    with pytest.raises(CalibrationError, match="--force") as error:
        bad.require(force=False)
    assert "\n" not in str(error.value)
    assert str(error.value).count(";") == 4
    bad.require(force=True)


@pytest.mark.parametrize("shift_m", [(0, 0), (15, 0), (15, 15), (0, -15)])
def test_the_error_of_a_track_is_no_objection(shift_m: tuple[float, float]) -> None:
    assert Representation(1.0, 1.0, 0.8, shift_m).objections() == []


def test_only_known_ground_has_to_be_represented(flight, shots: gpd.GeoDataFrame, tmp_path: Path) -> None:
    heights = flight.truth_m.copy()
    heights[:, 240:] = np.nan
    x = shots.to_crs(32611).geometry.x
    west = write_map(tmp_path / "west.tif", heights)
    assert of(west, shots[x < 500_240]).place_share == 1


def test_points_lie_all_over_the_map(flight) -> None:
    sample = sample_points(flight.chm).to_crs(32611).geometry
    assert 500_000 < sample.x.min() < 500_020
    assert 500_580 < sample.x.max() < 500_600
    assert sample.y.mean() == pytest.approx(3_999_700, abs=20)
