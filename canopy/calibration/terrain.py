"""Slope under the shots, and what it adds to RH98.

RH98 is a height over the lowest ground of a footprint of 25 m, so a slope spreads the waveform and RH98 grows by metres
where trees do not. A calibration that learns this raises the map: shots on steep ground are dropped, and what the slope
adds to the others is taken off.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.io import DatasetReader
from scipy.stats import norm

from canopy.calibration.point_samples import points_around, sample_bilinear, to_pixels
from canopy.errors import CalibrationError
from canopy.gedi.footprints import FOOTPRINT_RADIUS_M, FOOTPRINT_SIGMA_M
from canopy.gedi.simulation import PULSE_SIGMA_M
from tiles.heights import elevation_unit_m, open_raster, rasterio_window, readable
from tiles.windows import PixelWindow

Floats = NDArray[np.float64]

MAX_SLOPE_DEG = 20.0
"""Steepest ground of which RH98 is used."""
_RING = 8
_LEVEL = float(norm.ppf(0.98))


def slopes_deg(dem: Path, lon: Floats, lat: Floats) -> Floats:
    """Return the slope of the ground under each footprint.

    Args:
        dem: Terrain model of any CRS and cell size; metres unless its unit or vertical CRS says otherwise.
        lon: (n,) longitude of the shots, degrees.
        lat: (n,) latitude of the shots.

    Returns:
        (n,) degrees, NaN where the terrain is unknown.

    Raises:
        CalibrationError: The terrain model has no CRS, or covers none of the shots.
        RasterError: The file cannot be read.
    """
    angle = 2 * np.pi * np.arange(_RING) / _RING
    east_m, north_m = FOOTPRINT_RADIUS_M * np.sin(angle), FOOTPRINT_RADIUS_M * np.cos(angle)
    with open_raster(dem) as dataset:
        if dataset.crs is None:
            raise CalibrationError(
                f"{dem} has no CRS: a georeferenced terrain model expected (rio edit-info --crs EPSG:n {dem.name})"
            )
        points = points_around(lon, lat, east_m, north_m)
        rows, cols = to_pixels(*points, dataset.transform, CRS.from_wkt(dataset.crs.to_wkt()))
        elevation_m = sample_bilinear(lambda window: _elevations(dem, dataset, window), rows, cols)
        # Slopes are ratios: a terrain in feet over ground in metres would be three times too steep.
        elevation_m = elevation_m * elevation_unit_m(dataset)
    # Least squares of a plane over a ring: its gradient is the first harmonic of the elevations.
    gradient = [elevation_m @ axis * 2 / (_RING * FOOTPRINT_RADIUS_M**2) for axis in (east_m, north_m)]
    slope = np.degrees(np.arctan(np.hypot(*gradient)))
    if not np.isfinite(slope).any():
        raise CalibrationError(f"{dem} covers none of the {len(lon)} shots: a terrain model of the map's area expected")
    return np.asarray(slope, np.float64)


def level_rh98_m(rh98_m: Floats, rh50_m: Floats, slope_deg: Floats) -> Floats:
    """Return RH98 as it would be on level ground.

    A plane under a Gaussian footprint spreads the ground's heights by sigma * tan(slope), and the waveform by as much
    in quadrature; RH98 lies 2.05 of the waveform's own spreads above RH50. What a slope adds is thus metres where a
    waveform is narrow, as over meadows, and little where a canopy of many heights is wide itself.

    Args:
        rh98_m: (n,) RH98, metres.
        rh50_m: (n,) RH50, metres; NaN leaves RH98 as it is.
        slope_deg: (n,) slope of the ground, degrees.
    """
    ground_m = FOOTPRINT_SIGMA_M * np.tan(np.radians(slope_deg))
    above_m = rh98_m - rh50_m
    # What is left of the spread after the ground's is taken out, but no less than the pulse's own.
    left_m = np.sqrt(np.maximum(above_m**2 - (_LEVEL * ground_m) ** 2, (_LEVEL * PULSE_SIGMA_M) ** 2))
    return np.asarray(np.where(np.isnan(rh50_m), rh98_m, rh50_m + np.minimum(above_m, left_m)), np.float64)


def _elevations(path: Path, dataset: DatasetReader, window: PixelWindow) -> NDArray[np.float32]:
    """Return elevations over a window that may leave the raster, units of the file; NaN where unknown."""
    elevation = np.full(window.shape, np.nan, np.float32)
    inside = window.intersect(PixelWindow(0, 0, *dataset.shape))
    if inside is not None:
        with readable(path):
            values = dataset.read(1, window=rasterio_window(inside), masked=True)
        elevation[inside.slices_in(window)] = np.ma.filled(values.astype(np.float32), np.nan)
    return elevation
