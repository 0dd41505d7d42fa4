"""Points are sampled where they lie, whatever the raster's CRS, size and squares."""

from pathlib import Path

import numpy as np
import pytest
from height_maps import height_raster
from pyproj import CRS, Geod, Transformer
from rasterio import Affine

from canopy.calibration import point_samples
from canopy.calibration.point_samples import (
    beam_offsets,
    pixels_around,
    points_around,
    sample_bilinear,
    sample_nearest,
    to_pixels,
)
from tiles.heights import open_heights


def test_points_lie_at_their_offsets_on_the_ground() -> None:
    lon, lat = points_around(np.array([10.0, -120]), np.array([60.0, 5]), np.array([30.0, 0]), np.array([0.0, -40]))
    azimuth, _, distance = Geod(ellps="WGS84").inv([10, 10], [60, 60], lon[0], lat[0])
    np.testing.assert_allclose(distance, [30, 40], atol=1e-6)
    np.testing.assert_allclose(np.array(azimuth) % 360, [90, 180], atol=1e-4)
    assert lon.shape == (2, 2)


def test_points_are_as_dense_as_the_beam() -> None:
    east_m, north_m = beam_offsets(400, 6.25)
    np.testing.assert_allclose([east_m.std(), north_m.std()], 6.25, rtol=0.02)
    np.testing.assert_allclose([east_m.mean(), north_m.mean()], 0, atol=0.15)
    # 86.5 % of the energy falls within 12.5 m, two standard deviations.
    assert (np.hypot(east_m, north_m) < 12.5).mean() == pytest.approx(0.865, abs=0.005)


@pytest.mark.parametrize("side_px", [4, 7, 2048])
def test_values_are_those_of_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_px: int) -> None:
    monkeypatch.setattr(point_samples, "SIDE_PX", side_px)
    values = np.arange(400, dtype=np.float32).reshape(20, 20) / 10
    rows = np.array([[0.5, 1.5], [3.99, 4.01], [19.5, 25], [11.2, 12]])
    cols = np.array([[0.5, 0.5], [7.0, 6.99], [19.5, 3], [5.5, 5.5]])
    with open_heights(height_raster(tmp_path / "h.tif", values)) as raster:
        nearest = sample_nearest(raster.read, rows, cols)
        between = sample_bilinear(raster.read, rows, cols)
    np.testing.assert_allclose(nearest, [[0, 2], [6.7, 8.6], [39.9, np.nan], [22.5, 24.5]], rtol=1e-6)
    # The values are a plane: 2 a row and 0.1 a column between the centres.
    np.testing.assert_allclose(between[1], 2 * (rows[1] - 0.5) + 0.1 * (cols[1] - 0.5), rtol=1e-5)
    assert np.isnan(between[2, 1])


def test_points_that_are_nowhere_are_unknown(tmp_path: Path) -> None:
    with open_heights(height_raster(tmp_path / "h.tif", np.ones((5, 5), np.float32))) as raster:
        values = sample_nearest(raster.read, np.array([[np.inf], [2.0]]), np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(values, [[np.nan], [1]])


@pytest.mark.parametrize("crs", [32611, 3857, 4326])
def test_pixels_around_a_point_are_those_of_the_points_around_it(crs: int) -> None:
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(-117.0, 36.0)
    step = 1e-5 if crs == 4326 else 1.0
    transform = Affine(step, 0, x - 100 * step, 0, -step, y + 100 * step)
    lon, lat, offsets = np.array([-117.0]), np.array([36.0]), (np.array([30.0, -7, 0]), np.array([0.0, 12, -50]))
    exact = to_pixels(*points_around(lon, lat, *offsets), transform, CRS(crs))
    np.testing.assert_allclose(pixels_around(lon, lat, *offsets, transform, CRS(crs)), exact, atol=0.01)


def test_pixels_follow_the_transform() -> None:
    transform = Affine(2, 0, 500_000, 0, -2, 4_000_000)
    lon, lat = Transformer.from_crs(32611, 4326, always_xy=True).transform([500_020.0], [3_999_990.0])
    rows, cols = to_pixels(np.array(lon), np.array(lat), transform, CRS(32611))
    np.testing.assert_allclose([rows[0], cols[0]], [5, 10], atol=1e-5)
