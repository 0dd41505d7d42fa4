"""Statistics of polygons equal what a person computes by hand from the cells."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from rasters import make_raster

from tiles import zonal
from tiles.cog import UNCERTAINTY_BANDS
from tiles.errors import AOIError, RasterError
from tiles.zonal import Interval, zone_statistics

UTM = "EPSG:32633"
X, Y = 500_000.0, 5_000_000.0
"""Top left corner of the maps: on the lattice of 10 m."""


def make_map(path: Path, values: np.ndarray, resolution: float = 1.0, **options: object) -> Path:
    settings = {"crs": UTM, "origin": (X, Y), "resolution": resolution, "dtype": "float32", "nodata": math.nan}
    return make_raster(path, values=values if values.ndim == 3 else values[None], **(settings | options))


def zone(left: float, bottom: float, right: float, top: float) -> Geometry:
    """Return a rectangle in metres from the map's top left corner; y grows northward."""
    return Geometry(shapely.box(X + left, Y + bottom, X + right, Y + top), CRS(UTM))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 x 20 cells of 1 m: the height is the number of the column, and the last row is unknown."""
    values = np.tile(np.arange(20.0), (20, 1))
    values[19] = np.nan
    return make_map(tmp_path_factory.mktemp("zonal") / "steps.tif", values)


def test_whole_cells_count_once(steps: Path) -> None:
    (result,) = zone_statistics(steps, [zone(2, -4, 6, 0)], threshold_m=3, edges_m=(0, 3, 4, 10))
    assert result.mean_m == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert (result.max_m, result.p95_m, result.cover, result.known_share) == (5, 5, 0.5, 1)
    assert result.area_m2 == pytest.approx(16, rel=1e-3)  # the scale of UTM at its central meridian is .9996
    assert np.array(result.histogram_m2) / result.area_m2 == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert result.interval is None
    assert result.h100_m is None  # 4 x 4 m are less than half a square


def test_cells_weigh_by_their_share_inside(steps: Path) -> None:
    """Column 2 lies inside by 3/4, column 3 as a whole, column 4 by 1/4: 3/8, 4/8 and 1/8 of the polygon."""
    (result,) = zone_statistics(steps, [zone(2.25, -4, 4.25, -1)], threshold_m=2, edges_m=(0, 3, 4, 10))
    assert result.mean_m == pytest.approx(2 * 3 / 8 + 3 * 4 / 8 + 4 * 1 / 8)
    assert result.cover == pytest.approx(5 / 8)
    assert np.array(result.histogram_m2) / result.area_m2 == pytest.approx([3 / 8, 4 / 8, 1 / 8])
    assert result.max_m == 3  # most of column 4 lies outside
    assert result.p95_m == 4


def test_unknown_cells_have_no_weight(steps: Path) -> None:
    (result,) = zone_statistics(steps, [zone(0, -20, 10, -18)])
    assert result.known_share == pytest.approx(0.5)
    assert result.mean_m == pytest.approx(4.5)
    (unknown,) = zone_statistics(steps, [zone(0, -20, 10, -19)])
    assert (unknown.known_share, unknown.meets_map) == (0, True)
    assert (unknown.mean_m, unknown.p95_m, unknown.max_m, unknown.cover, unknown.h100_m) == (None,) * 5
    assert set(unknown.histogram_m2) == {0}


def test_outside_and_half_outside(steps: Path) -> None:
    outside, half = zone_statistics(steps, [zone(30, -4, 40, 0), zone(-10, -10, 10, 0)])
    assert (outside.known_share, outside.mean_m) == (0, None)
    assert (outside.meets_map, half.meets_map) == (False, True)
    assert outside.area_m2 == pytest.approx(40, rel=1e-3)
    assert half.known_share == pytest.approx(0.5)
    assert half.mean_m == pytest.approx(4.5)


def test_top_height_is_the_mean_of_the_highest_cells_of_squares(steps: Path) -> None:
    """Of four squares of 10 m the maxima are 9 and 19, twice; the squares count though a row is unknown."""
    (result,) = zone_statistics(steps, [zone(0, -20, 20, 0)])
    assert result.h100_m == pytest.approx((9 + 19) / 2)


@pytest.mark.parametrize(("left", "expected"), [(5, (9 + 19) / 2), (5.25, 19)])
def test_squares_count_from_half_known(steps: Path, left: float, expected: float) -> None:
    (result,) = zone_statistics(steps, [zone(left, -10, 20, 0)])
    assert result.h100_m == pytest.approx(expected)


def test_squares_lie_on_the_lattice_of_the_crs_not_of_the_map(tmp_path: Path) -> None:
    """A map that begins 5 m east of a square: its columns are 5, 10 and 5 m of three squares."""
    path = make_map(tmp_path / "a.tif", np.tile(np.arange(20.0), (10, 1)), origin=(X + 5, Y))
    (result,) = zone_statistics(path, [zone(0, -10, 30, 0)])
    assert result.h100_m == pytest.approx((4 + 14 + 19) / 3)


@pytest.mark.parametrize("cells", [1, 25, 50, 170, 10**6])
def test_strips_change_nothing(steps: Path, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    area = Geometry(shapely.Point(X + 9.7, Y - 9.2).buffer(8.3), CRS(UTM))
    (whole,) = zone_statistics(steps, [area])
    monkeypatch.setattr(zonal, "_STRIP_CELLS", cells)
    (cut,) = zone_statistics(steps, [area])
    assert cut.mean_m == pytest.approx(whole.mean_m, rel=1e-12)
    assert cut.histogram_m2 == pytest.approx(whole.histogram_m2, rel=1e-12)
    assert (cut.p95_m, cut.max_m, cut.h100_m) == (whole.p95_m, whole.max_m, whole.h100_m)


def test_interval_is_the_mean_of_the_bounds(tmp_path: Path) -> None:
    heights = np.full((10, 10), 5.0)
    values = np.stack([heights, heights - 3, heights + np.arange(10.0)])
    values[1, :, 0] = np.nan
    path = make_map(tmp_path / "a.tif", values, descriptions=UNCERTAINTY_BANDS)
    (result,) = zone_statistics(path, [zone(0, -10, 4, 0)])
    assert result.interval == Interval(2.0, 5.0 + (1 + 2 + 3) / 3)
    assert result.interval.width_m == pytest.approx(5)
    (upper,) = zone_statistics(path, [zone(0, -10, 4, 0)], band="canopy_height_p95")
    assert upper.mean_m == pytest.approx(5 + 1.5)


def test_equals_exactextract_on_a_slanted_polygon_with_a_hole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 30, (60, 80)).astype(np.float32)
    path = make_map(tmp_path / "a.tif", values, resolution=0.5)
    ring = [(X + 3.1, Y - 2.2), (X + 37.3, Y - 8.7), (X + 30.2, Y - 28.4), (X + 6.6, Y - 24.9)]
    area = shapely.Polygon(ring, [shapely.Point(X + 20, Y - 15).buffer(4.3).exterior.coords])
    (result,) = zone_statistics(path, [Geometry(area, CRS(UTM))])
    source = NumPyRasterSource(values, X, Y - 30, X + 40, Y)
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(area)}
    (expected,) = exact_extract(source, [feature], ["mean", "count", "quantile(q=0.95)"])
    assert result.mean_m == pytest.approx(expected["properties"]["mean"], rel=1e-6)
    assert result.p95_m == pytest.approx(expected["properties"]["quantile_95"], abs=0.02)
    assert result.known_share == pytest.approx(expected["properties"]["count"] * 0.25 / area.area, rel=1e-6)


def test_polygons_of_another_crs_are_brought_to_the_maps(steps: Path) -> None:
    utm = zone(2, -4, 6, 0)
    move = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform
    lonlat = Geometry(shapely.transform(utm.geom, lambda xy: np.column_stack(move(*xy.T))), CRS("EPSG:4326"))
    (expected,), (result,) = zone_statistics(steps, [utm]), zone_statistics(steps, [lonlat])
    assert result.mean_m == pytest.approx(expected.mean_m, rel=1e-6)
    assert result.area_m2 == pytest.approx(expected.area_m2, rel=1e-6)


def test_web_mercator_squares_are_true_metres(tmp_path: Path) -> None:
    """At 60 degrees north two units are a metre, so squares of 10 m are 20 cells wide."""
    y = math.log(math.tan(math.pi / 4 + math.radians(60) / 2)) * 6_378_137
    corner = (0.0, round(y / 20) * 20.0)
    path = make_map(tmp_path / "a.tif", np.tile(np.arange(40.0), (40, 1)), crs="EPSG:3857", origin=corner)
    area = Geometry(shapely.box(corner[0], corner[1] - 40, corner[0] + 40, corner[1]), CRS("EPSG:3857"))
    (result,) = zone_statistics(path, [area])
    assert result.area_m2 == pytest.approx(400, rel=0.01)
    assert result.h100_m == pytest.approx((19 + 39) / 2, abs=1)


def test_cells_larger_than_squares_have_no_top_height(tmp_path: Path) -> None:
    path = make_map(tmp_path / "a.tif", np.arange(4.0).reshape(2, 2), resolution=30)
    (result,) = zone_statistics(path, [zone(0, -60, 60, 0)])
    assert (result.h100_m, result.mean_m) == (None, pytest.approx(1.5))


def test_masks_and_declared_nodata_are_unknown(tmp_path: Path) -> None:
    values = np.full((10, 10), 6.0)
    values[:, 5:], values[0, 0] = -9999, np.inf
    path = make_map(tmp_path / "a.tif", values, nodata=-9999.0)
    (result,) = zone_statistics(path, [zone(0, -10, 10, 0)])
    assert (result.mean_m, result.known_share) == (6, pytest.approx(0.49))


def test_heights_beyond_the_edges_are_in_the_end_bins(steps: Path) -> None:
    (result,) = zone_statistics(steps, [zone(0, -1, 20, 0)], edges_m=(5, 10, 15))
    assert np.array(result.histogram_m2) / result.area_m2 == pytest.approx([0.5, 0.5])


def test_memory_does_not_grow_with_the_polygon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zonal, "_STRIP_CELLS", 10_000)
    path = make_map(tmp_path / "a.tif", np.zeros((1200, 500), np.float32))
    peaks = []
    for rows in (300, 1200):
        tracemalloc.start()
        zone_statistics(path, [zone(0.5, -rows, 499.5, -0.5)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"band": "p99"}, RasterError, "has no band 'p99', expected one of"),
        ({"band": 2}, RasterError, "has no band 2, expected 1 to 1"),
        ({"edges_m": (1.0,)}, RasterError, "edges of the histogram"),
        ({"edges_m": (1.0, math.nan)}, RasterError, "edges of the histogram"),
        ({"max_cells": 10}, AOIError, "the polygons span 16 cells, expected at most 10"),
    ],
)
def test_unusable_options_are_refused(steps: Path, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        zone_statistics(steps, [zone(2, -4, 6, 0)], **options)


def test_unusable_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="cannot be read"):
        zone_statistics(tmp_path / "none.tif", [zone(0, 0, 1, 1)])
    south_up = make_map(tmp_path / "a.tif", np.zeros((4, 4)), resolution=(1.0, -1.0))
    with pytest.raises(RasterError, match="expected north up"):
        zone_statistics(south_up, [zone(0, 0, 1, 1)])
    nowhere = make_map(tmp_path / "b.tif", np.zeros((4, 4)), crs=None)
    with pytest.raises(RasterError, match="has no CRS"):
        zone_statistics(nowhere, [zone(0, 0, 1, 1)])
