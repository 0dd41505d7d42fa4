"""Units and true distances, against closed forms of the projections."""

import math

import pytest
from affine import Affine
from pyproj import CRS, Transformer

from tiles.ground import METRES_PER_DEGREE, is_metric, metres_per_unit, scale_error, true_gsd_m, unit_m


def test_units_are_read_from_the_crs() -> None:
    assert unit_m(CRS(32612)) == 1
    assert unit_m(CRS(2256)) == pytest.approx(0.3048)
    assert unit_m(CRS(4326)) == METRES_PER_DEGREE
    assert is_metric(CRS(3857))
    assert not is_metric(CRS(2256))
    assert not is_metric(CRS(4326))


@pytest.mark.parametrize("code", ["EPSG:3857", "EPSG:3395", "ESRI:54004"])
def test_every_mercator_stretches_the_ground_by_its_latitude(code: str) -> None:
    crs = CRS(code)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(10.0, 60.0)
    # east: the radius of the parallel over that of the map, on the ellipsoid
    e2 = 0.00669437999014
    east = math.cos(math.radians(60)) / math.sqrt(1 - e2 * math.sin(math.radians(60)) ** 2)
    assert metres_per_unit(crs, x, y)[0] == pytest.approx(east, rel=1e-4)
    assert scale_error(crs, x, y) == pytest.approx(0.5, abs=0.01)
    assert true_gsd_m(Affine(1, 0, x, 0, -1, y), (2, 2), crs) == pytest.approx(0.5, abs=0.005)


def test_utm_keeps_distances_to_four_in_ten_thousand() -> None:
    assert metres_per_unit(CRS(32612), 500000, 4900000)[0] == pytest.approx(1 / 0.9996, rel=1e-5)
    assert true_gsd_m(Affine(0.5, 0, 500000, 0, -0.5, 4900000), (10, 10), CRS(32612)) == pytest.approx(0.5002, abs=1e-4)


def test_degrees_shrink_eastward_with_latitude() -> None:
    east_m, north_m = metres_per_unit(CRS("OGC:CRS84"), 10, 60)
    assert east_m == pytest.approx(55_800, rel=1e-3)
    assert north_m == pytest.approx(111_412, rel=1e-3)


def test_the_longer_side_of_an_oblong_pixel_counts() -> None:
    assert true_gsd_m(Affine(0.5, 0, 500000, 0, -2, 4900000), (10, 10), CRS(32612)) == pytest.approx(2.0, rel=1e-3)
