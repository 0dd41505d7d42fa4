"""Shares of cells equal the areas of intersections, wherever the polygon lies to the grid."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tiles.shares import cell_shares

SHAPE = (5, 6)
BOUNDS = (10.0, 20.0, 22.0, 30.0)
"""Cells of 2 by 2."""


def intersections(area: shapely.Geometry) -> np.ndarray:
    left, top = np.meshgrid(np.arange(10.0, 22, 2), np.arange(30.0, 20, -2))
    return shapely.area(shapely.intersection(area, shapely.box(left, top - 2, left + 2, top))) / 4


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=3, max_size=9))
def test_shares_are_areas_of_intersections(corners: list[tuple[int, int]]) -> None:
    """Corners lie on a lattice finer than the cells, so that edges run along and through the lines of the grid."""
    points = np.array(corners) * 0.5 + (2, 10)
    area = shapely.buffer(shapely.make_valid(shapely.Polygon(points)), 0)
    if not area.is_empty:
        np.testing.assert_allclose(cell_shares(area, BOUNDS, SHAPE), intersections(area), atol=1e-9)


@pytest.mark.parametrize(
    "area",
    [
        shapely.box(10, 20, 22, 30),
        shapely.box(0, 0, 100, 100),
        shapely.box(30, 20, 40, 30),
        shapely.box(14, 24, 18, 26),
        shapely.Point(15.3, 25.1).buffer(4.7).difference(shapely.Point(15, 25).buffer(1.3)),
        shapely.MultiPolygon([shapely.box(9, 21, 13, 23), shapely.box(17.5, 26.5, 30, 40)]),
        shapely.Polygon([(-1e6, -1e6), (1e6, -9e5), (16, 27)]),
    ],
)
def test_whole_cells_holes_parts_and_far_corners(area: shapely.Geometry) -> None:
    shares = cell_shares(area, BOUNDS, SHAPE)
    np.testing.assert_allclose(shares, intersections(area), atol=1e-7)
    whole = intersections(area) == 1
    np.testing.assert_array_equal(shares[whole], 1)
