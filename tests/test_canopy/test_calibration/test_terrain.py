"""Slopes are those of the terrain in any unit and CRS, and what they add to RH98 is what a waveform shows."""

from pathlib import Path

import numpy as np
import pytest
from flights import stands
from pyproj import Transformer
from rasterio import Affine
from rasters import make_raster

from canopy.calibration.terrain import level_rh98_m, slopes_deg
from canopy.errors import CalibrationError
from canopy.gedi.simulation import waveforms

TRANSFORM = Affine(2, 0, 500_000, 0, -2, 4_000_000)


def plane(path: Path, deg: float, *, factor: float = 1, crs: str = "EPSG:32611", cell_m: float = 2, **options) -> Path:
    """Write a plane that rises eastward and northward, 400 m wide, around 3,000 m high."""
    side = round(400 / cell_m)
    down, right = np.mgrid[0:side, 0:side] * cell_m
    elevation = 3000 + np.tan(np.radians(deg)) * (right * 0.6 - down * 0.8)
    transform = Affine(cell_m, 0, 500_000, 0, -cell_m, 4_000_000)
    return make_raster(path, values=elevation[None] * factor, dtype="float32", crs=crs, transform=transform, **options)


def lonlat(x: list[float], y: list[float]) -> tuple[np.ndarray, np.ndarray]:
    lon, lat = Transformer.from_crs(32611, 4326, always_xy=True).transform(x, y)
    return np.array(lon), np.array(lat)


@pytest.mark.parametrize("deg", [0, 5, 20, 35])
@pytest.mark.parametrize(
    "stored", [{}, {"factor": 1 / 0.3048, "crs": "EPSG:32611+8228"}, {"cell_m": 10}, {"cell_m": 0.5}]
)
def test_slopes_are_those_of_the_terrain(tmp_path: Path, deg: float, stored: dict) -> None:
    slopes = slopes_deg(plane(tmp_path / "dem.tif", deg, **stored), *lonlat([500_100, 500_230], [3_999_800, 3_999_700]))
    np.testing.assert_allclose(slopes, deg, atol=0.05)


def test_shots_off_the_terrain_have_no_slope(tmp_path: Path) -> None:
    dem = plane(tmp_path / "dem.tif", 10)
    slopes = slopes_deg(dem, *lonlat([500_100, 500_005, 510_000], [3_999_800, 3_999_800, 3_999_800]))
    np.testing.assert_array_equal(np.isfinite(slopes), [True, False, False])
    with pytest.raises(CalibrationError, match="covers none of the 1 shots"):
        slopes_deg(dem, *lonlat([510_000], [3_999_800]))


def test_unknown_terrain_has_no_slope(tmp_path: Path) -> None:
    values = np.full((1, 200, 200), 100.0)
    values[:, 90:110, 45:60] = -9999
    dem = make_raster(
        tmp_path / "dem.tif", values=values, dtype="float32", crs="EPSG:32611", transform=TRANSFORM, nodata=-9999
    )
    slopes = slopes_deg(dem, *lonlat([500_100, 500_300], [3_999_800, 3_999_700]))
    np.testing.assert_allclose(slopes, [np.nan, 0], atol=1e-6)


def test_a_terrain_without_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no CRS"):
        slopes_deg(plane(tmp_path / "dem.tif", 3, crs=None), *lonlat([500_100], [3_999_800]))


@pytest.mark.parametrize("deg", [0, 10, 20, 30])
@pytest.mark.parametrize("canopy", ["meadow", "level", "stands"])
def test_rh98_on_a_slope_becomes_that_of_level_ground(deg: float, canopy: str) -> None:
    """Over narrow waveforms a slope adds metres, over wide ones little: both are taken off."""
    side = 300
    canopy_m = {"meadow": np.zeros((side, side)), "level": np.full((side, side), 20.0), "stands": stands(side, 1)}[
        canopy
    ]
    x, y = np.random.default_rng(0).uniform(30, side - 30, (2, 150))
    transform = Affine(1, 0, 0, 0, -1, side)
    ground_m = np.broadcast_to(np.tan(np.radians(deg)) * np.arange(float(side)), (side, side))
    flat, steep = (waveforms(canopy_m, transform, x, y, ground)[0] for ground in (None, ground_m))
    level_m = level_rh98_m(steep[:, 98], steep[:, 50], np.full(len(x), float(deg)))
    before_m, after_m = (steep[:, 98] - flat[:, 98]).mean(), (level_m - flat[:, 98]).mean()
    # Waveforms over the edges of stands are no bell: there more is taken off than was added.
    assert abs(after_m) < 0.1 + (0.75 if canopy == "stands" else 0.2) * before_m
    assert before_m == pytest.approx(0, abs=1e-6) if deg == 0 else before_m > 0.1


def test_a_waveform_narrower_than_the_pulse_stays() -> None:
    rh98_m, rh50_m = np.array([1.5, 30, 12.0]), np.array([0.0, 29.5, np.nan])
    np.testing.assert_allclose(level_rh98_m(rh98_m, rh50_m, np.array([20.0, 20, 20])), rh98_m)
