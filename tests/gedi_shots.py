"""Woodland in metres, maps of it, and shots over it: what the tests of GEDI share."""

from pathlib import Path

import geopandas
import numpy as np
from rasters import make_raster
from scipy import ndimage

from canopy.gedi.filters import ShotFilter

EVERYTHING = ShotFilter(
    quality=False, degrade=None, surface=False, sensitivity_min=None, sensitivity_a2_min=None,
    dem_difference_max_m=None, power_beams=False, night=False, leaf_on=False, water_max_percent=None,
    urban_max_percent=None, height_max_m=None,
)  # fmt: skip
"""A filter whose rules are all off."""
SMALL = "GEDI02_A_2019108080338_O01964_T05337_02_001_01_057cc2eb.h5"
LARGE = "GEDI02_A_2019108080338_O01964_T05337_02_001_01_cd9c9eed.h5"
L2B = "GEDI02_B_2019108080338_O01964_T05337_02_001_01_cac38020.h5"
L1B = "GEDI01_B_2019108080338_O01964_T05337_02_003_01_0e3090f7.h5"
UTM = "EPSG:32611"
ORIGIN = (500_000.0, 4_000_000.0)


def woodland(side: int = 400, seed: int = 0) -> np.ndarray:
    """Heights (H, W) of woodland up to about 30 m, meadows at 0."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=(side, side)), 6)
    stands = ndimage.gaussian_filter(generator.normal(size=(side, side)), 40)
    height = 18 + 60 * noise + 250 * stands
    return np.where(stands > -0.02, height.clip(0), 0).astype(np.float32)


def write_map(path: Path, heights: np.ndarray, **options: object) -> Path:
    """Writes heights (H, W) in metres as a map with cells of 1 m."""
    return make_raster(
        path, values=heights[None], dtype="float32", crs=UTM, origin=ORIGIN, resolution=1.0, nodata=np.nan, **options
    )


def points(x: np.ndarray, y: np.ndarray, crs: str = UTM) -> geopandas.GeoDataFrame:
    """Points without attributes."""
    return geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(x, y, crs=crs))
