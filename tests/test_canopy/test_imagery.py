import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from rasterio.shutil import copy
from rasters import LEVELS, ORIGIN, UTM, make_raster, quiet, world_values

from canopy.errors import ImageryError
from canopy.imagery import open_imagery

X, Y = ORIGIN
SHAPE = (96, 128)


def grid(
    shape: tuple[int, int] = SHAPE,
    *,
    crs: str = UTM,
    resolution: float = 0.5,
    origin: tuple[float, float] = ORIGIN,
) -> GeoBox:
    return GeoBox(shape, Affine(resolution, 0, origin[0], 0, -resolution, origin[1]), crs)


def read(path: Any, geobox: GeoBox | None = None, **options: Any) -> np.ndarray:
    return open_imagery(path, **options).read(geobox or grid()).values


def at(crs: str, x: float = X, y: float = Y) -> tuple[float, float]:
    return Transformer.from_crs(UTM, crs, always_xy=True).transform(x, y)


def stored(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_scene_on_the_grid_is_copied_exactly(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    image = open_imagery(path).read(grid())
    np.testing.assert_array_equal(image.values, stored(path) * np.float32(1 / 255))
    assert image.dims == ("band", "y", "x")
    assert image.dtype == np.float32
    assert list(image.band.values) == ["red", "green", "blue"]
    assert image.x.values[0] == X + 0.25
    assert image.y.values[0] == Y - 0.25


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rioxarray multiplies affines with *
def test_the_array_carries_its_georeference(tmp_path: Path) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    image = open_imagery(make_raster(tmp_path / "a.tif")).read(grid())
    assert rioxarray and image.rio.crs.to_epsg() == 32631
    assert image.rio.transform() == Affine(0.5, 0, X, 0, -0.5, Y)


def test_outside_the_file_is_unknown_in_all_bands(tmp_path: Path) -> None:
    image = read(make_raster(tmp_path / "a.tif"), grid(origin=(X - 10, Y + 5)))
    assert np.isnan(image[:, :10]).all()
    assert np.isnan(image[:, :, :20]).all()
    assert np.isfinite(image[:, 10:, 20:]).all()
    assert np.isnan(read(tmp_path / "a.tif", grid(origin=(X + 50_000, Y)))).all()


# Georeferencing: values are a function of true ground position.

PLACES = {
    "utm": (UTM, 0.5),
    "mercator": ("EPSG:3857", 0.7),
    "geographic": ("EPSG:4326", 5e-6),
    "survey foot": ("EPSG:2263", 1.6),
    "lambert": ("EPSG:2154", 0.5),
}


def home(crs: str) -> tuple[float, float]:
    return (980_000.0, 200_000.0) if crs == "EPSG:2263" else at(crs)


@pytest.mark.parametrize("source", PLACES)
@pytest.mark.parametrize("target", ["same", "shifted", "utm zone", "mercator", "coarser"])
def test_values_come_from_their_true_place(tmp_path: Path, source: str, target: str) -> None:
    crs, step = PLACES[source]
    x, y = home(crs)
    path = make_raster(tmp_path / "a.tif", crs=crs, origin=(x, y), resolution=step, shape=(160, 160), pattern="world")
    utm = "EPSG:32618" if source == "survey foot" else UTM
    out_crs = {"utm zone": utm, "mercator": "EPSG:3857"}.get(target, crs)
    out_step = {"utm zone": 0.5, "mercator": 0.6, "coarser": 2.5 * step}.get(target, step)
    inner = (x + 40 * step + (0.3 * step if target == "shifted" else 0), y - 50 * step)
    origin = Transformer.from_crs(crs, out_crs, always_xy=True).transform(*inner)
    geobox = grid((30, 30), crs=out_crs, resolution=out_step, origin=origin)
    truth = world_values(out_crs, geobox.affine, geobox.shape)
    np.testing.assert_allclose(read(path, geobox) * 255, truth, atol=2.5)


@pytest.mark.parametrize("case", ["rotated", "sheared", "south-up", "non-square", "gcps"])
def test_unusual_transforms(tmp_path: Path, case: str) -> None:
    placed = Affine(0.5, 0, X, 0, -0.5, Y)
    transform = {
        "rotated": placed @ Affine.translation(40, 0) @ Affine.rotation(25),
        "sheared": placed @ Affine.shear(10, 5),
        "south-up": Affine(0.5, 0, X, 0, 0.5, Y - 80),
        "non-square": Affine(0.25, 0, X, 0, -0.5, Y),
    }.get(case, placed)
    path = make_raster(tmp_path / "a.tif", transform=transform, shape=(160, 200), pattern="world", gcps=case == "gcps")
    geobox = grid((40, 40), origin=(X + 20, Y - 20))
    truth = world_values(UTM, geobox.affine, geobox.shape)
    np.testing.assert_allclose(read(path, geobox) * 255, truth, atol=2.5)


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


def test_gsd_of_several_files_is_the_coarsest(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", resolution=0.5)
    make_raster(tmp_path / "d" / "b.tif", resolution=1.0)
    assert open_imagery(tmp_path / "d").gsd_m == pytest.approx(0.9996, rel=1e-3)


def test_footprint_is_the_outline_in_degrees(tmp_path: Path) -> None:
    source = open_imagery(make_raster(tmp_path / "a.tif", crs="EPSG:4326", origin=(3, 45), resolution=0.001))
    assert source.footprint.boundingbox.bbox == pytest.approx((3, 45 - 0.096, 3.128, 45))
    assert source.footprint.crs == "EPSG:4326"


def test_footprint_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", crs="EPSG:32660", origin=(833_950, 100), shape=(64, 128))
    source = open_imagery(path)
    assert source.footprint.geom.area < 1e-6 or source.footprint.geom.geom_type == "MultiPolygon"
    assert np.isfinite(read(path, grid((8, 8), crs="EPSG:32660", origin=(833_960, 90)))).all()


# A pixel does not depend on the window.

CASES = {
    "aligned": (UTM, 0.5, 0.0),
    "shifted": (UTM, 0.5, 0.3),
    "half": (UTM, 0.5, 0.5),
    "down5": (UTM, 2.5, 0.0),
    "down1.3": (UTM, 0.65, 0.1),
    "up2": (UTM, 0.25, 0.0),
    "mercator": ("EPSG:3857", 0.6, 0.0),
    "degrees": ("EPSG:4326", 7e-6, 0.7),
}


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mask = np.ones((700, 700), bool)
    mask[100:140, 200:260] = False
    mask[np.random.default_rng(1).random(mask.shape) < 0.001] = False
    return make_raster(
        tmp_path_factory.mktemp("holed") / "a.tif", shape=mask.shape, pattern="noise", mask=mask, tiled=True
    )


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_window_independence(holed: Path, case: str, data: st.DataObject) -> None:
    crs, step, phase = CASES[case]
    x, y = at(crs)
    size = {"down5": 140, "up2": 600}.get(case, 500)
    col, row = round(x / step), round(-y / step)

    def window(left: int, top: int, height: int, width: int) -> GeoBox:
        transform = Affine(step, 0, (col + left + phase) * step, 0, -step, -(row + top + phase) * step)
        return GeoBox((height, width), transform, crs)

    source = open_imagery(holed)
    whole = source.read(window(-20, -20, size, size)).values
    top, left = data.draw(st.integers(-20, size - 60)), data.draw(st.integers(-20, size - 60))
    height, width = data.draw(st.integers(1, size - 40 - top)), data.draw(st.integers(1, size - 40 - left))
    part = open_imagery(holed).read(window(left, top, height, width)).values
    rows, cols = slice(top + 20, top + 20 + height), slice(left + 20, left + 20 + width)
    np.testing.assert_array_equal(part, whole[:, rows, cols])
    assert np.isfinite(whole).mean() > 0.3


def test_threads_read_the_same_bits(holed: Path) -> None:
    source = open_imagery(holed)
    geoboxes = [grid((90, 90), origin=(X + 30 * i + 0.1, Y - 20 * i)) for i in range(8)] * 3
    serial = [source.read(geobox).values for geobox in geoboxes]
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=barrier.wait) as pool:
        threaded = [image.values for image in pool.map(open_imagery(holed).read, geoboxes)]
    for one, other in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one, other)


# Resampling.


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(
    "target", [(UTM, 0.5, 0.0), (UTM, 0.5, 0.17), (UTM, 0.2, 0.0), (UTM, 1.7, 0.0), ("EPSG:3857", 0.6, 0.0)]
)
def test_a_constant_image_stays_constant(tmp_path: Path, dtype: str, target: Any) -> None:
    crs, step, shift = target
    path = make_raster(tmp_path / "a.tif", dtype=dtype, pattern="constant", shape=(200, 200))
    x, y = at(crs, X + 10, Y - 10)
    image = read(path, grid((25, 25), crs=crs, resolution=step, origin=(x + shift, y)), scale=(0, 255))
    for band, level in zip(image, LEVELS, strict=True):
        np.testing.assert_allclose(band, level / 255, rtol=3e-7)


def test_downsampling_averages(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", resolution=0.1, shape=(500, 500), pattern="noise")
    image = read(path, grid((80, 80), origin=(X + 5, Y - 5)))
    blocks = stored(path)[:, 50:450, 50:450].reshape(3, 80, 5, 80, 5).mean((2, 4)) / 255
    np.testing.assert_allclose(image, blocks, atol=1e-6)


def test_invalid_pixels_never_bleed(tmp_path: Path) -> None:
    values = np.full((3, 60, 60), 100)
    values[:, 20:40, 20:40] = 7
    path = make_raster(tmp_path / "a.tif", values=values, nodata=7, shape=(60, 60))
    for step, shift in [(0.5, 0.2), (0.3, 0.0), (0.7, 0.1), (1.3, 0.1)]:
        image = read(path, grid((int(20 / step), int(20 / step)), resolution=step, origin=(X + 5 + shift, Y - 5)))
        assert np.isnan(image).any()
        np.testing.assert_allclose(image[np.isfinite(image)], 100 / 255, rtol=3e-7)


def test_half_of_the_weight_decides_validity(tmp_path: Path) -> None:
    values = np.full((3, 40, 40), 100)
    values[:, :, :20] = 7
    path = make_raster(tmp_path / "a.tif", values=values, nodata=7)
    image = read(path, grid((10, 6), resolution=2.0, origin=(X + 5.2, Y)))
    # The hole ends at x = 10 m; the pixel from 9.2 to 11.2 m is 60 % valid.
    np.testing.assert_array_equal(np.isfinite(image[0, 2]), [False, False, True, True, True, True])
    image = read(path, grid((10, 6), resolution=2.0, origin=(X + 4.8, Y)))
    np.testing.assert_array_equal(np.isfinite(image[0, 2]), [False, False, False, True, True, True])


# Validity.

HOLE = np.s_[10:20, 30:50]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "external mask"])
def test_declared_holes(tmp_path: Path, dtype: str, kind: str) -> None:
    valid = np.ones(SHAPE, bool)
    valid[HOLE] = False
    options: dict[str, Any] = {}
    if kind == "nodata":
        values = np.full((3, *SHAPE), 90.0)
        values[:, ~valid] = 3
        options = {"values": values, "nodata": 3}
    elif kind == "alpha":
        options = {"alpha": valid, "photometric": "RGB"}
    else:
        options = {"mask": valid}
    path = make_raster(tmp_path / "a.tif", dtype=dtype, **options)
    np.testing.assert_array_equal(np.isfinite(read(path, scale=(0, 255))), np.broadcast_to(valid, (3, *SHAPE)))


def test_zero_is_a_value_unless_declared(tmp_path: Path) -> None:
    values = np.full((3, *SHAPE), 90)
    values[:, 10:20, 30:50] = 0
    values[0, 40:50, 30:50] = 0
    assert np.isfinite(read(make_raster(tmp_path / "a.tif", values=values))).all()
    declared = read(make_raster(tmp_path / "b.tif", values=values, nodata=0))
    assert np.isnan(declared[:, 10:20, 30:50]).all()
    assert np.isfinite(declared[:, 40:50, 30:50]).all()
    assert np.isnan(declared).mean() == pytest.approx(200 / (96 * 128))


def test_not_finite_values_are_unknown(tmp_path: Path) -> None:
    values = np.full((3, *SHAPE), 0.7)
    values[0, 5, 5], values[1, 6, 6], values[2, 7, 7] = np.nan, np.inf, -np.inf
    path = make_raster(tmp_path / "a.tif", dtype="float32", values=values)
    image = read(path, scale=(0, 1))
    assert np.argwhere(np.isnan(image[1])).tolist() == [[5, 5], [6, 6], [7, 7]]
    np.testing.assert_allclose(image[np.isfinite(image)], 0.7, rtol=1e-6)
    assert np.isfinite(read(path, grid((10, 10), resolution=4), scale=(0, 1))).all()


def collared() -> np.ndarray:
    values = np.full((3, 300, 300), 90)
    rows, cols = np.indices((300, 300))
    values[:, (rows + cols < 120) | (cols > 290)] = 0
    values[:, 150:160, 100:130] = 0
    return values


def test_a_black_collar_is_unknown_and_shadow_is_not(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=collared())
    image = read(path, grid((300, 300)))
    expected = collared()[0] > 0
    expected[150:160, 100:130] = True
    np.testing.assert_array_equal(np.isfinite(image[0]), expected)
    assert (image[:, 150:160, 100:130] == 0).all()
    part = read(path, grid((40, 40), origin=(X + 10, Y)))
    np.testing.assert_array_equal(part, image[:, :40, 20:60])


def test_a_collar_blurred_by_jpeg_is_unknown(tmp_path: Path) -> None:
    path = make_raster(
        tmp_path / "a.tif",
        values=collared(),
        compress="JPEG",
        photometric="YCBCR",
        tiled=True,
        JPEG_QUALITY=80,
    )
    image = read(path, grid((300, 300)))
    assert np.isnan(image[0, :40, :40]).all()
    assert np.isnan(image[0, :, 292:]).all()
    assert np.isfinite(image[0, 130:, 130:285]).all()
    assert np.isfinite(image[0, 150:160, 100:130]).all()
    np.testing.assert_allclose(image[:, 200:, 150:280], 90 / 255, atol=3 / 255)


# Values.


def rule(path: Path, **options: Any) -> Any:
    return open_imagery(path, **options).rescale


def test_8_bit_values_whatever_their_type(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "int16", "uint32"):
        found = rule(make_raster(tmp_path / f"{dtype}.tif", dtype=dtype))
        assert (found.low, found.high) == (0, 255)


def test_11_bit_values_are_stretched_together(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", pattern="noise", factor=8, shape=(300, 300))
    found = rule(path)
    values = stored(path)
    low, high = np.percentile(values, [0.5, 99.5])
    assert (low - found.low) / (found.high - found.low) == pytest.approx(0.02, abs=0.005)
    assert (high - found.low) / (found.high - found.low) == pytest.approx(0.98, abs=0.005)
    expected = np.clip((values - found.low) / (found.high - found.low), 0, 1)
    np.testing.assert_allclose(read(path, grid((300, 300))), expected, atol=1e-6)


def test_float_reflectance(tmp_path: Path) -> None:
    dark = rule(make_raster(tmp_path / "a.tif", dtype="float32", pattern="noise", factor=0.1 / 255))
    assert dark.high == pytest.approx(0.1, abs=0.01)
    display = rule(make_raster(tmp_path / "b.tif", dtype="float32", pattern="noise", factor=1 / 255))
    assert (display.low, display.high) == (0, 1)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("value", [0, 1, 300, 2047, 30_000, -5])
def test_a_constant_image_has_a_range(tmp_path: Path, dtype: str, value: int) -> None:
    if value < 0 and dtype == "uint16":
        pytest.skip("unsigned")
    path = make_raster(tmp_path / "a.tif", dtype=dtype, values=np.full((3, *SHAPE), value))
    assert rule(path).high > rule(path).low
    image = read(path)
    assert np.isnan(image).all() if value == 0 else ((image >= 0) & (image <= 1)).all()


def test_water_is_not_stretched_to_noise(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(100, 131, (3, *SHAPE)) * 4
    image = read(make_raster(tmp_path / "a.tif", dtype="uint16", values=values))
    assert image.max() - image.min() < 0.5


def test_scale_is_as_asked(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", pattern="constant")
    image = read(path, scale=(50, 150))
    np.testing.assert_allclose(image[:, 0, 0], [0, 0.5, 1])
    with pytest.raises(ImageryError, match="correct --scale"):
        open_imagery(path, scale=(5, 5))


def test_all_nodata_opens_and_is_unknown(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=np.full((3, *SHAPE), 9), nodata=9)
    assert np.isnan(read(path)).all()


# Bands.


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"colorinterp": ["blue", "green", "red", "undefined"]}, (3, 2, 1)),
        ({"colorinterp": ["red", "green", "blue", "undefined"]}, (1, 2, 3)),
        ({"descriptions": ["Blue", "Green", "Red", "NIR"]}, (3, 2, 1)),
        ({"descriptions": ["nir", "r", "g", "b"]}, (2, 3, 4)),
    ],
)
def test_four_bands_by_name(tmp_path: Path, options: dict[str, Any], order: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(1, 255, (4, *SHAPE))
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=values, photometric="MINISBLACK", **options)
    expected = values[[band - 1 for band in order]] / 255
    np.testing.assert_allclose(read(path), expected, atol=1e-6)


def test_four_unnamed_bands_need_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (4, *SHAPE))
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=values, photometric="MINISBLACK")
    with pytest.raises(ImageryError, match=r"RGBN or BGRN.*--bands"):
        open_imagery(path)
    np.testing.assert_allclose(read(path, bands=(3, 2, 1)), values[[2, 1, 0]] / 255, atol=1e-6)
    with pytest.raises(ImageryError, match="1 to 4"):
        open_imagery(path, bands=(3, 2, 5))


def test_three_unnamed_bands_are_rgb(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", photometric="MINISBLACK", pattern="constant")
    np.testing.assert_allclose(read(path)[:, 0, 0], np.array(LEVELS) / 255, rtol=1e-6)


@pytest.mark.parametrize("with_alpha", [False, True])
def test_one_band_is_repeated_and_said(tmp_path: Path, with_alpha: bool) -> None:
    alpha = np.indices(SHAPE)[1] > 30 if with_alpha else None
    path = make_raster(tmp_path / "a.tif", bands=1, alpha=alpha)
    image = read(path)
    np.testing.assert_array_equal(image[0], image[2])
    assert np.isnan(image).any() == with_alpha
    assert "panchromatic" in open_imagery(path).describe()


def test_a_palette_is_expanded(tmp_path: Path) -> None:
    index = np.indices(SHAPE)[1][None] % 3
    colours = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255), 2: (0, 0, 0, 0)}
    path = make_raster(tmp_path / "a.tif", values=index, colormap=colours)
    image = read(path)
    np.testing.assert_allclose(image[:, 5, 3] * 255, (10, 20, 30), rtol=1e-6)
    np.testing.assert_allclose(image[:, 5, 4] * 255, (40, 50, 60), rtol=1e-6)
    if np.isfinite(image[0, 5, 5]):  # the TIFF colour table has no alpha
        assert (image[:, 5, 5] == 0).all()


# Several files.


def test_the_first_valid_scene_wins(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    hole = np.full((3, *SHAPE), 50)
    hole[:, 20:40] = 255
    make_raster(folder / "a.tif", values=hole, nodata=255)
    make_raster(folder / "sub" / "b.tif", values=np.full((3, *SHAPE), 100), origin=(X, Y))
    (folder / "a.tif.aux.xml").write_text("<PAMDataset/>")
    (folder / "notes.txt").write_text("not a raster")
    image = read(folder) * 255
    np.testing.assert_allclose(image[:, :20], 50, rtol=1e-6)
    np.testing.assert_allclose(image[:, 20:40], 100, rtol=1e-6)
    turned = read([folder / "sub" / "b.tif", folder / "a.tif"]) * 255
    np.testing.assert_allclose(turned, 100, rtol=1e-6)
    assert len(open_imagery(str(folder / "**" / "*.tif")).uris) == 2


def test_abutting_scenes_leave_no_seam(tmp_path: Path) -> None:
    for i in range(2):
        make_raster(tmp_path / "d" / f"{i}.tif", origin=(X + 64 * i, Y), pattern="constant")
    assert np.isfinite(read(tmp_path / "d", grid((80, 200), origin=(X + 5.2, Y - 2.2)))).all()
    assert np.isfinite(read(tmp_path / "d", grid((30, 60), resolution=1.5, origin=(X + 5.2, Y - 2.2)))).all()


def test_scenes_of_different_crs(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", pattern="constant")
    x, y = at("EPSG:3857", X + 60, Y)
    make_raster(tmp_path / "d" / "b.tif", crs="EPSG:3857", origin=(x, y), resolution=0.7, pattern="constant")
    image = read(tmp_path / "d", grid((80, 200), origin=(X + 5, Y - 5)))
    np.testing.assert_allclose(image, np.broadcast_to(np.array(LEVELS)[:, None, None] / 255, image.shape), rtol=3e-7)


def test_more_files_than_handles(tmp_path: Path) -> None:
    for i in range(20):
        values = np.full((3, 8, 8), 10 + i)
        make_raster(tmp_path / "d" / f"{i:02}.tif", origin=(X + 4 * i, Y), values=values)
    image = read(tmp_path / "d", grid((8, 160))) * 255
    np.testing.assert_allclose(image[0, 0], 10 + np.arange(160) // 8, rtol=1e-6)


def test_mixed_types_need_a_scale(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif")
    make_raster(tmp_path / "d" / "b.tif", dtype="uint16")
    with pytest.raises(ImageryError, match=r"types uint16, uint8.*--scale"):
        open_imagery(tmp_path / "d")
    assert np.isfinite(read(tmp_path / "d", scale=(0, 255))).all()


# Dates, description, fingerprint.


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"TIFFTAG_DATETIME": "2020:01:02 03:04:05"}, None),
        ({"ACQUISITION_DATETIME": "2020-05-06T07:08:09Z"}, "2020-05-06T07:08:09Z"),
        ({"ACQUISITIONDATETIME": "2020:05:06 07:08:09"}, "2020-05-06T07:08:09"),
        ({"ACQUISITION_DATE": "2020-05-06"}, "2020-05-06"),
        ({"ACQUISITION_DATETIME": "2020-05-06/2020-06-07"}, "2020-05-06/2020-06-07"),
    ],
)
def test_acquisition_dates(tmp_path: Path, tags: dict[str, str], expected: str | None) -> None:
    assert open_imagery(make_raster(tmp_path / "a.tif", tags=tags)).datetime == expected


def test_dates_of_several_files_are_a_range_and_can_be_given(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", tags={"ACQUISITION_DATE": "2021-02-03"})
    make_raster(tmp_path / "d" / "b.tif", tags={"ACQUISITION_DATE": "2019-02-03"})
    assert open_imagery(tmp_path / "d").datetime == "2019-02-03/2021-02-03"
    assert open_imagery(tmp_path / "d", datetime="2018-01-01").datetime == "2018-01-01"


def test_describe_is_one_line(tmp_path: Path) -> None:
    text = open_imagery(make_raster(tmp_path / "a.tif")).describe()
    assert text == (
        "1 file, 128 x 96 px, GSD 0.5 m, EPSG:32631, bands 1,2,3 (colour interpretation), values 0..255 -> 0..1 (8-bit)"
    )


def test_the_fingerprint_follows_files_bands_and_scale(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    first = open_imagery(path).fingerprint()
    assert open_imagery(path).fingerprint() == first
    assert open_imagery(path, bands=(3, 2, 1)).fingerprint() != first
    assert open_imagery(path, scale=(0, 200)).fingerprint() != first
    os.utime(path, ns=(1, 1))
    assert open_imagery(path).fingerprint() != first


# What cannot be used is refused, in one line.


def refused(path: Any, match: str, **options: Any) -> None:
    with pytest.raises(ImageryError, match=match) as caught:
        open_imagery(path, **options).read(grid())
    assert "\n" not in str(caught.value)


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


def test_complex_values(tmp_path: Path) -> None:
    refused(make_raster(tmp_path / "a.tif", dtype="complex64"), "complex64 values")


def test_paths(tmp_path: Path) -> None:
    refused(tmp_path / "none.tif", "no such file")
    refused(str(tmp_path / "*.tif"), "no such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no raster in this folder")
    refused([], "empty list")
    refused("stac:https://example.org", "scheme 'stac:' is not supported yet")
    (tmp_path / "zero.tif").touch()
    refused(tmp_path / "zero.tif", "0 bytes")
    (tmp_path / "text.tif").write_text("hello " * 100)
    refused(tmp_path / "text.tif", "text.tif: cannot be read")


def truncated(folder: Path, dtype: str = "uint8", nodata: float | None = 0) -> Path:
    """Half of a COG: its header, at the front, is whole."""
    factor = 8 if dtype == "uint16" else 1
    whole = make_raster(
        folder / "whole.tif", dtype=dtype, pattern="noise", shape=(1200, 1200), factor=factor, nodata=nodata
    )
    copy(whole, folder / "a.tif", driver="COG", blocksize=128, overviews="NONE")
    path = folder / "a.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_truncated_file_is_never_nodata(tmp_path: Path, shift: float) -> None:
    source = open_imagery(truncated(tmp_path))
    assert np.isfinite(source.read(grid((50, 50), origin=(X + 10, Y - 10))).values).all()
    with pytest.raises(ImageryError, match=r"a\.tif: cannot be read"):
        source.read(grid((100, 100), origin=(X + 100 + shift, Y - 480)))


def test_a_truncated_file_fails_early_where_its_ends_are_needed(tmp_path: Path) -> None:
    refused(truncated(tmp_path / "sampled", "uint16"), r"a\.tif: cannot be read")
    refused(truncated(tmp_path / "collar", nodata=None), r"a\.tif: cannot be read")


def test_a_source_travels_to_another_process(tmp_path: Path) -> None:
    source = open_imagery(make_raster(tmp_path / "a.tif", gcps=True))
    image = source.read(grid())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(grid()), image)


def test_the_geobox_must_be_a_plain_grid(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    turned = GeoBox((8, 8), grid().affine @ Affine.rotation(10), UTM)
    with pytest.raises(ImageryError, match="north-up grid"):
        read(path, turned)
    south_up = GeoBox(SHAPE, Affine(0.5, 0, X, 0, 0.5, Y - 48), UTM)
    np.testing.assert_allclose(read(path, south_up), read(path)[:, ::-1], atol=1e-6)


def make_vrt(path: Path, member: Path, *, relative: bool) -> Path:
    copy(member, path, driver="VRT")
    name = os.path.relpath(member, path.parent) if relative else str(member)
    text = path.read_text()
    start, end = text.index("<SourceFilename"), text.index("</SourceFilename>")
    old = text[start:end]
    path.write_text(text.replace(old, f'<SourceFilename relativeToVRT="{int(relative)}">{name}'))
    return path


@pytest.mark.parametrize("relative", [True, False])
def test_a_vrt_and_its_missing_member(tmp_path: Path, relative: bool) -> None:
    member = make_raster(tmp_path / "m" / "a.tif")
    vrt = make_vrt(tmp_path / "a.vrt", member, relative=relative)
    np.testing.assert_array_equal(read(vrt), read(member))
    source = open_imagery(vrt)
    member.unlink()
    refused(vrt, r"member .*a\.tif is missing")
    with pytest.raises(ImageryError, match="replaced or removed"):
        source.read(grid())


def test_imagery_replaced_during_the_run(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    source = open_imagery(path)
    source.read(grid())
    make_raster(path, pattern="constant")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageryError, match="replaced or removed"):
        source.read(grid())


def test_a_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.imagery.scene._GDAL", {"GDAL_HTTP_MAX_RETRY": "0"})
    refused("http://127.0.0.1:9/a.tif", "cannot be read")


def test_nothing_is_printed(tmp_path: Path) -> None:
    path = truncated(tmp_path)
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from canopy.errors import ImageryError
from canopy.imagery import open_imagery
from odc.geo.geobox import GeoBox
from rasterio import Affine
source = open_imagery({str(path)!r})
geobox = GeoBox((1200, 1200), Affine(.5, 0, {X}, 0, -.5, {Y}), {UTM!r})
with ThreadPoolExecutor(2) as pool:
    for future in [pool.submit(source.read, geobox) for _ in range(2)]:
        assert isinstance(future.exception(), ImageryError), future.exception()
import sys
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)
