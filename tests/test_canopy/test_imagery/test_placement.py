from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import X, Y, grid, read, refused
from rasterio import Affine
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
