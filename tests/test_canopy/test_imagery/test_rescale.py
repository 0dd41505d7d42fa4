from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import SHAPE, grid, read, stored
from rasters import make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery


def rule(path: Path, **options: Any) -> Any:
    return open_imagery(path, **options).rescale


def test_8_bit_values_whatever_their_type(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "int16", "uint32"):
        rescale = rule(make_raster(tmp_path / f"{dtype}.tif", dtype=dtype))
        assert (rescale.low, rescale.high) == (0, 255)


def test_11_bit_values_are_stretched_together(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", pattern="noise", factor=8, shape=(300, 300))
    rescale = rule(path)
    values = stored(path)
    low, high = np.percentile(values, [0.5, 99.5])
    assert (low - rescale.low) / (rescale.high - rescale.low) == pytest.approx(0.02, abs=0.005)
    assert (high - rescale.low) / (rescale.high - rescale.low) == pytest.approx(0.98, abs=0.005)
    expected = np.clip((values - rescale.low) / (rescale.high - rescale.low), 0, 1)
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


def test_mixed_types_need_a_scale(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif")
    make_raster(tmp_path / "d" / "b.tif", dtype="uint16")
    with pytest.raises(ImageryError, match=r"types uint16, uint8.*--scale"):
        open_imagery(tmp_path / "d")
    assert np.isfinite(read(tmp_path / "d", scale=(0, 255))).all()
