"""Maps of two grids on one lattice, and the shift between them."""

from pathlib import Path

import numpy as np
import pytest
from product_maps import height_map

from canopy.errors import ProductError
from canopy.example.stand import Stand, make_stand
from canopy.products.alignment import align
from canopy.products.reading import open_map


@pytest.fixture(scope="module")
def stand() -> Stand:
    return make_stand(80, seed=7)


def write(path: Path, stand: Stand, heights: np.ndarray, east: float = 0, north: float = 0, cell: float = 0.5) -> Path:
    origin = stand.origin[0] + east, stand.origin[1] + north
    return height_map(path, heights, crs=stand.crs, origin=origin, resolution=cell)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.5, -1.0)])
def test_a_shift_is_taken_back(stand: Stand, tmp_path: Path, shift: tuple[float, float]) -> None:
    first = write(tmp_path / "a.tif", stand, stand.observe(0.5, 1))
    second = write(tmp_path / "b.tif", stand, stand.observe(0.5, 2), *shift)
    with open_map(first) as one, open_map(second) as other:
        pair = align(one, other)
        assert pair.target is other
        assert (pair.offset.x_m, pair.offset.y_m) == shift
        assert pair.offset.applied == (shift != (0, 0))
        difference = pair.second.read(pair.window) - pair.first.read(pair.window)
        assert np.nanmean(np.abs(difference)) < 0.8
        assert str(pair.offset).startswith("moved by +1.5 m east and -1.0 m north" if any(shift) else "lies right")
        assert not align(one, other, search_m=0).offset.applied


def test_the_coarser_map_gives_the_cells(stand: Stand, tmp_path: Path) -> None:
    fine = stand.observe(0, 1)
    coarse = fine.reshape(80, 2, 80, 2).mean(axis=(1, 3))
    paths = write(tmp_path / "a.tif", stand, coarse, cell=1.0), write(tmp_path / "b.tif", stand, fine)
    with open_map(paths[0]) as one, open_map(paths[1], error_m=1) as other:
        pair = align(one, other, search_m=0)
        assert pair.target is one
        np.testing.assert_allclose(pair.second.read(pair.window), coarse, atol=1e-4)
        assert not pair.has_intervals
        assert pair.first.read_interval(pair.window) is None
        low_m, high_m = pair.second.read_interval(pair.window) or (None, None)
        np.testing.assert_allclose(high_m - low_m, 2 * 1.645, atol=1e-2)


def test_maps_of_different_heights_are_not_moved(stand: Stand, tmp_path: Path) -> None:
    first = write(tmp_path / "a.tif", stand, stand.observe(0.5, 1))
    second = write(tmp_path / "b.tif", stand, make_stand(80, seed=8).observe(0.5, 2))
    with open_map(first) as one, open_map(second) as other:
        offset = align(one, other).offset
        assert not offset.applied
        assert str(offset).startswith("not moved")


def test_no_shift_is_looked_for_beyond_the_search(stand: Stand, tmp_path: Path) -> None:
    first = write(tmp_path / "a.tif", stand, stand.observe(0.5, 1))
    second = write(tmp_path / "b.tif", stand, stand.observe(0.5, 2), 4.0, 0.0)
    with open_map(first) as one, open_map(second) as other:
        assert align(one, other, search_m=6).offset.x_m == 4
        assert not align(one, other, search_m=2).offset.applied


def test_maps_without_common_ground_are_refused(stand: Stand, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, stand, stand.chm_m, east) for name, east in (("a.tif", 0), ("b.tif", 500)))
    with open_map(first) as one, open_map(second) as other, pytest.raises(ProductError, match="no ground in common"):
        align(one, other)
