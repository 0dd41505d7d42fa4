from pathlib import Path

import numpy as np
from imagery_reading import X, Y, grid, read
from rasters import make_raster


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
