"""Units and CRSs: the same map from metres and feet, and returns moved into another CRS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import pyproj
import pytest
import rasterio
from forest import Forest, make_forest, write_laz
from laz import built, edited, heights
from numpy.typing import NDArray

from canopy.errors import LidarError
from canopy.lidar import build_chm
from canopy.lidar.placement import is_plausible, mover, output_crs, parse_crs, placed_bounds, union

OREGON = {"crs": "EPSG:2993", "origin": (194_000, 260_000)}


@pytest.mark.parametrize(
    ("code", "twin", "unit_m"),
    [("EPSG:2994", 2993, 0.3048), ("EPSG:2225", 26941, 1200 / 3937), ("EPSG:32611", 32611, 1.0)],
)
def test_a_foot_crs_has_a_twin_in_metres(code: str, twin: int, unit_m: float) -> None:
    crs = parse_crs(code)
    assert crs.axis_info[0].unit_conversion_factor == pytest.approx(unit_m, abs=1e-12)
    assert output_crs(crs, (0.0, 0.0, 1.0, 1.0), None).to_epsg() == twin


def test_an_output_crs_in_feet_is_replaced_by_metres_and_one_in_degrees_refused() -> None:
    utm = parse_crs("EPSG:32610")
    assert output_crs(utm, (500_000.0, 4.9e6, 500_100.0, 4.91e6), "EPSG:2994").to_epsg() == 2993
    assert output_crs(utm, (500_000.0, 4.9e6, 500_100.0, 4.91e6), "EPSG:32611").to_epsg() == 32611
    with pytest.raises(LidarError, match="not projected"):
        output_crs(utm, (0.0, 0.0, 1.0, 1.0), "EPSG:4326")
    with pytest.raises(LidarError, match="not a CRS"):
        parse_crs("EPSG:0")


def test_feet_without_a_twin_go_to_their_utm_zone() -> None:
    """A transverse mercator of nobody's, in feet, whose origin lies in Oregon."""
    crs = parse_crs("+proj=tmerc +lat_0=44 +lon_0=-122.3 +datum=WGS84 +units=us-ft")
    assert output_crs(crs, (0.0, 0.0, 100.0, 100.0), None).to_epsg() == 32610


def test_bounds_and_returns_move_alike() -> None:
    source, target = parse_crs("EPSG:32611"), parse_crs("EPSG:32610")
    bounds = (320_000.0, 4_100_000.0, 320_100.0, 4_100_050.0)
    x, y = np.random.default_rng(0).uniform(bounds[:2], bounds[2:], (50, 2)).T
    east, north = mover(source, target)(x, y)
    west, south, right, top = placed_bounds(bounds, source, target)
    assert west < east.min() and east.max() < right and south < north.min() and north.max() < top
    np.testing.assert_array_equal(east, np.round(east, 4))
    assert placed_bounds(bounds, source, source) == bounds
    box = union([bounds, (319_990.0, 4_100_010.0, 320_050.0, 4_100_070.0)], source)
    assert (box.left, box.bottom, box.right, box.top) == (319_990, 4_100_000, 320_100, 4_100_070)


@pytest.mark.parametrize(
    ("bounds", "plausible"),
    [
        ((320_000.0, 4_100_000.0, 321_000.0, 4_101_000.0), True),
        ((32_000_000.0, 4_100_000.0, 32_001_000.0, 4_101_000.0), False),
        ((320_000.0, 9_900_000.0, 321_000.0, 9_901_000.0), False),
    ],
)
def test_places_far_outside_a_crs_are_not_plausible(bounds: tuple[float, ...], plausible: bool) -> None:
    assert is_plausible(bounds, parse_crs("EPSG:32611")) == plausible


def highest_in_cells(
    forest: Forest, cloud: Path, place: Callable[..., Any]
) -> tuple[NDArray[np.float64], float, float]:
    """True height of the highest return in each cell of another lattice, and the lattice's west and north."""
    las = laspy.read(cloud)
    row = np.floor(forest.transform.f - np.asarray(las.y)).astype(int).clip(0)
    col = np.floor(np.asarray(las.x) - forest.transform.c).astype(int)
    above = np.where(np.asarray(las.classification) == 5, forest.chm_m[row, col], 0)
    x, y = place(np.asarray(las.x), np.asarray(las.y))
    west, north = np.floor(x.min()), np.ceil(y.max())
    row, col = np.floor(north - y).astype(int), np.floor(x - west).astype(int)
    highest = np.full((row.max() + 1, col.max() + 1), -np.inf)
    np.maximum.at(highest, (row, col), above)
    return np.where(np.isinf(highest), np.nan, highest), west, north


def test_another_crs_is_reprojected(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    """Zone 10 sees the same returns, some 4 degrees turned: each cell takes the highest of those that fall into it.

    The mean of the map is higher than in the forest's own zone. There a cell holds one height; in any other lattice
    it holds up to four, of which it takes the highest. Half a cell of shift, without any reprojection, raises it more.
    """
    chm = build_chm([cloud], tmp_path / "chm.tif", crs="EPSG:32610")
    turned = pyproj.Transformer.from_crs(forest.crs, "EPSG:32610", always_xy=True).transform
    truth, west, north = highest_in_cells(forest, cloud, turned)
    with rasterio.open(chm.path) as opened:
        assert opened.crs.to_epsg() == 32610
        assert (opened.transform.c, opened.transform.f, opened.shape) == (west, north, truth.shape)
        result = opened.read(1)
    error = np.abs(result - truth)[~np.isnan(truth)]
    assert np.quantile(error, 0.95) < 0.05
    assert (error > 0.5).mean() < 0.01  # pits that were filled
    half, *_ = highest_in_cells(forest, cloud, lambda x, y: (x + 0.5, y + 0.5))
    assert np.nanmean(result) == pytest.approx(np.nanmean(truth), rel=0.01)
    assert 1.15 * np.nanmean(forest.chm_m) < np.nanmean(truth) < np.nanmean(half)


@pytest.mark.parametrize(
    ("code", "z_unit_m"),
    [
        ("EPSG:2994", 0.3048),
        ("EPSG:2994+8228", 0.3048),
        ("EPSG:2994+6360", 1200 / 3937),
        ("EPSG:2994+5703", 1.0),
    ],
)
def test_feet_make_the_same_map_as_metres(tmp_path: Path, code: str, z_unit_m: float) -> None:
    forest = make_forest(48, seed=2, **OREGON)
    metres = built(write_laz(forest, tmp_path / "m.laz"), tmp_path)
    feet = write_laz(forest, tmp_path / "ft.laz", unit_m=0.3048, crs=code)
    las = laspy.read(feet)
    feet = edited(feet, tmp_path / "z.laz", z=np.asarray(las.z) * 0.3048 / z_unit_m)
    chm = build_chm([feet], tmp_path / "ft.tif")
    np.testing.assert_allclose(heights(chm.path), metres, atol=0.003)
    with rasterio.open(chm.path) as opened:
        assert opened.crs.to_epsg() == 2993
        assert opened.transform == forest.transform
