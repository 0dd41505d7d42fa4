from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import X, Y, grid, read, refused
from rasterio import Affine
from rasterio.shutil import copy
from rasters import ORIGIN, UTM, make_raster, quiet

from canopy.imagery import open_imagery


@pytest.mark.parametrize(
    ("crs", "origin", "step", "gsd"),
    [
        (UTM, ORIGIN, 0.5, 0.5 * 0.9996),
        (UTM, ORIGIN, 0.1, 0.1 * 0.9996),
        (UTM, ORIGIN, 10.0, 10 * 0.9996),
        ("EPSG:3857", (0.0, 8_399_737.889), 1.0, 0.5),
        ("EPSG:2263", (980_000.0, 200_000.0), 1.0, 0.3048),
        ("EPSG:4326", (3.0, 45.0), 1e-5, 1.1113),
        (UTM, ORIGIN, (0.25, 0.5), 0.5 * 0.9996),
    ],
)
def test_gsd_is_in_true_ground_metres(tmp_path: Path, crs: str, origin: Any, step: Any, gsd: float) -> None:
    path = make_raster(tmp_path / "a.tif", crs=crs, origin=origin, resolution=step, shape=(8, 8))
    source = open_imagery(path)
    # 1 m of web mercator at 60 N is 0.5 m on the sphere; the ellipsoid differs by up to 0.4 %.
    assert 1 / 1.0045 < source.gsd_m / gsd < 1.0045
    factor = 1 if isinstance(step, tuple) else step
    assert source.read(grid((4, 4), crs=crs, origin=origin, resolution=factor)).notnull().any()


def test_footprint_is_the_outline_in_degrees(tmp_path: Path) -> None:
    source = open_imagery(make_raster(tmp_path / "a.tif", crs="EPSG:4326", origin=(3, 45), resolution=0.001))
    assert source.footprint.boundingbox.bbox == pytest.approx((3, 45 - 0.096, 3.128, 45))
    assert source.footprint.crs == "EPSG:4326"


def test_footprint_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", crs="EPSG:32660", origin=(833_950, 100), shape=(64, 128))
    source = open_imagery(path)
    assert source.footprint.geom.area < 1e-6 or source.footprint.geom.geom_type == "MultiPolygon"
    assert np.isfinite(read(path, grid((8, 8), crs="EPSG:32660", origin=(833_960, 90)))).all()


def test_without_georeference(tmp_path: Path) -> None:
    refused(make_raster(tmp_path / "a.tif", transform=Affine.identity()), "no georeference")
    refused(make_raster(tmp_path / "b.tif", crs=None), "no CRS.*rio edit-info --crs")
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    refused(make_raster(tmp_path / "c.tif", crs=local, pattern="constant"), "is local")


def test_rpcs_only(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", transform=Affine.identity(), crs=None)
    ones = [1.0] + [0.0] * 19
    rpcs = rasterio.rpc.RPC(0, 1, 45, 1, ones, ones, 0, 1, 3, 1, ones, ones, 0, 1)
    with quiet(), rasterio.open(path, "r+") as dataset:
        dataset.rpcs = rpcs
    refused(path, "only RPCs.*gdalwarp -rpc")


def test_outside_the_area_of_the_crs(tmp_path: Path) -> None:
    refused(make_raster(tmp_path / "a.tif", crs="EPSG:4326", origin=(X, Y)), "outside the area of its CRS")


# Ground control points.

GOOD = [(0, 0), (0, 128), (96, 0), (96, 128), (48, 64)]


def with_gcps(path: Path, points: list[tuple[float, float, float, float]], crs: str = UTM) -> Path:
    """A raster with control points (row, column, x, y)."""
    make_raster(path, transform=Affine.identity(), crs=None)
    listed = "".join(
        f'<GCP Id="{number}" Pixel="{col}" Line="{row}" X="{x}" Y="{y}"/>'
        for number, (row, col, x, y) in enumerate(points)
    )
    text = f'<PAMDataset><GCPList Projection="{crs}">{listed}</GCPList></PAMDataset>'
    path.with_name(f"{path.name}.aux.xml").write_text(text)
    return path


def located(points: list[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    return [(row, col, X + col / 2, Y - row / 2) for row, col in points]


def test_control_points_place_an_image(tmp_path: Path) -> None:
    path = with_gcps(tmp_path / "a.tif", located(GOOD))
    np.testing.assert_allclose(read(path), read(make_raster(tmp_path / "b.tif")), atol=1e-3)
    refused(with_gcps(tmp_path / "c.tif", located(GOOD), crs=""), "no CRS.*--imagery-crs")
    assert np.isfinite(read(tmp_path / "c.tif", crs=UTM)).all()


@pytest.mark.parametrize(
    "points",
    [
        located(GOOD)[:1],
        located(GOOD)[:2],
        located([(0, 0), (10, 10), (20, 20), (40, 40)]),
        located([(5, 5)] * 6),
        [(row, col, X, Y) for row, col in GOOD],
        [*located(GOOD), (40, 30, X + 900, Y - 700)],
        [*located(GOOD)[:4], (48, 64, float("nan"), Y)],
        [*located(GOOD)[:4], (48, 64, float("inf"), Y)],
        [*located(GOOD)[:4], (48, 64, 1e300, -1e300)],
    ],
    ids=["one", "two", "a line", "one point", "one place", "an error", "nan", "inf", "huge"],
)
def test_bad_control_points_are_one_line(tmp_path: Path, points: list[tuple[float, float, float, float]]) -> None:
    refused(with_gcps(tmp_path / "a.tif", points), r"ground control points|no georeference|area of its CRS")


# CRSs.


@pytest.mark.parametrize("code", ["ESRI:104905", "IAU_2015:49900", "IAU_2015:30100", "ESRI:104903"])
def test_imagery_of_another_planet_is_one_line(tmp_path: Path, code: str) -> None:
    path = make_raster(tmp_path / "a.tif", crs=code, origin=(10, 10), resolution=1e-5, pattern="constant")
    refused(path, "another planet")
    assert open_imagery(path, crs="EPSG:4326").gsd_m == pytest.approx(1.1, rel=0.02)


def test_a_crs_can_be_named(tmp_path: Path) -> None:
    plain = make_raster(tmp_path / "a.tif")
    without = make_raster(tmp_path / "b.tif", crs=None)
    wrong = make_raster(tmp_path / "c.tif", crs="EPSG:32632")
    for path in (without, wrong):
        np.testing.assert_array_equal(read(path, crs=UTM), read(plain))
    refused(without, "--imagery-crs 'nonsense' is not a CRS", crs="nonsense")
    refused(without, "is local", crs='LOCAL_CS["site grid",UNIT["metre",1]]')


@pytest.mark.parametrize("transform", [Affine(0.0, 0, X, 0, 0, Y), Affine(0.5, 0.5, X, 0.5, 0.5, Y)])
def test_pixels_without_area(tmp_path: Path, transform: Affine) -> None:
    refused(make_raster(tmp_path / "a.tif", transform=transform), "pixels have no area")


def test_a_transform_that_is_not_finite(tmp_path: Path) -> None:
    make_raster(tmp_path / "m.tif")
    copy(tmp_path / "m.tif", tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    start, end = text.index("<GeoTransform>"), text.index("</GeoTransform>")
    (tmp_path / "a.vrt").write_text(f"{text[:start]}<GeoTransform>nan, 1, 0, inf, 0, -1{text[end:]}")
    refused(tmp_path / "a.vrt", "pixels have no area|outside the area of its CRS")
