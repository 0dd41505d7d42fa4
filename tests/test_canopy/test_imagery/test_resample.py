import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagery_reading import SHAPE, X, Y, grid, point_in, read, stored
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from rasters import LEVELS, UTM, make_raster, world_values

from canopy.errors import ImageryError
from canopy.imagery import open_imagery

SOURCES = {
    "utm": (UTM, 0.5),
    "mercator": ("EPSG:3857", 0.7),
    "geographic": ("EPSG:4326", 5e-6),
    "survey foot": ("EPSG:2263", 1.6),
    "lambert": ("EPSG:2154", 0.5),
}


def home(crs: str) -> tuple[float, float]:
    return (980_000.0, 200_000.0) if crs == "EPSG:2263" else point_in(crs)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["same", "shifted", "utm zone", "mercator", "coarser"])
def test_values_come_from_their_true_place(tmp_path: Path, source: str, target: str) -> None:
    crs, step = SOURCES[source]
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
    mask = np.ones((420, 420), bool)
    mask[60:90, 120:160] = False
    mask[np.random.default_rng(1).random(mask.shape) < 0.001] = False
    return make_raster(
        tmp_path_factory.mktemp("holed") / "a.tif", shape=mask.shape, pattern="noise", mask=mask, tiled=True
    )


@pytest.fixture(scope="module", params=CASES)
def whole(holed: Path, request: pytest.FixtureRequest) -> tuple[Path, Callable[..., GeoBox], np.ndarray]:
    """A raster with holes, windows on one grid over it, and the pixels of one window over all of it."""
    crs, step, phase = CASES[request.param]
    x, y = point_in(crs)
    col, row = round(x / step), round(-y / step)

    def window(left: int, top: int, height: int, width: int) -> GeoBox:
        transform = Affine(step, 0, (col + left + phase) * step, 0, -step, -(row + top + phase) * step)
        return GeoBox((height, width), transform, crs)

    size = 100 if request.param == "down5" else 320
    return holed, window, open_imagery(holed).read(window(-20, -20, size, size)).values


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_window_independence(whole: tuple[Path, Callable[..., GeoBox], np.ndarray], data: st.DataObject) -> None:
    path, window, pixels = whole
    size = pixels.shape[1]
    top, left = data.draw(st.integers(0, size - 30)), data.draw(st.integers(0, size - 30))
    height, width = data.draw(st.integers(1, size - top)), data.draw(st.integers(1, size - left))
    part = open_imagery(path).read(window(left - 20, top - 20, height, width)).values
    np.testing.assert_array_equal(part, pixels[:, top : top + height, left : left + width])
    assert np.isfinite(pixels).mean() > 0.3


def test_threads_read_the_same_bits(holed: Path) -> None:
    source = open_imagery(holed)
    geoboxes = [grid((50, 50), origin=(X + 30 * i + 0.1, Y - 20 * i)) for i in range(6)] * 2
    serial = [source.read(geobox).values for geobox in geoboxes]
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=barrier.wait) as pool:
        threaded = [image.values for image in pool.map(open_imagery(holed).read, geoboxes)]
    for one, other in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(
    "target", [(UTM, 0.5, 0.0), (UTM, 0.5, 0.17), (UTM, 0.2, 0.0), (UTM, 1.7, 0.0), ("EPSG:3857", 0.6, 0.0)]
)
def test_a_constant_image_stays_constant(tmp_path: Path, dtype: str, target: Any) -> None:
    crs, step, shift = target
    path = make_raster(tmp_path / "a.tif", dtype=dtype, pattern="constant", shape=(200, 200))
    x, y = point_in(crs, X + 10, Y - 10)
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


def test_the_geobox_must_be_a_plain_grid(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    turned = GeoBox((8, 8), grid().affine @ Affine.rotation(10), UTM)
    with pytest.raises(ImageryError, match="north-up grid"):
        read(path, turned)
    south_up = GeoBox(SHAPE, Affine(0.5, 0, X, 0, 0.5, Y - 48), UTM)
    np.testing.assert_allclose(read(path, south_up), read(path)[:, ::-1], atol=1e-6)
