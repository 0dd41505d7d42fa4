"""Zones and their tiles."""

import numpy as np
import pytest
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import box
from pyproj import Transformer

from canopy.batch.zones import divide, footprints, quadkey, quadkey_px, tiles_of
from canopy.errors import AOIError
from tiles.aoi import to_crs
from tiles.grid import Lattice, TileGrid, rasterize
from tiles.windows import PixelWindow


def test_an_area_inside_one_zone_is_not_touched() -> None:
    area = box(-111.5, 44.0, -111.4, 44.1, "EPSG:4326")
    (zone,) = divide(area, "utm", None, 0.5)
    assert zone.name == "32612"
    assert zone.lattice == zone.work == Lattice(zone.area.crs, 0.5)


def test_tiles_are_those_of_the_tile_grid() -> None:
    area = box(-111.5, 44.0, -111.45, 44.03, "EPSG:4326")
    (zone,) = divide(area, "utm", None, 0.5)
    tiles = tiles_of(zone, 1024)
    expected = TileGrid(zone.lattice, 1024).tiles(zone.area)
    assert [tuple(window) for window in tiles.windows.tolist()] == [
        (t.window.row0, t.window.col0, t.window.height, t.window.width) for t in expected
    ]
    assert tiles.names[0] == f"32612_{expected[0].name}"
    assert len(set(tiles.names)) == len(expected)
    mapped = (tiles.shares * tiles.windows[:, 2] * tiles.windows[:, 3]).sum() * 0.25
    assert mapped == pytest.approx(zone.area.area, rel=1e-6)


def test_zones_share_no_ground_and_leave_none_out() -> None:
    """Every point of the area is inside exactly one zone's pixels, on both sides of a zone's limit."""
    area = box(-108.0005, 44.0, -107.9995, 44.0006, "EPSG:4326")
    west, east = divide(area, "utm", None, 0.5)
    assert (west.name, east.name) == ("32612", "32613")
    count_m2 = 0.0
    for zone, side in ((west, -1), (east, 1)):
        window = zone.lattice.window(zone.area)
        inside = rasterize(zone.area, zone.lattice.geobox(window))
        rows, cols = np.nonzero(inside)
        geobox = zone.lattice.geobox(window)
        x, y = geobox.affine @ (cols + 0.5, rows + 0.5)
        lon, _ = Transformer.from_crs(zone.lattice.crs.to_wkt(), 4326, always_xy=True).transform(x, y)
        assert (side * (lon + 108) > -1e-8).all()
        count_m2 += inside.sum() * 0.25
    true_m2 = 0.001 * 111_320 * np.cos(np.radians(44)) * 0.0006 * 111_132
    assert count_m2 == pytest.approx(true_m2, rel=0.01)


def test_the_antimeridian_and_the_equator_are_limits_of_zones() -> None:
    names = {zone.name for zone in divide(box(179.99, -0.01, 180.01, 0.01, "EPSG:4326"), "utm", None, 10)}
    assert names == {"32660", "32760", "32601", "32701"}
    (polar,) = divide(box(10, 85, 11, 85.1, "EPSG:4326"), "utm", None, 10)
    assert polar.name == "32661"


def test_quadkeys_are_web_mercator_tiles() -> None:
    assert quadkey(3, 5, 3) == "213"
    area = box(-111.0, 44.25, -110.995, 44.2535, "EPSG:4326")
    (zone,) = divide(area, "quadkey:17", None, 0.5)
    side_px = quadkey_px(17, 0.5, 44.25)
    assert side_px == 512
    tiles = tiles_of(zone, side_px, 17)
    assert all(len(name) == 17 and set(name) <= set("0123") for name in tiles.names)
    # The tile of the area's north-west corner, by the usual formula.
    lon, lat, count = -110.9999, 44.2534, 2**17
    col = int((lon + 180) / 360 * count)
    row = int((1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2 * count)
    assert tiles.names[0] == quadkey(col, row, 17)
    assert zone.work.crs.to_epsg() == 32612


def test_a_quadkey_belongs_to_the_zone_of_its_centre_alone() -> None:
    area = box(-108.01, 44.0, -107.99, 44.01, "EPSG:4326")
    zones = divide(area, "quadkey:15", None, 0.5)
    side_px = quadkey_px(15, 0.5, 44.0)
    names = [name for zone in zones for name in tiles_of(zone, side_px, 15).names]
    assert len(zones) == 2
    assert len(names) == len(set(names))
    plain = TileGrid(zones[0].lattice, side_px).tiles(zones[0].area)
    assert len(names) == len(plain)


@pytest.mark.parametrize(
    ("grid", "resolution", "message"),
    [
        ("quadkey:5", None, "use quadkey:"),
        ("quadkey:22", None, "use quadkey:"),
        ("quadkey:17", 0.5, "leave it out"),
        ("hexagons", None, "utm, EPSG:n or quadkey:Z"),
        ("EPSG:999999", None, "is not a CRS"),
    ],
)
def test_other_grids_are_refused(grid: str, resolution: float | None, message: str) -> None:
    with pytest.raises(AOIError, match=message):
        divide(box(-111.0, 44.25, -110.99, 44.26, "EPSG:4326"), grid, resolution, 0.5)


def test_the_zoom_that_a_message_names_works() -> None:
    for zoom in (5, 22):
        with pytest.raises(AOIError) as refused:
            quadkey_px(zoom, 0.5, 44.0)
        named = int(str(refused.value).rpartition(":")[2])
        assert 256 <= quadkey_px(named, 0.5, 44.0) <= 16_384


def test_footprints_surround_their_pixels() -> None:
    (zone,) = divide(box(-111.5, 44.0, -111.4, 44.1, "EPSG:4326"), "utm", None, 0.5)
    (outline,) = footprints(zone.lattice, np.array([[-9_740_000, 920_000, 8192, 8192]]))
    frame = to_crs(zone.lattice.geobox(PixelWindow(-9_740_000, 920_000, 8192, 8192)).extent, CRS("EPSG:4326")).geom
    assert shapely.area(shapely.symmetric_difference(outline, frame)) / frame.area < 1e-4
