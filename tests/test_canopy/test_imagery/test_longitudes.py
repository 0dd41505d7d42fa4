from pathlib import Path

import numpy as np
import pytest
import shapely
from imagery_reading import grid, read
from pyproj import CRS, Transformer
from rasterio import Affine
from rasters import make_raster, world_values

from canopy.imagery import open_imagery
from canopy.imagery.longitudes import polygon, recentred, turn, wrapped

WGS84 = CRS("EPSG:4326").to_wkt()
MERCATOR = CRS("EPSG:3857").to_wkt()
TURN_M = 2 * np.pi * 6_378_137
UTM_60, UTM_1 = "EPSG:32660", "EPSG:32601"


@pytest.mark.parametrize(
    ("code", "length", "middle"),
    [
        ("EPSG:4326", 360, 0), ("EPSG:4807", 400, 0), ("EPSG:3857", TURN_M, 0), ("EPSG:3395", TURN_M, 0),
        ("EPSG:4087", TURN_M, 0), ("EPSG:3832", TURN_M, 0),
    ],
)  # fmt: skip
def test_a_turn_is_measured(code: str, length: float, middle: float) -> None:
    assert turn(CRS(code).to_wkt()) == pytest.approx((length, middle), rel=1e-9)


@pytest.mark.parametrize("code", ["EPSG:32631", "EPSG:2154", "EPSG:3413", "EPSG:3035"])
def test_other_crs_have_no_turn(code: str) -> None:
    assert turn(CRS(code).to_wkt()) is None


@pytest.mark.parametrize(
    ("wkt", "left", "right", "shift"),
    [
        (WGS84, -180, 180, 0), (WGS84, 3, 4, 0), (WGS84, 181, 200, -360), (WGS84, 359, 360, -360),
        (WGS84, -200, -190, 360), (WGS84, 500_000, 500_001, 0), (MERCATOR, 2.1e7, 2.2e7, -TURN_M),
    ],
)  # fmt: skip
def test_a_raster_is_moved_by_whole_turns(wkt: str, left: float, right: float, shift: float) -> None:
    assert recentred(wkt, left, right) == (wkt, pytest.approx(shift))


def test_a_raster_across_the_antimeridian_gets_its_own_meridian() -> None:
    for wkt, left, right in ((WGS84, 179, 182), (WGS84, 0, 360), (MERCATOR, 2.0e7, 2.01e7)):
        moved, shift = recentred(wkt, left, right)
        assert moved != wkt and left + shift == pytest.approx(-(right + shift))
        there = Transformer.from_crs(moved, "OGC:CRS84", always_xy=True)
        here_to = Transformer.from_crs(wkt, "OGC:CRS84", always_xy=True)
        expected = wrapped(np.array([here_to.transform(right, 10)[0]]))[0]
        assert wrapped(np.array([there.transform(right + shift, 10)[0]]))[0] == pytest.approx(expected, abs=1e-9)


def scene_at(path: Path, crs: str, lon: float, lat: float, step: float, turns: int = 0) -> Path:
    """A raster of `world` whose middle is at a place, written whole turns further east."""
    shape = (120, 160)
    x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(lon, lat)
    length = (turn(CRS(crs).to_wkt()) or (0, 0))[0]
    transform = Affine(step, 0, x - 80 * step, 0, -step, y + 60 * step)
    values = world_values(crs, transform, shape)
    return make_raster(path, crs=crs, transform=Affine.translation(turns * length, 0) @ transform, values=values)


@pytest.mark.parametrize(("crs", "step"), [("EPSG:4326", 5e-6), ("EPSG:3857", 0.6)])
@pytest.mark.parametrize("turns", [1, -1])
def test_imagery_from_0_to_360_degrees_is_the_same_picture(tmp_path: Path, crs: str, step: float, turns: int) -> None:
    plain = scene_at(tmp_path / "a.tif", crs, -70.0, -3.0, step)
    turned = scene_at(tmp_path / "b.tif", crs, -70.0, -3.0, step, turns)
    assert open_imagery(turned).footprint.boundingbox == pytest.approx(open_imagery(plain).footprint.boundingbox)
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32719", always_xy=True).transform(-70.0, -3.0)
    for geobox in (
        grid((40, 40), crs="EPSG:32719", origin=(x - 10, y + 10)),
        grid((40, 40), crs=crs, resolution=step, origin=(open_imagery(plain).footprint.boundingbox.left, -3.0))
        if crs == "EPSG:4326"
        else grid((40, 40), crs="EPSG:32719", origin=(x, y)),
    ):
        image = read(turned, geobox)
        np.testing.assert_allclose(image, read(plain, geobox), atol=1e-4)
        assert np.isfinite(image).all()


@pytest.mark.parametrize(
    ("crs", "step", "target"),
    [
        ("EPSG:4326", 5e-6, "utm"), ("EPSG:4269", 5e-6, "utm"), ("EPSG:3857", 0.6, "utm"), ("EPSG:3395", 0.6, "utm"),
        (UTM_60, 0.5, "utm"), ("EPSG:4326", 5e-6, "degrees"), ("EPSG:3857", 0.6, "mercator"),
        (UTM_60, 0.5, "mercator"),
    ],
)  # fmt: skip
def test_imagery_across_the_antimeridian_is_read_on_both_sides(
    tmp_path: Path, crs: str, step: float, target: str
) -> None:
    source = open_imagery(scene_at(tmp_path / "a.tif", crs, 180.0 - 1e-9, -17.0, step))
    assert isinstance(source.footprint.geom, shapely.MultiPolygon) and source.footprint.geom.area < 1e-5
    assert source.gsd_m < 0.7
    for lon, zone in ((180 - 1.2e-4, UTM_60), (-180 + 2e-5, UTM_1)):
        out_crs = {"utm": zone, "degrees": "EPSG:4326", "mercator": "EPSG:3857"}[target]
        out_step = 5e-6 if target == "degrees" else 0.5
        x, y = Transformer.from_crs("OGC:CRS84", out_crs, always_xy=True).transform(lon, -17.0)
        geobox = grid((20, 20), crs=out_crs, resolution=out_step, origin=(x, y + 10 * out_step))
        image = source.read(geobox).values
        assert np.isfinite(image).all()
        if lon > 0:  # the pattern itself jumps at 180 degrees
            np.testing.assert_allclose(image * 255, world_values(out_crs, geobox.affine, geobox.shape), atol=4)


def test_a_ring_is_cut_at_the_antimeridian() -> None:
    cut = polygon(np.array([179.0, 181, 181, 179]), np.array([0.0, 0, 1, 1]))
    assert cut.area == pytest.approx(2) and cut.bounds == (-180, 0, 180, 1)
    wrapped_ring = polygon(np.array([179.0, -179, -179, 179]), np.array([0.0, 0, 1, 1]))
    assert wrapped_ring.symmetric_difference(cut).area < 1e-9
    assert polygon(np.array([359.0, 361, 361, 359]), np.array([0.0, 0, 1, 1])).bounds == (-1, 0, 1, 1)


def test_a_ring_around_a_pole_is_a_cap() -> None:
    lon = np.arange(0.0, 360, 30)
    assert polygon(wrapped(lon), np.full(12, 80.0)).bounds == (-180, 80, 180, 90)
    assert polygon(wrapped(lon), np.full(12, -80.0)).bounds == (-180, -90, 180, -80)


def test_the_whole_world_is_the_whole_world(tmp_path: Path) -> None:
    for origin in (-180.0, 0.0):
        path = make_raster(
            tmp_path / f"{origin}.tif", crs="EPSG:4326", origin=(origin, 90), resolution=2.0, shape=(90, 180)
        )
        assert open_imagery(path).footprint.geom.area == pytest.approx(360 * 180)
