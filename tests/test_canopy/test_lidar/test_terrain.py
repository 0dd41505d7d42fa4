"""The ground of cells, with and without classes, and the terrain between them."""

from pathlib import Path

import numpy as np
import pytest
from forest import make_forest, write_laz
from hypothesis import given
from hypothesis import strategies as st
from laz import on_grid
from numpy.typing import NDArray

from canopy.lidar import build_chm
from canopy.lidar.classes import Role
from canopy.lidar.clouds import Returns
from canopy.lidar.ground import fill_gaps
from canopy.lidar.tables import Tables, blocks, slices
from canopy.lidar.terrain import TABLES, Lows, extrapolated, filled_ground, halo_cells, measured_ground


def returns(x: NDArray, y: NDArray, z_m: NDArray, role: int = Role.CANOPY) -> Returns:
    return Returns(
        x, y, np.rint(1000 * z_m), np.full(len(x), role, np.uint8), len(x), np.zeros(256, np.int64), None
    )  # fmt: skip


def lows_of(x: NDArray, y: NDArray, z_m: NDArray, shape: tuple[int, int], cell_m: float, role: int) -> Lows:
    """Tables of returns; row 0 lies south of y = 0."""
    lows = Lows.empty(Tables(Path(), shape, 0), cell_m)
    cell = np.floor(-y / cell_m).astype(np.int64) * shape[1] + np.floor(x / cell_m).astype(np.int64)
    lows.add(cell, returns(x, y, z_m, role))
    return lows


@pytest.mark.parametrize("classified", [True, False])
@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.3, -0.2), (-0.6, 0.1)])
def test_a_slope_is_measured_at_the_centres_of_cells(classified: bool, slope: tuple[float, float]) -> None:
    """The lowest return of a cell lies at its downhill corner, and is no measure of the centre by itself."""
    rng, side = np.random.default_rng(1), 30
    x, y = rng.uniform(0, side, (2, 8 * side * side))
    lows = lows_of(x, -y, 100 + slope[0] * x + slope[1] * y, (side, side), 1.0, Role.GROUND)
    whole = next(blocks((side, side), side, 0))
    measured_m = measured_ground(lows, whole, classified)
    rows, cols = np.indices((side, side)) + 0.5
    error_m = measured_m - (100 + slope[0] * cols + slope[1] * rows)
    assert abs(np.nanmean(error_m)) < 0.015
    assert np.nanquantile(np.abs(error_m[3:-3, 3:-3]), 0.9) < 0.03


def test_the_terrain_of_an_unclassified_slope_is_not_low(tmp_path: Path) -> None:
    forest = make_forest(96, seed=5, slope=0.3, trees_per_ha=150, buildings=0)
    cloud = write_laz(forest, tmp_path / "f.laz", classified=False)
    chm = build_chm([cloud], tmp_path / "chm.tif", ground_out=tmp_path / "dtm.tif")
    assert chm.method == "smrf"
    error_m = on_grid(forest, tmp_path / "dtm.tif") - forest.ground_m
    assert abs(np.median(error_m)) < 0.01
    assert abs(error_m.mean()) < 0.03


@given(st.integers(0, 2**32 - 1))
def test_tables_do_not_depend_on_the_order_of_returns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, z_m = rng.uniform(0, 5, 400), -rng.uniform(0, 4, 400), np.round(rng.uniform(-1, 1, 400), 1)
    every, count = [], len(x)
    for order in (np.arange(count), rng.permutation(count)):
        lows = Lows.empty(Tables(Path(), (4, 5), 0), 1.0)
        for part in np.array_split(order, rng.integers(1, 6)):
            cell = np.floor(-y[part]).astype(np.int64) * 5 + np.floor(x[part]).astype(np.int64)
            lows.add(cell, returns(x[part], y[part], z_m[part], Role.GROUND))
        every.append(lows)
    for name in TABLES:
        np.testing.assert_array_equal(getattr(every[0], name), getattr(every[1], name))


def test_blocks_have_the_ground_of_the_whole() -> None:
    """Flat cores of 64 cells with a halo against a raster at once: trees, a roof, and a quarter of the cells empty."""
    rng, side = np.random.default_rng(3), 256
    x, y = rng.uniform(0, side, (2, 3 * side * side))
    height = np.where((np.sin(x / 9) + np.cos(y / 7) > 1.2) & (rng.random(len(x)) < 0.8), 12, 0)
    height[(np.abs(x - 120) < 11) & (np.abs(y - 70) < 8)] = 6
    z = 50 + 0.1 * x + 4 * np.sin(y / 40) + height
    lows = lows_of(x, -y, z, (side, side), 1.0, Role.CANOPY)
    whole = next(blocks((side, side), side, 0))
    expected_m = measured_ground(lows, whole, False)
    parts_m = np.full((side, side), np.nan)
    for block in blocks((side, side), 64, halo_cells(1.0)):
        parts_m[slices(block.core)] = measured_ground(lows, block, False)
    both = ~np.isnan(expected_m) & ~np.isnan(parts_m)
    assert (np.isnan(expected_m) == np.isnan(parts_m)).mean() > 0.9999
    assert np.abs(parts_m - expected_m)[both].max() < 0.01
    filled_m = np.zeros((side, side))
    for block in blocks((side, side), 64, halo_cells(1.0)):
        filled_m[slices(block.core)] = filled_ground(parts_m, block, 1.0)[0]
    assert np.abs(filled_m - fill_gaps(expected_m)).max() < 0.05


def test_far_from_ground_any_elevation_serves_and_the_distance_is_infinite() -> None:
    measured_m = np.full((40, 40), np.nan)
    whole = next(blocks((40, 40), 40, 0))
    elevation_m, gap_m = filled_ground(measured_m, whole, 1.0)
    assert np.isfinite(elevation_m).all() and np.isinf(gap_m).all()
    measured_m[0, 0] = 7
    elevation_m, gap_m = filled_ground(measured_m, whole, 0.5)
    assert elevation_m == pytest.approx(7)
    assert gap_m[3, 4] == 2.5


@pytest.mark.parametrize("shape", [(5, 7), (2, 2), (1, 6), (4, 1), (1, 1)])
def test_slopes_go_on_to_the_border(shape: tuple[int, int]) -> None:
    plane = 3 + 0.5 * np.arange(shape[0])[:, None] - 0.25 * np.arange(shape[1])
    wide = np.full((shape[0] + 2, shape[1] + 2), np.nan)
    wide[1:-1, 1:-1] = plane
    extrapolated(wide)
    down, right = 0.5 * (shape[0] > 1), -0.25 * (shape[1] > 1)
    assert wide[0, 0] == pytest.approx(plane[0, 0] - down - right)
    assert wide[-1, -1] == pytest.approx(plane[-1, -1] + down + right)
    if min(shape) > 1:
        np.testing.assert_allclose(wide, np.pad(plane, 1, mode="reflect", reflect_type="odd"))
