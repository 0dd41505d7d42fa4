"""Regridding: planes stay planes, means stay means, unknown stays unknown, windows change no bit."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.crs import CRS

from tiles.grid import Lattice
from tiles.regrid import Regridder
from tiles.windows import PixelWindow

UTM = CRS("EPSG:32612")
SOURCE = Lattice(UTM, 0.5)


def plane(window: PixelWindow) -> np.ndarray:
    """Heights that rise by 0.1 m a metre east and fall by 0.05 m a metre south."""
    rows, cols = np.meshgrid(np.arange(window.row0, window.row1), np.arange(window.col0, window.col1), indexing="ij")
    return (0.1 * 0.5 * (cols + 0.5) - 0.05 * 0.5 * (rows + 0.5)).astype(np.float32)


@pytest.mark.parametrize(("cell_m", "samples"), [(0.4, 1), (0.5, 1), (1.0, 2), (3.7, 7)])
def test_a_plane_stays_that_plane_on_any_grid(cell_m: float, samples: int) -> None:
    regridder = Regridder(SOURCE, UTM, Affine(cell_m, 0, 0.13, 0, -cell_m, 0.21))
    window = PixelWindow(-4, 6, 9, 11)
    assert regridder.samples(window) == samples
    source = regridder.cover(window)
    heights = regridder.regrid(plane(source), source, window, samples)
    east_m = 0.13 + cell_m * (np.arange(6, 17) + 0.5)
    south_m = cell_m * (np.arange(-4, 5) + 0.5) - 0.21
    np.testing.assert_allclose(heights, 0.1 * east_m[None] - 0.05 * south_m[:, None], atol=1e-5)


def test_a_cell_has_the_same_bits_through_every_window() -> None:
    regridder = Regridder(SOURCE, CRS("EPSG:3857"), Affine(0.7, 0, -12_356_000, 0, -0.7, 5_500_000))
    whole = PixelWindow(3, 5, 20, 30)
    part = PixelWindow(9, 17, 4, 6)
    results = []
    for window in (whole, part):
        source = regridder.cover(window)
        noise = np.sin(plane(source) * 977).astype(np.float32)
        results.append(regridder.regrid(noise, source, window, 1))
    np.testing.assert_array_equal(results[0][part.slices_in(whole)], results[1])


def test_a_cell_is_known_where_half_of_it_is() -> None:
    regridder = Regridder(SOURCE, UTM, Affine(2, 0, 0, 0, -2, 0))
    window = PixelWindow(0, 0, 3, 4)
    source = regridder.cover(window)
    heights = np.full(source.shape, 7, np.float32)
    heights[:, np.arange(source.col0, source.col1) >= 11] = np.nan
    cells = regridder.regrid(heights, source, window, 4)
    np.testing.assert_array_equal(cells[:, :3], np.float32(7))
    assert np.isnan(cells[:, 3]).all()


def test_a_mask_takes_the_value_under_the_centre_and_nothing_outside() -> None:
    regridder = Regridder(SOURCE, UTM, Affine(1, 0, 0, 0, -1, 0), source_affine=Affine(0.5, 0, 1, 0, -0.5, 0))
    mask = np.arange(1, 13, dtype=np.uint8).reshape(2, 6)
    values = regridder.nearest(mask, PixelWindow(0, 0, 2, 6), PixelWindow(0, 0, 2, 5))
    assert values.tolist() == [[0, 8, 10, 12, 0], [0, 0, 0, 0, 0]]
