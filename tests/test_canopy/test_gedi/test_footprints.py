"""Statistics in footprints against brute force, on any grid."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from gedi_shots import ORIGIN, points, woodland, write_map
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasters import make_raster

from canopy.errors import RasterError
from canopy.gedi.footprints import COVER_HEIGHT_M, FOOTPRINT_SIGMA_M, footprint_statistics


def brute(heights: np.ndarray, x: float, y: float, radius_m: float) -> np.ndarray:
    rows, cols = np.indices(heights.shape)
    distance_m = np.hypot(cols + 0.5 - (x - ORIGIN[0]), rows + 0.5 - (ORIGIN[1] - y))
    inside = heights[distance_m <= radius_m]
    known = inside[~np.isnan(inside)]
    if not known.size:
        return np.array([np.nan, np.nan, np.nan, np.nan, 1.0])
    unknown = np.isnan(inside).mean()
    return np.array([known.mean(), *np.percentile(known, (95, 98)), (known >= COVER_HEIGHT_M).mean(), unknown])


@given(seed=st.integers(0, 1000), radius=st.floats(3, 20))
@settings(max_examples=8)
def test_discs_are_those_of_brute_force(tmp_path_factory: pytest.TempPathFactory, seed: int, radius: float) -> None:
    generator = np.random.default_rng(seed)
    heights = woodland(140, seed)
    heights[60:80, 30:70] = np.nan
    path = write_map(tmp_path_factory.mktemp("disc") / "map.tif", heights)
    x, y = ORIGIN[0] + generator.uniform(25, 115, 30), ORIGIN[1] - generator.uniform(25, 115, 30)
    statistics = footprint_statistics(path, points(x, y), radius_m=radius)
    # UTM measures up to 0.04 % short here: cells on the rim may fall either way.
    expected = np.stack([brute(heights, *centre, radius) for centre in zip(x, y, strict=True)])
    np.testing.assert_allclose(statistics[["mean", "p95", "p98"]], expected[:, :3], atol=0.35)
    np.testing.assert_allclose(statistics[["cover", "unknown_share"]], expected[:, 3:], atol=0.04)
    np.testing.assert_allclose(np.abs(statistics["mean"] - expected[:, 0]).mean(), 0, atol=0.03)


def test_the_gaussian_weighs_the_middle(tmp_path: Path) -> None:
    heights = woodland(140)
    path = write_map(tmp_path / "map.tif", heights)
    statistics = footprint_statistics(path, points([500_070.3], [3_999_929.8]), weighting="gaussian")
    rows, cols = np.indices(heights.shape)
    squared_m2 = (cols + 0.5 - 70.3) ** 2 + (rows + 0.5 - 70.2) ** 2
    weight = np.where(squared_m2 <= 25**2, np.exp(-squared_m2 / (2 * FOOTPRINT_SIGMA_M**2)), 0)
    cover = (weight * (heights >= COVER_HEIGHT_M)).sum() / weight.sum()
    assert statistics["mean"].iloc[0] == pytest.approx((weight * heights).sum() / weight.sum(), abs=0.05)
    assert statistics["cover"].iloc[0] == pytest.approx(cover, abs=0.01)


def test_the_gaussian_counts_unknown_weight(tmp_path: Path) -> None:
    heights = np.full((140, 140), 7.0, np.float32)
    heights[:, :70] = np.nan
    path = write_map(tmp_path / "map.tif", heights)
    row = footprint_statistics(path, points([500_070.0], [3_999_930.0]), weighting="gaussian").iloc[0]
    assert row["unknown_share"] == pytest.approx(0.5, abs=0.01)
    assert (row["mean"], row["p95"], row["p98"], row["cover"]) == (7, 7, 7, 1)


def test_discs_are_metres_on_the_ground_in_any_crs(tmp_path: Path) -> None:
    """A half-plane of trees seen from 5 m off its edge, on a mercator grid at 60 degrees north (scale 2)."""
    to_mercator = Transformer.from_crs(4326, 3857, always_xy=True)
    x, y = to_mercator.transform(10.0, 60.0)
    columns = np.arange(200)
    heights = np.where(columns >= 110, 20.0, 0.0)[None].repeat(200, axis=0).astype(np.float32)
    transform = Affine(1.0, 0, x - 100, 0, -1.0, y + 100)
    path = make_raster(tmp_path / "m.tif", values=heights[None], dtype="float32", crs="EPSG:3857", transform=transform)
    statistics = footprint_statistics(path, points(np.array([10.0]), np.array([60.0]), "EPSG:4326")).iloc[0]
    part = 5.0 / 12.5
    expected = (np.arccos(part) - part * np.sqrt(1 - part**2)) / np.pi
    assert statistics["cover"] == pytest.approx(expected, abs=0.01)
    assert statistics["edge"]


def test_shots_off_the_map_and_on_unknown_cells_are_said(tmp_path: Path) -> None:
    heights = woodland(100)
    heights[:, 60:] = np.nan
    path = write_map(tmp_path / "map.tif", heights)
    x, y = np.array([500_030, 500_080, 600_000]), np.array([3_999_950.0] * 3)
    statistics = footprint_statistics(path, points(x, y))
    assert statistics["on_map"].tolist() == [True, True, False]
    assert statistics["unknown_share"].tolist() == [0, 1, 1]
    assert statistics["p98"].isna().tolist() == [False, True, True]


def test_the_order_of_shots_stays_however_they_lie(tmp_path: Path) -> None:
    heights = np.arange(2500, dtype=np.float32)[None].repeat(40, axis=0) / 100
    path = write_map(tmp_path / "long.tif", heights)
    x = np.random.default_rng(0).permutation(np.linspace(20, 2480, 300)) + ORIGIN[0]
    statistics = footprint_statistics(path, points(x, np.full(300, 3_999_980.0)))
    np.testing.assert_allclose(statistics["mean"], (x - ORIGIN[0] - 0.5) / 100, atol=0.01)


def test_offsets_move_shots_by_metres(tmp_path: Path) -> None:
    heights = np.arange(200, dtype=np.float32)[None].repeat(200, axis=0)
    path = write_map(tmp_path / "ramp.tif", heights)
    shot = points([500_100.0], [3_999_900.0])
    still = footprint_statistics(path, shot)["mean"].iloc[0]
    for offset_m, change_m in (((10.0, 0.0), 10), ((-10.0, 0.0), -10), ((0.0, 10.0), 0)):
        moved = footprint_statistics(path, shot, offset_m=offset_m)["mean"].iloc[0]
        assert moved - still == pytest.approx(change_m, abs=0.1)


def test_progress_counts_squares_of_the_raster(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", np.zeros((60, 5000), np.float32))
    reports = []
    x = ORIGIN[0] + np.array([30.0, 2500.0, 4900.0, 40.0])
    footprint_statistics(path, points(x, np.full(4, ORIGIN[1] - 30)), report=reports.append)
    assert [(now.done, now.total) for now in reports] == [(1, 3), (2, 3), (3, 3)]


def test_a_map_without_crs_is_refused(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "n.tif", values=woodland(60)[None], dtype="float32", crs=None)
    with pytest.raises(RasterError, match="CRS"):
        footprint_statistics(path, points([500_030.0], [3_999_950.0]))


def test_a_map_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.tif").write_text("no map")
    with pytest.raises(RasterError, match="cannot read"):
        footprint_statistics(tmp_path / "no.tif", points([500_030.0], [3_999_950.0]))
