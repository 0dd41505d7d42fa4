import math

import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canopy.imagery.tiled.matrices import (
    TileKey,
    TileMatrix,
    choose_matrix,
    mercator_crs,
    mercator_matrix,
    of_quadkey,
    quadkey,
)

GEOGRAPHIC = pyproj.CRS.from_epsg(4326).to_wkt()


@given(st.integers(1, 24).flatmap(lambda z: st.tuples(st.just(z), *[st.integers(0, 2**z - 1)] * 2)))
def test_quadkeys_name_one_tile(numbers: tuple[int, int, int]) -> None:
    key = TileKey(*numbers)
    assert of_quadkey(quadkey(key)) == key
    assert len(quadkey(key)) == key.zoom


def test_a_quadkey_of_the_specification() -> None:
    # The example of the Bing Maps tile system: tile 3, 5 of level 3 is 213.
    assert quadkey(TileKey(3, 3, 5)) == "213"


@pytest.mark.parametrize("lat", [0, 45, 60, -60])
def test_pixels_shrink_with_latitude(lat: float) -> None:
    equator = 156_543.03392804097 / 2**17
    assert mercator_matrix(17).gsd_m(10, lat) == pytest.approx(equator * math.cos(math.radians(lat)), rel=0.004)


def test_degrees_are_measured_along_their_longer_side() -> None:
    matrix = TileMatrix("0", 0, GEOGRAPHIC, -180, 90, 1e-5, (256, 256), 10, 10)
    assert matrix.gsd_m(10, 60) == pytest.approx(1.114, abs=0.002)


def test_larger_tiles_have_the_same_ground() -> None:
    small, large = mercator_matrix(17), mercator_matrix(16, 512)
    assert large.pixel == pytest.approx(small.pixel)
    assert large.columns * 512 == small.columns * 256


@pytest.mark.parametrize(
    ("gsd_m", "zoom"), [(0.59, 18), (0.597, 17 + 1), (0.6, 18), (1.19, 17), (1.184, 17), (1.18, 18), (0.1, 18), (9, 15)]
)
def test_the_coarsest_matrix_that_is_fine_enough(gsd_m: float, zoom: int) -> None:
    matrices = [mercator_matrix(number) for number in (15, 16, 17, 18)]
    assert choose_matrix(matrices, gsd_m, 0, 0).zoom == zoom


def test_a_place_outside_the_crs_gets_the_finest() -> None:
    matrices = [mercator_matrix(number) for number in (15, 16)]
    assert choose_matrix(matrices, 1e9, 0, 95).zoom == 16


def test_limits_say_where_tiles_are() -> None:
    matrix = TileMatrix("3", 3, mercator_crs(), 0, 0, 1, (256, 256), 8, 8, (2, 3, 4, 5))
    assert matrix.may_have(TileKey(3, 2, 3)) and matrix.may_have(TileKey(3, 4, 5))
    assert not any(matrix.may_have(TileKey(3, *key)) for key in ((1, 3), (5, 3), (2, 2), (2, 6)))


def test_the_world_closes_on_itself() -> None:
    assert mercator_matrix(4).spans_world
    assert TileMatrix("0", 0, GEOGRAPHIC, -180, 90, 360 / 512, (256, 256), 2, 1).spans_world
    assert not TileMatrix("0", 0, GEOGRAPHIC, -180, 90, 360 / 512, (256, 256), 1, 1).spans_world
