"""Lattices and tiles: the integers that become of areas."""

import re

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from shapely.geometry import MultiPolygon, Polygon

from tiles.aoi import to_crs
from tiles.grid import Lattice, TileGrid, rasterize
from tiles.windows import PixelWindow

WGS84, UTM32, MERCATOR = CRS("EPSG:4326"), CRS("EPSG:32632"), CRS("EPSG:3857")
SQUARE = shapely.box(10, 50, 11, 51)
BOWTIE = Polygon([(10, 50), (12, 52), (12, 50), (10, 52)])
FIJI = [(178, -19), (-178, -19), (-178, -16), (178, -16)]

windows = st.builds(PixelWindow, *[st.integers(-(10**7), 10**7)] * 2, *[st.integers(1, 300)] * 2)


# --- windows and lattices


def test_window_gives_its_ends_and_shape():
    window = PixelWindow(-2, 3, 5, 7)
    assert (window.row1, window.col1, window.shape) == (3, 10, (5, 7))
    assert window.pad(2) == PixelWindow(-4, 1, 9, 11)
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        window.pad(-3)


def test_windows_intersect_where_they_share_pixels():
    window = PixelWindow(0, 0, 4, 4)
    assert window.intersect(PixelWindow(2, -1, 9, 2)) == PixelWindow(2, 0, 2, 1)
    assert window.intersect(PixelWindow(4, 0, 1, 1)) is None


@given(windows, st.integers(0, 50))
def test_slices_find_the_window_again(window, px):
    outer = window.pad(px)
    rows, cols = window.slices_in(outer)
    assert (outer.row0 + rows.start, outer.col0 + cols.start) == (window.row0, window.col0)
    assert (rows.stop - rows.start, cols.stop - cols.start) == window.shape


def test_slices_refuse_a_window_that_is_not_inside():
    with pytest.raises(ValueError, match="is not inside"):
        PixelWindow(0, 0, 4, 4).slices_in(PixelWindow(1, 0, 4, 4))


@pytest.mark.parametrize("resolution", [0, -1, float("nan"), float("inf")])
def test_lattice_refuses_a_resolution_that_is_no_length(resolution):
    with pytest.raises(ValueError, match="expected a positive number"):
        Lattice(UTM32, resolution)


def test_geobox_counts_from_the_crs_origin():
    geobox = Lattice(UTM32, 0.5).geobox(PixelWindow(-200, 10, 3, 4))
    assert geobox.shape == (3, 4)
    assert geobox.crs == UTM32
    assert tuple(geobox.affine)[:6] == (0.5, 0, 5, 0, -0.5, 100)


@given(windows, st.sampled_from([0.1, 0.3, 0.5, 0.597164, 1.0, 10.0]))
def test_a_geobox_gives_its_window_back(window, resolution):
    lattice = Lattice(UTM32, resolution)
    geobox = lattice.geobox(window)
    assert lattice.window(geobox.boundingbox) == window
    assert lattice.window(geobox.extent) == window


def test_window_takes_what_the_area_enters_not_what_it_touches():
    lattice = Lattice(UTM32, 10)
    assert lattice.window(BoundingBox(0, 0, 20, 30)) == PixelWindow(-3, 0, 3, 2)
    assert lattice.window(BoundingBox(-1e-6, -1e-6, 20.000001, 30.000001)) == PixelWindow(-3, 0, 3, 2)
    assert lattice.window(BoundingBox(-0.01, -0.01, 20.01, 30.01)) == PixelWindow(-4, -1, 5, 4)


def test_window_of_an_area_smaller_than_a_pixel_is_that_pixel():
    assert Lattice(UTM32, 10).window(BoundingBox(13, 13, 13.5, 13.5)) == PixelWindow(-2, 1, 1, 1)


def test_window_refuses_another_crs_and_nothing():
    with pytest.raises(ValueError, match="reproject it"):
        Lattice(UTM32, 10).window(box(0, 0, 1, 1, WGS84))
    with pytest.raises(ValueError, match="empty"):
        Lattice(UTM32, 10).window(Geometry(Polygon(), UTM32))


# --- tiles


areas = st.builds(
    lambda x, y, w, h: box(x, y, x + w, y + h, UTM32),
    *[st.floats(-500, 500)] * 2,
    *[st.floats(0.5, 300)] * 2,
)


@given(areas, st.integers(7, 80), st.sampled_from([0.7, 1.0, 3.3]))
@settings(deadline=None)
def test_tiles_partition_the_window(aoi, tile_px, resolution):
    grid = TileGrid(Lattice(UTM32, resolution), tile_px)
    window = grid.window(aoi)
    count = np.zeros(window.shape, int)
    for tile in grid.tiles(aoi):
        count[tile.window.slices_in(window)] += 1
        assert tile.geobox == grid.lattice.geobox(tile.window)
    assert (count == 1).all()


@given(areas, st.tuples(*[st.floats(0, 1)] * 4), st.integers(7, 80))
@settings(deadline=None)
def test_tiles_of_a_corner_are_parts_of_the_same_cells(aoi, cut, tile_px):
    grid = TileGrid(Lattice(UTM32, 1), tile_px)
    west, south, east, north = aoi.boundingbox
    xs, ys = np.sort(np.array(cut[:2])), np.sort(np.array(cut[2:]))
    if min(np.ptp(xs), np.ptp(ys)) < 0.01:
        return
    x, y = west + xs * (east - west), south + ys * (north - south)
    corner = box(x[0], y[0], x[1], y[1], UTM32)
    cells = {(tile.row, tile.col): tile.window for tile in grid.tiles(aoi)}
    window = grid.window(corner)
    for tile in grid.tiles(corner):
        assert tile.window == cells[tile.row, tile.col].intersect(window)


def test_tiles_leave_out_cells_that_the_area_misses_or_touches():
    grid = TileGrid(Lattice(UTM32, 1), 10)
    ell = Geometry(Polygon([(0, 0), (30, 0), (30, 10), (10, 10), (10, 30), (0, 30)]), UTM32)
    assert [(tile.row, tile.col) for tile in grid.tiles(ell)] == [(-3, 0), (-2, 0), (-1, 0), (-1, 1), (-1, 2)]


def test_tiles_cover_every_pixel_of_a_slanted_area():
    grid = TileGrid(Lattice(UTM32, 1), 16)
    aoi = Geometry(Polygon([(3.3, 1.2), (200.1, 90.7), (150.5, 180.2), (20, 77)]), UTM32)
    window = grid.window(aoi)
    mask = rasterize(aoi, grid.lattice.geobox(window))
    for tile in grid.tiles(aoi):
        mask[tile.window.slices_in(window)] = False
    assert not mask.any()


def test_tiles_run_down_macro_columns_of_sixteen():
    order = [(tile.row, tile.col) for tile in TileGrid(Lattice(UTM32, 1), 1).tiles(box(-2, 0, 33, 2, UTM32))]
    columns = [range(-2, 0), range(0, 16), range(16, 32), range(32, 33)]
    assert order == [(row, col) for cols in columns for row in (-2, -1) for col in cols]


def test_tile_names_are_unique_and_safe():
    tiles = TileGrid(Lattice(UTM32, 1), 1).tiles(box(-5, -5, 5, 5, UTM32))
    names = {tile.name for tile in tiles}
    assert len(names) == 100
    assert "r-0005_c0004" in names
    assert all(re.fullmatch(r"r-?\d{4}_c-?\d{4}", name) for name in names)


def test_tiles_take_an_area_in_any_crs():
    grid = TileGrid(Lattice(UTM32, 1), 100)
    aoi = box(500_010, 5_540_010, 500_190, 5_540_190, UTM32)
    lonlat = to_crs(aoi, WGS84)
    assert [tile.name for tile in grid.tiles(lonlat)] == [tile.name for tile in grid.tiles(aoi)]
    assert grid.window(lonlat).shape == (180, 180)


def test_tile_grid_refuses_tiles_without_pixels():
    with pytest.raises(ValueError, match="expected at least 1"):
        TileGrid(Lattice(UTM32, 1), 0)


# --- rasterizing

stars = st.builds(
    lambda x, y, radii: Geometry(
        Polygon(
            [
                (x + r * np.cos(a), y + r * np.sin(a))
                for r, a in zip(radii, np.linspace(0, 2 * np.pi, len(radii), endpoint=False), strict=True)
            ]
        ),
        UTM32,
    ),
    *[st.floats(-1e6, 1e6)] * 2,
    st.lists(st.floats(1, 30), min_size=3, max_size=9),
)


@given(stars, st.sampled_from([0.3, 0.5, 1.0, 0.597164]), st.data())
@settings(max_examples=60, deadline=None)
def test_rasterize_is_the_same_through_any_window(aoi, resolution, data):
    lattice = Lattice(UTM32, resolution)
    window = lattice.window(aoi).pad(3)
    whole = rasterize(aoi, lattice.geobox(window))
    row, col = (data.draw(st.integers(0, size - 1)) for size in window.shape)
    height, width = (data.draw(st.integers(1, size - at)) for size, at in zip(window.shape, (row, col), strict=True))
    part = PixelWindow(window.row0 + row, window.col0 + col, height, width)
    expected = whole[row : row + height, col : col + width]
    assert (rasterize(aoi, lattice.geobox(part)) == expected).all()


@pytest.mark.parametrize("resolution", [0.1, 0.3, 0.597164])
@pytest.mark.parametrize(("row", "col"), [(-9_210_123, 845_001), (60, 60), (-70, 40)])
def test_rasterize_computes_a_centre_to_the_bit_through_any_window(resolution, row, col):
    """An area one bit wide and high, at a pixel's centre, is that pixel."""
    lattice = Lattice(UTM32, resolution)
    x, y = (col + 0.5) * resolution, -(row + 0.5) * resolution
    aoi = Geometry(shapely.box(x, np.nextafter(y, -np.inf), np.nextafter(x, np.inf), y), UTM32)
    for back in range(64):
        mask = rasterize(aoi, lattice.geobox(PixelWindow(row - back, col - back, back + 2, back + 2)))
        assert np.argwhere(mask).tolist() == [[back, back]]


@given(stars, st.sampled_from([0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_rasterize_marks_centres_inside(aoi, resolution):
    geobox = Lattice(UTM32, resolution).geobox(Lattice(UTM32, resolution).window(aoi))
    rows, cols = np.indices(geobox.shape)
    x, y = geobox.affine.c + (cols + 0.5) * resolution, geobox.affine.f - (rows + 0.5) * resolution
    clear = shapely.distance(aoi.geom.boundary, shapely.points(x, y)) > 1e-6
    mask = rasterize(aoi, geobox)
    assert mask.dtype == bool
    assert (mask == shapely.contains_xy(aoi.geom, x, y))[clear].all()


def test_rasterize_leaves_out_holes_and_joins_parts():
    ring = Polygon([(0, 0), (6, 0), (6, 6), (0, 6)], [[(1, 1), (5, 1), (5, 5), (1, 5)]])
    aoi = Geometry(MultiPolygon([ring, shapely.box(2, 2, 4, 4)]), UTM32)
    mask = rasterize(aoi, Lattice(UTM32, 1).geobox(PixelWindow(-6, 0, 6, 6)))
    expected = np.ones((6, 6), bool)
    expected[1:5, 1:5] = False
    expected[2:4, 2:4] = True
    assert (mask == expected).all()


def test_rasterize_gives_a_shared_edge_to_one_area():
    """Edges run through pixel centres; each centre is in one of four squares."""
    geobox = Lattice(UTM32, 1).geobox(PixelWindow(-6, 0, 6, 6))
    squares = [box(x, y, x + 2, y + 2, UTM32) for x in (0.5, 2.5) for y in (0.5, 2.5)]
    masks = np.array([rasterize(square, geobox) for square in squares])
    assert masks.sum(axis=(1, 2)).tolist() == [4, 4, 4, 4]
    assert masks.sum(axis=0).max() == 1
    assert np.argwhere(masks[1])[0].tolist() == [1, 0]  # its north-western corner is a centre, and inside


def test_rasterize_of_neighbours_shares_no_pixel():
    geobox = Lattice(UTM32, 0.3).geobox(PixelWindow(-200, 0, 200, 200))
    left, right = [(0, 0), (31.7, 0), (17.3, 60), (0, 60)], [(31.7, 0), (60, 0), (60, 60), (17.3, 60)]
    masks = [rasterize(Geometry(Polygon(ring), UTM32), geobox).astype(int) for ring in (left, right)]
    assert (masks[0] + masks[1] == 1).all()


def test_rasterize_elsewhere_is_all_outside():
    geobox = Lattice(UTM32, 1).geobox(PixelWindow(0, 0, 5, 5))
    assert not rasterize(box(100, 100, 110, 110, UTM32), geobox).any()


def test_rasterize_refuses_another_crs_and_turned_pixels():
    geobox = Lattice(UTM32, 1).geobox(PixelWindow(0, 0, 5, 5))
    with pytest.raises(ValueError, match="reproject it"):
        rasterize(box(0, 0, 1, 1, WGS84), geobox)
    turned = GeoBox((5, 5), Affine(1, 0.5, 0, 0.5, -1, 0), UTM32)
    with pytest.raises(ValueError, match="north-up"):
        rasterize(box(0, 0, 1, 1, UTM32), turned)
