"""Outlines are those of GDAL's polygonizer, with holes filled and stray pieces left out."""

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from canopy.products.crowns import NO_TREE
from canopy.products.outlines import keep_pieces_of_tops, outlines

PLACED = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def test_no_trees_have_no_outlines() -> None:
    assert outlines(np.full((3, 4), NO_TREE, np.int32), PLACED).size == 0


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(3, 12))
def test_outlines_by_the_polygonizer(seed: int, count: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(-1, count, (side, side)).astype(np.int32)
    numbers, tops = np.unique(owner.ravel(), return_index=True)
    numbers, tops = numbers[numbers >= 0], tops[numbers >= 0]
    # Numbers without a gap, as trees have them.
    renumbered = np.full(count + 1, NO_TREE, np.int32)
    renumbered[numbers] = np.arange(numbers.size)
    owner = renumbered[owner]
    whole = keep_pieces_of_tops(owner, tops.astype(np.int32))
    assert ((whole == owner) | (whole == NO_TREE)).all()
    result = outlines(whole, PLACED)
    expected = {}
    for shape, number in rasterio.features.shapes(whole, mask=whole >= 0, connectivity=4, transform=PLACED):
        assert int(number) not in expected  # one piece each
        expected[int(number)] = shapely.Polygon(shapely.geometry.shape(shape).exterior)
    assert len(result) == len(expected) == numbers.size
    for number, polygon in enumerate(result):
        assert polygon.is_valid
        assert polygon.equals(expected[number])
        assert polygon.contains(shapely.Point(PLACED @ (tops[number] % side + 0.5, tops[number] // side + 0.5)))
